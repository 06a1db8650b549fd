// SPDX-License-Identifier: Apache-2.0
//! Deliberately broken plugins: the row of the broken sentence fails.

use crate::{Trial, having, rows};

/// Breaks the small plugin in one way and wants these rows to fail.
fn broken(fault: &str, fails: &[&str]) {
    broken_beside(fault, fails, &[]);
}

/// The same, with rows that are run before and may go either way.
fn broken_beside(fault: &str, fails: &[&str], beside: &[&str]) {
    let Some(trial) = Trial::new(fault) else { return };
    let only: Vec<&str> = fails.iter().chain(beside).flat_map(|row| ["--only", row]).collect();
    let (code, rows) = rows(&mut trial.fake(fault, &[&["--reuse-wait", "1"], &only[..]].concat()));
    let failed: Vec<&str> = having(&rows, "FAIL").into_keys().collect();
    let missed: Vec<_> = fails.iter().filter(|row| !failed.iter().any(|f| f.starts_with(*row))).collect();
    assert!(missed.is_empty(), "{fault}: {missed:?} passed: {rows:?}");
    assert_eq!(code, Some(1), "{fault}");
    assert_eq!(trial.left(), [""; 0], "{fault}");
}

#[test]
fn of_add() {
    broken("leaks-on-failed-add", &["add.exists", "cap.ips-foreign"]);
    broken("replaces-existing", &["add.exists", "add.twice"]);
    broken("ignores-prev-result", &["add.prev-result"]);
    broken("no-address", &["add.addresses", "cap.ips"]);
    broken("new-shape", &["add.result"]);
    broken("logs-on-stdout", &["add.stdout"]);
    broken("own-netns", &["add.own-netns"]);
    broken("one-address", &["add.second-interface", "conv.parallel"]);
}

#[test]
fn of_del() {
    broken("second-del-fails", &["del.twice", "del.unknown"]);
    broken("leaks-host-link", &["del.interface"]);
    broken("del-needs-netns", &["env.del-netns", "del.netns-gone"]);
    broken("del-needs-prev-result", &["del.no-prev-result", "del.damaged-cache"]);
    broken("keeps-address", &["del.address"]);
}

#[test]
fn of_check_status_and_gc() {
    let check =
        ["interface", "addresses", "routes", "mac", "mtu", "down", "host-side", "other-result", "after-del"];
    let check: Vec<String> = check.iter().map(|row| format!("check.{row}")).collect();
    broken("check-always-ok", &check.iter().map(String::as_str).collect::<Vec<_>>());
    broken("prints-on-check", &["check.after-add", "check.repeated"]);
    broken("status-always-ok", &["status.broken"]);
    broken("gc-frees-all", &["gc.frees", "gc.interface", "gc.both-keys"]);
    broken("gc-does-nothing", &["gc.frees", "gc.address", "gc.ports", "gc.interface"]);
    broken("gc-frees-other-networks", &["gc.network"]);
    broken("gc-without-list", &["gc.no-list"]);
    broken("prints-on-gc", &["gc.frees"]);
}

#[test]
fn of_errors_and_versions() {
    broken("wrong-code", &["env.add", "env.command", "config.undecodable", "config.name", "version.unknown"]);
    broken("accepts-any-name", &["env.container-id", "env.ifname"]);
    broken("error-on-stderr", &["env.del", "errors.object"]);
    broken_beside("error-without-version", &["errors.version"], &["env.del"]);
    broken("exit-0", &["env.check", "errors.exit"]);
    broken("version-not-echoed", &["version.reply"]);
}

#[test]
fn of_capabilities() {
    broken("mac-ignored", &["cap.mac"]);
    broken("precedence", &["cap.ips-precedence"]);
    broken("no-dnat", &["cap.port"]);
    broken("ports-shared", &["cap.port-taken"]);
    broken("no-limit", &["cap.bandwidth"]);
}
