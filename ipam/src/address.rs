// SPDX-License-Identifier: Apache-2.0
//! Arithmetic on addresses of a prefix, for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Addresses in the prefix, at most `u128::MAX`.
pub(crate) fn size(cidr: &IpNet) -> u128 {
    let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    1_u128.checked_shl(host_bits).unwrap_or(u128::MAX)
}

/// The address at an offset from the prefix's first one; `None` where that is outside.
pub(crate) fn at(cidr: &IpNet, offset: u128) -> Option<IpAddr> {
    if offset >= size(cidr) {
        return None;
    }
    match cidr.network() {
        IpAddr::V4(first) => {
            let offset = u32::try_from(offset).ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(u32::from(first).checked_add(offset)?)))
        }
        IpAddr::V6(first) => Some(IpAddr::V6(Ipv6Addr::from(u128::from(first).checked_add(offset)?))),
    }
}

/// The offset of an address from the prefix's first one; `None` where it is outside.
pub(crate) fn offset(cidr: &IpNet, ip: &IpAddr) -> Option<u128> {
    if !cidr.contains(ip) {
        return None;
    }
    match (cidr.network(), ip) {
        (IpAddr::V4(first), IpAddr::V4(ip)) => Some(u128::from(u32::from(*ip) - u32::from(first))),
        (IpAddr::V6(first), IpAddr::V6(ip)) => Some(u128::from(*ip) - u128::from(first)),
        _ => None,
    }
}
