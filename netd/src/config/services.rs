// SPDX-License-Identifier: Apache-2.0
//! What was said about services.

use std::net::Ipv6Addr;

use ipam::NodePortRange;
use ipnet::{IpNet, Ipv6Net};
use netd_store::records::tenth;

use super::{ConfigError, bad, no_host_bits, overlap, v4net};
use crate::args::Options;

/// Where ClusterIPs of the second family come from.
const SERVICES_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112);
/// Smaller maps hold not even a test's services.
const MAP_MIN: u32 = 256;
/// A service with a hundred backends and a table to hash into needs this many.
const SLOTS_MIN: u32 = 65_537;
/// About 300 MiB of frontends or backends.
const FRONTENDS_LIMIT: u32 = 1 << 22;
/// 256 MiB of slots.
const SLOTS_LIMIT: u32 = 1 << 26;
/// About 5 GiB of connections.
const CONNECTIONS_LIMIT: u32 = 1 << 24;

/// How services reach the world, and how many fit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ServicesConfig {
    /// What the first node gives the cluster.
    pub node_port_range: NodePortRange,
    /// Prefixes of the node's addresses that answer node ports; empty: all of them do.
    pub node_port_addresses: Vec<IpNet>,
    /// Devices that the world comes by; `None`: the underlay's.
    pub devices: Option<Vec<String>>,
    pub external_ips: bool,
    pub fault_injection: bool,
    /// Sizes of the maps, where somebody said something.
    pub frontends_max: Option<u32>,
    pub backends_max: Option<u32>,
    pub slots_max: Option<u32>,
    pub connections_max: Option<u32>,
}

/// Checks all but the CIDRs.
pub(super) fn check(o: &Options) -> Result<ServicesConfig, ConfigError> {
    Ok(ServicesConfig {
        node_port_range: check_port_range(o.node_port_range.as_deref())?,
        node_port_addresses: o.node_port_addresses.clone().unwrap_or_default(),
        devices: check_devices(o.service_devices.clone())?,
        external_ips: o.external_ips.unwrap_or(false),
        fault_injection: o.fault_injection.unwrap_or(false),
        frontends_max: check_max("service-frontends-max", o.service_frontends_max, MAP_MIN, FRONTENDS_LIMIT)?,
        backends_max: check_max("service-backends-max", o.service_backends_max, MAP_MIN, FRONTENDS_LIMIT)?,
        slots_max: check_max("service-slots-max", o.service_slots_max, SLOTS_MIN, SLOTS_LIMIT)?,
        connections_max: check_max(
            "service-connections-max",
            o.service_connections_max,
            MAP_MIN,
            CONNECTIONS_LIMIT,
        )?,
    })
}

/// By default a CIDR for each family that pods have, IPv4 first.
pub(super) fn check_cidrs(cidrs: Option<Vec<IpNet>>, pod_cidrs: &[IpNet]) -> Result<Vec<IpNet>, ConfigError> {
    let option = "service-cidr";
    let cidrs = cidrs.unwrap_or_else(|| {
        let has = |v4: bool| pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == v4);
        let v4 = has(true).then(|| IpNet::V4(v4net([10, 96, 0, 0], 16)));
        v4.into_iter().chain(has(false).then_some(IpNet::V6(SERVICES_V6))).collect()
    });
    for cidr in &cidrs {
        no_host_bits(option, *cidr)?;
        if tenth(*cidr).is_none() {
            return Err(bad(option, format!("{cidr} is too small: DNS has its tenth address")));
        }
        if let Some(pods) = pod_cidrs.iter().find(|pods| overlap(pods, cidr)) {
            return Err(bad(option, format!("{cidr} overlaps the pod CIDR {pods}")));
        }
    }
    match cidrs[..] {
        [_] => Ok(cidrs),
        [a, b] if a.addr().is_ipv4() != b.addr().is_ipv4() => Ok(cidrs),
        _ => Err(bad(option, "one CIDR, or one of each family, is needed".into())),
    }
}

fn check_port_range(text: Option<&str>) -> Result<NodePortRange, ConfigError> {
    let Some(text) = text else { return Ok(NodePortRange::default()) };
    let parsed = text.split_once('-').and_then(|(first, last)| {
        Some(NodePortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
    });
    match parsed {
        // Below are ports that the kernel lets only root listen on.
        Some(range) if range.first >= 1_024 && range.first <= range.last => Ok(range),
        _ => Err(bad(
            "node-port-range",
            format!("{text:?} is not FIRST-LAST, such as 30000-32767, from 1024 on"),
        )),
    }
}

fn check_devices(devices: Option<Vec<String>>) -> Result<Option<Vec<String>>, ConfigError> {
    let Some(devices) = devices else { return Ok(None) };
    if devices == ["none"] {
        return Ok(Some(Vec::new()));
    }
    let wrong = |name: &&String| {
        name.is_empty() || name.len() > netd_plan::links::LINK_NAME_BYTES_MAX || name.contains(['/', ' '])
    };
    match devices.iter().find(wrong) {
        Some(name) => Err(bad("service-devices", format!("{name:?} is not the name of a device"))),
        None => Ok(Some(devices)),
    }
}

fn check_max(
    option: &'static str,
    wanted: Option<u32>,
    min: u32,
    max: u32,
) -> Result<Option<u32>, ConfigError> {
    match wanted {
        Some(number) if !(min..=max).contains(&number) => {
            Err(bad(option, format!("{number} is not between {min} and {max}")))
        }
        wanted => Ok(wanted),
    }
}
