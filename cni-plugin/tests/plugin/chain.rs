// SPDX-License-Identifier: Apache-2.0
//! weft-cni later in a chain: behind a plugin that made the link, and behind one that made another.

use netd_api::ApiError;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::runtime::{Node, with};

/// What a bridge plugin answers: the pod has a link with an address already.
fn bridged(node: &Node, version: &str) -> Value {
    node.pod.ip("link add eth0 type veth peer name cni-peer0");
    node.pod.ip("addr add 10.88.0.5/16 dev eth0");
    node.pod.ip("link set eth0 up");
    let mac = node.pod.ip("link show eth0")[0]["address"].clone();
    let mut ip = json!({"address": "10.88.0.5/16", "gateway": "10.88.0.1", "interface": 2});
    if version.starts_with("0.") {
        ip["version"] = "4".into();
    }
    json!({
        "cniVersion": version,
        "interfaces": [
            {"name": "cni-podman0", "mac": "02:00:00:00:00:aa"}, {"name": "vethx", "mac": "02:00:00:00:00:ab"},
            {"name": "eth0", "mac": mac, "sandbox": node.pod.path()},
        ],
        "ips": [ip], "routes": [{"dst": "0.0.0.0/0"}], "x-vendor": [1],
    })
}

#[test]
fn a_link_that_is_there_is_adopted_in_every_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let Some(node) = Node::new() else { return };
        let netd = Fake::start(&node.socket());
        let prev = bridged(&node, version);
        let mut config = with(&node.config(version), "prevResult", prev.clone());
        config["runtimeConfig"] = json!({"aliases": ["web"], "ips": ["10.88.0.5"]});
        let links = node.pod.links();

        let result = node.add("c1", &config);
        assert_eq!(result, with(&prev, "dns", json!({"nameservers": ["10.96.0.10"]})));
        assert_eq!(node.pod.links(), links);
        assert!(node.host.links().is_empty(), "no link of ours is made");
        {
            let book = netd.book();
            let adopted = book.only().request.adopted.clone().unwrap();
            assert_eq!(adopted.addresses, ["10.88.0.5/16".parse().unwrap()]);
            assert_eq!(adopted.mac.as_deref(), prev["interfaces"][2]["mac"].as_str());
            let request = &book.only().request;
            assert_eq!(request.aliases, ["web"]);
            assert!(request.requested_ips.is_empty(), "the addresses are the other plugin's");
            assert!(book.only().commit.is_some());
        }
        // The same once more does no harm.
        assert_eq!(node.call("ADD", "c1", &config).code(), 101);
        assert_eq!(netd.book().attachments.len(), 1);

        let after = with(&config, "prevResult", result);
        if !version.starts_with("0.3") {
            let check = node.call("CHECK", "c1", &after);
            assert!(check.success, "{check:?}");
        }
        assert!(node.call("DEL", "c1", &after).success);
        assert_eq!(node.pod.links(), links, "the other plugin's link is the other plugin's");
        assert!(netd.book().attachments.is_empty());
    }
}

#[test]
fn check_of_an_adopted_link_finds_what_is_missing() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = with(&node.config("1.0.0"), "prevResult", bridged(&node, "1.0.0"));
    let after = with(&config, "prevResult", node.add("c1", &config));
    node.pod.ip("addr del 10.88.0.5/16 dev eth0");
    netd.book().differences.push("no rule for a port".into());
    let check = node.call("CHECK", "c1", &after);
    assert_eq!(check.code(), 5);
    let details = check.json()["details"].as_str().unwrap().to_owned();
    for part in ["10.88.0.5, which eth0 does not have", "no rule for a port"] {
        assert!(details.contains(part), "{details}");
    }
    node.pod.ip("link del eth0");
    let details = node.call("CHECK", "c1", &after).json()["details"].as_str().unwrap().to_owned();
    assert!(details.contains("link of eth0"), "{details}");
}

#[test]
fn a_failed_commit_of_an_adopted_link_leaves_nothing_of_ours() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = with(&node.config("1.0.0"), "prevResult", bridged(&node, "1.0.0"));
    let links = node.pod.links();
    netd.book().fail_commit = Some(ApiError::fatal("disk full"));
    assert_eq!(node.call("ADD", "c1", &config).code(), 5);
    assert_eq!(netd.book().calls, ["allocate c1", "commit c1", "release c1"]);
    assert_eq!(node.pod.links(), links);
}

#[test]
fn behind_a_plugin_with_another_link_ours_is_made_and_appended() {
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        let Some(node) = Node::new() else { return };
        let netd = Fake::start(&node.socket());
        let prev = json!({
            "cniVersion": version, "x-vendor": [1],
            "interfaces": [{"name": "lo", "sandbox": node.pod.path()}, {"name": "eth0"}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}], "dns": {"search": ["example.org"]},
        });
        let config = with(&node.config(version), "prevResult", prev.clone());
        let result = node.add("c1", &config);
        let names: Vec<&Value> =
            result["interfaces"].as_array().unwrap().iter().map(|link| &link["name"]).collect();
        assert_eq!(names, ["lo", "eth0", &netd_plan::host_veth_name("weft", "c1", "eth0"), "eth0"]);
        assert_eq!(result["ips"][0], prev["ips"][0]);
        assert_eq!(
            (&result["ips"][1]["address"], &result["ips"][1]["interface"]),
            (&json!("10.244.0.2/32"), &json!(3))
        );
        assert_eq!((&result["dns"], &result["x-vendor"]), (&prev["dns"], &prev["x-vendor"]));
        assert!(netd.book().only().request.adopted.is_none());
        if version != "0.3.1" {
            let check = node.call("CHECK", "c1", &with(&config, "prevResult", result));
            assert!(check.success, "{check:?}");
        }
    }
}

#[test]
fn a_prev_result_that_cannot_be_is_refused_before_anything_happens() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let eth0 = json!({"name": "eth0", "sandbox": node.pod.path()});
    for (prev, part) in [
        (json!("damaged"), "prevResult is damaged"),
        (json!([]), "prevResult is damaged"),
        (json!({"cniVersion": "7.0.0"}), "prevResult is damaged"),
        (
            json!({"interfaces": [&eth0], "ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
            "has no such link",
        ),
    ] {
        let answer = node.call("ADD", "c1", &with(&config, "prevResult", prev));
        assert_eq!(answer.code(), 7, "{answer:?}");
        assert!(answer.json()["msg"].as_str().unwrap().contains(part), "{answer:?}");
    }
    node.pod.ip("link add eth0 type veth peer name peer0");
    let bare = json!({"interfaces": [&eth0]});
    let answer = node.call("ADD", "c1", &with(&config, "prevResult", bare));
    assert_eq!(answer.code(), 7, "{answer:?}");
    // A link of that name that no result speaks of is in the way.
    assert_eq!(node.call("ADD", "c1", &with(&config, "prevResult", json!({"interfaces": []}))).code(), 101);
    assert!(netd.book().calls.is_empty());
}
