// SPDX-License-Identifier: Apache-2.0
//! Results in and out of every version.

use std::net::IpAddr;

use cni_types::{AddResult, Code, Dns, Interface, IpConfig, Route, Version};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};

const RESULTS: &str = include_str!("../../../../tests/cases/cni/results.json");

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
fn a_damaged_prev_result_is_error_7_and_says_so() {
    for damaged in [
        json!("x"),
        json!({"cniVersion": "9.9.9"}),
        json!({"ips": [{"address": "10.0.0.1"}]}),
        json!({"ips": [{"address": "10.0.0.1/32", "gateway": "x"}]}),
        json!({"ips": [{"address": "10.0.0.1/32", "interface": 3}], "interfaces": []}),
        json!({"interfaces": [{"mac": "x"}]}),
    ] {
        let error = AddResult::from_prev_result(&damaged).unwrap_err();
        assert_eq!(error.code, Code::INVALID_CONFIG);
        assert!(error.msg.contains("prevResult"), "{}", error.msg);
    }
}

#[test]
fn what_go_writes_for_nothing_is_nothing() {
    let empty = json!({
        "cniVersion": "0.3.1", "interfaces": [{"name": "eth0", "mac": "", "sandbox": ""}], "routes": null,
        "ips": [{"version": "4", "address": "10.0.0.1/24", "gateway": "", "interface": -1}], "dns": {"domain": ""},
    });
    let result = AddResult::from_prev_result(&empty).unwrap();
    assert_eq!((&result.interfaces[0].mac, &result.interfaces[0].sandbox), (&None, &None));
    assert_eq!((result.ips[0].gateway, result.ips[0].interface), (None, None));
    assert!(result.dns.is_empty() && result.routes.is_empty());
    assert_eq!(result.sandbox_link("eth0"), None);
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        // Not the mapped ones: they are written as no runtime writes them.
        any::<[u8; 15]>().prop_map(|rest| {
            let mut bytes = [0xfd; 16];
            bytes[1..].copy_from_slice(&rest);
            IpAddr::from(bytes)
        }),
    ]
}

fn any_net() -> impl Strategy<Value = IpNet> {
    (any_ip(), 0_u8..=128).prop_map(|(ip, len)| {
        let max = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new_assert(ip, len.min(max))
    })
}

fn text() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[ -~]{1,12}")
}

/// Any result that 1.1.0 can carry.
pub(super) fn any_result() -> impl Strategy<Value = AddResult> {
    let link = ("[a-z0-9]{1,8}", text(), proptest::option::of(any::<u32>()), text(), text(), text())
        .prop_map(|(name, mac, mtu, sandbox, socket_path, pci_id)| Interface {
            name,
            mac,
            mtu,
            sandbox,
            socket_path,
            pci_id,
        });
    let number = || proptest::option::of(any::<u32>());
    let route = (any_net(), proptest::option::of(any_ip()), number(), number(), number(), number(), number())
        .prop_map(|(dst, gw, mtu, advmss, priority, table, scope)| Route {
            dst,
            gw,
            mtu,
            advmss,
            priority,
            table,
            scope,
        });
    let texts = || proptest::collection::vec("[ -~]{0,12}", 0..3);
    let dns = (texts(), text(), texts(), texts()).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    });
    let ip =
        (any_net(), proptest::option::of(any_ip()), proptest::option::of(any::<proptest::sample::Index>()));
    (
        proptest::collection::vec(link, 0..4),
        proptest::collection::vec(ip, 0..4),
        proptest::collection::vec(route, 0..3),
        dns,
    )
        .prop_map(|(interfaces, ips, routes, dns)| {
            let on = |index: proptest::sample::Index| {
                (!interfaces.is_empty()).then(|| index.index(interfaces.len()))
            };
            let ips = ips.into_iter().map(|(address, gateway, index)| IpConfig {
                address,
                gateway,
                interface: index.and_then(on),
            });
            AddResult { ips: ips.collect(), interfaces, routes, dns }
        })
}

proptest! {
    #[test]
    fn in_the_newest_version_nothing_is_lost(result in any_result()) {
        let written = result.to_json(Version::NEWEST).unwrap();
        prop_assert_eq!(AddResult::from_prev_result(&written).unwrap(), result);
    }

    #[test]
    fn an_older_version_loses_only_what_it_has_no_word_for(result in any_result()) {
        let mut expected = result.clone();
        for link in &mut expected.interfaces {
            (link.mtu, link.socket_path, link.pci_id) = (None, None, None);
        }
        for route in &mut expected.routes {
            *route = Route { gw: route.gw, ..Route::to(route.dst) };
        }
        for version in Version::SUPPORTED.into_iter().filter(|version| *version < Version::V1_1_0) {
            let written = result.to_json(version).unwrap();
            prop_assert_eq!(&written["cniVersion"], version.as_str());
            prop_assert_eq!(&AddResult::from_prev_result(&written).unwrap(), &expected);
            for ip in written["ips"].as_array().into_iter().flatten() {
                let is_v4 = !ip["address"].as_str().unwrap().contains(':');
                let wanted = if is_v4 { json!("4") } else { json!("6") };
                let word = if version < Version::V1_0_0 { Some(&wanted) } else { None };
                prop_assert_eq!(ip.get("version"), word);
            }
        }
    }
}
