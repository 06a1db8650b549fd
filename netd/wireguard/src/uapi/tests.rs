// SPDX-License-Identifier: Apache-2.0
//! Requests and answers as text.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    DeviceChange, DeviceConfig, PrivateKey, PublicKey,
    arbitrary::{change, device, state_of},
};

/// The example of the protocol's own page.
const SET_OF_THE_PAGE: &str = "\
set=1
private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
fwmark=0
listen_port=12912
replace_peers=true
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
replace_allowed_ips=true
allowed_ip=192.168.4.4/32
endpoint=[abcd:23::33%2]:51820
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
replace_allowed_ips=true
allowed_ip=192.168.4.6/32
persistent_keepalive_interval=111
endpoint=182.122.22.19:3233
public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
replace_allowed_ips=true
allowed_ip=192.168.4.10/32
allowed_ip=192.168.4.11/32
endpoint=5.152.198.39:51820
public_key=e818b58db5274087fcc1be5dc728cf53d3b5726b4cef6b9bab8f8f8c2452c25c
remove=true

";

fn change_of(text: &str) -> DeviceChange {
    match parse_request(text).unwrap() {
        Request::Set(change) => change,
        Request::Get => panic!("a get"),
    }
}

fn error(text: &str) -> String {
    parse_request(text).unwrap_err().to_string()
}

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn the_request_on_the_protocols_page_is_read() {
    let change = change_of(SET_OF_THE_PAGE);
    assert_eq!(
        change.to_string(),
        "private key, listen port 12912, fwmark 0, all peers replaced, peers: 3 set, 1 removed"
    );
    let first = &change.peers[0];
    assert_eq!(first.endpoint.unwrap().to_string(), "[abcd:23::33%2]:51820");
    assert!(first.preshared_key.as_ref().unwrap().is_some());
    assert_eq!(change.peers[1].persistent_keepalive, Some(111));
    assert_eq!(change.peers[2].add_allowed_ips.len(), 2);
    assert_eq!(change_of(&print_set(&change)), change);
    assert_eq!(parse_request("get=1\n\n"), Ok(Request::Get));
}

#[test]
fn zeros_take_keys_away() {
    let change = change_of(&format!("set=1\nprivate_key={ZERO}\npublic_key={KEY}\npreshared_key={ZERO}\n\n"));
    assert_eq!(change.private_key, Some(None));
    assert_eq!(change.peers[0].preshared_key, Some(None));
    assert_eq!(change_of(&print_set(&change)), change);
}

#[test]
fn prefixes_come_and_go_in_the_order_of_the_lines() {
    let text = |lines: &str| format!("set=1\npublic_key={KEY}\n{lines}\n");
    let added = change_of(&text("allowed_ip=10.0.0.7/24\n"));
    assert_eq!(added.peers[0].add_allowed_ips, ["10.0.0.0/24".parse().unwrap()], "bits of the host are cut");
    let removed = change_of(&text("allowed_ip=-10.0.0.0/24\n"));
    assert_eq!(removed.peers[0].remove_allowed_ips, ["10.0.0.0/24".parse().unwrap()]);

    let mut config = DeviceConfig::default();
    config.apply(&change_of(&text(
        "allowed_ip=10.0.0.0/24\nallowed_ip=-10.0.0.0/24\nallowed_ip=10.0.1.0/24\n",
    )));
    let has = |config: &DeviceConfig| {
        let prefixes = config.peers.values().flat_map(|peer| &peer.allowed_ips);
        prefixes.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(has(&config), "10.0.1.0/24");
    config.apply(&change_of(&text(
        "allowed_ip=10.0.3.0/24\nreplace_allowed_ips=true\nallowed_ip=10.0.2.0/24\n",
    )));
    assert_eq!(has(&config), "10.0.2.0/24");
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let peer = |line: &str| error(&format!("set=1\nlisten_port=1\npublic_key={KEY}\n{line}\n\n"));
    assert_eq!(
        error("GET / HTTP/1.1\r\n\r\n"),
        "not a request: it starts with \"GET / HTTP/1.1\\r\" instead of get=1 or set=1"
    );
    assert_eq!(error(""), "not a request: it starts with \"\" instead of get=1 or set=1");
    assert_eq!(error("get=1\nlisten_port=5\n\n"), "line 2: \"listen_port=5\": get=1 stands alone");
    assert_eq!(
        error("set=1\nlisten_port=70000\n\n"),
        "line 2: \"listen_port=70000\": not a port: 0 to 65535"
    );
    assert_eq!(error("set=1\nlisten_port=+5\n\n"), "line 2: \"listen_port=+5\": not a port: 0 to 65535");
    assert_eq!(error("set=1\nfwmark=\n\n"), "line 2: \"fwmark=\": not a mark: 0 to 4294967295");
    assert_eq!(
        error("set=1\nreplace_peers=false\n\n"),
        "line 2: \"replace_peers=false\": the only value is true"
    );
    assert_eq!(error("set=1\nhello\n\n"), "line 2: \"hello\": not of the form key=value");
    assert_eq!(error("set=1\nmtu=1420\n\n"), "line 2: \"mtu=1420\": unknown key");
    assert_eq!(
        error("set=1\nremove=true\n\n"),
        "line 2: \"remove=true\": a key of peers: a public_key must come first"
    );
    assert_eq!(
        peer("fwmark=1"),
        "line 4: \"fwmark=1\": a key of the device: it must come before the first public_key"
    );
    assert_eq!(peer("protocol_version=2"), "line 4: \"protocol_version=2\": the only version is 1");
    assert_eq!(
        peer("allowed_ip=10.0.0.1"),
        "line 4: \"allowed_ip=10.0.0.1\": not a prefix, as 10.244.1.0/26"
    );
    assert_eq!(
        peer("allowed_ip=--10.0.0.0/8"),
        "line 4: \"allowed_ip=--10.0.0.0/8\": not a prefix, as 10.244.1.0/26"
    );
    assert_eq!(
        peer("endpoint=example.org:51820"),
        "line 4: \"endpoint=example.org:51820\": not an address with a port, as 192.0.2.1:51820 or [2001:db8::1]:51820"
    );
    assert_eq!(
        peer("persistent_keepalive_interval=off"),
        "line 4: \"persistent_keepalive_interval=off\": not seconds: 0 to 65535"
    );
}

#[test]
fn secrets_are_not_in_errors() {
    let secret = &KEY[..63];
    let told = error(&format!("set=1\nprivate_key={secret}\n\n"));
    assert_eq!(told, "line 2: \"private_key=(hidden)\": not a key of 64 hexadecimal digits");
    let told = error(&format!("set=1\npublic_key={KEY}\npreshared_key={secret}\n\n"));
    assert_eq!(told, "line 3: \"preshared_key=(hidden)\": not a key of 64 hexadecimal digits");
    let told = error(&format!("set=1\nprivate_key ={KEY}\n\n"));
    assert!(!told.contains(&KEY[..8]), "{told}");
}

#[test]
fn a_state_is_told_as_wg_expects_it() {
    let mut state = state_of(&DeviceConfig::default());
    state.listen_port = 51_820;
    let mut peer = crate::PeerState { rx_bytes: 5, tx_bytes: u64::MAX, ..crate::PeerState::default() };
    peer.last_handshake = Some(Duration::new(1_700_000_000, 7));
    peer.config.endpoint = Some("[2001:db8::1]:51820".parse().unwrap());
    peer.config.allowed_ips.insert("fd00::/64".parse().unwrap());
    peer.config.allowed_ips.insert("10.0.0.0/24".parse().unwrap());
    state.peers.insert(PublicKey::from_hex(KEY).unwrap(), peer);
    let text = print_get(&Snapshot { private_key: None, state });
    let expected = format!(
        "listen_port=51820\npublic_key={KEY}\npreshared_key={ZERO}\nprotocol_version=1\nendpoint=[2001:db8::1]:51820\n\
         last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=7\ntx_bytes=18446744073709551615\nrx_bytes=5\n\
         persistent_keepalive_interval=0\nallowed_ip=10.0.0.0/24\nallowed_ip=fd00::/64\nerrno=0\n\n"
    );
    assert_eq!(*text, expected);
}

#[test]
fn answers_of_other_devices_are_read() {
    // wireguard-go leaves out what is not set and may tell what is not known here.
    let text = format!(
        "private_key={KEY}\nsomething=new\npublic_key={KEY}\nprotocol_version=1\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\nnovel=1\nerrno=0\n\n"
    );
    let snapshot = parse_get(&text).unwrap();
    assert_eq!(snapshot.state.public_key, Some(PrivateKey::from_hex(KEY).unwrap().public()));
    assert_eq!(snapshot.state.listen_port, 0);
    assert_eq!(snapshot.state.peers.values().next().unwrap().last_handshake, None);
    assert_eq!(parse_get(&text.replace("errno=0\n\n", "")), Err(UapiError::CutOff));
    assert!(
        parse_get("listen_port=x\nerrno=0\n\n")
            .unwrap_err()
            .to_string()
            .starts_with("line 1: \"listen_port=x\"")
    );
}

#[test]
fn error_numbers_have_either_sign() {
    assert_eq!(print_errno(0), "errno=0\n\n");
    assert_eq!(print_errno(22), "errno=-22\n\n");
    assert_eq!(parse_errno("errno=0\n\n"), Ok(()));
    assert_eq!(parse_errno("errno=-22\n\n"), Err(UapiError::Errno(22)));
    assert_eq!(parse_errno("errno=22\n\n"), Err(UapiError::Errno(22)));
    assert_eq!(parse_errno(""), Err(UapiError::CutOff));
    assert!(matches!(parse_errno("errno=many\n\n"), Err(UapiError::Line { .. })));
    assert_eq!(parse_get("errno=-19\n\n").unwrap_err(), UapiError::Errno(19));
}

proptest! {
    #[test]
    fn a_request_that_is_written_is_read_the_same(change in change()) {
        prop_assert_eq!(change_of(&print_set(&change)), change);
    }

    #[test]
    fn a_state_that_is_told_is_read_the_same(device in device(), time in 0_u64..3, rx: u64) {
        let mut state = state_of(&device);
        for peer in state.peers.values_mut() {
            peer.last_handshake = Some(Duration::new(time, 1 - u32::try_from(time.min(1)).unwrap())).filter(|time| !time.is_zero());
            peer.rx_bytes = rx;
        }
        let snapshot = Snapshot { private_key: device.private_key, state };
        prop_assert_eq!(parse_get(&print_get(&snapshot)).unwrap(), snapshot);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(set=1\n)?([a-z_]{0,30}=?[-0-9a-f.:/]{0,20}\n){0,6}|\\PC{0,200}") {
        if let Ok(Request::Set(change)) = parse_request(&text) {
            prop_assert_eq!(change_of(&print_set(&change)), change);
        }
        let _ = parse_errno(&text);
        let _ = parse_get(&text);
    }

    #[test]
    fn lines_that_are_almost_right_are_read_or_refused(
        lines in proptest::collection::vec(
            prop_oneof![
                Just(format!("public_key={KEY}")), Just(format!("private_key={KEY}")), Just("remove=true".to_owned()),
                Just("allowed_ip=10.0.0.0/8".to_owned()), Just("allowed_ip=-10.0.0.0/8".to_owned()),
                Just("replace_allowed_ips=true".to_owned()), Just("update_only=true".to_owned()),
                "endpoint=[0-9.:\\[\\]]{0,30}", "allowed_ip=[-0-9a-f.:]{0,12}/[0-9]{0,3}", "listen_port=[0-9]{0,6}",
            ],
            0..12,
        )
    ) {
        let text = format!("set=1\n{}\n\n", lines.join("\n"));
        if let Ok(Request::Set(change)) = parse_request(&text) {
            prop_assert_eq!(change_of(&print_set(&change)), change.clone());
            let mut config = DeviceConfig::default();
            config.apply(&change);
            // One owner for each prefix.
            let owned = config.peers.values().map(|peer| peer.allowed_ips.len()).sum::<usize>();
            let distinct: std::collections::BTreeSet<_> = config.peers.values().flat_map(|peer| &peer.allowed_ips).collect();
            prop_assert_eq!(owned, distinct.len());
        }
    }
}
