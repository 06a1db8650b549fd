// SPDX-License-Identifier: Apache-2.0
//! The life of an attachment: ADD, CHECK, DEL and GC in real namespaces.

use netd_api::{ApiError, deferred};
use serde_json::{Value, json};

use crate::fake::{Fake, MTU};
use crate::runtime::{Netns, Node};

/// ADD that has to succeed; the result.
fn add(node: &Node, container: &str, config: &Value) -> Value {
    let answer = node.call("ADD", container, config);
    assert!(answer.success, "{answer:?}");
    answer.json()
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn an_attachment_lives_and_goes_in_every_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let Some(node) = Node::new() else { return };
        let netd = Fake::start(&node.socket());
        let config = node.config(version);
        let result = add(&node, "c1", &config);

        let host_name = netd_plan::host_veth_name("weft", "c1", "eth0");
        let host = node.host.ip(&format!("link show {host_name}"));
        let pod = node.pod.ip("addr show eth0");
        let mut interfaces = json!([
            {"name": host_name, "mac": host[0]["address"], "mtu": MTU},
            {"name": "eth0", "mac": pod[0]["address"], "mtu": MTU, "sandbox": node.pod.path()},
        ]);
        let mut ip = json!({"address": "10.244.0.2/32", "gateway": "169.254.1.1", "interface": 1});
        if version != "1.1.0" {
            for interface in interfaces.as_array_mut().unwrap() {
                interface.as_object_mut().unwrap().remove("mtu");
            }
        }
        if version.starts_with("0.") {
            ip["version"] = "4".into();
        }
        let expected = json!({
            "cniVersion": version, "interfaces": interfaces, "ips": [ip],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        assert_eq!(result, expected);

        assert_eq!(pod[0]["mtu"], MTU);
        assert_eq!(pod[0]["addr_info"][0]["local"], "10.244.0.2");
        assert_eq!(node.host.ip("route show 10.244.0.2")[0]["dev"], host_name.as_str());
        {
            let book = netd.book();
            let (_, _, commit) = book.attachments.values().next().unwrap();
            let commit = commit.as_ref().unwrap();
            assert_eq!(host[0]["ifindex"], commit.host_index);
            assert_eq!(host[0]["address"], commit.host_mac.as_str());
            assert_eq!(pod[0]["address"], commit.container_mac.as_str());
            assert_eq!(commit.netns, node.pod.path());
        }

        let after = with(config, "prevResult", result);
        let check = node.call("CHECK", "c1", &after);
        if version.starts_with("0.3") {
            assert_eq!(check.code(), 1);
        } else {
            assert!(check.success && check.stdout.is_empty(), "{check:?}");
        }
        for _ in 0..2 {
            let del = node.call("DEL", "c1", &after);
            assert!(del.success && del.stdout.is_empty(), "{del:?}");
        }
        assert!(node.pod.links().is_empty() && node.host.links().is_empty());
        assert_eq!(netd.book().calls, ["allocate c1", "commit c1", "release c1", "release c1"]);
    }
}

#[test]
fn what_the_runtime_asks_for_reaches_netd() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let mut config = node.config("1.1.0");
    config["mtu"] = 1400.into();
    config["capabilities"] = json!({"ips": true, "mac": true});
    config["runtimeConfig"] = json!({"ips": ["10.244.0.2"], "mac": "02:00:00:00:00:07"});
    config["args"] = json!({"cni": {"labels": [{"key": "app", "value": "web"}]}});
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1";
    let answer = node.call_with("ADD", "c1", &config, &[("CNI_ARGS", args)]);
    assert!(answer.success, "{answer:?}");
    assert_eq!(answer.json()["interfaces"][1]["mac"], "02:00:00:00:00:07");
    assert_eq!(node.pod.ip("link show eth0")[0]["mtu"], 1400);

    let request = netd.book().attachments.values().next().unwrap().0.clone();
    let pod = request.pod.unwrap();
    assert_eq!(
        (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()),
        ("shop", "web-0", Some("u1"))
    );
    assert_eq!(request.labels["app"], "web");
    assert_eq!(request.requested_ips, ["10.244.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert!(node.call("CHECK", "c1", &with(config, "prevResult", answer.json())).success);
}

#[test]
fn a_second_add_is_refused_and_the_first_lives_on() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let result = add(&node, "c1", &config);

    let again = node.call("ADD", "c1", &config);
    assert_eq!(again.code(), 101, "{again:?}");
    // Another container in the same netns: the name is taken, too.
    assert_eq!(node.call("ADD", "c2", &config).code(), 101);
    // The same container in another netns: its host link lives.
    let other = Netns::new("other").unwrap();
    assert_eq!(node.call_with("ADD", "c1", &config, &[("CNI_NETNS", &other.path())]).code(), 101);

    assert_eq!(netd.book().calls, ["allocate c1", "commit c1"]);
    assert!(node.call("CHECK", "c1", &with(config, "prevResult", result)).success);
}

#[test]
fn a_failed_commit_leaves_nothing_behind() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    netd.book().fail_commit = Some(ApiError::fatal("no bpffs"));
    let answer = node.call("ADD", "c1", &node.config("1.1.0"));
    assert_eq!((answer.code(), answer.json()["msg"].as_str().unwrap()), (5, "no bpffs"));
    assert_eq!(netd.book().calls, ["allocate c1", "commit c1", "release c1"]);
    assert!(node.pod.links().is_empty() && node.host.links().is_empty());
    assert!(deferred::entries(&node.socket()).unwrap().is_empty());
}

#[test]
fn a_link_that_cannot_be_made_gives_the_address_back() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    // Somebody else's route to the pod's address: netd-host leaves it alone and gives up.
    node.host.ip("link set lo up");
    node.host.ip("route add 10.244.0.2/32 dev lo");
    let answer = node.call("ADD", "c1", &node.config("1.1.0"));
    assert!(!answer.success, "{answer:?}");
    assert_eq!(netd.book().calls, ["allocate c1", "release c1"]);
    assert!(node.pod.links().is_empty() && node.host.links().is_empty());
}

#[test]
fn a_netns_that_is_gone_or_our_own_is_refused_before_anything_happens() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    assert_eq!(node.call_with("ADD", "c1", &config, &[("CNI_NETNS", "/run/netns/wefttest-none")]).code(), 3);
    assert_eq!(node.call_with("ADD", "c1", &config, &[("CNI_NETNS", "/dev/null")]).code(), 3);
    assert_eq!(node.call_with("ADD", "c1", &config, &[("CNI_NETNS", &node.host.path())]).code(), 8);
    assert!(netd.book().calls.is_empty());
    let prev = with(config.clone(), "prevResult", json!({"interfaces": [], "ips": []}));
    assert_eq!(node.call("ADD", "c1", &prev).code(), 7);
}

#[test]
fn without_netd_add_waits_and_del_is_queued() {
    let Some(node) = Node::new() else { return };
    let config = node.config("1.1.0");
    let refused = node.call("ADD", "c1", &config);
    assert_eq!(refused.code(), 11);
    assert!(refused.json()["msg"].as_str().unwrap().contains("netd is not running"), "{refused:?}");

    let netd = Fake::start(&node.socket());
    add(&node, "c1", &config);
    drop(netd);
    // The netns and prevResult are gone or damaged, which DEL does not mind.
    let damaged = with(config.clone(), "prevResult", "damaged".into());
    for _ in 0..2 {
        let del = node.call_with("DEL", "c1", &damaged, &[("CNI_NETNS", "")]);
        assert!(del.success, "{del:?}");
    }
    assert!(node.pod.links().is_empty() && node.host.links().is_empty());
    let waiting = deferred::entries(&node.socket()).unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].release.as_ref().unwrap().to_string(), "weft/c1/eth0");

    // An ADD of the same name settles the entry first, so that no replay can take it down later.
    let netd = Fake::start(&node.socket());
    add(&node, "c1", &config);
    assert_eq!(netd.book().calls, ["release c1", "allocate c1", "commit c1"]);
    assert!(deferred::entries(&node.socket()).unwrap().is_empty());
}

#[test]
fn a_netd_that_is_starting_gets_the_release_later_and_one_that_refuses_is_heard() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    netd.book().fail_release = Some(ApiError::retry("netd is starting"));
    assert!(node.call("DEL", "c1", &config).success);
    assert_eq!(deferred::entries(&node.socket()).unwrap().len(), 1);

    netd.book().fail_release = Some(ApiError::fatal("the journal cannot be written: disk full"));
    let answer = node.call("DEL", "c2", &config);
    assert_eq!(answer.code(), 5);
    assert!(answer.json()["msg"].as_str().unwrap().contains("disk full"), "{answer:?}");
}

#[test]
fn check_finds_what_somebody_changed() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let result = add(&node, "c1", &config);
    assert_eq!(node.call("CHECK", "c1", &config).code(), 7);
    let after = with(config.clone(), "prevResult", result.clone());

    let mut moved = result;
    moved["ips"][0]["address"] = "10.244.0.9/32".into();
    let answer = node.call("CHECK", "c1", &with(config, "prevResult", moved));
    assert_eq!(answer.code(), 5);
    assert!(answer.json()["details"].as_str().unwrap().contains("10.244.0.9/32"), "{answer:?}");

    node.pod.ip("route del default");
    let answer = node.call("CHECK", "c1", &after);
    assert_eq!(answer.code(), 5);
    assert!(answer.json()["details"].as_str().unwrap().contains("0.0.0.0/0"), "{answer:?}");

    netd.book().attachments.clear();
    assert_eq!(node.call("CHECK", "c1", &after).code(), 3);
}

#[test]
fn gc_gives_up_what_the_runtime_does_not_know() {
    let Some(node) = Node::new() else { return };
    let pod2 = Netns::new("pod").unwrap();
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    add(&node, "c1", &config);
    assert!(node.call_with("ADD", "c2", &config, &[("CNI_NETNS", &pod2.path())]).success);
    {
        let mut book = netd.book();
        let (mut elsewhere, c1) =
            book.attachments.iter().next().map(|(id, c1)| (id.clone(), c1.clone())).unwrap();
        elsewhere.container_id = "elsewhere".into();
        book.attachments.insert(elsewhere.clone(), c1.clone());
        elsewhere.container_id = "c3".into();
        elsewhere.network = "other".into();
        book.attachments.insert(elsewhere, c1);
    }
    assert_eq!(node.call("GC", "", &config).code(), 7, "no list is not an empty list");

    let known = json!([{"containerID": "c2", "ifname": "eth0"}]);
    let answer = node.call("GC", "", &with(config, "cni.dev/valid-attachments", known));
    assert!(answer.success && answer.stdout.is_empty(), "{answer:?}");
    assert!(node.pod.links().is_empty());
    assert_eq!(pod2.links(), ["eth0"]);
    let left: Vec<String> = netd.book().attachments.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["other/c3/eth0", "weft/c2/eth0", "weft/elsewhere/eth0"]);
}
