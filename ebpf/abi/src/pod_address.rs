// SPDX-License-Identifier: Apache-2.0
//! Addresses of pods as keys: where an address is reached, and which addresses a pod link may send from.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use crate::address::mapped;
use crate::address::{self, Address};

/// A pod's IPv4 address. 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodKey {
    /// Address, network order.
    pub addr: [u8; 4],
}

impl PodKey {
    /// The pod with this address.
    pub const fn new(address: Ipv4Addr) -> Self {
        Self { addr: address.octets() }
    }

    /// The pod's address.
    pub const fn address(&self) -> Ipv4Addr {
        let [a, b, c, d] = self.addr;
        Ipv4Addr::new(a, b, c, d)
    }
}

/// A pod's IPv6 address. 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Pod6Key {
    /// Address, network order.
    pub addr: [u8; 16],
}

impl Pod6Key {
    /// The pod with this address.
    pub const fn new(address: Ipv6Addr) -> Self {
        Self { addr: address.octets() }
    }

    /// The pod's address.
    pub const fn address(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(u128::from_be_bytes(self.addr))
    }
}

/// An address that a pod link may send from. 20 bytes.
///
/// IPv4 lies in its mapped form (`::ffff:a.b.c.d`), which no IPv6 packet may have as its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodAddressKey {
    /// Interface index of the link's host end.
    pub ifindex: u32,
    /// Address, network order.
    pub addr: Address,
}

impl PodAddressKey {
    /// The link with this host end, and one of its addresses.
    pub const fn new(ifindex: u32, address: IpAddr) -> Self {
        Self { ifindex, addr: address::address(address) }
    }

    /// The address; IPv4 as IPv4.
    pub const fn address(&self) -> IpAddr {
        address::ip(self.addr)
    }
}

/// The link-local address that a kernel gives an interface with this MAC (RFC 4291, appendix A: modified EUI-64).
#[inline(always)]
pub const fn link_local([a, b, c, d, e, f]: [u8; 6]) -> [u8; 16] {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<PodKey>() == 4);
    assert!(size_of::<Pod6Key>() == 16);
    assert!(size_of::<PodAddressKey>() == 20);
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_address_reads_back_in_its_own_family() {
        for text in ["10.244.1.7", "fd00:10:244::7"] {
            let address: IpAddr = text.parse().unwrap();
            let key = PodAddressKey::new(7, address);
            assert_eq!((key.ifindex, key.address().to_string().as_str()), (7, text));
        }
        let address = "fd00:10:244::7".parse().unwrap();
        assert_eq!(Pod6Key::new(address).address(), address);
    }

    #[test]
    fn the_link_local_address_follows_from_the_mac() {
        let address = Ipv6Addr::from(link_local([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]));
        assert_eq!(address.to_string(), "fe80::42:acff:fe11:2");
    }
}
