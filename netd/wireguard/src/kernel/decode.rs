// SPDX-License-Identifier: Apache-2.0
//! What the kernel tells: the messages of a dump, joined.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use ipnet::IpNet;
use netlink_packet_core::{NlaBuffer, NlasIterator};

use super::wire::*;
use crate::{DeviceKind, DeviceState, KEY_LEN, PeerState, PresharedKey, PublicKey};

/// A dump as far as it was read.
#[derive(Debug)]
pub(super) struct Dump {
    pub(super) state: DeviceState,
}

impl Default for Dump {
    fn default() -> Self {
        Self { state: DeviceState::new(DeviceKind::Kernel) }
    }
}

impl Dump {
    /// Adds a message's attributes. A peer may go on in the next message, with its key and more prefixes only.
    ///
    /// # Errors
    /// What is wrong with the message.
    pub(super) fn join(&mut self, attributes: &[u8]) -> Result<(), String> {
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.map_err(|error| error.to_string())?;
            let value = attribute.value();
            match attribute.kind() {
                DEVICE_PUBLIC_KEY => {
                    let key = exactly::<KEY_LEN>(value, "the public key")?;
                    self.state.public_key = Some(PublicKey::from(key)).filter(|_| key != [0; KEY_LEN]);
                }
                DEVICE_LISTEN_PORT => {
                    self.state.listen_port = u16::from_ne_bytes(exactly(value, "the listen port")?);
                }
                DEVICE_FWMARK => self.state.fwmark = u32::from_ne_bytes(exactly(value, "the fwmark")?),
                DEVICE_PEERS => {
                    for peer in NlasIterator::new(value) {
                        self.join_peer(&peer.map_err(|error| error.to_string())?)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn join_peer(&mut self, attribute: &NlaBuffer<&[u8]>) -> Result<(), String> {
        let mut key = None;
        for field in NlasIterator::new(attribute.value()).flatten() {
            if field.kind() == PEER_PUBLIC_KEY {
                key = Some(PublicKey::from(exactly::<KEY_LEN>(field.value(), "a peer's public key")?));
            }
        }
        let peer = self.state.peers.entry(key.ok_or("a peer without a public key")?).or_default();
        for field in NlasIterator::new(attribute.value()) {
            let field = field.map_err(|error| error.to_string())?;
            join_field(peer, &field)?;
        }
        Ok(())
    }
}

fn join_field(peer: &mut PeerState, field: &NlaBuffer<&[u8]>) -> Result<(), String> {
    let value = field.value();
    match field.kind() {
        PEER_PRESHARED_KEY => {
            let key = zeroize::Zeroizing::new(exactly::<KEY_LEN>(value, "a preshared key")?);
            peer.config.preshared_key = Some(PresharedKey::from(*key)).filter(|_| *key != [0; KEY_LEN]);
        }
        PEER_ENDPOINT => peer.config.endpoint = Some(endpoint(value)?),
        PEER_KEEPALIVE => {
            peer.config.persistent_keepalive = u16::from_ne_bytes(exactly(value, "a keepalive interval")?);
        }
        PEER_LAST_HANDSHAKE => peer.last_handshake = since_epoch(exactly(value, "a handshake's time")?),
        PEER_RX_BYTES => peer.rx_bytes = u64::from_ne_bytes(exactly(value, "a byte counter")?),
        PEER_TX_BYTES => peer.tx_bytes = u64::from_ne_bytes(exactly(value, "a byte counter")?),
        PEER_ALLOWED_IPS => {
            for allowed_ip in NlasIterator::new(value) {
                let allowed_ip = allowed_ip.map_err(|error| error.to_string())?;
                peer.config.allowed_ips.insert(prefix(&allowed_ip)?);
            }
        }
        _ => {}
    }
    Ok(())
}

fn prefix(attribute: &NlaBuffer<&[u8]>) -> Result<IpNet, String> {
    let (mut ip, mut length) = (None, None);
    for field in NlasIterator::new(attribute.value()).flatten() {
        match field.kind() {
            ALLOWED_IP_ADDRESS => ip = address_of(field.value()),
            ALLOWED_IP_LENGTH => length = field.value().first().copied(),
            _ => {}
        }
    }
    let prefix = ip.zip(length).and_then(|(ip, length)| IpNet::new(ip, length).ok());
    Ok(prefix.ok_or("an allowed IP without an address and a length that fit")?.trunc())
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn endpoint(bytes: &[u8]) -> Result<SocketAddr, String> {
    let wrong = || format!("an endpoint of {} bytes that is neither IPv4 nor IPv6", bytes.len());
    let port = u16::from_be_bytes(field(bytes, 2).ok_or_else(wrong)?);
    match (field(bytes, 0).map(u16::from_ne_bytes), bytes.len()) {
        (Some(INET), SOCKADDR_IN_LEN..) => {
            let ip: [u8; 4] = field(bytes, 4).ok_or_else(wrong)?;
            Ok(SocketAddr::new(IpAddr::from(ip), port))
        }
        (Some(INET6), SOCKADDR_IN6_LEN..) => {
            let ip: [u8; 16] = field(bytes, 8).ok_or_else(wrong)?;
            let scope = u32::from_ne_bytes(field(bytes, 24).ok_or_else(wrong)?);
            // The flow label is the sender's business and no part of where the peer is.
            Ok(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
        }
        _ => Err(wrong()),
    }
}

/// `struct __kernel_timespec`; zero before the first handshake.
fn since_epoch(time: [u8; TIMESPEC_LEN]) -> Option<Duration> {
    let seconds = u64::try_from(i64::from_ne_bytes(field(&time, 0)?)).ok()?;
    let nanos = u32::try_from(i64::from_ne_bytes(field(&time, 8)?)).ok()?;
    let nanos = nanos.min(999_999_999);
    Some(Duration::new(seconds, nanos)).filter(|time| !time.is_zero())
}

fn field<const LEN: usize>(bytes: &[u8], at: usize) -> Option<[u8; LEN]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn exactly<const LEN: usize>(bytes: &[u8], what: &str) -> Result<[u8; LEN], String> {
    bytes.try_into().map_err(|_| format!("{what} has {} bytes instead of {LEN}", bytes.len()))
}
