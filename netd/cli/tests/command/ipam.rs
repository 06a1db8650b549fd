// SPDX-License-Identifier: Apache-2.0
//! `weft ipam`.

use serde_json::{Value, json};

use crate::fake_netd::{FakeNetd, json as parsed, stderr, stdout};

fn check(findings: Value) -> Value {
    json!({"compared": ["3 addresses with 3 records"], "findings": findings})
}

fn leak() -> Value {
    json!({"kind": "leak", "subject": "weft/c1/eth0", "address": "10.244.0.7", "explanation": "nobody has it",
           "repairable": true, "remedy": "the address becomes free"})
}

#[test]
fn a_check_that_finds_something_exits_with_1() {
    let netd = FakeNetd::start(&[(200, check(json!([]))), (200, check(json!([leak()])))]);
    let clean = netd.weft(&["ipam", "check"]);
    assert_eq!(clean.status.code(), Some(0));
    assert!(stdout(&clean).contains("All of it agrees."));
    let found = netd.weft(&["ipam", "check", "--json"]);
    assert_eq!(found.status.code(), Some(1));
    assert_eq!(parsed(&found)["findings"][0]["kind"], "leak");
    assert!(netd.requests().iter().all(|(request, _)| request == "GET /v1/ipam/check"));
}

#[test]
fn a_repair_without_a_terminal_shows_its_plan_and_changes_nothing() {
    let netd = FakeNetd::start(&[(200, check(json!([leak()])))]);
    let output = netd.weft(&["ipam", "repair"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("repair: the address becomes free"), "{}", stdout(&output));
    assert!(stderr(&output).contains("add --yes"), "{}", stderr(&output));
    assert_eq!(netd.requests().len(), 1, "only the check: {:?}", netd.requests());
}

#[test]
fn a_repair_with_yes_repairs() {
    let mut after = check(json!([]));
    after["repaired"] = json!(["10.244.0.7 is free"]);
    let netd = FakeNetd::start(&[(200, check(json!([leak()]))), (200, after)]);
    let output = netd.weft(&["ipam", "repair", "--yes"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "Repaired:\n  - 10.244.0.7 is free\n");
    assert_eq!(netd.requests()[1].0, "POST /v1/ipam/repair");
}

#[test]
fn where_nothing_is_wrong_nothing_is_repaired() {
    let netd = FakeNetd::start(&[(200, check(json!([])))]);
    let output = netd.weft(&["ipam", "repair", "--yes"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "Nothing to repair.\n"));
    assert_eq!(netd.requests().len(), 1);
}

#[test]
fn pools_and_sticky_names_are_changed_by_their_names() {
    let netd = FakeNetd::start(&[(200, json!({}))]);
    for (arguments, said) in [
        (
            &[
                "ipam",
                "pool",
                "add",
                "big",
                "10.245.0.0/16",
                "--block-prefix",
                "24",
                "--node-selector",
                "zone=a",
            ][..],
            "pool big added\n",
        ),
        (&["ipam", "pool", "drain", "big"], "pool big draining\n"),
        (&["ipam", "pool", "undrain", "big"], "pool big active\n"),
        (&["ipam", "pool", "rm", "big"], "pool big removed\n"),
        (&["ipam", "sticky", "rm", "db-0"], "sticky db-0 removed\n"),
    ] {
        let output = netd.weft(arguments);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), said), "{}", stderr(&output));
    }
    let wanted =
        json!({"name": "big", "cidr": "10.245.0.0/16", "block_prefix": 24, "node_selector": {"zone": "a"}});
    let asked = netd.requests();
    assert_eq!(asked[0], ("POST /v1/ipam/pools/add".to_owned(), wanted));
    let paths: Vec<_> = asked.iter().skip(1).map(|(request, _)| request.as_str()).collect();
    assert_eq!(
        paths,
        [
            "POST /v1/ipam/pools/drain",
            "POST /v1/ipam/pools/undrain",
            "POST /v1/ipam/pools/remove",
            "POST /v1/ipam/sticky/remove"
        ]
    );
    assert_eq!(asked[4].1, json!({"name": "db-0"}));
    let output = netd.weft(&["ipam", "pool", "rm", "big", "--json"]);
    assert_eq!(parsed(&output), json!({"kind": "pool", "name": "big", "state": "removed"}));
}

#[test]
fn what_a_new_pool_means_for_pods_is_told() {
    let netd = FakeNetd::start(&[(200, json!({"notes": ["The cluster is dual-stack from now on"]}))]);
    let output = netd.weft(&["ipam", "pool", "add", "six", "fd00:1::/64"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "pool six added\n"));
    assert_eq!(stderr(&output), "note: The cluster is dual-stack from now on.\n");
}

#[test]
fn what_netd_refuses_is_told_in_its_words() {
    let refusal =
        json!({"class": "conflict", "cni_code": 101, "message": "pool big has 3 blocks: drain it first"});
    let netd = FakeNetd::start(&[(409, refusal)]);
    let output = netd.weft(&["ipam", "pool", "rm", "big"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: pool big has 3 blocks: drain it first\n");
}
