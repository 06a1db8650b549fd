// SPDX-License-Identifier: Apache-2.0
//! A call of weft-cni: `VARIABLE=value` lines, an empty line, stdin. Whatever comes, the runtime gets an answer that the
//! specification allows, and what is taken keeps the rules that netd and the kernel rely on.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use cni_types::{
    AddOptions, Call, Chained, CniError, MTU_MAX, MTU_MIN, NetworkConfig, Salvage, Stdin, TraceParent,
    Version, is_container_id, is_ifname, is_network_name, is_socket_path, parse_call, version_reply,
};
use serde_json::{Value, json};

pub(super) fn check(input: &[u8]) -> String {
    let (vars, stdin) = parts(input);
    let call = parse_call(|name| vars.get(name.as_bytes()).cloned());
    let trace = vars.get(b"TRACEPARENT".as_slice()).and_then(|text| TraceParent::parse(text.to_str()?));
    if let Some(trace) = trace {
        assert_eq!(TraceParent::parse(&trace.to_string()), Some(trace), "a trace is written as it is read");
    }
    check_salvage(stdin);

    let decoded = Stdin::decode(stdin);
    let known = decoded.as_ref().ok().and_then(|stdin| stdin.cni_version().parse::<Version>().ok());
    let version = known.unwrap_or(Version::NEWEST);
    match call.and_then(|call| carry_out(&call, decoded?)) {
        Ok(label) => label,
        Err(error) => {
            check_error(&error, version);
            format!("{}: {}", error.code, error.msg)
        }
    }
}

fn parts(input: &[u8]) -> (BTreeMap<&[u8], OsString>, &[u8]) {
    let (mut vars, mut rest) = (BTreeMap::new(), input);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let equals = line.iter().position(|byte| *byte == b'=').unwrap_or(line.len());
        let value = line.get(equals + 1..).unwrap_or_default();
        vars.insert(&line[..equals], OsString::from_vec(value.to_vec()));
    }
    (vars, rest)
}

/// Up to where weft-cni would talk to netd.
fn carry_out(call: &Call, stdin: Stdin) -> Result<String, CniError> {
    if *call == Call::Version {
        let reply = version_reply(stdin.cni_version());
        assert_eq!(reply["supportedVersions"].as_array().map(Vec::len), Some(Version::SUPPORTED.len()));
        return Ok("version".to_owned());
    }
    let config = NetworkConfig::parse(stdin)?;
    assert!(is_network_name(&config.name), "{:?}", config.name);
    assert!(config.socket.as_deref().is_none_or(is_socket_path), "{:?}", config.socket);
    match call {
        Call::Add(target) => {
            assert!(is_container_id(&target.container_id) && is_ifname(&target.ifname), "{target:?}");
            config.refuse_unsupported()?;
            let options = AddOptions::gather(&config, &target.ifname, &target.args)?;
            check_options(&options);
            chained(&config)?;
            let asked = [
                options.pod.is_some(),
                !options.labels.is_empty(),
                !options.requested_ips.is_empty(),
                !options.ip_ranges.is_empty(),
                options.sticky.is_some(),
                !options.aliases.is_empty(),
                !options.port_mappings.is_empty(),
                options.bandwidth.is_some(),
                options.cgroup_path.is_some(),
                options.mac.is_some(),
                options.mtu.is_some(),
                options.dns.is_some(),
            ];
            Ok(format!("add {:?}", asked.map(|it| if it { 'x' } else { '-' })))
        }
        Call::Check(target) => {
            assert!(is_container_id(&target.container_id) && is_ifname(&target.ifname), "{target:?}");
            Ok(format!("check {:?}", chained(&config)?.map(|it| it.addresses_of(&target.ifname).len())))
        }
        Call::Del(target) => {
            assert!(is_container_id(&target.container_id) && is_ifname(&target.ifname), "{target:?}");
            Ok("del".to_owned())
        }
        Call::Gc => Ok(format!("gc {}", config.valid_attachments()?.len())),
        Call::Status => Ok("status".to_owned()),
        Call::Version => unreachable!("answered above"),
    }
}

fn chained(config: &NetworkConfig) -> Result<Option<Chained>, CniError> {
    config.prev_result().map(Chained::parse).transpose()
}

fn check_options(options: &AddOptions) {
    let of_family = |v4: bool| options.requested_ips.iter().filter(|ip| ip.is_ipv4() == v4).count();
    assert!(of_family(true) <= 1 && of_family(false) <= 1, "{:?}", options.requested_ips);
    assert!(options.mtu.is_none_or(|mtu| (MTU_MIN..=MTU_MAX).contains(&mtu)), "{:?}", options.mtu);
    assert!(options.mac.is_none_or(|mac| mac[0] & 1 == 0 && mac != [0; 6]), "{:?}", options.mac);
    for port in &options.port_mappings {
        assert!(port.host_port != 0 && port.container_port != 0, "{port:?}");
    }
    for range in options.ip_ranges.iter().flatten() {
        for end in [range.first, range.last].into_iter().flatten() {
            assert!(range.subnet.contains(&end), "{range:?}");
        }
        assert!(range.first.zip(range.last).is_none_or(|(first, last)| first <= last), "{range:?}");
    }
}

/// The error object of the specification, as it goes to stdout.
fn check_error(error: &CniError, version: Version) {
    let printed = error.to_json(version.as_str()).to_string();
    assert!(!printed.contains('\n'), "one line: {printed}");
    let read: Value = serde_json::from_str(&printed).expect("the error is JSON");
    assert_eq!(read["cniVersion"], json!(version.as_str()));
    assert!(read["code"].as_u64().is_some_and(|code| (1..=999).contains(&code)), "{printed}");
    assert!(read["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{printed}");
    let allowed = ["cniVersion", "code", "details", "msg"];
    assert!(read.as_object().unwrap().keys().all(|key| allowed.contains(&key.as_str())), "{printed}");
}

/// What DEL takes from a config as if it were damaged is what the whole one says.
fn check_salvage(stdin: &[u8]) {
    let found = Salvage::of(stdin);
    if let Ok(config) = Stdin::decode(stdin).and_then(NetworkConfig::parse) {
        assert_eq!((found.name, found.socket), (Some(config.name), config.socket));
    }
}
