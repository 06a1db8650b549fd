// SPDX-License-Identifier: Apache-2.0
//! What the values are: JSON with a schema version. Fields that we do not know are kept, so that an older node that
//! rewrites a record does not lose what a newer one put there.
//!
//! Services are [`lb::Service`], endpoint slices [`lb::EndpointSlice`], blocks [`ipam::BlockRecord`], pools [`ipam::Pool`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use ipam::{AttachmentKey, NodePortRange, Owner, Pool, ServiceRange, ServiceRanges};
use ipnet::{IpNet, Ipv4Net};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::KeyValue;

/// The schema version that this code writes.
pub const SCHEMA: u32 = 1;

/// Fields of newer versions, kept as they came.
pub type Extra = BTreeMap<String, Value>;

/// A value that does not parse. Report it with its key and skip it: the rest goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad value at {key}: {reason}")]
pub struct BadRecord {
    /// Where it is.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Settings of the whole cluster, at `config`. Missing fields have the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterConfig {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Pools that exist from the start; more stand at `ipam/pools/`.
    pub pools: Vec<Pool>,
    /// Where ClusterIPs of the primary family come from.
    pub service_cidr: IpNet,
    /// Where those of the other family come from; services may have addresses of both then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secondary_service_cidr: Option<IpNet>,
    /// Where node ports come from.
    pub node_port_range: NodePortRange,
    /// The cluster's DNS zone, without a final dot.
    pub dns_zone: String,
    /// The ClusterIP of DNS; in `service_cidr`.
    pub dns_vip: IpAddr,
    /// How nodes reach each other's pods.
    pub overlay: OverlayBackend,
    /// The VXLAN network identifier (RFC 7348), below 2^24.
    pub vni: u32,
    /// The VXLAN UDP port.
    pub vxlan_port: u16,
    /// The UDP port of WireGuard keys of even generations; that of odd ones is the next.
    pub wireguard_port: u16,
    /// How often nodes make new WireGuard keys, in seconds; `None`: only when asked to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_rotation_secs: Option<u64>,
    /// Hosts outside the cluster that may open connections to pods, under their own addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_cidrs: Vec<IpNet>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            pools: vec![Pool::new("default", v4(10, 244, 16), None)],
            service_cidr: v4(10, 96, 16),
            secondary_service_cidr: None,
            node_port_range: NodePortRange::default(),
            dns_zone: "cluster.local".into(),
            dns_vip: Ipv4Addr::new(10, 96, 0, 10).into(),
            overlay: OverlayBackend::Vxlan,
            vni: 4242,
            vxlan_port: 4789,
            wireguard_port: 51820,
            key_rotation_secs: None,
            trusted_cidrs: Vec::new(),
            extra: Extra::new(),
        }
    }
}

impl ClusterConfig {
    /// The service CIDRs, the primary one first; one of a family at most.
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        let is_other = |cidr: &IpNet| cidr.addr().is_ipv4() != self.service_cidr.addr().is_ipv4();
        [self.service_cidr].into_iter().chain(self.secondary_service_cidr.filter(is_other)).collect()
    }

    /// The ClusterIPs of DNS, one in each service CIDR: in the secondary one the tenth address.
    pub fn dns_vips(&self) -> Vec<IpAddr> {
        let others = self.service_cidrs().into_iter().skip(1);
        [self.dns_vip].into_iter().chain(others.filter_map(tenth)).collect()
    }

    /// Where services get what is allocated to them.
    pub fn service_ranges(&self) -> ServiceRanges {
        let range = |(cidr, vip)| ServiceRange { cidr, reserved: vec![vip] };
        ServiceRanges {
            cidrs: self.service_cidrs().into_iter().zip(self.dns_vips()).map(range).collect(),
            node_ports: self.node_port_range,
        }
    }
}

/// The tenth address of a CIDR, where Kubernetes' installers have DNS; `None` where it is too small.
pub fn tenth(cidr: IpNet) -> Option<IpAddr> {
    let ip = match cidr.network() {
        IpAddr::V4(first) => IpAddr::from(Ipv4Addr::from(u32::from(first).checked_add(10)?)),
        IpAddr::V6(first) => IpAddr::from(Ipv6Addr::from(u128::from(first).checked_add(10)?)),
    };
    (cidr.contains(&ip) && ip != cidr.broadcast()).then_some(ip)
}

fn v4(first: u8, second: u8, length: u8) -> IpNet {
    // The lengths above are at most 32, so the other branch is never taken.
    Ipv4Net::new(Ipv4Addr::new(first, second, 0, 0), length).unwrap_or_default().into()
}

/// How nodes reach each other's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayBackend {
    /// Plain routes to nodes on the same link, WireGuard to others.
    Auto,
    /// Plain routes; all nodes on one L2 network.
    Native,
    /// VXLAN (RFC 7348).
    Vxlan,
    /// WireGuard: encrypted.
    Wireguard,
}

impl OverlayBackend {
    /// As the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Vxlan => "vxlan",
            Self::Wireguard => "wireguard",
        }
    }
}

fn known_backends<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<OverlayBackend>>, D::Error> {
    let names = Option::<Vec<Value>>::deserialize(from)?;
    Ok(names.map(|names| names.into_iter().filter_map(|name| serde_json::from_value(name).ok()).collect()))
}

fn known_backend<'de, D: Deserializer<'de>>(from: D) -> Result<Option<OverlayBackend>, D::Error> {
    let name = Option::<Value>::deserialize(from)?;
    Ok(name.and_then(|name| serde_json::from_value(name).ok()))
}

/// What peers need to know about a node's WireGuard devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardRecord {
    /// `kernel` or `user`: where its device runs, for people.
    pub kind: String,
    /// One key, two while it rotates.
    pub keys: Vec<WireguardKeyRecord>,
    /// The lowest generation that the node still sends over; `None` where its netd does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sends: Option<u64>,
}

/// A public key of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardKeyRecord {
    /// Which generation, from 1. Nodes talk over a generation that both have.
    pub generation: u64,
    /// The key, 32 bytes in base64.
    pub public_key: String,
    /// Where its device listens, UDP, at the node's underlay address.
    pub port: u16,
}

/// A node as it presents itself, at `nodes/<uuid>`. Written by that node only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its identity; the same as in the key.
    pub uuid: Uuid,
    /// Its name, for people.
    pub name: String,
    /// Where other nodes reach it.
    pub underlay: IpAddr,
    /// The first address of its first block, the IPv4 one where there are two; `None` until it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<IpAddr>,
    /// The IPv6 one, where the cluster has both families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay6: Option<IpAddr>,
    /// Its labels; pools select nodes by them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its VTEP's MAC, `02:00:…`.
    #[serde(default)]
    pub vtep_mac: String,
    /// How it is reached over WireGuard; `None` where it has no such device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireguardRecord>,
    /// MTU of its underlay device in bytes; 0 where its netd does not say.
    #[serde(default)]
    pub underlay_mtu: u32,
    /// What it can receive by. `None` from a netd that knew VXLAN and plain routes only: then what the cluster wants. What a
    /// newer netd has and this one does not know is passed over.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_backends")]
    pub backends_up: Option<Vec<OverlayBackend>>,
    /// What it sends by to every peer; `None` while its peers differ, and where this netd does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_backend")]
    pub sends: Option<OverlayBackend>,
    /// Its node DNS address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<IpAddr>,
    /// Where its DNS server answers other nodes' pods; empty while it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_serves: Vec<IpAddr>,
    /// The version of its netd.
    #[serde(default)]
    pub version: String,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A pod's attachment, at `pods/<node>/<attachment>`. Written by that node only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which interface of which container.
    pub attachment: AttachmentKey,
    /// The node it runs on.
    pub node: Uuid,
    /// The pod's namespace; `default` where the runtime gave none.
    pub namespace: String,
    /// The pod's name; the container ID where the runtime gave none.
    pub name: String,
    /// Its labels, the implied ones among them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Further names of the pod in its namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The veth's end on the node.
    #[serde(default)]
    pub host_ifname: String,
    /// It may get connections.
    #[serde(default)]
    pub ready: bool,
    /// It is going away: no new connections while others can serve.
    #[serde(default)]
    pub terminating: bool,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An address that is used outside the node that owns its block, at `ipam/addresses/<ip>`. Other nodes route it by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The address; the same as in the key.
    pub ip: IpAddr,
    /// Who has it.
    pub owner: Owner,
    /// The node where it is in use; `None` while a sticky name keeps it unused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Uuid>,
    /// The block's owner keeps the address out of its own use; before that it must not be used.
    #[serde(default)]
    pub granted: bool,
    /// The node that owns the block.
    pub block_owner: Uuid,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A name whose addresses follow it, at `ipam/sticky/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickyRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The name; the same as in the key.
    pub name: String,
    /// Its addresses, one of a family.
    pub ips: Vec<IpAddr>,
    /// The node where they are in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Uuid>,
    /// The attachment that uses them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentKey>,
    /// When they were last taken or given back, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub since_ms: u64,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A machine outside the cluster that talks with pods through WireGuard, at `members/<name>`. Every node has it as a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its name; the same as in the key.
    pub name: String,
    /// Its public key, 32 bytes in base64. The private one is nowhere but with it.
    pub public_key: String,
    /// Its addresses, one of a family. Who owns their block keeps them out of its own use.
    pub ips: Vec<IpAddr>,
    /// Where it finds nodes whose own address is of no use to it: by node name, `HOST` or `HOST:PORT`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A node that an operator removed, at `tombstones/<uuid>`. It stays: a machine that comes back finds it.
/// Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The node; the same as in the key.
    pub uuid: Uuid,
    /// Its name, for people.
    pub name: String,
    /// When it was removed.
    pub at_ms: u64,
    /// The operator states that the machine is off: its acknowledgement is not waited for.
    #[serde(default)]
    pub forced: bool,
    /// When the node itself stopped using its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_ms: Option<u64>,
    /// Nodes that dropped peer, FDB entries and routes of it, with the time.
    #[serde(default)]
    pub fenced: BTreeMap<Uuid, u64>,
    /// When its blocks became free and its records went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Whose a ClusterIP is, at `ipam/services/<ip>`. Written together with the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceIpRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Whose a node port is, at `ipam/nodeports/<n>`. Written together with the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Reads a value.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, BadRecord> {
    serde_json::from_slice(value)
        .map_err(|error| BadRecord { key: key.to_owned(), reason: error.to_string() })
}

/// Reads the values of many keys; bad ones come apart.
pub fn decode_all<'a, T: DeserializeOwned>(
    items: impl IntoIterator<Item = &'a KeyValue>,
) -> (Vec<(&'a KeyValue, T)>, Vec<BadRecord>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for item in items {
        match decode(&item.key, &item.value) {
            Ok(record) => good.push((item, record)),
            Err(error) => bad.push(error),
        }
    }
    (good, bad)
}

/// Writes a value. Fails only on a record that is no JSON, such as a map whose keys are not strings.
pub fn encode<T: Serialize>(key: &str, record: &T) -> Result<Bytes, BadRecord> {
    let value = serde_json::to_vec(record);
    value.map(Bytes::from).map_err(|error| BadRecord { key: key.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_means_the_defaults() {
        let config: ClusterConfig = decode("/config", b"{}").unwrap();
        assert_eq!(config, ClusterConfig::default());
        assert_eq!(config.service_cidr.to_string(), "10.96.0.0/16");
        assert_eq!(config.pools[0].cidr.to_string(), "10.244.0.0/16");
        assert_eq!(ipam::validate_pools(&config.pools), Ok(()));
    }

    #[test]
    fn the_secondary_service_cidr_is_of_the_other_family() {
        let read = |text: &str| -> ClusterConfig { decode("/config", text.as_bytes()).unwrap() };
        let dual = read(r#"{"secondary_service_cidr":"fd00:10:96::/112"}"#);
        assert_eq!(dual.dns_vips(), ["10.96.0.10", "fd00:10:96::a"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        let ranges = dual.service_ranges();
        assert_eq!(ranges.cidrs[1].reserved, [dual.dns_vips()[1]]);
        assert_eq!(read(r#"{"secondary_service_cidr":"10.97.0.0/16"}"#).service_cidrs().len(), 1);
    }

    #[test]
    fn fields_of_a_newer_version_survive_a_rewrite() {
        let written = br#"{"schema":2,"uuid":"00000000-0000-0000-0000-000000000007","name":"n1","underlay":"192.0.2.1","zone":{"a":1}}"#;
        let node: NodeRecord = decode("/nodes/7", written).unwrap();
        let again: Value = decode("/nodes/7", &encode("/nodes/7", &node).unwrap()).unwrap();
        assert_eq!(again["zone"]["a"], 1);
        assert_eq!(again["schema"], 2);
    }

    #[test]
    fn a_backend_that_nobody_here_knows_costs_no_record() {
        let read = |more: &str| {
            let text = format!(
                r#"{{"schema":1,"uuid":"00000000-0000-0000-0000-000000000007","name":"n1","underlay":"192.0.2.1"{more}}}"#
            );
            let node: NodeRecord = decode("/nodes/7", text.as_bytes()).unwrap();
            (node.backends_up, node.sends)
        };
        let vxlan = OverlayBackend::Vxlan;
        assert_eq!(read(r#","backends_up":["geneve","vxlan"],"sends":"geneve""#), (Some(vec![vxlan]), None));
        assert_eq!(
            read(r#","backends_up":[],"sends":"vxlan""#),
            (Some(vec![]), Some(vxlan)),
            "nothing is up"
        );
        assert_eq!(read(""), (None, None), "it does not say");
    }

    #[test]
    fn a_tombstone_reads_back() {
        let mut tombstone: Tombstone = decode(
            "/t",
            br#"{"schema":1,"uuid":"00000000-0000-0000-0000-000000000007","name":"n1","at_ms":5}"#,
        )
        .unwrap();
        tombstone.fenced.insert(Uuid::from_u128(8), 9);
        tombstone.extra.insert("why".into(), Value::from("broken disk"));
        assert_eq!(decode::<Tombstone>("/t", &encode("/t", &tombstone).unwrap()), Ok(tombstone));
    }

    #[test]
    fn a_bad_value_is_named_and_the_rest_goes_on() {
        let item = |key: &str, value: &'static [u8]| KeyValue {
            key: key.into(),
            value: Bytes::from_static(value),
            create_revision: 1,
            mod_revision: 1,
        };
        let good = br#"{"schema":1,"namespace":"default","name":"web"}"#;
        let items = [item("/a", b"\xff\x00"), item("/b", good), item("/c", b"[]"), item("/d", b"")];
        let (records, bad) = decode_all::<ServiceIpRecord>(&items);
        assert_eq!(records.len(), 1);
        assert_eq!(bad.iter().map(|bad| bad.key.as_str()).collect::<Vec<_>>(), ["/a", "/c", "/d"]);
        assert!(bad[0].to_string().starts_with("bad value at /a: "), "{}", bad[0]);
    }
}
