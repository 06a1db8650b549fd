// SPDX-License-Identifier: Apache-2.0
//! An earlier plugin's result, kept and extended.

use cni_types::{AddResult, Chained, Code, Dns, Interface, IpConfig, Route, Version};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::result::any_result;

fn own() -> AddResult {
    let link = |name: &str, sandbox: Option<&str>| Interface {
        name: name.into(),
        mtu: Some(1450),
        sandbox: sandbox.map(str::to_owned),
        ..Interface::default()
    };
    AddResult {
        interfaces: vec![link("weft0", None), link("eth0", Some("/run/netns/p"))],
        ips: vec![IpConfig { address: "10.244.0.2/32".parse().unwrap(), gateway: None, interface: Some(1) }],
        routes: vec![Route::to("0.0.0.0/0".parse().unwrap())],
        dns: Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() },
    }
}

fn lo(version: &str) -> Value {
    json!({
        "cniVersion": version, "interfaces": [{"name": "lo", "sandbox": "/run/netns/p", "colour": "green"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}], "x-vendor": {"kept": true},
    })
}

#[test]
fn ours_comes_behind_what_is_there_and_points_at_our_link() {
    let chained = Chained::parse(&lo("1.1.0")).unwrap();
    assert!(chained.sandbox_link("eth0").is_none());
    let expected = json!({
        "cniVersion": "1.1.0", "x-vendor": {"kept": true},
        "interfaces": [
            {"name": "lo", "sandbox": "/run/netns/p", "colour": "green"},
            {"name": "weft0", "mtu": 1450}, {"name": "eth0", "mtu": 1450, "sandbox": "/run/netns/p"},
        ],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "10.244.0.2/32", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.96.0.10"]},
    });
    assert_eq!(chained.extend(&own(), Version::V1_1_0).unwrap(), expected);
    // In another version than its own it is converted.
    let older = chained.extend(&own(), Version::V0_4_0).unwrap();
    assert_eq!(
        older["interfaces"],
        json!([
            {"name": "lo", "sandbox": "/run/netns/p"}, {"name": "weft0"}, {"name": "eth0", "sandbox": "/run/netns/p"},
        ])
    );
    assert_eq!(older["ips"][1], json!({"version": "4", "address": "10.244.0.2/32", "interface": 2}));
}

#[test]
fn a_link_that_is_there_is_found_in_its_sandbox_only_with_its_addresses() {
    let bridge = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "cni0"}, {"name": "eth0"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/p"}],
        "ips": [
            {"address": "10.0.0.5/16", "interface": 2}, {"address": "10.0.0.6/16", "interface": 1},
            {"address": "fd00::5/64"},
        ],
    });
    let chained = Chained::parse(&bridge).unwrap();
    assert_eq!(chained.sandbox_link("eth0").unwrap().mac.as_deref(), Some("02:00:00:00:00:01"));
    let addresses: Vec<String> = chained.addresses_of("eth0").iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.5/16", "fd00::5/64"]);

    let dns = Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() };
    let mut expected = bridge.clone();
    expected["dns"] = json!({"nameservers": ["10.96.0.10"]});
    assert_eq!(chained.echo(&dns, Version::V1_0_0).unwrap(), expected);
    assert_eq!(chained.echo(&Dns::default(), Version::V1_0_0).unwrap(), bridge);
}

#[test]
fn dns_that_is_there_stays() {
    let mut prev = lo("1.1.0");
    prev["dns"] = json!({"search": ["example.org"]});
    let chained = Chained::parse(&prev).unwrap();
    assert_eq!(chained.extend(&own(), Version::V1_1_0).unwrap()["dns"], prev["dns"]);
    prev["dns"] = json!({});
    let chained = Chained::parse(&prev).unwrap();
    assert_eq!(chained.extend(&own(), Version::V1_1_0).unwrap()["dns"]["nameservers"][0], "10.96.0.10");
}

#[test]
fn a_damaged_one_is_error_7() {
    assert_eq!(Chained::parse(&json!([])).unwrap_err().code, Code::INVALID_CONFIG);
}

proptest! {
    #[test]
    fn every_address_stays_on_its_link(prev in any_result(), own in any_result(), version in 0..5_usize) {
        let version = Version::SUPPORTED[version];
        for written in [prev.to_json(version).unwrap(), prev.to_json(Version::NEWEST).unwrap()] {
            let whole = Chained::parse(&written).unwrap().extend(&own, version).unwrap();
            let whole = AddResult::from_prev_result(&whole).unwrap();
            let named = |result: &AddResult| -> Vec<(String, Option<String>)> {
                let name = |ip: &IpConfig| ip.interface.map(|index| result.interfaces[index].name.clone());
                result.ips.iter().map(|ip| (ip.address.to_string(), name(ip))).collect()
            };
            let mut expected = named(&prev);
            expected.extend(named(&own));
            prop_assert_eq!(named(&whole), expected);
            prop_assert_eq!(whole.routes.len(), prev.routes.len() + own.routes.len());
            prop_assert_eq!(&whole.dns, if prev.dns.is_empty() { &own.dns } else { &prev.dns });
        }
    }

    #[test]
    fn an_echo_in_the_same_version_is_the_same(prev in any_result(), version in 0..5_usize) {
        let version = Version::SUPPORTED[version];
        let written = prev.to_json(version).unwrap();
        let echo = Chained::parse(&written).unwrap().echo(&Dns::default(), version).unwrap();
        prop_assert_eq!(echo, written);
    }
}
