// SPDX-License-Identifier: Apache-2.0
//! The life of an attachment: ADD, CHECK and DEL in real namespaces; and ADD that leaves nothing when it fails.

use netd_api::{ApiError, deferred, paths};
use serde_json::{Value, json};

use crate::fake::{Fake, MTU};
use crate::runtime::{Netns, Node, call_deaf, call_killed, with};

#[test]
fn an_attachment_lives_and_goes_in_every_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let Some(node) = Node::new() else { return };
        let netd = Fake::start(&node.socket());
        let config = node.config(version);
        let result = node.add("c1", &config);

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
            let commit = book.only().commit.as_ref().unwrap();
            assert_eq!(host[0]["ifindex"], commit.host_index);
            assert_eq!(host[0]["address"], commit.host_mac.as_str());
            assert_eq!(pod[0]["address"], commit.container_mac.as_str());
            assert_eq!(commit.netns, node.pod.path());
        }

        let after = with(&config, "prevResult", result);
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
        assert!(node.is_bare());
        assert_eq!(netd.book().calls, ["allocate c1", "commit c1", "release c1", "release c1"]);
    }
}

#[test]
fn both_families_are_wired_and_answered() {
    let Some(node) = Node::new() else { return };
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        eprintln!("SKIP: this kernel has no IPv6");
        return;
    }
    let netd = Fake::start(&node.socket());
    netd.book().dual = true;
    for (version, v4, v6) in [("1.1.0", Value::Null, Value::Null), ("0.4.0", "4".into(), "6".into())] {
        let config = node.config(version);
        let result = node.add("c1", &config);
        let ips = result["ips"].as_array().unwrap();
        assert_eq!((&ips[0]["version"], &ips[1]["version"]), (&v4, &v6));
        assert_eq!(ips[1]["gateway"], "fe80::1");
        assert!(ips[1]["address"].as_str().unwrap().ends_with("/128"), "{result}");
        let routes = json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]);
        assert_eq!(result["routes"], routes);
        let after = with(&config, "prevResult", result);
        let check = node.call("CHECK", "c1", &after);
        assert!(check.success, "{check:?}");
        assert!(node.call("DEL", "c1", &after).success);
        assert!(node.is_bare());
    }
}

#[test]
fn a_second_add_is_refused_and_the_first_lives_on() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let result = node.add("c1", &config);

    let again = node.call("ADD", "c1", &config);
    assert_eq!(again.code(), 101, "{again:?}");
    // Another container in the same netns: the name is taken, too.
    assert_eq!(node.call("ADD", "c2", &config).code(), 101);
    // The same container in another netns: its host link lives.
    let other = Netns::new("other").unwrap();
    assert_eq!(node.call_with("ADD", "c1", &config, &[("CNI_NETNS", &other.path())]).code(), 101);

    assert_eq!(netd.book().calls, ["allocate c1", "commit c1"]);
    assert!(node.call("CHECK", "c1", &with(&config, "prevResult", result)).success);
}

#[test]
fn a_container_has_a_link_in_each_of_its_networks() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let second = with(&config, "name", "storage");
    let result = node.add("c1", &config);
    let answer = node.call_with("ADD", "c1", &second, &[("CNI_IFNAME", "net1")]);
    assert!(answer.success, "{answer:?}");
    assert_eq!(node.pod.links(), ["eth0", "net1"]);
    assert_eq!(netd.book().attachments.len(), 2);

    let after = with(&second, "prevResult", answer.json());
    assert!(node.call_with("CHECK", "c1", &after, &[("CNI_IFNAME", "net1")]).success);
    assert!(node.call_with("DEL", "c1", &after, &[("CNI_IFNAME", "net1")]).success);
    assert_eq!(node.pod.links(), ["eth0"]);
    assert!(node.call("CHECK", "c1", &with(&config, "prevResult", result)).success);
}

#[test]
fn a_failed_commit_leaves_nothing_behind() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    netd.book().fail_commit = Some(ApiError::fatal("no bpffs"));
    let answer = node.call("ADD", "c1", &node.config("1.1.0"));
    assert_eq!((answer.code(), answer.json()["msg"].as_str().unwrap()), (5, "no bpffs"));
    assert_eq!(netd.book().calls, ["allocate c1", "commit c1", "release c1"]);
    assert!(node.is_bare());
    assert!(deferred::entries(&node.socket()).unwrap().is_empty());
}

#[test]
fn an_add_that_nobody_hears_of_is_taken_back() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let netns = node.pod.path();
    let vars = node.vars("ADD", "c1", &netns);
    assert!(!call_deaf(Some(&node.host), &vars, node.config("1.1.0").to_string().as_bytes()));
    assert_eq!(netd.book().calls, ["allocate c1", "commit c1", "release c1"]);
    assert!(node.is_bare());
}

#[test]
fn an_add_that_is_killed_leaves_nothing_that_del_does_not_find() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.1.0");
    let stdin = config.to_string();
    for (path, call) in [(paths::ALLOCATE, "allocate c1"), (paths::COMMIT, "commit c1")] {
        netd.book().calls.clear();
        netd.book().mute = Some(path);
        let netns = node.pod.path();
        call_killed(Some(&node.host), &node.vars("ADD", "c1", &netns), stdin.as_bytes(), || {
            netd.book().calls.iter().any(|known| known == call)
        });
        netd.book().mute = None;
        assert_eq!(netd.book().attachments.len(), 1, "killed in the middle");
        assert_eq!(node.is_bare(), path == paths::ALLOCATE);

        assert!(node.call("DEL", "c1", &config).success);
        assert!(node.is_bare() && netd.book().attachments.is_empty());
        // And the name is free again.
        node.add("c1", &config);
        assert!(node.call("DEL", "c1", &config).success);
    }
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
    assert!(node.is_bare());
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
}
