// SPDX-License-Identifier: Apache-2.0
//! What this node should look like: one pure step from the view of the cluster and the node's own attachments to kernel
//! objects, nft rules and who may ask our DNS.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipam::Pool;
use ipnet::IpNet;
use lb::{Metadata, Port, Protocol, Service};
use netd_plan::{
    BackendKind, GateEnds, HostObjects, NftConfig, PodWiring, dsr_objects, gate_objects, gate_sources,
    node_dns_objects, overlay_objects, pod_objects, shape_objects,
};
use netd_store::records::{ClusterConfig, OverlayBackend, tenth};

use crate::args::OverlayKind;
use crate::attach;
use crate::attachments::{Attachment, Phase};
use crate::config::Config;
use crate::members;
use crate::node::Node;
use crate::overlay;
use crate::view::View;

/// The overlay device.
pub(crate) use netd_plan::links::VXLAN_DEVICE;
/// Source of the verdict on the backends that no slice names.
pub(crate) const OWN_SERVER: &str = "own server";
/// The same of those that are on other nodes.
pub(crate) const OTHER_SERVER: &str = "another node's server";
/// Where DNS is served.
pub(crate) const DNS_PORT: u16 = 53;

/// The configuration that this node gives a cluster that has none.
pub(crate) fn initial_config(config: &Config) -> ClusterConfig {
    let defaults = ClusterConfig::default();
    let primary = config.service_cidrs.first().copied().unwrap_or(defaults.service_cidr);
    ClusterConfig {
        pools: initial_pools(&config.pod_cidrs),
        service_cidr: primary,
        secondary_service_cidr: config.service_cidrs.get(1).copied(),
        node_port_range: config.services.node_port_range,
        dns_vip: tenth(primary).unwrap_or(defaults.dns_vip),
        overlay: match config.overlay {
            OverlayKind::Auto => OverlayBackend::Auto,
            OverlayKind::Native => OverlayBackend::Native,
            OverlayKind::Vxlan => OverlayBackend::Vxlan,
            OverlayKind::Wireguard => OverlayBackend::Wireguard,
        },
        trusted_cidrs: config.trusted_cidrs.clone(),
        wireguard_port: config.wireguard_port.unwrap_or(defaults.wireguard_port),
        ..defaults
    }
}

/// The pools of these pod CIDRs: the first of each family has the plain name, others a number after it.
pub(crate) fn initial_pools(cidrs: &[IpNet]) -> Vec<Pool> {
    let name = |index: usize, cidr: &IpNet| {
        let family = if cidr.addr().is_ipv4() { "default" } else { "default-v6" };
        let before =
            cidrs.iter().take(index).filter(|other| other.addr().is_ipv4() == cidr.addr().is_ipv4()).count();
        if before == 0 { family.to_owned() } else { format!("{family}-{}", before + 1) }
    };
    let pool = |(index, cidr): (usize, &IpNet)| Pool {
        name: name(index, cidr),
        cidr: *cidr,
        block_prefix: ipam::default_block_prefix(cidr),
        ..Pool::default()
    };
    cidrs.iter().enumerate().map(pool).collect()
}

/// What this node was told of the cluster's networks that is not so: the cluster keeps what its first node gave it.
pub(crate) fn not_in_force(config: &Config, cluster: &ClusterConfig, pools: &[IpNet]) -> Vec<String> {
    let list = |cidrs: &[IpNet]| cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
    let mut told = Vec::new();
    let strange: Vec<IpNet> = config.pod_cidrs.iter().filter(|cidr| !pools.contains(cidr)).copied().collect();
    if config.given.pod_cidr && !strange.is_empty() {
        told.push(format!(
            "pod-cidr names {}, which is not in force: the cluster has {}; pools of a cluster that runs are changed with \
             `weft ipam pool add|drain|rm`",
            list(&strange),
            list(pools)
        ));
    }
    if config.given.service_cidr && config.service_cidrs != cluster.service_cidrs() {
        told.push(format!(
            "service-cidr is {}, which is not in force: the cluster has {} and keeps it",
            list(&config.service_cidrs),
            list(&cluster.service_cidrs())
        ));
    }
    if let Some(port) = config.wireguard_port.filter(|port| *port != cluster.wireguard_port) {
        told.push(format!(
            "wireguard-port is {port}, which is refused: the cluster's first node wrote another into the store, and all nodes \
             listen and send there; it keeps {}",
            cluster.wireguard_port
        ));
    }
    told
}

/// Links, addresses, routes, neighbours and FDB.
pub(crate) fn host_objects(
    node: &Node,
    view: &View,
    attachments: &[Arc<Attachment>],
    gone: &BTreeSet<String>,
) -> HostObjects {
    let own = node.facts();
    let now = node.overlay.load();
    let peers = overlay::peer_paths(node, view, &now);
    let services = view.config.service_cidrs();
    let mut objects = overlay_objects(&now.backends, &own, &peers, &view.pod_cidrs(), &services);
    objects.merge(members::routes(node, view, &own));
    objects.merge(node_dns_objects(&node.config.dns_addresses));
    objects.merge(dsr_objects(crate::services::dsr_port(view)));
    let wiring: Vec<PodWiring> =
        attachments.iter().filter(|a| is_live(a, gone)).flat_map(|a| wiring(a)).collect();
    if let Some(gate) = overlay::gate(view, &now) {
        let pods: Vec<IpAddr> = wiring.iter().map(|pod| pod.ip).collect();
        objects.merge(gate_objects(&gate, &own, &peers, &view.pod_cidrs(), &pods));
    }
    objects.merge(pod_objects(&wiring, &own.overlays));
    for attachment in attachments.iter().filter(|a| a.bandwidth.is_some() && is_live(a, gone)) {
        // Checked when the attachment was made.
        if let Some(bandwidth) = attachment.bandwidth.as_ref().and_then(|wanted| bandwidth(wanted).ok()) {
            objects.merge(shape_objects(&attachment.host_ifname, &bandwidth));
        }
    }
    objects
}

/// Devices on which an ADD or a DEL is at work: their objects are its business until it is done.
pub(crate) fn busy_devices(attachments: &[Arc<Attachment>]) -> BTreeSet<String> {
    let busy = attachments.iter().filter(|a| a.phase != Phase::Committed && !a.adopted);
    busy.map(|a| a.host_ifname.clone()).collect()
}

/// Its link is ours and there. A link that is gone takes its objects along; the sweep decides about the attachment.
fn is_live(attachment: &Attachment, gone: &BTreeSet<String>) -> bool {
    attachment.phase == Phase::Committed && !attachment.adopted && !gone.contains(&attachment.host_ifname)
}

/// The limits that CNI asks for, checked.
pub(crate) fn bandwidth(
    wanted: &netd_api::Bandwidth,
) -> Result<netd_plan::Bandwidth, netd_plan::BandwidthError> {
    netd_plan::Bandwidth::checked(
        (wanted.ingress_rate, wanted.ingress_burst),
        (wanted.egress_rate, wanted.egress_burst),
    )
}

fn wiring(attachment: &Attachment) -> Vec<PodWiring> {
    let one = |ip: &IpAddr| PodWiring {
        ip: *ip,
        host_ifname: attachment.host_ifname.clone(),
        container_mac: attachment.container_mac,
    };
    attachment.ips.iter().map(one).collect()
}

/// The nft table.
pub(crate) fn nft_rules(node: &Node, view: &View, attachments: &[Arc<Attachment>]) -> NftConfig {
    let now = node.overlay.load();
    NftConfig {
        pod_cidrs: view.pod_cidrs(),
        service_cidrs: view.config.service_cidrs(),
        // Who reaches pods under its own address is answered, and spoken to, under theirs.
        no_masquerade_cidrs: [&node.config.no_masquerade_cidrs[..], &view.config.trusted_cidrs].concat(),
        node_dns: node.config.dns_addresses.clone(),
        host_ports: attach::host_ports(attachments),
        // Pods of this node whose link another plugin made have addresses of no pool, and are the cluster's all the same.
        trusted_cidrs: attachments
            .iter()
            .filter(|a| a.adopted && a.phase == Phase::Committed)
            .flat_map(|a| a.ips.iter().copied().map(IpNet::from))
            .chain(view.config.trusted_cidrs.iter().copied())
            .collect(),
        overlay_ports: overlay::ports(&now, &view.config),
        service_ports: crate::services::ports(view),
        forgeable_ports: match now.keeps(BackendKind::Vxlan) {
            true => vec![view.config.vxlan_port],
            false => Vec::new(),
        },
        probe_port: crate::mtu::PROBE_PORT,
        node_overlays: node
            .facts()
            .overlays
            .into_iter()
            .chain(view.peers(node.uuid).into_iter().flat_map(|peer| peer.overlays))
            .collect(),
        checked_mark: ebpf_abi::CHECKED_MARK,
        refuse_mark: ebpf_abi::REFUSE_MARK,
        dsr_port: crate::services::dsr_port(view).unwrap_or(0),
        clear_cidrs: overlay::clear_cidrs(node, view, &now),
        gate: overlay::gate(view, &now).map(|gate| GateEnds {
            port: gate.port,
            sources: gate_sources(&node.facts(), &view.peers(node.uuid), &view.pod_cidrs()),
        }),
        ..NftConfig::default()
    }
}

/// Cluster DNS as a service like any other, and its backends: this node's own servers, one of a family, before those of `others`. The
/// own ones are link-local addresses, which no slice in the store may name; here they are meant. Where there is no other, questions
/// wait for the own one's return.
pub(crate) fn dns_service(
    vips: &[IpAddr],
    servers: &[IpAddr],
    others: &[IpAddr],
) -> (Service, Vec<lb::Backend>) {
    let metadata =
        Metadata { name: "kube-dns".into(), namespace: "kube-system".into(), ..Metadata::default() };
    let mut service = Service { metadata, ..Service::default() };
    service.set_cluster_ips(vips);
    let ports = [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)];
    service.spec.ports = ports
        .iter()
        .map(|(name, protocol)| Port {
            name: (*name).into(),
            protocol: *protocol,
            port: DNS_PORT,
            ..Port::default()
        })
        .collect();
    let port = |(name, protocol): &(&str, Protocol)| lb::BackendPort {
        name: Some((*name).into()),
        protocol: *protocol,
        port: DNS_PORT,
    };
    let backend = |address: &IpAddr, source| {
        let verdict = lb::Verdict { state: lb::VerdictState::Up, source };
        lb::Backend::new(*address, ports.iter().map(port).collect(), verdict)
    };
    let own = |address: &IpAddr| lb::Backend {
        of_agent: others.iter().any(|other| other.is_ipv4() == address.is_ipv4()),
        ..backend(address, OWN_SERVER)
    };
    let mut backends: Vec<lb::Backend> = servers.iter().map(own).collect();
    backends.extend(others.iter().map(|address| backend(address, OTHER_SERVER)));
    backends.sort_by_key(|backend| backend.address);
    (service, backends)
}

/// Who may ask this node's DNS: pods of the cluster, the node from any of its addresses, and whom the operator named.
pub(crate) fn dns_clients(node: &Node, pods: Vec<IpNet>) -> Vec<IpNet> {
    let own =
        node.config.dns_addresses.iter().copied().chain([node.underlay.load().address]).map(IpNet::from);
    let loopback = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8));
    let loopback6 = IpNet::from(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
    let named = node.config.dns.clients.iter().copied();
    pods.into_iter().chain(own).chain([loopback, loopback6]).chain(named).collect()
}
