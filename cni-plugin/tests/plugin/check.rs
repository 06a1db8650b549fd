// SPDX-License-Identifier: Apache-2.0
//! CHECK: what it finds, what it leaves to plugins behind us, and what it waits for.

use netd_api::ApiError;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::runtime::{Node, with};

/// The details of a CHECK that has to fail with differences.
fn details(node: &Node, config: &Value) -> String {
    let answer = node.call("CHECK", "c1", config);
    assert_eq!(answer.code(), 5, "{answer:?}");
    answer.json()["details"].as_str().unwrap().to_owned()
}

#[test]
fn all_that_somebody_changed_is_told_at_once() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let after = with(&config, "prevResult", node.add("c1", &config));
    let host = netd_plan::host_veth_name("weft", "c1", "eth0");

    node.pod.ip("addr add 10.244.0.99/32 dev eth0");
    node.pod.ip("addr del 10.244.0.2/32 dev eth0");
    node.pod.ip("route del default");
    node.pod.ip("neigh del 169.254.1.1 dev eth0");
    node.pod.ip("link set eth0 mtu 1300");
    node.pod.ip("link set eth0 address 02:00:00:00:00:99");
    node.host.ip("route del 10.244.0.2/32");
    node.host.ip(&format!("link set {host} address 02:00:00:00:00:98"));
    netd.book().differences.push("no rule for host port 80".into());
    let found = details(&node, &after);
    for part in [
        "address 10.244.0.2/32 of eth0 (pod side)",
        "route 0.0.0.0/0 of eth0 (pod side)",
        "permanent neighbour 169.254.1.1 of eth0 (pod side)",
        "MTU of eth0 (pod side): 1300 instead of 1450",
        "MAC of eth0 (pod side): 02:00:00:00:00:99",
        &format!("route 10.244.0.2/32 of {host} (host side)"),
        &format!("MAC of {host} (host side): 02:00:00:00:00:98"),
        "no rule for host port 80",
    ] {
        assert!(found.contains(part), "{found}\nlacks {part}");
    }

    netd.book().attachments.values_mut().for_each(|known| known.commit = None);
    node.host.ip(&format!("link del {host}"));
    let found = details(&node, &after);
    for part in ["no datapath programs", "link of eth0", &format!("link of {host}")] {
        assert!(found.contains(part), "{found}\nlacks {part}");
    }
}

#[test]
fn a_prev_result_of_somebody_else_is_refused_and_a_wrong_address_is_found() {
    let Some(node) = Node::new() else { return };
    let _netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let result = node.add("c1", &config);
    assert_eq!(node.call("CHECK", "c1", &config).code(), 7, "no prevResult");
    let other = with(&config, "prevResult", json!({"interfaces": [{"name": "eth1", "sandbox": "/x"}]}));
    assert_eq!(node.call("CHECK", "c1", &other).code(), 7);

    let mut moved = result;
    moved["ips"][0]["address"] = "10.244.0.9/32".into();
    let found = details(&node, &with(&config, "prevResult", moved));
    assert!(found.contains("10.244.0.9/32") && found.contains("10.244.0.2/32"), "{found}");
}

#[test]
fn what_plugins_behind_us_change_is_no_difference() {
    let Some(node) = Node::new() else { return };
    let _netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let mut result = node.add("c1", &config);

    // tuning: another MTU and a sysctl; ifb and bridge links; a further address and route; sbr: another table.
    node.pod.ip("link set eth0 mtu 1400");
    node.pod.ip("link add net7 type veth peer name net8");
    node.pod.ip("addr add 10.9.0.1/24 dev eth0");
    node.pod.ip("route add 10.77.0.0/16 via 169.254.1.1 dev eth0 onlink");
    node.pod.ip("route del default");
    node.pod.ip("route add default via 169.254.1.1 dev eth0 onlink table 100");
    result["interfaces"][1]["mtu"] = 1400.into();
    result["interfaces"].as_array_mut().unwrap().push(json!({"name": "bwp0", "mac": "02:00:00:00:00:77"}));
    result["ips"].as_array_mut().unwrap().push(json!({"address": "10.9.0.1/24", "interface": 1}));
    result["routes"].as_array_mut().unwrap().push(json!({"dst": "10.77.0.0/16"}));
    let check = node.call("CHECK", "c1", &with(&config, "prevResult", result.clone()));
    assert!(check.success, "{check:?}");

    // A plugin that took the default route away, from the pod and from the result.
    node.pod.ip("route del default table 100");
    result["routes"].as_array_mut().unwrap().remove(0);
    let check = node.call("CHECK", "c1", &with(&config, "prevResult", result));
    assert!(check.success, "{check:?}");
}

#[test]
fn before_1_1_0_a_smaller_mtu_may_be_anothers() {
    let Some(node) = Node::new() else { return };
    let _netd = Fake::start(&node.socket());
    let config = node.config("1.0.0");
    let after = with(&config, "prevResult", node.add("c1", &config));
    node.pod.ip("link set eth0 mtu 1400");
    assert!(node.call("CHECK", "c1", &after).success);
    node.pod.ip("link set eth0 mtu 9000");
    assert!(details(&node, &after).contains("9000"));
}

#[test]
fn what_passes_is_waited_for() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let after = with(&config, "prevResult", node.add("c1", &config));
    netd.book().fail_check = Some(ApiError::retry("netd is starting"));
    assert!(node.call("CHECK", "c1", &after).success);

    netd.book().passing = 3;
    let check = node.call("CHECK", "c1", &after);
    assert!(check.success, "{check:?}");
    assert_eq!(netd.book().passing, 0);
}

#[test]
fn an_attachment_that_netd_does_not_know_is_told_apart_from_one_that_is_gone() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let after = with(&config, "prevResult", node.add("c1", &config));
    netd.book().attachments.clear();
    assert!(details(&node, &after).contains("its link is there"));
    node.pod.ip("link del eth0");
    assert_eq!(node.call("CHECK", "c1", &after).code(), 3, "nothing to clean up");
    let gone = [("CNI_NETNS", "/run/netns/wefttest-none")];
    assert_eq!(node.call_with("CHECK", "c1", &after, &gone).code(), 3);
    drop(netd);
    assert_eq!(node.call("CHECK", "c1", &after).code(), 11);
}
