// SPDX-License-Identifier: Apache-2.0
//! A container runtime in miniature: starts the binary with variables and stdin, and owns the namespaces.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// stdout as JSON; null where it is empty.
    pub(crate) fn json(&self) -> Value {
        if self.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of an error; 0 for a success.
    pub(crate) fn code(&self) -> u64 {
        if self.success {
            0
        } else {
            self.json()["code"].as_u64().unwrap_or_else(|| panic!("no error object: {self:?}"))
        }
    }
}

/// Runs the binary in `netns` (or here) with exactly these variables.
pub(crate) fn call(netns: Option<&Netns>, vars: &[(&str, &str)], stdin: &[u8]) -> Answer {
    let binary = env!("CARGO_BIN_EXE_weft-cni");
    let mut command = match netns {
        Some(netns) => {
            let mut nsenter = Command::new("nsenter");
            nsenter.arg(format!("--net={}", netns.path())).arg(binary);
            nsenter
        }
        None => Command::new(binary),
    };
    // nsenter itself needs to be found, the plugin needs nothing.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(vars.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A plugin that stops before it has read everything closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Answer {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A network namespace of this test's own; gone when dropped.
pub(crate) struct Netns(String);

impl Netns {
    /// None, with a word on stderr, where namespaces cannot be made.
    pub(crate) fn new(role: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wefttest-{}-{role}{number}", std::process::id());
        match Command::new("ip").args(["netns", "add", &name]).output() {
            Ok(output) if output.status.success() => Some(Self(name)),
            Ok(output) => skip(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => skip(&format!("ip: {error}")),
        }
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// `ip -j ARGS` in this netns.
    pub(crate) fn ip(&self, args: &str) -> Value {
        let output = Command::new("ip").args(["-j", "-n", &self.0]).args(args.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// The names of its links, without lo.
    pub(crate) fn links(&self) -> Vec<String> {
        let links = self.ip("link show");
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
        names.filter(|name| name != "lo").collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn skip<T>(reason: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must not skip: {reason}");
    eprintln!("SKIP: needs root and network namespaces: {}", reason.trim());
    None
}

/// A node's netns, a pod's netns, and a folder for the socket.
pub(crate) struct Node {
    pub(crate) host: Netns,
    pub(crate) pod: Netns,
    pub(crate) run: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Option<Self> {
        Some(Self { host: Netns::new("host")?, pod: Netns::new("pod")?, run: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run.path().join("netd.sock")
    }

    /// The least config for this node's netd.
    pub(crate) fn config(&self, version: &str) -> Value {
        json!({"cniVersion": version, "name": "weft", "type": "weft-cni", "socket": self.socket()})
    }

    /// One call for the container `container` on this node.
    pub(crate) fn call(&self, verb: &str, container: &str, config: &Value) -> Answer {
        self.call_with(verb, container, config, &[])
    }

    /// The same with variables that replace the usual ones.
    pub(crate) fn call_with(
        &self,
        verb: &str,
        container: &str,
        config: &Value,
        vars: &[(&str, &str)],
    ) -> Answer {
        let netns = self.pod.path();
        let mut all = vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &netns),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        all.extend(vars);
        call(Some(&self.host), &all, config.to_string().as_bytes())
    }
}
