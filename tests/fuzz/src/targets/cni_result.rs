// SPDX-License-Identifier: Apache-2.0
//! A result of any version, written in every version: what the version can hold is kept, and nothing else appears.

use cni_types::{AddResult, Chained, Dns, Interface, IpConfig, Route, Version};
use serde_json::Value;

pub(super) fn check(input: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return "no JSON".to_owned() };
    let result = match AddResult::from_prev_result(&value) {
        Ok(result) => result,
        Err(error) => return error.msg,
    };
    for version in Version::SUPPORTED {
        let written = result.to_json(version).expect("what was read can be written");
        check_shape(&written, version);
        let again = AddResult::from_prev_result(&written).expect("what was written can be read");
        assert_eq!(again, held_by(&result, version), "{version} keeps what it can hold");
        assert_eq!(again.to_json(version).unwrap(), written, "{version} is written the same again");
        for other in Version::SUPPORTED {
            let there = AddResult::from_prev_result(&again.to_json(other).unwrap()).unwrap();
            assert_eq!(there, held_by(&result, version.min(other)), "from {version} to {other}");
        }
    }
    check_chain(&value, &result);
    format!(
        "{} links, {} addresses, {} routes, dns {}",
        result.interfaces.len(),
        result.ips.len(),
        result.routes.len(),
        !result.dns.is_empty()
    )
}

/// The specification's results differ in two ways: `ips[].version` until 0.4.0, and the fields that 1.1.0 added.
fn held_by(result: &AddResult, version: Version) -> AddResult {
    let mut held = result.clone();
    if version < Version::V1_1_0 {
        for link in &mut held.interfaces {
            *link = Interface {
                name: link.name.clone(),
                mac: link.mac.clone(),
                sandbox: link.sandbox.clone(),
                ..Interface::default()
            };
        }
        for route in &mut held.routes {
            *route = Route { gw: route.gw, ..Route::to(route.dst) };
        }
    }
    held
}

fn check_shape(written: &Value, version: Version) {
    assert_eq!(written["cniVersion"], version.as_str());
    let list = |key: &str| written[key].as_array().cloned().unwrap_or_default();
    for ip in list("ips") {
        let family = ip["address"].as_str().map(|text| if text.contains(':') { "6" } else { "4" });
        assert_eq!(ip["version"].as_str(), family.filter(|_| version < Version::V1_0_0), "{ip}");
    }
    if version < Version::V1_1_0 {
        for (key, allowed) in
            [("interfaces", ["name", "mac", "sandbox"].as_slice()), ("routes", &["dst", "gw"])]
        {
            for object in list(key) {
                let known =
                    object.as_object().is_some_and(|it| it.keys().all(|key| allowed.contains(&key.as_str())));
                assert!(known, "{version} has no such field: {object}");
            }
        }
    }
}

/// Behind another plugin: its result stays, ours follows, and the indexes fit.
fn check_chain(value: &Value, earlier: &AddResult) {
    let own = AddResult {
        interfaces: vec![Interface {
            name: "eth9".into(),
            sandbox: Some("/run/netns/x".into()),
            ..Interface::default()
        }],
        ips: vec![IpConfig { address: "10.244.0.2/32".parse().unwrap(), gateway: None, interface: Some(0) }],
        routes: vec![Route::to("0.0.0.0/0".parse().unwrap())],
        dns: Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() },
    };
    let chained = Chained::parse(value).expect("it was read before");
    for version in Version::SUPPORTED {
        let whole = chained.extend(&own, version).expect("two results can be written as one");
        assert_eq!(whole["cniVersion"], version.as_str());
        let whole = AddResult::from_prev_result(&whole).expect("the next plugin can read it");
        let mut expected = held_by(earlier, version);
        if value.get("cniVersion").and_then(Value::as_str) == Some(version.as_str()) {
            // The same version is passed on as it came, fields of a newer one included.
            expected = earlier.clone();
        }
        expected.interfaces.extend(own.interfaces.clone());
        let index = Some(earlier.interfaces.len());
        expected.ips.extend(own.ips.iter().map(|ip| IpConfig { interface: index, ..ip.clone() }));
        expected.routes.extend(own.routes.clone());
        if earlier.dns.is_empty() {
            expected.dns = own.dns.clone();
        }
        assert_eq!(whole, expected, "{version}");
    }
}
