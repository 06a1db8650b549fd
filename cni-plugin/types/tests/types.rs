// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

//! Config and result: golden cases from tests/cases/cni, and properties.

use cni_types::{AddOptions, AddResult, Code, NetworkConfig, Stdin, ValidAttachment, Version};
use proptest::prelude::*;
use serde_json::{Value, json};

const RESULTS: &str = include_str!("../../../tests/cases/cni/results.json");
const CONFIGS: &str = include_str!("../../../tests/cases/cni/configs.json");

fn config(value: &Value) -> Result<NetworkConfig, cni_types::CniError> {
    NetworkConfig::parse(Stdin::decode(value.to_string().as_bytes())?)
}

fn minimal(extra: Value) -> NetworkConfig {
    let mut object = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
    object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    config(&object).unwrap()
}

fn gather(extra: Value, cni_args: &str) -> Result<AddOptions, cni_types::CniError> {
    AddOptions::gather(&minimal(extra), cni_args)
}

#[test]
fn a_result_is_written_as_each_version_wants_it() {
    let cases: Value = serde_json::from_str(RESULTS).unwrap();
    for case in cases.as_array().unwrap() {
        let result = AddResult::from_prev_result(&case["result"]).unwrap();
        for (version, expected) in case["written"].as_object().unwrap() {
            let written = result.to_json(version.parse().unwrap()).unwrap();
            assert_eq!(&written, expected, "{} in {version}", case["case"]);
            // What we write we read back: it comes as prevResult of CHECK and DEL.
            let read = AddResult::from_prev_result(&written).unwrap();
            assert_eq!(&read.to_json(version.parse().unwrap()).unwrap(), expected, "{} again", case["case"]);
        }
    }
}

#[test]
fn a_bad_config_is_refused_with_the_code_and_the_field() {
    let cases: Value = serde_json::from_str(CONFIGS).unwrap();
    for case in cases.as_array().unwrap() {
        let outcome = config(&case["config"]).and_then(|config| {
            config.refuse_unsupported()?;
            AddOptions::gather(&config, case["cniArgs"].as_str().unwrap_or_default())
        });
        match (&outcome, case["code"].as_u64()) {
            (Ok(_), None) => {}
            (Err(error), Some(code)) => {
                assert_eq!(u64::from(error.code.0), code, "{}: {}", case["case"], error.msg);
                let part = case["msg"].as_str().unwrap();
                assert!(error.msg.contains(part), "{}: {} lacks {part:?}", case["case"], error.msg);
            }
            _ => panic!("{}: {outcome:?}", case["case"]),
        }
    }
}

#[test]
fn stdin_that_is_no_object_is_error_6() {
    for bytes in [&b""[..], b"{", b"[]", b"null", b"\"x\"", b"\xff\xfe", b"{} {}"] {
        assert_eq!(Stdin::decode(bytes).unwrap_err().code, Code::DECODE, "{bytes:?}");
    }
}

#[test]
fn del_is_not_stopped_by_keys_it_does_not_need() {
    let config =
        minimal(json!({"mtu": "big", "colour": 1, "prevResult": "damaged", "args": 3, "runtimeConfig": []}));
    assert_eq!(config.name, "weft");
    assert!(config.refuse_unsupported().is_err());
}

#[test]
fn addresses_come_from_the_most_specific_source() {
    let runtime =
        json!({"runtimeConfig": {"ips": ["10.244.0.9/16"]}, "args": {"cni": {"ips": ["10.244.0.8"]}}});
    assert_eq!(
        gather(runtime, "IP=10.244.0.7").unwrap().requested_ips,
        ["10.244.0.9".parse::<std::net::IpAddr>().unwrap()]
    );
    let args = json!({"runtimeConfig": {"ips": []}, "args": {"cni": {"ips": ["10.244.0.8"]}}});
    assert_eq!(
        gather(args, "IP=10.244.0.7").unwrap().requested_ips,
        ["10.244.0.8".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(
        gather(json!({}), "IP=10.244.0.7").unwrap().requested_ips,
        ["10.244.0.7".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn labels_come_as_a_list_or_as_a_map() {
    let list = gather(json!({"args": {"cni": {"labels": [{"key": "app", "value": "web"}]}}}), "").unwrap();
    let map = gather(json!({"args": {"cni": {"labels": {"app": "web"}}}}), "").unwrap();
    assert_eq!(list.labels, map.labels);
    assert_eq!(list.labels["app"], "web");
}

#[test]
fn a_pod_without_a_namespace_is_in_default_and_a_namespace_alone_is_no_pod() {
    let pod = gather(json!({}), "K8S_POD_NAME=web").unwrap().pod.unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid), ("default", "web", None));
    assert_eq!(gather(json!({}), "K8S_POD_NAMESPACE=shop").unwrap().pod, None);
}

#[test]
fn the_dns_capability_goes_before_the_config() {
    let own = json!({"dns": {"nameservers": ["1.1.1.1"], "domain": "example.org"}});
    assert_eq!(gather(own.clone(), "").unwrap().dns.unwrap().domain.as_deref(), Some("example.org"));
    let mut both = own;
    both["runtimeConfig"] = json!({"dns": {"servers": ["9.9.9.9"], "searches": ["a.b"]}});
    let dns = gather(both, "").unwrap().dns.unwrap();
    assert_eq!(
        (dns.nameservers, dns.search, dns.domain),
        (vec!["9.9.9.9".to_owned()], vec!["a.b".to_owned()], None)
    );
}

#[test]
fn a_mac_and_an_mtu_are_taken_where_they_are_sane() {
    let options =
        gather(json!({"mtu": 1400, "runtimeConfig": {"mac": "02:00:5E:00:00:01"}}), "MAC=02:00:00:00:00:02");
    let options = options.unwrap();
    assert_eq!((options.mtu, options.mac), (Some(1400), Some([2, 0, 0x5e, 0, 0, 1])));
    assert_eq!(gather(json!({"mtu": 0}), "").unwrap(), AddOptions::default());
}

#[test]
fn gc_needs_a_list_and_takes_an_empty_one() {
    assert_eq!(minimal(json!({})).valid_attachments().unwrap_err().code, Code::INVALID_CONFIG);
    assert_eq!(minimal(json!({"cni.dev/valid-attachments": null})).valid_attachments().unwrap(), []);
    let sent = json!({"cni.dev/attachments": [{"containerID": "c", "ifname": "eth0"}]});
    let expected = ValidAttachment { container_id: "c".into(), ifname: "eth0".into() };
    assert_eq!(minimal(sent).valid_attachments().unwrap(), [expected]);
    let damaged = minimal(json!({"cni.dev/valid-attachments": [{"containerID": "c"}]}));
    assert_eq!(damaged.valid_attachments().unwrap_err().code, Code::INVALID_CONFIG);
}

#[test]
fn a_damaged_prev_result_is_error_7_and_says_so() {
    for damaged in [
        json!("x"),
        json!({"cniVersion": "9.9.9"}),
        json!({"ips": [{"address": "10.0.0.1"}]}),
        json!({"ips": [{"address": "10.0.0.1/32", "interface": 3}], "interfaces": []}),
        json!({"interfaces": [{"mac": "x"}]}),
    ] {
        let error = AddResult::from_prev_result(&damaged).unwrap_err();
        assert_eq!(error.code, Code::INVALID_CONFIG);
        assert!(error.msg.contains("prevResult"), "{}", error.msg);
    }
}

/// JSON that looks a little like a config, so that the checks behind the first one are reached too.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        proptest::sample::select(vec![
            "cniVersion",
            "name",
            "type",
            "socket",
            "mtu",
            "prevResult",
            "args",
            "cni",
            "labels",
            "ips",
            "mac",
            "dns",
            "runtimeConfig",
            "interfaces",
            "address",
            "routes",
            "key",
            "value",
            "cni.dev/valid-attachments",
        ])
        .prop_map(str::to_owned),
        ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        proptest::sample::select(vec!["1.1.0", "0.4.0", "weft", "10.0.0.1/32", "10.0.0.1", "/run/x"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in any::<Vec<u8>>()) {
        if let Ok(stdin) = Stdin::decode(&bytes) {
            let _ = NetworkConfig::parse(stdin);
        }
    }

    #[test]
    fn no_config_panics(mut value in any_json(), args in any::<String>(), valid in any::<bool>()) {
        if valid && let Some(object) = value.as_object_mut() {
            object.insert("cniVersion".into(), "1.1.0".into());
            object.insert("name".into(), "weft".into());
            object.remove("socket");
        }
        if let Ok(config) = config(&value) {
            let _ = config.refuse_unsupported();
            let _ = config.valid_attachments();
            let _ = AddOptions::gather(&config, &args);
            if let Some(prev) = config.prev_result() && let Ok(result) = AddResult::from_prev_result(prev) {
                for version in Version::SUPPORTED {
                    let _ = result.to_json(version);
                }
            }
        }
    }
}
