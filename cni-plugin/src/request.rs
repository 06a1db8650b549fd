// SPDX-License-Identifier: Apache-2.0
//! CNI's words into netd's, and netd's answer into CNI's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_types::{AddOptions, AddResult, Dns, Interface, IpConfig, Route, Target};
use ipnet::IpNet;
use netd_api::{
    AdoptedLink, AllocateReply, AllocateRequest, AttachmentId, Bandwidth, IpRange, PodIdentity, PortMapping,
    PortProtocol,
};
use netd_host::veth::PodLink;

/// What netd is asked. With an adopted link the addresses are there already, so no wish about them is passed on.
pub(crate) fn allocate(
    id: &AttachmentId,
    options: &AddOptions,
    adopted: Option<AdoptedLink>,
) -> AllocateRequest {
    let own = adopted.is_none();
    AllocateRequest {
        network: id.network.clone(),
        container_id: id.container_id.clone(),
        ifname: id.ifname.clone(),
        pod: options.pod.clone().map(|pod| PodIdentity {
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
        }),
        labels: options.labels.clone(),
        requested_ips: if own { options.requested_ips.clone() } else { Vec::new() },
        ip_ranges: if own { options.ip_ranges.iter().map(|set| ranges(set)).collect() } else { Vec::new() },
        sticky: options.sticky.clone().filter(|_| own),
        aliases: options.aliases.clone(),
        port_mappings: options.port_mappings.iter().map(port_mapping).collect(),
        bandwidth: options.bandwidth.map(|limits| Bandwidth {
            ingress_rate: limits.ingress_rate,
            ingress_burst: limits.ingress_burst,
            egress_rate: limits.egress_rate,
            egress_burst: limits.egress_burst,
        }),
        cgroup_path: options.cgroup_path.clone(),
        fast_path: options.fast_path,
        adopted,
    }
}

/// The config may ask for less than the path carries, never for more.
pub(crate) fn mtu(options: &AddOptions, allocated: &AllocateReply) -> u32 {
    options.mtu.map_or(allocated.mtu, |wanted| wanted.min(allocated.mtu))
}

/// What our part of the result says: host end, container end, an address and a default route for each family.
pub(crate) fn own_result(
    options: &AddOptions,
    allocated: &AllocateReply,
    link: &PodLink,
    target: &Target,
) -> AddResult {
    let mtu = Some(mtu(options, allocated));
    let host = Interface {
        name: allocated.host_ifname.clone(),
        mac: Some(link.host_mac.to_string()),
        mtu,
        ..Interface::default()
    };
    let container = Interface {
        name: target.ifname.clone(),
        mac: Some(link.container_mac.to_string()),
        mtu,
        sandbox: Some(target.netns.clone()),
        ..Interface::default()
    };
    let gateway_of = |address: &IpNet| {
        let same = |gateway: &&IpAddr| gateway.is_ipv4() == address.addr().is_ipv4();
        allocated.gateways.iter().find(same).copied()
    };
    let ips = allocated.addresses.iter().map(|address| IpConfig {
        address: *address,
        gateway: gateway_of(address),
        interface: Some(1),
    });
    let routes = allocated
        .gateways
        .iter()
        .map(|gateway| Route { gw: Some(*gateway), ..Route::to(everything(*gateway)) });
    AddResult {
        interfaces: vec![host, container],
        ips: ips.collect(),
        routes: routes.collect(),
        dns: dns(options, allocated),
    }
}

/// What the pod's resolv.conf shall say: what was asked for, else netd's.
pub(crate) fn dns(options: &AddOptions, allocated: &AllocateReply) -> Dns {
    let reply = &allocated.dns;
    options.dns.clone().unwrap_or_else(|| Dns {
        nameservers: reply.nameservers.iter().map(ToString::to_string).collect(),
        domain: reply.domain.clone(),
        search: reply.search.clone(),
        options: reply.options.clone(),
    })
}

/// The destination of a default route in the gateway's family.
pub(crate) fn everything(gateway: IpAddr) -> IpNet {
    let unspecified = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new_assert(unspecified, 0)
}

fn ranges(set: &[cni_types::IpRange]) -> Vec<IpRange> {
    set.iter().map(|range| IpRange { subnet: range.subnet, first: range.first, last: range.last }).collect()
}

fn port_mapping(mapping: &cni_types::PortMapping) -> PortMapping {
    PortMapping {
        host_ip: mapping.host_ip,
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        protocol: match mapping.protocol {
            cni_types::PortProtocol::Sctp => PortProtocol::Sctp,
            cni_types::PortProtocol::Tcp => PortProtocol::Tcp,
            cni_types::PortProtocol::Udp => PortProtocol::Udp,
        },
    }
}
