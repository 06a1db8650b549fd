// SPDX-License-Identifier: Apache-2.0
//! A container runtime in miniature: starts the binary with variables and stdin, and owns the namespaces.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

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
    let mut child = command(netns, vars).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A plugin that stops before it has read everything closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Answer {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The same by a runtime that does not listen to the answer. Whether it succeeded.
pub(crate) fn call_deaf(netns: Option<&Netns>, vars: &[(&str, &str)], stdin: &[u8]) -> bool {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = command(netns, vars).stdout(writer).stderr(Stdio::null()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait().unwrap().success()
}

/// The same by a runtime that kills it as soon as `when` holds.
pub(crate) fn call_killed(
    netns: Option<&Netns>,
    vars: &[(&str, &str)],
    stdin: &[u8],
    when: impl Fn() -> bool,
) {
    // nsenter becomes the plugin, so the child is the plugin.
    let mut child = command(netns, vars).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !when() {
        assert!(Instant::now() < deadline, "it never came that far");
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn command(netns: Option<&Netns>, vars: &[(&str, &str)]) -> Command {
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
    command.envs(vars.iter().copied()).stdin(Stdio::piped());
    command
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
        self.call_raw(verb, container, config.to_string().as_bytes(), vars)
    }

    /// The same with these bytes on stdin.
    pub(crate) fn call_raw(
        &self,
        verb: &str,
        container: &str,
        stdin: &[u8],
        vars: &[(&str, &str)],
    ) -> Answer {
        let netns = self.pod.path();
        let mut all = self.vars(verb, container, &netns);
        all.extend(vars);
        call(Some(&self.host), &all, stdin)
    }

    /// The variables of a call.
    pub(crate) fn vars<'a>(
        &self,
        verb: &'a str,
        container: &'a str,
        netns: &'a str,
    ) -> Vec<(&'a str, &'a str)> {
        vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns),
            ("CNI_PATH", "/opt/cni/bin"),
        ]
    }

    /// ADD that has to succeed; the result.
    pub(crate) fn add(&self, container: &str, config: &Value) -> Value {
        let answer = self.call("ADD", container, config);
        assert!(answer.success, "{answer:?}");
        answer.json()
    }

    /// Nothing of a pod is left on the node.
    pub(crate) fn is_bare(&self) -> bool {
        self.pod.links().is_empty() && self.host.links().is_empty()
    }
}

/// The config with one more key.
pub(crate) fn with(config: &Value, key: &str, value: impl Into<Value>) -> Value {
    let mut config = config.clone();
    config[key] = value.into();
    config
}
