// SPDX-License-Identifier: Apache-2.0
//! Objects of this node's own pods, and of the node's DNS address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::host::{AddressSpec, HostObjects, NeighbourKey, NeighbourSpec, RouteKey, RouteSpec};
use crate::mac::Mac;

/// Gateway of pods' IPv4: no address of any link, only a permanent neighbour that leads to the host veth.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Gateway of pods' IPv6: a link-local address that every host veth has, because IPv6 takes no other gateway.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Prefix length of [`POD_GATEWAY_V6`] on the host veth: that of all link-local addresses (RFC 4291, section 2.5.6).
pub const POD_GATEWAY_V6_PREFIX_LEN: u8 = 64;

/// How one address of a local pod is wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodWiring {
    /// Address of the pod.
    pub ip: IpAddr,
    /// Host end of its veth.
    pub host_ifname: String,
    /// Ethernet address of the container end.
    pub container_mac: Mac,
}

/// For each local pod a host route over its veth and a permanent neighbour, so that no ARP or ND is needed towards
/// pods; for IPv6 its gateway's address on the veth. `sources` are this node's overlay addresses: what its processes use
/// towards its own pods.
pub fn pod_objects(pods: &[PodWiring], sources: &[IpAddr]) -> HostObjects {
    let mut objects = HostObjects::new();
    for pod in pods {
        let route = RouteSpec {
            device: Some(pod.host_ifname.clone()),
            source: sources.iter().copied().find(|source| source.is_ipv4() == pod.ip.is_ipv4()),
            // IPv6 routes have no scope.
            scope_link: pod.ip.is_ipv4(),
            ..RouteSpec::default()
        };
        objects.routes.insert(RouteKey::main(IpNet::from(pod.ip)), route);
        let key = NeighbourKey { device: pod.host_ifname.clone(), ip: pod.ip };
        objects.neighbours.insert(key, NeighbourSpec { mac: pod.container_mac });
        if pod.ip.is_ipv6() {
            objects.addresses.insert(pod_gateway_address(&pod.host_ifname));
        }
    }
    objects
}

/// The IPv6 gateway's address on a host veth.
pub fn pod_gateway_address(host_ifname: &str) -> AddressSpec {
    let address = IpNet::new_assert(POD_GATEWAY_V6.into(), POD_GATEWAY_V6_PREFIX_LEN);
    AddressSpec { device: host_ifname.to_owned(), address, scope_host: false }
}

/// The node's DNS addresses: on `lo` and no source towards others, so that they answer local pods and never leave the
/// node.
pub fn node_dns_objects(addresses: &[IpAddr]) -> HostObjects {
    let on_lo =
        |ip: &IpAddr| AddressSpec { device: "lo".to_owned(), address: IpNet::from(*ip), scope_host: true };
    HostObjects { addresses: addresses.iter().map(on_lo).collect(), ..HostObjects::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ip: &str) -> PodWiring {
        PodWiring {
            ip: ip.parse().unwrap(),
            host_ifname: "weft0123456789a".to_owned(),
            container_mac: Mac([2, 0, 0, 0, 0, 5]),
        }
    }

    fn sources() -> [IpAddr; 2] {
        ["10.244.0.0".parse().unwrap(), "fd00:10:244::".parse().unwrap()]
    }

    #[test]
    fn pod_has_route_and_neighbour_on_its_veth() {
        let objects = pod_objects(&[pod("10.244.0.5")], &sources());
        let (key, route) = objects.routes.first_key_value().unwrap();
        assert_eq!(key.dst.to_string(), "10.244.0.5/32");
        assert_eq!(route.device.as_deref(), Some("weft0123456789a"));
        assert_eq!(route.source, Some("10.244.0.0".parse().unwrap()));
        assert!(route.scope_link && route.gateway.is_none());
        let (key, neighbour) = objects.neighbours.first_key_value().unwrap();
        assert_eq!((key.device.as_str(), neighbour.mac), ("weft0123456789a", Mac([2, 0, 0, 0, 0, 5])));
        assert!(objects.addresses.is_empty(), "an IPv4 gateway is nobody's address");
    }

    #[test]
    fn pod_with_both_families_has_both_and_the_gateway_on_its_veth() {
        let objects = pod_objects(&[pod("10.244.0.5"), pod("fd00:10:244::5")], &sources());
        assert_eq!((objects.routes.len(), objects.neighbours.len(), objects.addresses.len()), (2, 2, 1));
        let key = RouteKey::main("fd00:10:244::5/128".parse().unwrap());
        assert_eq!(key.metric, crate::host::METRIC_V6, "as the kernel tells it");
        let route = &objects.routes[&key];
        assert_eq!((route.source, route.scope_link), (Some(sources()[1]), false));
        let gateway = objects.addresses.first().unwrap();
        assert_eq!((gateway.device.as_str(), gateway.scope_host), ("weft0123456789a", false));
        assert_eq!(gateway.address.to_string(), "fe80::1/64");
    }

    #[test]
    fn node_dns_addresses_stay_on_the_host() {
        let both = ["169.254.53.53".parse().unwrap(), "fd00:53::53".parse().unwrap()];
        let objects = node_dns_objects(&both);
        assert!(objects.addresses.iter().all(|address| address.device == "lo" && address.scope_host));
        let text: Vec<String> = objects.addresses.iter().map(|spec| spec.address.to_string()).collect();
        assert_eq!(text, ["169.254.53.53/32", "fd00:53::53/128"]);
    }
}
