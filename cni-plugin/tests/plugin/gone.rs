// SPDX-License-Identifier: Apache-2.0
//! DEL and GC: what goes, what stays, and what they need for it, which is little.

use netd_api::{ApiError, deferred};
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::runtime::{Netns, Node, with};

#[test]
fn without_netd_add_waits_and_del_is_queued() {
    let Some(node) = Node::new() else { return };
    let config = node.config("1.1.0");
    let refused = node.call("ADD", "c1", &config);
    assert_eq!(refused.code(), 11);
    assert!(refused.json()["msg"].as_str().unwrap().contains("netd is not running"), "{refused:?}");

    let netd = Fake::start(&node.socket());
    node.add("c1", &config);
    drop(netd);
    // The netns and prevResult are gone or damaged, which DEL does not mind.
    let damaged = with(&config, "prevResult", "damaged");
    for _ in 0..2 {
        let del = node.call_with("DEL", "c1", &damaged, &[("CNI_NETNS", "")]);
        assert!(del.success, "{del:?}");
    }
    assert!(node.is_bare());
    let waiting = deferred::entries(&node.socket()).unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].release.as_ref().unwrap().to_string(), "weft/c1/eth0");

    // An ADD of the same name settles the entry first, so that no replay can take it down later.
    let netd = Fake::start(&node.socket());
    node.add("c1", &config);
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
fn del_ends_well_whatever_the_runtime_kept() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let Some(node) = Node::new() else { return };
        let netd = Fake::start(&node.socket());
        let config = node.config(version);
        let result = node.add("c1", &config);
        let mut elsewhere = result.clone();
        elsewhere["interfaces"] = json!([{"name": "net9", "sandbox": "/run/netns/other"}]);
        elsewhere["ips"] = json!([{"address": "192.0.2.1/24", "interface": 7}]);
        for prev in [elsewhere, json!("damaged"), json!({"cniVersion": "9.0.0"}), Value::Null] {
            let mut odd = with(&config, "prevResult", prev);
            odd["runtimeConfig"] = json!({"portMappings": "damaged", "deviceID": "x"});
            odd["colour"] = "green".into();
            let vars = [("CNI_NETNS", "/run/netns/wefttest-none"), ("CNI_ARGS", "damaged")];
            let del = node.call_with("DEL", "c1", &odd, &vars);
            assert!(del.success && del.stdout.is_empty(), "{version}: {del:?}");
            assert!(node.is_bare() && netd.book().attachments.is_empty());
        }
    }
}

#[test]
fn del_makes_do_with_what_can_be_read_of_a_damaged_config() {
    let Some(node) = Node::new() else { return };
    let netd = Fake::start(&node.socket());
    let config = node.config("1.0.0");
    let socket = node.socket();
    let cut =
        |keys: &str| format!(r#"{{"cniVersion":"1.0.0",{keys},"socket":{socket:?},"prevResult":{{"ips":[{{"#);
    // Cut off behind what counts; a name that is none, where netd knows the container.
    for stdin in [cut(r#""name":"weft""#), cut(r#""name":7"#), cut(r#""name":"../x""#)] {
        node.add("c1", &config);
        let del = node.call_raw("DEL", "c1", stdin.as_bytes(), &[]);
        assert!(del.success && del.stdout.is_empty(), "{stdin}: {del:?}");
        assert!(del.stderr.contains("damaged"), "{del:?}");
        assert!(node.is_bare() && netd.book().attachments.is_empty());
    }
    // Another container's is not touched, and what leads nowhere is an error.
    node.add("c1", &config);
    assert_eq!(node.call_raw("DEL", "c2", cut(r#""name":7"#).as_bytes(), &[]).code(), 6);
    assert_eq!(node.call_with("DEL", "c2", &with(&config, "name", 7), &[]).code(), 7);
    // A version that we do not speak is no damage.
    assert_eq!(node.call("DEL", "c1", &with(&config, "cniVersion", "2.0.0")).code(), 1);
    assert_eq!(netd.book().attachments.len(), 1);
}

/// Three attachments of ours, one of another network, one of another node.
fn crowd(node: &Node, netd: &Fake, pod2: &Netns) -> Value {
    let config = node.config("1.1.0");
    node.add("c1", &config);
    assert!(node.call_with("ADD", "c2", &config, &[("CNI_NETNS", &pod2.path())]).success);
    let mut book = netd.book();
    let (mut other, c1) = book.attachments.iter().next().map(|(id, c1)| (id.clone(), c1.clone())).unwrap();
    for (network, container) in [("weft", "elsewhere"), ("weft", "c3"), ("other", "c1")] {
        (other.network, other.container_id) = (network.into(), container.into());
        book.attachments.insert(other.clone(), c1.clone());
    }
    config
}

fn left(netd: &Fake) -> Vec<String> {
    netd.book().attachments.keys().map(ToString::to_string).collect()
}

#[test]
fn gc_gives_up_what_the_runtime_does_not_know() {
    let Some(node) = Node::new() else { return };
    let pod2 = Netns::new("pod").unwrap();
    let netd = Fake::start(&node.socket());
    let config = crowd(&node, &netd, &pod2);
    assert_eq!(node.call("GC", "", &config).code(), 7, "no list is not an empty list");
    assert_eq!(left(&netd).len(), 5);

    // The same container by another link's name is another attachment.
    let known = json!([{"containerID": "c2", "ifname": "eth0"}, {"containerID": "c1", "ifname": "net1"}]);
    let answer = node.call("GC", "", &with(&config, "cni.dev/valid-attachments", known.clone()));
    assert!(answer.success && answer.stdout.is_empty(), "{answer:?}");
    assert!(node.pod.links().is_empty());
    assert_eq!(pod2.links(), ["eth0"]);
    assert_eq!(left(&netd), ["other/c1/eth0", "weft/c2/eth0", "weft/elsewhere/eth0"]);
    // Once more there is nothing to do.
    assert!(node.call("GC", "", &with(&config, "cni.dev/valid-attachments", known)).success);
}

#[test]
fn gc_goes_on_after_an_error_and_reports_it() {
    let Some(node) = Node::new() else { return };
    let pod2 = Netns::new("pod").unwrap();
    let netd = Fake::start(&node.socket());
    let config = with(&crowd(&node, &netd, &pod2), "cni.dev/valid-attachments", json!([]));
    netd.book().fail_release = Some(ApiError::fatal("disk full"));
    let answer = node.call("GC", "", &config);
    assert_eq!(answer.code(), 5);
    assert!(answer.json()["details"].as_str().unwrap().contains("disk full"), "{answer:?}");
    let still = left(&netd);
    assert_eq!(still.len(), 3, "one failed, the others are gone: {still:?}");
    assert!(node.call("GC", "", &config).success);
    assert_eq!(left(&netd), ["other/c1/eth0", "weft/elsewhere/eth0"]);
    drop(netd);
    assert_eq!(node.call("GC", "", &config).code(), 11);
}
