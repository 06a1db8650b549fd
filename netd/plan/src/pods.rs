// SPDX-License-Identifier: Apache-2.0
//! Objects of this node's own pods, and of the node's DNS address.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::host::{AddressSpec, HostObjects, NeighbourKey, NeighbourSpec, RouteKey, RouteSpec};
use crate::mac::Mac;

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
/// pods. `source` is this node's overlay address: what its processes use towards its own pods.
pub fn pod_objects(pods: &[PodWiring], source: Option<IpAddr>) -> HostObjects {
    let mut objects = HostObjects::new();
    for pod in pods {
        let route = RouteSpec {
            device: Some(pod.host_ifname.clone()),
            source: source.filter(|source| source.is_ipv4() == pod.ip.is_ipv4()),
            scope_link: true,
            ..RouteSpec::default()
        };
        objects.routes.insert(RouteKey::main(IpNet::from(pod.ip)), route);
        let key = NeighbourKey { device: pod.host_ifname.clone(), ip: pod.ip };
        objects.neighbours.insert(key, NeighbourSpec { mac: pod.container_mac });
    }
    objects
}

/// The node's DNS address: on `lo` with host scope, so that it answers local pods and never leaves the node.
pub fn node_dns_objects(address: IpAddr) -> HostObjects {
    let spec = AddressSpec { device: "lo".to_owned(), address: IpNet::from(address), scope_host: true };
    HostObjects { addresses: [spec].into(), ..HostObjects::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_has_route_and_neighbour_on_its_veth() {
        let pod = PodWiring {
            ip: "10.244.0.5".parse().unwrap(),
            host_ifname: "weft0123456789a".to_owned(),
            container_mac: Mac([2, 0, 0, 0, 0, 5]),
        };
        let objects = pod_objects(&[pod], Some("10.244.0.0".parse().unwrap()));
        let (key, route) = objects.routes.first_key_value().unwrap();
        assert_eq!(key.dst.to_string(), "10.244.0.5/32");
        assert_eq!(route.device.as_deref(), Some("weft0123456789a"));
        assert_eq!(route.source, Some("10.244.0.0".parse().unwrap()));
        assert!(route.scope_link && route.gateway.is_none());
        let (key, neighbour) = objects.neighbours.first_key_value().unwrap();
        assert_eq!((key.device.as_str(), neighbour.mac), ("weft0123456789a", Mac([2, 0, 0, 0, 0, 5])));
    }

    #[test]
    fn node_dns_address_stays_on_the_host() {
        let objects = node_dns_objects("169.254.53.53".parse().unwrap());
        let address = objects.addresses.first().unwrap();
        assert_eq!((address.device.as_str(), address.scope_host), ("lo", true));
        assert_eq!(address.address.to_string(), "169.254.53.53/32");
    }
}
