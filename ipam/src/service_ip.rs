// SPDX-License-Identifier: Apache-2.0
//! Choosing the ClusterIP of a service.
//!
//! The low addresses of the CIDR are the static band, kept for services that ask for an address by number; others
//! get one above it, and from the band only when nothing else is left. Size and rule are those of Kubernetes
//! (KEP-3070), so that a manifest with a fixed ClusterIP works here as there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::address;
use crate::hash::hash;

/// Fewest addresses in the static band (KEP-3070).
const STATIC_BAND_MIN: u128 = 16;

/// Most addresses in the static band (KEP-3070).
const STATIC_BAND_MAX: u128 = 256;

/// The static band is this part of the CIDR, between minimum and maximum (KEP-3070).
const STATIC_BAND_DIVISOR: u128 = 16;

/// Why a service got no ClusterIP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceIpError {
    /// Every address is taken.
    #[error("no free ClusterIP in {0}: delete services or use a larger service CIDR")]
    Exhausted(IpNet),
    /// The address asked for is not in the service CIDR.
    #[error("ClusterIP {ip} is not in the service CIDR {cidr}")]
    Outside {
        /// The address.
        ip: IpAddr,
        /// The CIDR.
        cidr: IpNet,
    },
    /// Network address, broadcast address, or one that the caller keeps, as the DNS address.
    #[error("ClusterIP {0} is reserved (network, broadcast or DNS address)")]
    Reserved(IpAddr),
    /// Another service has it.
    #[error("ClusterIP {0} belongs to another service")]
    Taken(IpAddr),
}

/// How many addresses at the low end of the CIDR are kept for explicit requests: a sixteenth, at least 16 and at
/// most 256; none where the CIDR has not more than 16.
pub fn static_band(cidr: &IpNet) -> u128 {
    let size = address::size(cidr);
    if size <= STATIC_BAND_MIN {
        return 0;
    }
    (size / STATIC_BAND_DIVISOR).clamp(STATIC_BAND_MIN, STATIC_BAND_MAX)
}

/// Picks a free ClusterIP. `taken` are those with an owner, `reserved` others never to be picked (the DNS address).
/// The search starts at a place that depends on the service's name, so that services created at the same time by
/// different nodes rarely try the same address.
pub fn pick(
    cidr: &IpNet,
    taken: &BTreeSet<IpAddr>,
    reserved: &[IpAddr],
    namespace: &str,
    name: &str,
) -> Result<IpAddr, ServiceIpError> {
    let size = address::size(cidr);
    let band = static_band(cidr);
    let start = u128::from(hash(&[namespace.as_bytes(), name.as_bytes()]));
    let upper = probe(cidr, band, size - band, start, taken, reserved);
    let lower = || probe(cidr, 0, band, start, taken, reserved);
    upper.or_else(lower).ok_or(ServiceIpError::Exhausted(*cidr))
}

/// Checks an address that a service asks for. The static band is open to it.
pub fn check_requested(
    cidr: &IpNet,
    taken: &BTreeSet<IpAddr>,
    reserved: &[IpAddr],
    ip: IpAddr,
) -> Result<(), ServiceIpError> {
    if !cidr.contains(&ip) {
        return Err(ServiceIpError::Outside { ip, cidr: *cidr });
    }
    if reserved.contains(&ip) || is_edge(cidr, ip) {
        return Err(ServiceIpError::Reserved(ip));
    }
    if taken.contains(&ip) { Err(ServiceIpError::Taken(ip)) } else { Ok(()) }
}

/// First free address among `length` ones from offset `first`, beginning at `start` and going round.
fn probe(
    cidr: &IpNet,
    first: u128,
    length: u128,
    start: u128,
    taken: &BTreeSet<IpAddr>,
    reserved: &[IpAddr],
) -> Option<IpAddr> {
    // Among this many different addresses at least one is neither taken nor reserved nor an edge.
    let enough = (taken.len() + reserved.len() + 3) as u128;
    (0..length.min(enough))
        .filter_map(|step| address::at(cidr, first + (start % length + step) % length))
        .find(|ip| !taken.contains(ip) && !reserved.contains(ip) && !is_edge(cidr, *ip))
}

/// Network and broadcast address.
fn is_edge(cidr: &IpNet, ip: IpAddr) -> bool {
    ip == cidr.network() || ip == cidr.broadcast()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn static_band_as_in_kubernetes() {
        for (cidr, band) in [
            ("10.96.0.0/16", 256),
            ("10.96.0.0/20", 256),
            ("10.96.0.0/22", 64),
            ("10.96.0.0/24", 16),
            ("10.96.0.0/27", 16),
            ("10.96.0.0/28", 0),
            ("fd00::/112", 256),
            ("fd00::/64", 256),
        ] {
            assert_eq!(static_band(&net(cidr)), band, "{cidr}");
        }
    }

    #[test]
    fn requested_address_is_checked() {
        let cidr = net("10.96.0.0/24");
        let dns = "10.96.0.10".parse().unwrap();
        let taken = BTreeSet::from(["10.96.0.5".parse().unwrap()]);
        let check = |ip: &str| check_requested(&cidr, &taken, &[dns], ip.parse().unwrap());
        assert_eq!(check("10.96.0.6"), Ok(()));
        assert!(matches!(check("10.96.0.5"), Err(ServiceIpError::Taken(_))));
        assert!(matches!(check("10.96.1.5"), Err(ServiceIpError::Outside { .. })));
        for ip in ["10.96.0.0", "10.96.0.255", "10.96.0.10"] {
            assert!(matches!(check(ip), Err(ServiceIpError::Reserved(_))), "{ip}");
        }
    }

    #[test]
    fn every_address_is_picked_once_band_last() {
        let cidr = net("10.96.0.0/26");
        let dns: IpAddr = "10.96.0.40".parse().unwrap();
        let mut taken = BTreeSet::new();
        let mut order = Vec::new();
        while let Ok(ip) = pick(&cidr, &taken, &[dns], "default", &format!("service-{}", order.len())) {
            assert!(taken.insert(ip));
            order.push(ip);
        }
        assert_eq!(order.len(), 61, "64 less network, broadcast and DNS");
        let band: BTreeSet<IpAddr> = (1..16).map(|n| format!("10.96.0.{n}").parse().unwrap()).collect();
        assert_eq!(order[order.len() - 15..].iter().copied().collect::<BTreeSet<_>>(), band);
    }

    proptest! {
        #[test]
        fn picked_address_may_be_requested(name in "[a-z]{1,8}", taken in prop::collection::btree_set(0_u32..256, 0..256)) {
            let cidr = net("10.96.0.0/24");
            let taken: BTreeSet<IpAddr> =
                taken.into_iter().filter_map(|n| address::at(&cidr, u128::from(n))).collect();
            let reserved = ["10.96.0.10".parse().unwrap()];
            match pick(&cidr, &taken, &reserved, "default", &name) {
                Ok(ip) => prop_assert_eq!(check_requested(&cidr, &taken, &reserved, ip), Ok(())),
                Err(_) => {
                    let free = cidr.hosts().find(|ip| !taken.contains(ip) && !reserved.contains(ip));
                    prop_assert_eq!(free, None);
                }
            }
        }
    }
}
