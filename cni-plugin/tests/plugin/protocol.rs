// SPDX-License-Identifier: Apache-2.0
//! Calls that end before the kernel is touched: environment, stdin, versions, STATUS.

use netd_api::ApiError;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::runtime::{Node, call};

const CALLS: &str = include_str!("../../../tests/cases/cni/calls.json");

#[test]
fn each_case_is_answered_to_the_letter() {
    let cases: Value = serde_json::from_str(CALLS).unwrap();
    for case in cases.as_array().unwrap() {
        let vars: Vec<(&str, &str)> = case["env"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .collect();
        // A string is sent as it is, anything else as JSON.
        let stdin = case["stdin"].as_str().map_or_else(|| case["stdin"].to_string(), str::to_owned);
        let answer = call(None, &vars, stdin.as_bytes());
        assert_eq!(answer.json(), case["stdout"], "{}", case["case"]);
        assert_eq!(answer.success, case["stdout"].get("code").is_none(), "{}", case["case"]);
    }
}

#[test]
fn each_version_gets_its_own_version_back() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.2.0"] {
        let config = json!({"cniVersion": version});
        let answer = call(None, &[("CNI_COMMAND", "VERSION")], config.to_string().as_bytes());
        assert!(answer.success);
        let expected = json!({"cniVersion": version, "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
        assert_eq!(answer.json(), expected);
    }
    assert_eq!(call(None, &[("CNI_COMMAND", "VERSION")], b"").json()["cniVersion"], "1.1.0");
}

#[test]
fn an_endless_config_is_refused() {
    let stdin = vec![b' '; 5 * 1024 * 1024];
    assert_eq!(call(None, &[("CNI_COMMAND", "VERSION")], &stdin).code(), 6);
}

#[test]
fn logs_go_to_stderr_at_the_wanted_level() {
    let vars = [("CNI_COMMAND", "STATUS"), ("WEFT_CNI_LOG", "off")];
    assert_eq!(call(None, &vars, b"{").stderr, "");
    let vars = [("CNI_COMMAND", "STATUS")];
    let answer = call(None, &vars, b"{");
    assert!(answer.stderr.contains("not JSON"), "{answer:?}");
    assert_eq!(answer.stdout.lines().count(), 1);
}

#[test]
fn status_says_whether_add_would_work() {
    let Some(node) = Node::new() else { return };
    let config = node.config("1.1.0");
    let status = || node.call("STATUS", "", &config);
    assert_eq!(status().code(), 50);

    let netd = Fake::start(&node.socket());
    assert_eq!(status().json(), Value::Null);
    assert!(status().success);
    netd.book().not_ready = Some("the store is not in sync");
    let answer = status();
    assert_eq!(answer.code(), 50);
    assert_eq!(answer.json()["details"], "the store is not in sync");
    netd.book().limited = true;
    assert_eq!(status().code(), 51);
}

#[test]
fn what_netd_refuses_keeps_its_code_and_details() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    netd.book().fail_allocate =
        Some(ApiError::exhausted("no free address in pool default").with_details("64 of 64"));
    let answer = node.call("ADD", "c1", &node.config("1.0.0"));
    let expected = json!({"cniVersion": "1.0.0", "code": 100, "msg": "no free address in pool default", "details": "64 of 64"});
    assert_eq!(answer.json(), expected);
    assert_eq!(netd.book().calls, ["allocate c1"]);
    assert!(node.pod.links().is_empty() && node.host.links().is_empty());
}
