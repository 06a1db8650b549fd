// SPDX-License-Identifier: Apache-2.0
//! Routes to members: machines outside the cluster, each a WireGuard peer of every node under addresses of its own.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::host::{HostObjects, RouteKey, RouteSpec};
use crate::links::wireguard_device;
use crate::overlay::{NodeFacts, WireguardConfig};

/// A member that stands in this node's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFacts {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The generation of this node's keys that it talks with.
    pub generation: u64,
}

/// A route to each address of each member, over the device that knows it. An address outside all pools is passed over, and so
/// is this node's own overlay address. Merge it over [`crate::overlay_objects`], whose routes to blocks are wider, and
/// [`crate::pod_objects`] over it: what a local pod has stays local.
pub fn member_objects(
    config: &WireguardConfig,
    own: &NodeFacts,
    members: &[MemberFacts],
    pools: &[IpNet],
) -> HostObjects {
    let mut objects = HostObjects::new();
    for member in members.iter().filter(|member| config.generations.contains(&member.generation)) {
        let usable = |ip: &&IpAddr| pools.iter().any(|pool| pool.contains(*ip)) && !own.overlays.contains(ip);
        for ip in member.ips.iter().filter(usable) {
            let route = RouteSpec {
                device: Some(wireguard_device(member.generation).to_owned()),
                source: own.overlays.iter().copied().find(|overlay| overlay.is_ipv4() == ip.is_ipv4()),
                // IPv6 routes have no scope.
                scope_link: ip.is_ipv4(),
                ..RouteSpec::default()
            };
            objects.routes.insert(RouteKey::main(IpNet::from(*ip)), route);
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{WireguardKind, vtep_mac};
    use uuid::Uuid;

    fn routes(ips: &[&str], generation: u64) -> Vec<(String, String)> {
        let uuid = Uuid::from_u128(1);
        let own = NodeFacts {
            uuid,
            name: "n1".into(),
            underlay: "192.0.2.1".parse().unwrap(),
            overlays: vec!["10.244.1.0".parse().unwrap()],
            vtep_mac: vtep_mac(uuid),
            blocks: vec!["10.244.1.0/26".parse().unwrap()],
        };
        let generations = [2, 3].into();
        let config = WireguardConfig { kind: WireguardKind::User, mtu: 1440, generations };
        let member = MemberFacts { ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(), generation };
        let pools = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()];
        let objects = member_objects(&config, &own, &[member], &pools);
        let shown = |(key, spec): (&RouteKey, &RouteSpec)| {
            assert_eq!(spec.source.is_some(), key.dst.addr().is_ipv4(), "the overlay address of its family");
            (key.dst.to_string(), spec.device.clone().unwrap())
        };
        objects.routes.iter().map(shown).collect()
    }

    #[test]
    fn a_member_is_behind_the_device_of_the_key_that_it_uses() {
        let of = |device: &str| {
            vec![
                ("10.244.1.5/32".to_owned(), device.to_owned()),
                ("fd00:10:244::5/128".to_owned(), device.to_owned()),
            ]
        };
        let ips = ["10.244.1.5", "fd00:10:244::5"];
        assert_eq!(routes(&ips, 2), of("weft.wg0"));
        assert_eq!(routes(&ips, 3), of("weft.wg1"));
        assert_eq!(routes(&ips, 4), [], "a key that is gone");
    }

    #[test]
    fn a_member_cannot_take_what_is_no_pod_address_or_the_nodes_own() {
        assert_eq!(routes(&["192.0.2.9", "10.244.1.0"], 2), []);
    }
}
