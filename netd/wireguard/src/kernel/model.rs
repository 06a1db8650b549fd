// SPDX-License-Identifier: Apache-2.0
//! The kernel's side of the protocol, as far as tests need it: carries out requests, and dumps.

use ipnet::IpNet;
use netlink_packet_core::NlasIterator;

use super::{decode::Dump, encode, wire::*};
use crate::{DeviceChange, DeviceConfig, PeerChange, PeerState, PresharedKey, PrivateKey, PublicKey};

/// Reads one `set` message (after the generic header) as the change that it is.
pub(super) fn change_of(ifname: &str, message: &[u8]) -> DeviceChange {
    assert_eq!(message[..4], [CMD_SET_DEVICE, VERSION, 0, 0]);
    let mut change = DeviceChange::default();
    for attribute in NlasIterator::new(&message[4..]) {
        let attribute = attribute.unwrap();
        let value = attribute.value();
        match attribute.kind() {
            DEVICE_IFNAME => assert_eq!(value, [ifname.as_bytes(), &[0]].concat()),
            DEVICE_PRIVATE_KEY => {
                let key: [u8; 32] = value.try_into().unwrap();
                change.private_key = Some(Some(PrivateKey::from(key)).filter(|_| key != [0; 32]));
            }
            DEVICE_LISTEN_PORT => change.listen_port = Some(u16::from_ne_bytes(value.try_into().unwrap())),
            DEVICE_FWMARK => change.fwmark = Some(u32::from_ne_bytes(value.try_into().unwrap())),
            DEVICE_FLAGS => {
                change.replace_peers = u32::from_ne_bytes(value.try_into().unwrap()) == DEVICE_REPLACE_PEERS;
            }
            DEVICE_PEERS => {
                assert!(attribute.nested_flag());
                change.peers = NlasIterator::new(value).map(|peer| peer_of(peer.unwrap().value())).collect();
            }
            other => panic!("attribute {other} is not of a set request"),
        }
    }
    change
}

fn peer_of(bytes: &[u8]) -> PeerChange {
    let fields: Vec<_> = NlasIterator::new(bytes).map(Result::unwrap).collect();
    let key = fields.iter().find(|field| field.kind() == PEER_PUBLIC_KEY).unwrap().value();
    let mut peer = PeerChange::new(PublicKey::from(<[u8; 32]>::try_from(key).unwrap()));
    // What dumps have too is read as a dump is.
    let mut read = Dump::default();
    let mut nest = Attributes::default();
    nest.add(NESTED, bytes);
    let mut peers = Attributes::default();
    peers.add_nest(DEVICE_PEERS, &nest);
    read.join(peers.as_bytes()).unwrap();
    let state: PeerState = read.state.peers.remove(&peer.public_key).unwrap();
    peer.endpoint = state.config.endpoint;
    peer.add_allowed_ips = state.config.allowed_ips.into_iter().collect();
    for field in &fields {
        let value = field.value();
        match field.kind() {
            PEER_FLAGS => {
                let flags = u32::from_ne_bytes(value.try_into().unwrap());
                peer.remove = flags & PEER_REMOVE_ME != 0;
                peer.replace_allowed_ips = flags & PEER_REPLACE_ALLOWED_IPS != 0;
                peer.update_only = flags & PEER_UPDATE_ONLY != 0;
            }
            PEER_PRESHARED_KEY => {
                let key: [u8; 32] = value.try_into().unwrap();
                peer.preshared_key = Some(Some(PresharedKey::from(key)).filter(|_| key != [0; 32]));
            }
            PEER_KEEPALIVE => {
                peer.persistent_keepalive = Some(u16::from_ne_bytes(value.try_into().unwrap()));
            }
            PEER_ALLOWED_IPS => assert!(field.nested_flag()),
            PEER_PUBLIC_KEY | PEER_ENDPOINT => {}
            other => panic!("attribute {other} is not of a peer in a set request"),
        }
    }
    peer
}

/// Carries out a change as the kernel does: message after message.
pub(super) fn carry_out(config: &mut DeviceConfig, change: &DeviceChange) -> Vec<usize> {
    let messages = encode::set("weft.wg0", change).unwrap();
    for message in &messages {
        config.apply(&change_of("weft.wg0", message));
    }
    messages.iter().map(|message| message.len()).collect()
}

/// The messages of a dump, a few prefixes in each, as the kernel cuts them.
pub(super) fn dump(config: &DeviceConfig, prefixes_per_message: usize) -> Vec<Vec<u8>> {
    let mut device = Attributes::default();
    device.add(1, &7_u32.to_ne_bytes());
    device.add_name(DEVICE_IFNAME, "weft.wg0");
    if let Some(key) = &config.private_key {
        device.add(DEVICE_PRIVATE_KEY, key.as_bytes());
        device.add(DEVICE_PUBLIC_KEY, key.public().as_bytes());
    }
    device.add(DEVICE_LISTEN_PORT, &config.listen_port.unwrap_or(0).to_ne_bytes());
    device.add(DEVICE_FWMARK, &config.fwmark.to_ne_bytes());
    let mut messages = vec![device.as_bytes().to_vec()];
    for (key, peer) in &config.peers {
        let prefixes: Vec<IpNet> = peer.allowed_ips.iter().copied().collect();
        let mut chunks = prefixes.chunks(prefixes_per_message);
        let first = chunks.next().unwrap_or_default();
        for (index, chunk) in [first].into_iter().chain(chunks).enumerate() {
            let mut fields = Attributes::default();
            fields.add(PEER_PUBLIC_KEY, key.as_bytes());
            if index == 0 {
                let preshared_key = peer.preshared_key.as_ref().map_or(&[0; 32], |key| key.as_bytes());
                fields.add(PEER_PRESHARED_KEY, preshared_key);
                fields.add(PEER_KEEPALIVE, &peer.persistent_keepalive.to_ne_bytes());
                fields.add(PEER_LAST_HANDSHAKE, &[0; TIMESPEC_LEN]);
                fields.add(PEER_RX_BYTES, &1_u64.to_ne_bytes());
                fields.add(PEER_TX_BYTES, &2_u64.to_ne_bytes());
                if let Some(endpoint) = peer.endpoint {
                    fields.add(PEER_ENDPOINT, &sockaddr(endpoint));
                }
            }
            let mut allowed_ips = Attributes::default();
            for prefix in chunk {
                allowed_ips.add_nest(0, &encode::allowed_ip(*prefix));
            }
            fields.add_nest(PEER_ALLOWED_IPS, &allowed_ips);
            let mut peers = Attributes::default();
            peers.add_nest(0, &fields);
            let mut message = Attributes::default();
            message.add_name(DEVICE_IFNAME, "weft.wg0");
            message.add_nest(DEVICE_PEERS, &peers);
            messages.push(message.as_bytes().to_vec());
        }
    }
    messages
}
