// SPDX-License-Identifier: Apache-2.0
//! `weft node rm`.

use serde_json::{Value, json};

use crate::fake_netd::{FakeNetd, json as parsed, stderr, stdout};

fn removal(done: bool, waiting_for: &[&str]) -> Value {
    json!({"name": "n3", "uuid": "6f1c1b4e-0000-4000-8000-000000000003", "done": done, "waiting_for": waiting_for})
}

fn error(class: &str, message: &str) -> Value {
    json!({"class": class, "cni_code": 11, "message": message})
}

#[test]
fn a_removal_asks_until_it_is_done_and_says_each_thing_once() {
    let (own, route) = ("n3 has not acknowledged", "n1 still has routes to it");
    let netd = FakeNetd::start(&[
        (200, removal(false, &[own, route])),
        (200, removal(false, &[own, route])),
        (503, error("retry", "the store does not answer")),
        (200, removal(false, &[route])),
        (200, removal(true, &[])),
    ]);
    let output = netd.weft(&["node", "rm", "n3", "--yes", "--force"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).ends_with("removed, its blocks are free\n"), "{}", stdout(&output));
    let said = stderr(&output);
    assert_eq!(said.matches(own).count(), 1, "{said}");
    assert!(said.contains("waiting: the store does not answer"), "{said}");
    let wanted = ("POST /v1/nodes/remove".to_owned(), json!({"node": "n3", "force": true}));
    assert_eq!(netd.requests(), vec![wanted; 5]);
}

#[test]
fn a_removal_that_takes_too_long_exits_with_1_and_the_state_it_has_reached() {
    let netd = FakeNetd::start(&[(200, removal(false, &["n3 has not acknowledged"]))]);
    let output = netd.weft(&["node", "rm", "n3", "--yes", "--wait", "0s", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(parsed(&output)["done"], false);
    assert_eq!(netd.requests().len(), 1);
    let output = netd.weft(&["node", "rm", "n3", "--yes", "--wait", "100ms"]);
    assert!(stdout(&output).contains("with --force if the machine is off"), "{}", stdout(&output));
}

#[test]
fn a_node_that_is_gone_at_the_second_question_is_removed_and_at_the_first_is_an_error() {
    let gone = (404, error("not-found", "no node n3"));
    let netd = FakeNetd::start(&[(200, removal(false, &["n1 still has routes to it"])), gone.clone()]);
    let output = netd.weft(&["node", "rm", "n3", "--yes", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(parsed(&output), removal(true, &[]));
    let netd = FakeNetd::start(&[gone]);
    let output = netd.weft(&["node", "rm", "n3", "--yes"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(1), "error: no node n3\n"));
}

#[test]
fn a_node_that_lives_or_has_pods_is_not_removed_without_a_yes() {
    let uuid = "6f1c1b4e-0000-4000-8000-000000000003";
    let node = |alive: bool| json!([{"uuid": uuid, "name": "n3", "alive": alive}]);
    let pod = |name: &str| {
        json!({"namespace": "shop", "name": name, "node": "n3", "node_uuid": uuid, "network": "weft", "container_id": name,
               "ifname": "eth0", "ips": [], "host_ifname": "", "local": false})
    };
    let netd = FakeNetd::start(&[(200, node(true)), (200, json!([pod("a"), pod("b")])), (200, json!([]))]);
    let output = netd.weft(&["node", "rm", "n3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("is alive and has 2 pods (shop/a, shop/b)"), "{}", stdout(&output));
    assert!(stdout(&output).contains("cannot be called off"), "{}", stdout(&output));
    assert!(stderr(&output).contains("add --yes"), "{}", stderr(&output));
    assert_eq!(netd.requests().len(), 3, "only looked at: {:?}", netd.requests());
    // One that is off and empty, or on its way out already, costs nobody anything.
    let netd =
        FakeNetd::start(&[(200, node(false)), (200, json!([])), (200, json!([])), (200, removal(true, &[]))]);
    assert_eq!(netd.weft(&["node", "rm", "n3"]).status.code(), Some(0));
    // An address of a member lies there: somebody outside counts on it.
    let owner = json!([{"uuid": uuid, "name": "n3", "alive": false, "blocks": ["10.244.3.0/26"]}]);
    let member = json!([{"name": "laptop", "ips": ["10.244.3.5"], "public_key": "k"}]);
    let netd = FakeNetd::start(&[(200, owner), (200, json!([])), (200, member)]);
    let output = netd.weft(&["node", "rm", "n3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("addresses of member laptop lie in its blocks"), "{}", stdout(&output));
    let going = json!([{"uuid": uuid, "name": "n3", "alive": true, "removing": true}]);
    let netd = FakeNetd::start(&[(200, going), (200, removal(true, &[]))]);
    assert_eq!(netd.weft(&["node", "rm", "n3"]).status.code(), Some(0));
}
