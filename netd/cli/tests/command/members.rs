// SPDX-License-Identifier: Apache-2.0
//! Members: their configuration in a file, and what cuts them off.

use std::fs;

use serde_json::{Value, json};

use crate::fake_netd::{FakeNetd, json as parsed, stderr, stdout};

fn laptop() -> Value {
    json!([{"name": "laptop", "ips": ["10.244.0.5"], "public_key": "pub="}])
}

fn config() -> Value {
    json!({"overlay": "wireguard", "service_cidr": "10.96.0.0/16", "dns_zone": "cluster.local", "vxlan_port": 4789,
           "wireguard_port": 51820})
}

#[test]
fn a_configuration_goes_into_a_new_file_and_no_other() {
    let reply =
        json!({"name": "laptop", "ips": ["10.244.0.5"], "public_key": "pub=", "config": "[Interface]\n"});
    let netd = FakeNetd::start(&[(200, reply)]);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("weft0.conf").display().to_string();
    let add = ["member", "add", "laptop", "--endpoint", "n1=198.51.100.7", "--output", &file];
    let output = netd.weft(&add);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), format!("the configuration of member laptop is in {file}\n"));
    assert_eq!(fs::read_to_string(&file).expect("a file"), "[Interface]\n");
    let wanted = json!({"name": "laptop", "endpoints": {"n1": "198.51.100.7"}});
    assert_eq!(netd.requests(), [("POST /v1/members/add".to_owned(), wanted)]);
    // Again: nothing is asked of netd, and the only copy of the key stays.
    for again in [&add[..], &["member", "show", "laptop", "-o", &file]] {
        let output = netd.weft(again);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("is there already"), "{}", stderr(&output));
    }
    assert_eq!((netd.requests().len(), fs::read_dir(folder.path()).expect("a folder").count()), (1, 1));
}

#[test]
fn what_cuts_off_members_waits_for_a_yes() {
    for (line, answers) in [
        (&["key", "rotate"][..], &[(200, laptop())][..]),
        (&["config", "set", "--overlay", "vxlan"], &[(200, laptop()), (200, config())]),
        (&["config", "set", "--key-rotation", "7d"], &[(200, laptop()), (200, config())]),
    ] {
        let netd = FakeNetd::start(answers);
        let output = netd.weft(&[line, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(1), "{line:?}");
        assert_eq!(parsed(&output), json!({"done": false, "members": ["laptop"]}));
        assert!(stderr(&output).contains("add --yes"), "{}", stderr(&output));
        assert!(
            netd.requests().iter().all(|(request, _)| request.starts_with("GET ")),
            "{:?}",
            netd.requests()
        );
    }
}

#[test]
fn a_rotation_names_who_needs_a_new_configuration() {
    let done = json!({"generation": 3, "done": true});
    let netd = FakeNetd::start(&[(200, laptop()), (200, done.clone())]);
    let output = netd.weft(&["key", "rotate", "--yes"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("note: member laptop must get a new configuration"),
        "{}",
        stderr(&output)
    );
    let netd = FakeNetd::start(&[(200, json!([])), (200, done)]);
    let output = netd.weft(&["key", "rotate"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}
