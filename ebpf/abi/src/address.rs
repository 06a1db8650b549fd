// SPDX-License-Identifier: Apache-2.0
//! The one form of an address in maps: 16 bytes in network order, IPv4 as IPv6 writes it (`::ffff:a.b.c.d`, RFC 4291
//! section 2.5.5.2). One map, one lookup and one conntrack hold both families, and an IPv4 connection of an IPv6 socket
//! finds the same key.

use core::net::{IpAddr, Ipv6Addr};

/// An address in a map.
pub type Address = [u8; 16];

/// No address; in a [`FrontendKey`](crate::FrontendKey): any IPv6 address that answers node ports.
pub const UNSPECIFIED: Address = [0; 16];

/// 0.0.0.0; in a [`FrontendKey`](crate::FrontendKey): any IPv4 address that answers node ports.
pub const UNSPECIFIED4: Address = mapped([0; 4]);

/// ::ffff:0:0 as a number.
const MAPPED: u128 = 0xffff_0000_0000;

/// 127.0.0.1.
pub const LOOPBACK4: Address = mapped([127, 0, 0, 1]);

/// ::1.
pub const LOOPBACK6: Address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// An address as it lies in a map.
pub const fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// An address from a map; IPv4 as IPv4.
pub const fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from_bits(u128::from_be_bytes(address)).to_canonical()
}

/// An IPv4 address in its mapped form.
#[inline(always)]
pub const fn mapped(octets: [u8; 4]) -> Address {
    // Numbers, here and below: programs hold them in registers, where arrays would be copied byte by byte.
    (MAPPED | u32::from_be_bytes(octets) as u128).to_be_bytes()
}

/// The four bytes of an IPv4 address; `None` for IPv6.
#[inline(always)]
pub const fn ipv4(address: &Address) -> Option<[u8; 4]> {
    if is_ipv4(address) { Some(tail(address)) } else { None }
}

/// Whether it is IPv4 in its mapped form.
#[inline(always)]
pub const fn is_ipv4(address: &Address) -> bool {
    u128::from_be_bytes(*address) >> 32 == MAPPED >> 32
}

/// The last four bytes: of an IPv4 address all it has.
#[inline(always)]
pub const fn tail(address: &Address) -> [u8; 4] {
    (u128::from_be_bytes(*address) as u32).to_be_bytes()
}

/// The unspecified address of its family.
#[inline(always)]
pub const fn any(address: &Address) -> Address {
    let number: u128 = if is_ipv4(address) { MAPPED } else { 0 };
    number.to_be_bytes()
}

/// Whether it is 0.0.0.0 or ::.
#[inline(always)]
pub const fn is_unspecified(address: &Address) -> bool {
    let number = u128::from_be_bytes(*address);
    number == 0 || number == MAPPED
}

/// Whether only this host can answer there: 127.0.0.0/8 (RFC 1122) or ::1 (RFC 4291).
#[inline(always)]
pub const fn is_loopback(address: &Address) -> bool {
    let number = u128::from_be_bytes(*address);
    number == 1 || number >> 24 == (MAPPED >> 24) | 127
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_address_reads_back_in_its_own_family() {
        for (text, is_v4) in [("10.96.0.1", true), ("fd00:10:96::1", false), ("::", false), ("::1", false)] {
            let given: IpAddr = text.parse().unwrap();
            let held = address(given);
            assert_eq!((ip(held).to_string().as_str(), is_ipv4(&held)), (text, is_v4));
            assert_eq!(ipv4(&held).is_some(), is_v4, "{text}");
        }
        assert_eq!(ipv4(&address("10.96.0.1".parse().unwrap())), Some([10, 96, 0, 1]));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        assert_eq!(address("::ffff:10.96.0.1".parse().unwrap()), address("10.96.0.1".parse().unwrap()));
    }

    #[test]
    fn each_family_has_its_own_unspecified_address() {
        for (text, any_of_it) in [("10.96.0.1", "0.0.0.0"), ("fd00::1", "::")] {
            let held = address(text.parse().unwrap());
            assert_eq!(ip(any(&held)).to_string(), any_of_it);
            assert!(is_unspecified(&any(&held)) && !is_unspecified(&held), "{text}");
        }
    }

    #[test]
    fn loopback_is_of_both_families() {
        for (text, expected) in [
            ("127.0.0.1", true),
            ("127.3.2.1", true),
            ("::1", true),
            ("::", false),
            ("128.0.0.1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(is_loopback(&address(text.parse().unwrap())), expected, "{text}");
        }
        assert_eq!(
            (ip(LOOPBACK4).to_string(), ip(LOOPBACK6).to_string()),
            ("127.0.0.1".into(), "::1".into())
        );
    }
}
