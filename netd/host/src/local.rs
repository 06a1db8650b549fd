// SPDX-License-Identifier: Apache-2.0

//! The addresses of this host.

use std::{collections::BTreeSet, net::IpAddr};

use nix::ifaddrs::getifaddrs;

use crate::HostError;

/// Every address of the calling thread's netns by which others reach it: none of a loopback network, no link-local ones, which
/// mean something on one link only.
///
/// # Errors
/// [`HostError::Setup`] where the kernel does not tell.
pub fn local_addresses() -> Result<BTreeSet<IpAddr>, HostError> {
    let failed =
        |errno: nix::Error| HostError::Setup { what: "list this host's addresses", source: errno.into() };
    let interfaces = getifaddrs().map_err(failed)?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(interfaces.filter_map(address).filter(is_reachable).collect())
}

fn is_reachable(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_cannot_reach_is_left_out() {
        for (ip, reachable) in [
            ("192.0.2.1", true),
            ("127.0.0.1", false),
            ("169.254.53.53", false),
            ("2001:db8::1", true),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_reachable(&ip.parse().unwrap()), reachable, "{ip}");
        }
        assert!(local_addresses().unwrap().iter().all(is_reachable));
    }
}
