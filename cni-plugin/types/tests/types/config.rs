// SPDX-License-Identifier: Apache-2.0
//! Which configs are taken, and what each verb reads of them.

use cni_types::{AddOptions, AddResult, Chained, Code, NetworkConfig, Stdin, ValidAttachment, Version};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{any_json, config, minimal};

const CONFIGS: &str = include_str!("../../../../tests/cases/cni/configs.json");

#[test]
fn a_bad_config_is_refused_with_the_code_and_the_field() {
    let cases: Value = serde_json::from_str(CONFIGS).unwrap();
    for case in cases.as_array().unwrap() {
        let outcome = config(&case["config"]).and_then(|config| {
            config.refuse_unsupported()?;
            AddOptions::gather(&config, "eth0", case["cniArgs"].as_str().unwrap_or_default())
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
fn a_message_does_not_repeat_a_book() {
    let config = minimal(json!({"novel": "x".repeat(100_000)}));
    assert!(config.refuse_unsupported().unwrap_err().msg.len() < 500);
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
            let _ = AddOptions::gather(&config, "eth0", &args);
            let prev = config.prev_result();
            if let Some(result) = prev.and_then(|prev| AddResult::from_prev_result(prev).ok()) {
                for version in Version::SUPPORTED {
                    let _ = result.to_json(version);
                }
            }
            if let Some(chained) = prev.and_then(|prev| Chained::parse(prev).ok()) {
                for version in Version::SUPPORTED {
                    let _ = chained.addresses_of("eth0");
                    let _ = chained.extend(&AddResult::default(), version);
                }
            }
        }
    }

    #[test]
    fn no_capability_panics(
        capability in proptest::sample::select(vec![
            "portMappings", "bandwidth", "ipRanges", "aliases", "cgroupPath", "dns", "ips", "mac",
        ]),
        value in any_json(),
        sticky in any_json(),
    ) {
        let config = minimal(json!({"runtimeConfig": {capability: value}, "args": {"cni": {"sticky": sticky}}}));
        if let Err(error) = AddOptions::gather(&config, "eth0", "K8S_POD_NAME=p") {
            prop_assert!(matches!(error.code, Code::INVALID_CONFIG | Code::UNSUPPORTED_FIELD), "{error:?}");
        }
    }
}
