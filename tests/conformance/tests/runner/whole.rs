// SPDX-License-Identifier: Apache-2.0
//! A plugin that is right; interrupts; usage.

use crate::{Trial, having, rows};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_plugin_that_keeps_every_sentence_passes_every_row() {
    let Some(trial) = Trial::new("whole") else { return };
    let (code, rows) = rows(&mut trial.fake("", &["--reuse-wait", "5"]));
    assert_eq!(having(&rows, "FAIL"), [].into());
    let other = having(&rows, "n/a");
    assert_eq!(other.keys().copied().collect::<Vec<_>>(), ["cap.device-id", "cap.infiniband-guid"]);
    assert!(rows.len() > 100, "{} rows", rows.len());
    assert_eq!(code, Some(0));
    assert_eq!(trial.left(), [""; 0]);
}

#[test]
fn the_table_has_a_last_line_and_versions_that_were_not_asked_for_do_not_count() {
    let Some(trial) = Trial::new("table") else { return };
    let args =
        ["--versions", "0.3.1,1.0.0", "--only", "version.", "--only", "status.", "--only", "add.result"];
    let out = trial.fake("", &args).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    // Of each three rows by version two count; STATUS came with 1.1.0.
    assert!(text.ends_with("\n8 passed, 0 failed, 15 not applicable\n"), "{text}");
    assert!(text.contains("\nVERSION\n") && text.contains("\nSTATUS\n"), "{text}");
    assert!(text.contains("1.1.0 was not asked for"), "{text}");
}

#[test]
fn ctrl_c_removes_everything() {
    let Some(trial) = Trial::new("interrupt") else { return };
    let mut command = trial.fake("slow", &[]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    // The plugin's own side and the first container: an ADD is under way.
    while trial.left().len() < 2 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(trial.left(), [""; 0]);
}

#[test]
fn a_run_that_cannot_be_made_is_2() {
    let Some(trial) = Trial::new("usage") else { return };
    let config =
        trial.write("x.conf", &serde_json::json!({ "cniVersion": "1.0.0", "name": "x", "type": "x" }));
    let code = |command: &mut std::process::Command| command.output().unwrap().status.code();
    assert_eq!(code(&mut trial.runner("/nonexistent".as_ref(), &config)), Some(2));
    assert_eq!(code(&mut trial.runner("/bin/true".as_ref(), "/nonexistent".as_ref())), Some(2));
    assert_eq!(code(trial.runner("/bin/true".as_ref(), &config).args(["--versions", "1.1.0"])), Some(2));
    assert_eq!(code(trial.runner("/bin/true".as_ref(), &config).args(["--only", "version.list"])), Some(1));
    assert_eq!(code(&mut trial.fake("", &["--only", "no.such.row"])), Some(2));
    assert_eq!(code(&mut trial.fake("", &["--bogus"])), Some(2));
    assert_eq!(trial.left(), [""; 0]);
}
