// SPDX-License-Identifier: Apache-2.0
//! What a runtime asks for through capabilities: ports, bandwidth, address ranges, names, cgroup.
//!
//! The shapes are those of CNI's CONVENTIONS.md, as the runtimes really send them: containerd writes the keys of its
//! Go structs (`HostPort`), leaves unset texts empty and sends `ipRanges` as a flat list, podman sends `aliases` as a
//! map from network to list. Go's decoder hides all of that, so every plugin in Go takes it; so do we.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{excerpt, invalid};
use crate::error::{CniError, Code};
use crate::names::is_dns_label;

/// Port mappings of one attachment: more than any pod has, few enough for one request to netd.
const PORT_MAPPINGS_MAX: usize = 4_096;

/// Aliases of one attachment.
const ALIASES_MAX: usize = 256;

/// Ranges of one attachment, over all sets.
const RANGES_MAX: usize = 256;

/// The longest cgroup path, in bytes (linux/limits.h, PATH_MAX).
const CGROUP_PATH_BYTES_MAX: usize = 4_096;

/// A port of the host that leads to one of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The host's address; none for every one, `0.0.0.0` or `::` for every one of a family.
    pub host_ip: Option<IpAddr>,
    /// The host's port, never 0.
    pub host_port: u16,
    /// The container's port, never 0.
    pub container_port: u16,
    /// The transport.
    pub protocol: PortProtocol,
}

/// Transport protocol of a port mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortProtocol {
    /// SCTP (RFC 9260)
    Sctp,
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Limits of an attachment's traffic, as the container sees it: ingress is to it. A rate of 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Bandwidth {
    /// To the container, in bits per second.
    #[serde(default, rename = "ingressrate")]
    pub ingress_rate: u64,
    /// Burst to the container, in bits.
    #[serde(default, rename = "ingressburst")]
    pub ingress_burst: u64,
    /// From the container, in bits per second.
    #[serde(default, rename = "egressrate")]
    pub egress_rate: u64,
    /// Burst from the container, in bits.
    #[serde(default, rename = "egressburst")]
    pub egress_burst: u64,
}

/// A range of addresses, both ends in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpRange {
    /// The prefix that it lies in.
    pub subnet: IpNet,
    /// First address; the subnet's where none.
    pub first: Option<IpAddr>,
    /// Last address; the subnet's where none.
    pub last: Option<IpAddr>,
}

/// `portMappings`. An entry with the host port 0 publishes nothing and is left out. Errors: code 7, also where two
/// entries want the same port of the same address.
pub(crate) fn port_mappings(value: &Value) -> Result<Vec<PortMapping>, CniError> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default, rename = "hostport")]
        host_port: i64,
        #[serde(default, rename = "containerport")]
        container_port: i64,
        #[serde(default)]
        protocol: Option<String>,
        #[serde(default, rename = "hostip")]
        host_ip: Option<String>,
    }
    const FIELD: &str = "runtimeConfig.portMappings";
    let entries: Vec<Entry> = decode(FIELD, value)?;
    at_most(FIELD, entries.len(), PORT_MAPPINGS_MAX)?;
    let port = |what: &str, port: i64| {
        u16::try_from(port).map_err(|_| invalid(format!("{FIELD}: {what} {port} is not 1 to 65535")))
    };
    let mut mappings = Vec::with_capacity(entries.len());
    for entry in entries {
        let host_port = port("hostPort", entry.host_port)?;
        if host_port == 0 {
            continue;
        }
        let container_port = port("containerPort", entry.container_port)?;
        if container_port == 0 {
            return Err(invalid(format!("{FIELD}: hostPort {host_port} has no containerPort")));
        }
        let protocol = entry.protocol.unwrap_or_default();
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" | "" => PortProtocol::Tcp,
            "udp" => PortProtocol::Udp,
            "sctp" => PortProtocol::Sctp,
            _ => return Err(invalid(format!("{FIELD}: protocol {protocol:?} is not tcp, udp or sctp"))),
        };
        let host_ip = ip(FIELD, "hostIP", entry.host_ip)?;
        mappings.push(PortMapping { host_ip, host_port, container_port, protocol });
    }
    refuse_same_port(FIELD, &mappings)?;
    Ok(mappings)
}

fn refuse_same_port(field: &str, mappings: &[PortMapping]) -> Result<(), CniError> {
    let mut taken: BTreeMap<(PortProtocol, u16), Vec<Option<IpAddr>>> = BTreeMap::new();
    for mapping in mappings {
        let holders = taken.entry((mapping.protocol, mapping.host_port)).or_default();
        if holders.iter().any(|held| overlap(*held, mapping.host_ip)) {
            let protocol = format!("{:?}", mapping.protocol).to_ascii_lowercase();
            let reason = format!("hostPort {}/{protocol} is asked for twice", mapping.host_port);
            return Err(invalid(format!("{field}: {reason}")));
        }
        holders.push(mapping.host_ip);
    }
    Ok(())
}

/// Whether two host addresses of mappings stand for a common one.
fn overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
}

/// `bandwidth`; none where nothing is limited. Errors: code 7 for a burst without a rate, code 2 for subnets of the
/// reference plugin, which we do not tell apart. Whether rate and burst fit each other is netd's to say.
pub(crate) fn bandwidth(value: &Value) -> Result<Option<Bandwidth>, CniError> {
    const FIELD: &str = "runtimeConfig.bandwidth";
    for key in ["shapedSubnets", "unshapedSubnets"] {
        if let Some(subnets) = value.get(key).filter(|value| value.as_array().is_some_and(|l| !l.is_empty()))
        {
            let msg = format!(
                "network config: {FIELD} has {key} (value {}): weft-cni limits all of a pod's traffic; remove it",
                excerpt(subnets)
            );
            return Err(CniError::new(Code::UNSUPPORTED_FIELD, msg));
        }
    }
    let limits: Bandwidth = decode(FIELD, value)?;
    for (way, rate, burst) in [
        ("ingress", limits.ingress_rate, limits.ingress_burst),
        ("egress", limits.egress_rate, limits.egress_burst),
    ] {
        if rate == 0 && burst != 0 {
            return Err(invalid(format!("{FIELD}: {way}Burst is {burst} without an {way}Rate")));
        }
    }
    Ok(Some(limits).filter(|limits| limits.ingress_rate != 0 || limits.egress_rate != 0))
}

/// `ipRanges`: sets of ranges, and what of them is ignored (a line each). A flat list is one set for each family.
/// Errors: code 7.
pub(crate) fn ip_ranges(value: &Value) -> Result<(Vec<Vec<IpRange>>, Vec<String>), CniError> {
    const FIELD: &str = "runtimeConfig.ipRanges";
    let list = value.as_array().ok_or_else(|| invalid(format!("{FIELD}: {} is no list", excerpt(value))))?;
    let mut ignored = Vec::new();
    let mut sets = Vec::new();
    if list.first().is_some_and(Value::is_array) {
        for set in list {
            sets.push(ranges(FIELD, set, &mut ignored)?);
        }
    } else {
        let all = ranges(FIELD, value, &mut ignored)?;
        let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().partition(|range| range.subnet.addr().is_ipv4());
        sets.extend([v4, v6].into_iter().filter(|set| !set.is_empty()));
    }
    at_most(FIELD, sets.iter().map(Vec::len).sum(), RANGES_MAX)?;
    let mut families = BTreeSet::new();
    for set in &sets {
        let [first, others @ ..] = set.as_slice() else {
            return Err(invalid(format!("{FIELD}: an empty set stands for no address")));
        };
        let is_ipv4 = first.subnet.addr().is_ipv4();
        if others.iter().any(|range| range.subnet.addr().is_ipv4() != is_ipv4) {
            return Err(invalid(format!("{FIELD}: a set mixes IPv4 and IPv6; give each family its own")));
        }
        if !families.insert(is_ipv4) {
            let family = if is_ipv4 { "IPv4" } else { "IPv6" };
            return Err(invalid(format!(
                "{FIELD}: two sets of {family}; an attachment has one address of each family"
            )));
        }
    }
    Ok((sets, ignored))
}

fn ranges(field: &str, set: &Value, ignored: &mut Vec<String>) -> Result<Vec<IpRange>, CniError> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        subnet: String,
        #[serde(default, rename = "rangestart")]
        range_start: Option<String>,
        #[serde(default, rename = "rangeend")]
        range_end: Option<String>,
        #[serde(default)]
        gateway: Option<String>,
    }
    let entries: Vec<Entry> = decode(field, set)?;
    let mut ranges = Vec::with_capacity(entries.len());
    for entry in entries {
        let subnet: IpNet = entry
            .subnet
            .parse()
            .map_err(|_| invalid(format!("{field}: subnet {:?} is not a CIDR", entry.subnet)))?;
        let subnet = subnet.trunc();
        let first = ip(field, "rangeStart", entry.range_start)?;
        let last = ip(field, "rangeEnd", entry.range_end)?;
        for (key, end) in [("rangeStart", first), ("rangeEnd", last)] {
            if let Some(end) = end.filter(|end| !subnet.contains(end)) {
                return Err(invalid(format!("{field}: {key} {end} is not in {subnet}")));
            }
        }
        if let (Some(first), Some(last)) = (first, last)
            && first > last
        {
            return Err(invalid(format!("{field}: rangeStart {first} is behind rangeEnd {last}")));
        }
        if let Some(gateway) = entry.gateway.filter(|text| !text.is_empty()) {
            ignored.push(format!("{field}: gateway {gateway} of {subnet}: a pod's gateway is always netd's"));
        }
        ranges.push(IpRange { subnet, first, last });
    }
    Ok(ranges)
}

/// `aliases`: a list, or podman's map from network to list, of which only `network`'s counts. Lower case, each once, in
/// the order given. Errors: code 7 where one is no DNS label.
pub(crate) fn aliases(value: &Value, network: &str) -> Result<Vec<String>, CniError> {
    const FIELD: &str = "runtimeConfig.aliases";
    let wrong = |error| invalid(format!("{FIELD}: {error}"));
    let given = match value {
        Value::Object(networks) => match networks.get(network) {
            Some(list) => Option::<Vec<String>>::deserialize(list).map_err(wrong)?.unwrap_or_default(),
            None => Vec::new(),
        },
        other => Vec::<String>::deserialize(other).map_err(wrong)?,
    };
    at_most(FIELD, given.len(), ALIASES_MAX)?;
    let mut seen = BTreeSet::new();
    let mut aliases = Vec::new();
    for alias in given {
        let alias = alias.to_ascii_lowercase();
        if !is_dns_label(&alias) {
            let rule = "1 to 63 letters, digits and hyphens, none of these at the ends (RFC 1123)";
            return Err(invalid(format!("{FIELD}: {} is not a DNS label: {rule}", excerpt(&alias.into()))));
        }
        if seen.insert(alias.clone()) {
            aliases.push(alias);
        }
    }
    Ok(aliases)
}

/// `cgroupPath`. Errors: code 7.
pub(crate) fn cgroup_path(value: &Value) -> Result<Option<String>, CniError> {
    const FIELD: &str = "runtimeConfig.cgroupPath";
    match value.as_str() {
        Some("") => Ok(None),
        Some(path) if path.len() <= CGROUP_PATH_BYTES_MAX && !path.chars().any(char::is_control) => {
            Ok(Some(path.to_owned()))
        }
        _ => Err(invalid(format!("{FIELD}: {} is not a path", excerpt(value)))),
    }
}

/// Decodes with all keys in lower case, as Go's decoder does not tell the case of keys.
pub(crate) fn decode<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, CniError> {
    serde_json::from_value(folded(value)).map_err(|error| invalid(format!("{field}: {error}")))
}

fn folded(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(folded).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.to_ascii_lowercase(), folded(value))).collect()
        }
        other => other.clone(),
    }
}

/// An address, where the text is there and not empty.
fn ip(field: &str, key: &str, text: Option<String>) -> Result<Option<IpAddr>, CniError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(Some(ip.to_canonical())),
        Err(_) => Err(invalid(format!("{field}: {key} {} is not an IP address", excerpt(&text.into())))),
    }
}

fn at_most(field: &str, count: usize, max: usize) -> Result<(), CniError> {
    if count <= max {
        return Ok(());
    }
    Err(invalid(format!("{field}: {count} entries, at most {max} are taken")))
}
