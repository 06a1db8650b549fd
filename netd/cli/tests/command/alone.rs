// SPDX-License-Identifier: Apache-2.0
//! Without a netd: what it says and how it exits.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn weft(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(arguments)
        .env_remove("WEFT_SOCKET")
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn a_missing_socket_says_what_to_do() {
    let output = weft(&["--socket", "/nonexistent/netd.sock", "status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = stderr(&output);
    assert!(said.contains("netd is not running"), "{said}");
    assert!(said.contains("/nonexistent/netd.sock"), "{said}");
    assert!(said.contains("systemctl status netd"), "{said}");
}

#[test]
fn the_environment_names_the_socket() {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["node", "ls", "--json"])
        .env("WEFT_SOCKET", "/nonexistent/other.sock")
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/other.sock"));
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["nonsense"][..],
        &["status", "--nonsense"],
        &["apply"],
        &["delete", "service"],
        &["ipam", "pool", "add", "big", "10.245.0.1/16"],
        &["ipam", "pool", "drain"],
        &["node", "rm"],
        &["node", "rm", "n1", "--wait", "soon"],
        &["pod", "label", "web", "app"],
        &[],
    ] {
        assert_eq!(weft(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn version_and_help_are_no_failure() {
    let output = weft(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("weft {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(weft(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_file_with_an_error_is_refused_before_netd_is_asked() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["--socket", "/nonexistent/netd.sock", "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: none\n";
    child.stdin.take().expect("stdin is a pipe").write_all(text.as_bytes()).expect("stdin is read");
    let output = child.wait_with_output().expect("the binary ends");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.starts_with("error: stdin:7: spec.ports[0].port: "), "{said}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = weft(&["apply", "-f", "/nonexistent/web.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot open /nonexistent/web.yaml"), "{}", stderr(&output));
}
