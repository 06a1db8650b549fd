// SPDX-License-Identifier: Apache-2.0
//! The runner itself: a plugin that keeps every sentence passes every row, one that breaks a sentence fails the row of
//! that sentence, the reference plugins fail only what is known of them, and nothing is left behind.

#![allow(clippy::print_stdout, reason = "SKIP lines belong on stdout, where make test looks for them")]
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected has failed")]

mod faults;
mod reference;
mod whole;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// One run of the runner, with a folder of its own for the plugin's books.
struct Trial {
    folder: TempDir,
    prefix: String,
}

/// A row's verdict and why.
type Rows = BTreeMap<String, (String, String)>;

impl Trial {
    /// None, said loudly, where this machine cannot have one.
    fn new(test: &str) -> Option<Trial> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::Uid::effective().is_root() {
            println!("SKIP {test}: needs root for network namespaces");
            return None;
        }
        // Debian's own python3: what stands before it on the search path may take ten times as long to start.
        for tool in ["ip", "nsenter", "nft", "tc", "/usr/bin/python3"] {
            if !on_path(tool) {
                println!("SKIP {test}: {tool} is not installed");
                return None;
            }
        }
        let prefix = format!("cct{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Some(Trial { folder: tempfile::tempdir().unwrap(), prefix })
    }

    fn write(&self, name: &str, config: &Value) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// The runner on the small plugin beside this file, broken as `faults` says.
    fn fake(&self, faults: &str, args: &[&str]) -> Command {
        let capabilities =
            ["ips", "mac", "ipRanges", "dns", "aliases", "cgroupPath", "portMappings", "bandwidth"];
        let capabilities: serde_json::Map<_, _> =
            capabilities.iter().map(|name| ((*name).to_owned(), true.into())).collect();
        let state = self.folder.path().join("state");
        std::fs::create_dir_all(&state).unwrap();
        let config = self.write(
            "fake.conflist",
            &json!({ "cniVersion": "1.1.0", "name": "fake", "plugins": [
                { "type": "fake_plugin.py", "stateDir": state, "capabilities": capabilities },
            ]}),
        );
        let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runner/fake_plugin.py");
        let mut command = self.runner(&plugin, &config);
        command.args(["--broken", "stateDir=/nonexistent/state"]).args(args).env("FAULT", faults);
        command
    }

    fn runner(&self, plugin: &Path, config: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-conformance"));
        command.arg("--plugin").arg(plugin).arg("--config").arg(config);
        command.args(["--netns-prefix", &self.prefix]).stdin(Stdio::null());
        command
    }

    /// Network namespaces that this trial made and that are still there.
    fn left(&self) -> Vec<String> {
        let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // With the dash: trial 1 has nothing to do with trial 10.
        names.filter(|name| name.starts_with(&format!("{}-", self.prefix))).collect()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        for name in self.left() {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// Runs it with `--json`: exit code and rows.
fn rows(command: &mut Command) -> (Option<i32>, Rows) {
    let out = command.arg("--json").output().unwrap();
    let stdout = String::from_utf8_lossy(&out.stdout);
    let report: Value = serde_json::from_str(&stdout).unwrap_or_default();
    assert!(report["rows"].is_array(), "{stdout}{}", String::from_utf8_lossy(&out.stderr));
    let rows = report["rows"].as_array().unwrap().iter().map(|row| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        (text("name"), (text("verdict"), text("why")))
    });
    (out.status.code(), rows.collect())
}

/// Rows with this verdict, with why.
fn having<'r>(rows: &'r Rows, verdict: &str) -> BTreeMap<&'r str, &'r str> {
    let those = rows.iter().filter(|(_, (got, _))| got == verdict);
    those.map(|(name, (_, why))| (name.as_str(), why.as_str())).collect()
}

fn on_path(tool: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(tool).is_file())
}
