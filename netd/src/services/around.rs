// SPDX-License-Identifier: Apache-2.0
//! What the programs know besides services: this node and the others, the addresses that answer node ports, and the devices
//! that they are on. Compared with what was told last; in doubt told again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use ebpf_abi::limits::NODES_MAX;
use ebpf_abi::node::{ADDRESS_NODE_PORT, ADDRESS_OWN, CONFIG_SILENT_LOOPBACK4, CONFIG_SILENT_LOOPBACK6};
use ebpf_abi::{DatapathConfig, NetnsValue, NodeValue, address};
use ebpf_loader::{Datapath, Hook, MapSizes};
use ipnet::IpNet;
use lb::{NodeInfo, NodeView};
use netd_plan::links::{DSR_DEVICE, WIREGUARD_DEVICES};
use netd_store::records::NodeRecord;
use uuid::Uuid;

use super::zone;
use crate::attachments::Phase;
use crate::config::ServicesConfig;
use crate::node::{Node, lock};
use crate::view::View;

/// Source ports of what this node sends on under its own address: below those that processes get by themselves
/// (net.ipv4.ip_local_port_range begins at 32768), and below the node ports.
const SNAT_PORT_MIN: u16 = 1_024;
const SNAT_PORT_MAX: u16 = 29_999;
/// Fewer would be used up at once; then node ports and source ports share numbers, which costs a listener's look-up only.
const SNAT_PORTS_MIN: u16 = 4_096;

/// Keeps it so.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// Index of each node in NODES; kept as long as netd runs, and taken up from the map.
    indexes: BTreeMap<Uuid, u32>,
    learned: bool,
    told: Option<Told>,
    devices: Option<BTreeSet<(Hook, String, u32)>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Told {
    config: DatapathConfig,
    nodes: BTreeMap<u32, NodeValue>,
    addresses: BTreeMap<IpAddr, u32>,
}

impl Around {
    /// The next pass tells everything again.
    pub(crate) fn suspect(&mut self) {
        self.told = None;
        self.devices = None;
    }

    /// This node as services are compiled for it; `pods` as [`client_pods`] has them.
    pub(crate) fn node_view(
        &mut self,
        node: &Node,
        view: &View,
        pods: BTreeMap<IpAddr, BTreeMap<String, String>>,
        datapath: &Datapath,
    ) -> Result<NodeView> {
        if !self.learned {
            let known = datapath.nodes().context("cannot read the map of nodes")?;
            self.indexes = recognized(&view.nodes, &known);
            self.learned = true;
        }
        assign(&mut self.indexes, view.nodes.keys().copied());
        let info = |record: &NodeRecord| {
            let index = self.indexes.get(&record.uuid).copied().unwrap_or(0);
            (record.name.clone(), NodeInfo { index })
        };
        Ok(NodeView {
            name: node.config.node_name.clone(),
            zone: zone(&node.config.node_labels).map(str::to_owned),
            external_ips_enabled: node.config.services.external_ips,
            fault_injection_enabled: node.config.services.fault_injection,
            pods,
            nodes: view.nodes.values().map(info).collect(),
        })
    }

    /// Tells the programs of nodes and addresses; before services, which point at nodes. `own` are this node's overlay
    /// addresses.
    pub(crate) fn tell(
        &mut self,
        node: &Node,
        view: &View,
        own: &[IpAddr],
        datapath: &mut Datapath,
    ) -> Result<()> {
        let host_netns = node.netns_cookie;
        let nodes = view.nodes.values().filter_map(|record| {
            let (overlay4, overlay6) = overlays(record);
            let index = *self.indexes.get(&record.uuid)?;
            Some((index, NodeValue::new(overlay4.map(IpAddr::V4), overlay6.map(IpAddr::V6))))
        });
        let of = |v4: bool| own.iter().copied().find(|ip| ip.is_ipv4() == v4);
        let held = |ip: Option<IpAddr>| ip.map_or(address::UNSPECIFIED, address::address);
        let range = view.config.node_port_range;
        let outside = node.underlay.load().address;
        let dsr = view.dsr.then(|| netd_host::interface_index(DSR_DEVICE)).flatten();
        // Nodes speak to each other's IPv4 overlay address where there is one, whatever family goes inside.
        let dsr_mtu = netd_plan::dsr_mtu(node.overlay.load().mtu, of(true).is_some());
        let told = Told {
            config: DatapathConfig {
                host_netns,
                overlay4: held(of(true)),
                overlay6: held(of(false)),
                dsr_ifindex: dsr.unwrap_or(0),
                node_port_min: range.first,
                node_port_max: range.last,
                snat_port_min: SNAT_PORT_MIN,
                snat_port_max: snat_port_max(range.first),
                dsr_mtu4: dsr_mtu,
                dsr_mtu6: dsr_mtu,
                hash_seed: seed(&node.config.cluster),
                flags: silent_loopback(&node.config.services.node_port_addresses),
                underlay4: match outside {
                    IpAddr::V4(ip) => ip.octets(),
                    IpAddr::V6(_) => [0; 4],
                },
                underlay6: held(Some(outside).filter(IpAddr::is_ipv6)),
                ..DatapathConfig::default()
            },
            nodes: nodes.collect(),
            addresses: addresses(node, view),
        };
        if self.told.as_ref() == Some(&told) {
            return Ok(());
        }
        self.told = None;
        datapath.write_nodes(&told.nodes).context("cannot write the map of nodes")?;
        datapath.write_node_addresses(&told.addresses).context("cannot write the node's addresses")?;
        datapath.write_config(&told.config).context("cannot write the programs' configuration")?;
        let host = NetnsValue::host(of(true), of(false));
        datapath.set_netns(host_netns, &host).context("cannot write the host's netns")?;
        self.told = Some(told);
        Ok(())
    }

    /// Programs on uplinks, tunnels and the device for direct server return; attached again where one was remade. A device
    /// that is not there (any more) is passed over: the pass that finds it attaches.
    pub(crate) fn attach(&mut self, node: &Node, view: &View, datapath: &mut Datapath) -> Result<()> {
        let uplinks = match &node.config.services.devices {
            None => vec![node.underlay.load().device.clone()],
            Some(devices) => devices.clone(),
        };
        let tunnels = WIREGUARD_DEVICES.map(str::to_owned).to_vec();
        let dsr = if view.dsr { vec![DSR_DEVICE.to_owned()] } else { Vec::new() };
        let wanted: BTreeSet<(Hook, String, u32)> =
            [(Hook::Uplink, uplinks), (Hook::Tunnel, tunnels), (Hook::Dsr, dsr)]
                .into_iter()
                .flat_map(|(hook, devices)| devices.into_iter().map(move |device| (hook, device)))
                .filter_map(|(hook, device)| {
                    netd_host::interface_index(&device).map(|index| (hook, device, index))
                })
                .collect();
        if self.devices.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.devices = None;
        for hook in Hook::ALL {
            let devices: Vec<&str> =
                wanted.iter().filter(|(of, ..)| *of == hook).map(|(_, device, _)| device.as_str()).collect();
            datapath
                .attach_devices(hook, &devices)
                .with_context(|| format!("the programs of {devices:?}"))?;
        }
        self.devices = Some(wanted);
        Ok(())
    }
}

/// Labels of this node's pods by address, whom injected faults befall; of nobody where there are none.
pub(crate) fn client_pods(node: &Node) -> BTreeMap<IpAddr, BTreeMap<String, String>> {
    if !node.config.services.fault_injection {
        return BTreeMap::new();
    }
    let attachments = lock(&node.attachments).all();
    let pods = attachments.iter().filter(|pod| pod.phase == Phase::Committed);
    let labelled = pods.flat_map(|pod| {
        let labels = pod.effective_labels();
        pod.ips.iter().map(move |ip| (*ip, labels.clone()))
    });
    labelled.collect()
}

/// What the maps are made for, by memory and as configured.
pub(crate) fn map_sizes(config: &ServicesConfig, memory: u64) -> MapSizes {
    let mut sizes = MapSizes::for_memory(memory);
    if let Some(frontends) = config.frontends_max {
        sizes.services = frontends;
    }
    if let Some(backends) = config.backends_max {
        (sizes.backends, sizes.affinity_backends) = (backends, backends);
    }
    if let Some(slots) = config.slots_max {
        sizes.slots = slots;
    }
    if let Some(connections) = config.connections_max {
        (sizes.sockets, sizes.flows, sizes.affinity) = (connections, connections, connections);
        (sizes.ct_live, sizes.ct_new) = (connections, connections);
    }
    sizes
}

/// The node's own addresses, as the kernel has them now, and those of other nodes by which they are known, each with whether
/// it answers node ports: pods that ask another node are answered without the way.
fn addresses(node: &Node, view: &View) -> BTreeMap<IpAddr, u32> {
    let wanted = &node.config.services.node_port_addresses;
    let answers = |ip: &IpAddr| wanted.is_empty() || wanted.iter().any(|net: &IpNet| net.contains(ip));
    let flag = |ip: &IpAddr, own: u32| own | if answers(ip) { ADDRESS_NODE_PORT } else { 0 };
    let vips: BTreeSet<IpAddr> = node.config.dns_addresses.iter().copied().collect();
    let others = view.peers(node.uuid).into_iter().map(|peer| (peer.underlay, flag(&peer.underlay, 0)));
    let own = node.local_addresses.load();
    let own = own.iter().filter(|ip| !vips.contains(ip)).map(|ip| (*ip, flag(ip, ADDRESS_OWN)));
    others.chain(own).collect()
}

fn overlays(record: &NodeRecord) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let all = record.overlay.into_iter().chain(record.overlay6);
    let (mut v4, mut v6) = (None, None);
    for ip in all {
        match ip {
            IpAddr::V4(ip) => v4 = v4.or(Some(ip)),
            IpAddr::V6(ip) => v6 = v6.or(Some(ip)),
        }
    }
    (v4, v6)
}

/// Which node an earlier netd meant by each index.
fn recognized(nodes: &BTreeMap<Uuid, NodeRecord>, known: &BTreeMap<u32, NodeValue>) -> BTreeMap<Uuid, u32> {
    let value = |record: &NodeRecord| {
        let (v4, v6) = overlays(record);
        NodeValue::new(v4.map(IpAddr::V4), v6.map(IpAddr::V6))
    };
    let index = |record: &NodeRecord| {
        let value = value(record);
        let found = known.iter().find(|(_, known)| **known == value && value != NodeValue::default());
        found.map(|(index, _)| (record.uuid, *index))
    };
    nodes.values().filter_map(index).collect()
}

/// Gives every node an index. Indexes of nodes that are gone are used again last: connections may still know them.
fn assign(indexes: &mut BTreeMap<Uuid, u32>, nodes: impl Iterator<Item = Uuid>) {
    let nodes: BTreeSet<Uuid> = nodes.collect();
    for uuid in &nodes {
        if indexes.contains_key(uuid) {
            continue;
        }
        let used: BTreeSet<u32> = indexes.values().copied().collect();
        let next = used.last().map_or(1, |last| last + 1);
        let index = match next < NODES_MAX {
            true => Some(next),
            false => {
                indexes.retain(|known, _| nodes.contains(known));
                (1..NODES_MAX).find(|index| !indexes.values().any(|used| used == index))
            }
        };
        indexes.extend(index.map(|index| (*uuid, index)));
    }
}

/// Loopback addresses answer node ports where no prefixes are given, or theirs is.
fn silent_loopback(wanted: &[IpNet]) -> u32 {
    let answers = |ip: IpAddr| wanted.is_empty() || wanted.iter().any(|net| net.contains(&ip));
    let flag = |ip: IpAddr, silent: u32| if answers(ip) { 0 } else { silent };
    flag(Ipv4Addr::LOCALHOST.into(), CONFIG_SILENT_LOOPBACK4)
        | flag(Ipv6Addr::LOCALHOST.into(), CONFIG_SILENT_LOOPBACK6)
}

/// TCP and UDP ports of this host where packets of services arrive: node ports, and those that their flows are translated to.
pub(crate) fn ports(view: &View) -> Vec<RangeInclusive<u16>> {
    let node_ports = view.config.node_port_range;
    vec![node_ports.first..=node_ports.last, SNAT_PORT_MIN..=snat_port_max(node_ports.first)]
}

fn snat_port_max(node_ports: u16) -> u16 {
    let below = node_ports.saturating_sub(1).min(SNAT_PORT_MAX);
    if below >= SNAT_PORT_MIN + SNAT_PORTS_MIN { below } else { SNAT_PORT_MAX }
}

/// The same on every node of a cluster, another one in another cluster (FNV-1a, 32 bits).
fn seed(cluster: &str) -> u32 {
    cluster.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_stays_with_its_node() {
        let (a, b, c) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let mut indexes = BTreeMap::from([(b, 7)]);
        assign(&mut indexes, [a, b].into_iter());
        assert_eq!(indexes, BTreeMap::from([(a, 8), (b, 7)]));
        assign(&mut indexes, [a, c].into_iter());
        assert_eq!(indexes[&c], 9, "b's index rests");
        let mut full = BTreeMap::from([(a, NODES_MAX - 1), (b, 1)]);
        assign(&mut full, [a, c].into_iter());
        assert_eq!(full, BTreeMap::from([(a, NODES_MAX - 1), (c, 1)]));
    }

    #[test]
    fn source_ports_stay_below_node_ports_where_there_is_room() {
        assert_eq!(snat_port_max(30_000), 29_999);
        assert_eq!(snat_port_max(20_000), 19_999);
        assert_eq!(snat_port_max(40_000), SNAT_PORT_MAX);
        assert_eq!(snat_port_max(2_000), SNAT_PORT_MAX);
        assert_ne!(seed("a"), seed("b"));
    }

    #[test]
    fn node_ports_are_at_loopback_addresses_unless_prefixes_leave_them_out() {
        let silent =
            |nets: &[&str]| silent_loopback(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>());
        assert_eq!(silent(&[]), 0);
        assert_eq!(silent(&["192.0.2.0/24"]), CONFIG_SILENT_LOOPBACK4 | CONFIG_SILENT_LOOPBACK6);
        assert_eq!(silent(&["192.0.2.0/24", "127.0.0.0/8"]), CONFIG_SILENT_LOOPBACK6);
    }

    #[test]
    fn what_is_configured_wins_over_memory() {
        let config = ServicesConfig {
            node_port_range: ipam::NodePortRange::default(),
            node_port_addresses: Vec::new(),
            devices: None,
            external_ips: false,
            fault_injection: false,
            frontends_max: Some(4_096),
            backends_max: None,
            slots_max: None,
            connections_max: Some(8_192),
        };
        let sizes = map_sizes(&config, 8 << 30);
        assert_eq!((sizes.services, sizes.ct_live, sizes.sockets), (4_096, 8_192, 8_192));
        assert_eq!(sizes.slots, MapSizes::default().slots);
    }
}
