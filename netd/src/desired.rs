// SPDX-License-Identifier: Apache-2.0
//! What this node should look like: one pure step from the view of the cluster and the node's own attachments to kernel
//! objects, nft rules and DNS zone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dns_zone::{Zone, ZoneEndpoint, ZoneError, ZoneKind, ZonePort, ZoneService};
use ipam::Pool;
use ipnet::IpNet;
use lb::{Metadata, Port, Protocol, Service};
use netd_host::Underlay;
use netd_plan::{
    Backend, HostObjects, NftConfig, PodWiring, VxlanConfig, node_dns_objects, overlay_objects, pod_objects,
    shape_objects, vxlan_mtu,
};
use netd_store::records::{ClusterConfig, OverlayBackend};

use crate::args::OverlayKind;
use crate::attach;
use crate::attachments::{Attachment, Phase};
use crate::config::Config;
use crate::node::Node;
use crate::view::View;

/// The overlay device.
pub(crate) const VXLAN_DEVICE: &str = "weft.vxlan";
/// Answers live this long: short, because backends come and go.
pub(crate) const DNS_TTL_SECS: u32 = 5;
/// Source of the verdict on the one backend that no slice names.
pub(crate) const OWN_SERVER: &str = "own server";
/// Where DNS is served.
pub(crate) const DNS_PORT: u16 = 53;

/// The overlay of this node.
pub(crate) fn backend(node: &Node, config: &ClusterConfig) -> Backend {
    match config.overlay {
        OverlayBackend::Native => Backend::Native,
        OverlayBackend::Vxlan => Backend::Vxlan(VxlanConfig {
            vni: config.vni,
            port: config.vxlan_port,
            mtu: pod_mtu(&node.underlay, config.overlay),
            device: VXLAN_DEVICE.into(),
        }),
    }
}

/// MTU of pods and overlay device: what fits into one packet of the underlay.
pub(crate) fn pod_mtu(underlay: &Underlay, overlay: OverlayBackend) -> u32 {
    match overlay {
        OverlayBackend::Native => underlay.mtu,
        OverlayBackend::Vxlan => vxlan_mtu(underlay.mtu, underlay.address),
    }
}

/// The configuration that this node gives a cluster that has none.
pub(crate) fn initial_config(config: &Config) -> ClusterConfig {
    let defaults = ClusterConfig::default();
    ClusterConfig {
        pools: config.pod_cidrs.iter().enumerate().map(|(index, cidr)| pool(index, *cidr)).collect(),
        service_cidr: config.service_cidr,
        dns_vip: dns_vip(config.service_cidr).unwrap_or(defaults.dns_vip),
        overlay: match config.overlay {
            OverlayKind::Native => OverlayBackend::Native,
            OverlayKind::Vxlan => OverlayBackend::Vxlan,
        },
        ..defaults
    }
}

/// The pool of the pod CIDR that stands at `index` in the configuration.
pub(crate) fn pool(index: usize, cidr: IpNet) -> Pool {
    let family = if cidr.addr().is_ipv4() { "default" } else { "default-v6" };
    // The first of a family has the plain name; two of them differ by their place.
    let name = if index < 2 { family.to_owned() } else { format!("{family}-{index}") };
    Pool { name, cidr, block_prefix: ipam::default_block_prefix(&cidr), ..Pool::default() }
}

/// The tenth address of the service CIDR, as Kubernetes' installers have it.
fn dns_vip(service_cidr: IpNet) -> Option<IpAddr> {
    service_cidr.hosts().nth(9)
}

/// Links, addresses, routes, neighbours and FDB.
pub(crate) fn host_objects(
    node: &Node,
    view: &View,
    attachments: &[Attachment],
    gone: &BTreeSet<String>,
) -> HostObjects {
    let own = node.facts();
    let (backend, peers) = (backend(node, &view.config), view.peers(node.uuid));
    let mut objects = overlay_objects(&backend, &own, &peers, &view.pod_cidrs(), &[view.config.service_cidr]);
    objects.merge(node_dns_objects(&node.config.dns_addresses));
    let wiring: Vec<PodWiring> = attachments.iter().filter(|a| is_live(a, gone)).flat_map(wiring).collect();
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
pub(crate) fn busy_devices(attachments: &[Attachment]) -> BTreeSet<String> {
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
pub(crate) fn nft_rules(node: &Node, view: &View, attachments: &[Attachment]) -> NftConfig {
    NftConfig {
        pod_cidrs: view.pod_cidrs(),
        service_cidrs: vec![view.config.service_cidr],
        no_masquerade_cidrs: node.config.no_masquerade_cidrs.clone(),
        node_dns: node.config.dns_addresses.clone(),
        host_ports: attach::host_ports(attachments),
        // Pods of this node whose link another plugin made have addresses of no pool, and are the cluster's all the same.
        trusted_cidrs: attachments
            .iter()
            .filter(|a| a.adopted && a.phase == Phase::Committed)
            .flat_map(|a| a.ips.iter().copied().map(IpNet::from))
            .collect(),
        overlay_ports: match view.config.overlay {
            OverlayBackend::Native => Vec::new(),
            OverlayBackend::Vxlan => vec![view.config.vxlan_port],
        },
        pods_in_clear: view.config.overlay == OverlayBackend::Native,
        ..NftConfig::default()
    }
}

/// Cluster DNS as a service like any other, and its one backend: this node's own server. That is a link-local address, which
/// no slice in the store may name; here it is meant.
pub(crate) fn dns_service(vip: IpAddr, dns_address: IpAddr) -> (Service, lb::Backend) {
    let metadata =
        Metadata { name: "kube-dns".into(), namespace: "kube-system".into(), ..Metadata::default() };
    let mut service = Service { metadata, ..Service::default() };
    service.set_cluster_ip(vip);
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
    let backend = lb::Backend {
        address: dns_address,
        ports: ports
            .iter()
            .map(|(name, protocol)| lb::BackendPort {
                name: Some((*name).into()),
                protocol: *protocol,
                port: DNS_PORT,
            })
            .collect(),
        hostname: None,
        node: None,
        pod: None,
        verdict: lb::Verdict { state: lb::VerdictState::Up, source: OWN_SERVER },
    };
    (service, backend)
}

/// Who may ask this node's DNS: pods of the cluster, and the node from any of its addresses.
pub(crate) fn dns_clients(node: &Node, view: &View) -> Vec<IpNet> {
    let own = node.config.dns_addresses.iter().copied().chain([node.underlay.address]).map(IpNet::from);
    let loopback = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8));
    let loopback6 = IpNet::from(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
    view.pod_cidrs().into_iter().chain(own).chain([loopback, loopback6]).collect()
}

/// The zone, from the same table as the map image.
///
/// # Errors
/// The cluster's zone name is not a domain name.
pub(crate) fn zone(view: &View) -> Result<Zone, ZoneError> {
    let table = &view.table;
    let reverse: Vec<IpNet> = view.pod_cidrs().into_iter().chain([view.config.service_cidr]).collect();
    let services = table.services.iter().map(|(name, entry)| ZoneService {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        kind: match &entry.external_name {
            Some(target) => ZoneKind::ExternalName(target.clone()),
            None if entry.headless => ZoneKind::Headless,
            None => ZoneKind::ClusterIp(entry.cluster_ips.clone()),
        },
        ports: entry.ports.iter().map(|p| zone_port(p.name.clone(), p.protocol, p.port)).collect(),
        endpoints: entry
            .published()
            .map(|backend| ZoneEndpoint {
                addresses: vec![backend.address],
                hostname: backend.hostname.clone(),
                ports: backend.ports.iter().map(|p| zone_port(p.name.clone(), p.protocol, p.port)).collect(),
            })
            .collect(),
    });
    let aliases = aliases(view);
    Zone::build(&view.config.dns_zone, DNS_TTL_SECS, table.revision, services.chain(aliases), &reverse)
}

/// Further names of pods (CNI's capability `aliases`): each answers like a headless service with every pod that has it. A
/// Service of that name wins.
fn aliases(view: &View) -> Vec<ZoneService> {
    let mut by_name: BTreeMap<(String, String), Vec<ZoneEndpoint>> = BTreeMap::new();
    for (_, pod) in view.pods.iter().filter(|(_, pod)| pod.ready && !pod.terminating) {
        for alias in pod.aliases.iter().filter(|alias| view.table.find(&pod.namespace, alias).is_none()) {
            let endpoint = ZoneEndpoint { addresses: pod.ips.clone(), hostname: None, ports: Vec::new() };
            by_name.entry((pod.namespace.clone(), alias.clone())).or_default().push(endpoint);
        }
    }
    by_name
        .into_iter()
        .map(|((namespace, name), endpoints)| ZoneService {
            namespace,
            name,
            kind: ZoneKind::Headless,
            ports: Vec::new(),
            endpoints,
        })
        .collect()
}

fn zone_port(name: Option<String>, protocol: Protocol, port: u16) -> ZonePort {
    let protocol = match protocol {
        Protocol::Sctp => dns_zone::ZoneProtocol::Sctp,
        Protocol::Tcp => dns_zone::ZoneProtocol::Tcp,
        Protocol::Udp => dns_zone::ZoneProtocol::Udp,
    };
    ZonePort { name, protocol, port }
}
