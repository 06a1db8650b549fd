// SPDX-License-Identifier: Apache-2.0
//! Numbers of include/uapi/linux/wireguard.h and genetlink.h, and attributes as bytes.

use std::net::{IpAddr, SocketAddr};

use zeroize::{Zeroize, Zeroizing};

/// WG_GENL_NAME and WG_GENL_VERSION.
pub(super) const FAMILY: &str = "wireguard";
pub(super) const VERSION: u8 = 1;

/// enum wg_cmd.
pub(super) const CMD_GET_DEVICE: u8 = 0;
pub(super) const CMD_SET_DEVICE: u8 = 1;

/// enum wgdevice_attribute and wgdevice_flag.
pub(super) const DEVICE_IFNAME: u16 = 2;
pub(super) const DEVICE_PRIVATE_KEY: u16 = 3;
pub(super) const DEVICE_PUBLIC_KEY: u16 = 4;
pub(super) const DEVICE_FLAGS: u16 = 5;
pub(super) const DEVICE_LISTEN_PORT: u16 = 6;
pub(super) const DEVICE_FWMARK: u16 = 7;
pub(super) const DEVICE_PEERS: u16 = 8;
pub(super) const DEVICE_REPLACE_PEERS: u32 = 1 << 0;

/// enum wgpeer_attribute and wgpeer_flag.
pub(super) const PEER_PUBLIC_KEY: u16 = 1;
pub(super) const PEER_PRESHARED_KEY: u16 = 2;
pub(super) const PEER_FLAGS: u16 = 3;
pub(super) const PEER_ENDPOINT: u16 = 4;
pub(super) const PEER_KEEPALIVE: u16 = 5;
pub(super) const PEER_LAST_HANDSHAKE: u16 = 6;
pub(super) const PEER_RX_BYTES: u16 = 7;
pub(super) const PEER_TX_BYTES: u16 = 8;
pub(super) const PEER_ALLOWED_IPS: u16 = 9;
pub(super) const PEER_REMOVE_ME: u32 = 1 << 0;
pub(super) const PEER_REPLACE_ALLOWED_IPS: u32 = 1 << 1;
pub(super) const PEER_UPDATE_ONLY: u32 = 1 << 2;

/// enum wgallowedip_attribute.
pub(super) const ALLOWED_IP_FAMILY: u16 = 1;
pub(super) const ALLOWED_IP_ADDRESS: u16 = 2;
pub(super) const ALLOWED_IP_LENGTH: u16 = 3;

/// NLA_F_NESTED.
pub(super) const NESTED: u16 = 0x8000;
/// Lengths of `struct nlattr`, `sockaddr_in`, `sockaddr_in6`, `__kernel_timespec`.
pub(super) const ATTRIBUTE_HEADER_LEN: usize = 4;
pub(super) const SOCKADDR_IN_LEN: usize = 16;
pub(super) const SOCKADDR_IN6_LEN: usize = 28;
pub(super) const TIMESPEC_LEN: usize = 16;
/// AF_INET and AF_INET6.
pub(super) const INET: u16 = 2;
pub(super) const INET6: u16 = 10;

/// A growing list of attributes; wiped when dropped, for keys are among them.
#[derive(Default)]
pub(super) struct Attributes(Zeroizing<Vec<u8>>);

impl Attributes {
    /// Room for a whole message, so that no copy of a key stays behind where the list grows.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// Nothing here is near the 64 KiB that an attribute's length can tell: keys, addresses, and nests that
    /// [`super::encode`] bounds.
    pub(super) fn add(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER_LEN + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        let padded = self.0.len().next_multiple_of(4);
        self.0.resize(padded, 0);
    }

    pub(super) fn add_nest(&mut self, kind: u16, inner: &Self) {
        self.add(kind | NESTED, &inner.0);
    }

    pub(super) fn add_name(&mut self, kind: u16, name: &str) {
        self.add(kind, &[name.as_bytes(), &[0]].concat());
    }

    pub(super) fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.zeroize();
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`.
pub(super) fn sockaddr(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    match endpoint {
        SocketAddr::V4(endpoint) => {
            let family = INET.to_ne_bytes();
            [&family[..], &port, &endpoint.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(endpoint) => {
            let (family, flow) = (INET6.to_ne_bytes(), endpoint.flowinfo().to_be_bytes());
            let scope = endpoint.scope_id().to_ne_bytes();
            [&family[..], &port, &flow, &endpoint.ip().octets(), &scope].concat()
        }
    }
}

/// Address family and bytes of an address.
pub(super) fn address(ip: IpAddr) -> (u16, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (INET6, ip.octets().to_vec()),
    }
}
