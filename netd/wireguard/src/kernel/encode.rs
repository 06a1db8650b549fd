// SPDX-License-Identifier: Apache-2.0
//! Requests to the kernel: a change becomes as many messages as it needs.
//!
//! Kernels before 6.16 cannot take one prefix from a peer: they only replace all of a peer's, and drop the
//! packets of the others meanwhile. A prefix is therefore given to a peer made for that, which is removed
//! right after with all it has.

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::wire::*;
use crate::{DeviceChange, KEY_LEN, PeerChange, PublicKey, device::DeviceError};

/// Bytes of attributes in one message. The kernel takes more, but a nest of peers must stay below 64 KiB.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// IFNAMSIZ - 1.
const IFNAME_BYTES_MAX: usize = 15;
/// Public key of the peer that takes prefixes away with it. Nobody has its private half; it has no endpoint.
pub(super) const UNDERTAKER: [u8; KEY_LEN] = *b"weft: prefixes on their way out.";

/// The payload of a dump request: generic netlink header and the name.
pub(super) fn get(ifname: &str) -> Result<Vec<u8>, DeviceError> {
    let mut attributes = Attributes::default();
    attributes.add_name(DEVICE_IFNAME, checked(ifname)?);
    Ok([&header(CMD_GET_DEVICE)[..], attributes.as_bytes()].concat())
}

/// The payloads of the requests that carry out a change, to be sent one after the other.
pub(super) fn set(ifname: &str, change: &DeviceChange) -> Result<Vec<Zeroizing<Vec<u8>>>, DeviceError> {
    let mut messages = Messages {
        ifname: checked(ifname)?,
        done: Vec::new(),
        peers: Attributes::with_capacity(MESSAGE_BYTES_MAX),
    };
    let mut device = Attributes::with_capacity(FIELDS_BYTES);
    if let Some(key) = &change.private_key {
        device.add(DEVICE_PRIVATE_KEY, key.as_ref().map_or(&[0; KEY_LEN], |key| key.as_bytes()));
    }
    if let Some(port) = change.listen_port {
        device.add(DEVICE_LISTEN_PORT, &port.to_ne_bytes());
    }
    if let Some(fwmark) = change.fwmark {
        device.add(DEVICE_FWMARK, &fwmark.to_ne_bytes());
    }
    if change.replace_peers {
        device.add(DEVICE_FLAGS, &DEVICE_REPLACE_PEERS.to_ne_bytes());
    }
    if device.len() > 0 {
        messages.send(&device);
    }
    for peer in &change.peers {
        messages.add(peer);
    }
    messages.flush();
    Ok(messages.done)
}

struct Messages<'a> {
    ifname: &'a str,
    done: Vec<Zeroizing<Vec<u8>>>,
    /// Of the next message.
    peers: Attributes,
}

impl Messages<'_> {
    fn add(&mut self, change: &PeerChange) {
        if change.remove {
            self.add_peer(&change.public_key, PEER_REMOVE_ME, &mut Attributes::default(), &[]);
            return;
        }
        if !change.remove_allowed_ips.is_empty() && !change.replace_allowed_ips {
            let undertaker = PublicKey::from(UNDERTAKER);
            self.add_peer(&undertaker, 0, &mut Attributes::default(), &change.remove_allowed_ips);
            self.add_peer(&undertaker, PEER_REMOVE_ME, &mut Attributes::default(), &[]);
        }
        let mut flags = 0;
        if change.replace_allowed_ips {
            flags |= PEER_REPLACE_ALLOWED_IPS;
        }
        if change.update_only {
            flags |= PEER_UPDATE_ONLY;
        }
        let mut fields = Attributes::with_capacity(FIELDS_BYTES);
        if let Some(key) = &change.preshared_key {
            fields.add(PEER_PRESHARED_KEY, key.as_ref().map_or(&[0; KEY_LEN], |key| key.as_bytes()));
        }
        if let Some(endpoint) = change.endpoint {
            fields.add(PEER_ENDPOINT, &sockaddr(endpoint));
        }
        if let Some(seconds) = change.persistent_keepalive {
            fields.add(PEER_KEEPALIVE, &seconds.to_ne_bytes());
        }
        self.add_peer(&change.public_key, flags, &mut fields, &change.add_allowed_ips);
    }

    /// A peer with its prefixes, the rest of them in following messages where they do not fit.
    fn add_peer(&mut self, key: &PublicKey, mut flags: u32, fields: &mut Attributes, mut prefixes: &[IpNet]) {
        loop {
            let mut head = Attributes::default();
            head.add(PEER_PUBLIC_KEY, key.as_bytes());
            if flags != 0 {
                head.add(PEER_FLAGS, &flags.to_ne_bytes());
            }
            // With the headers of the peer's own nest and that of its prefixes.
            let own_len = head.len() + fields.len() + 2 * ATTRIBUTE_HEADER_LEN;
            if self.peers.len() + own_len + ALLOWED_IP_LEN_MAX > PEERS_BYTES_MAX {
                self.flush();
            }
            let room = PEERS_BYTES_MAX.saturating_sub(self.peers.len() + own_len) / ALLOWED_IP_LEN_MAX;
            let (now, later) = prefixes.split_at(prefixes.len().min(room.max(1)));
            let mut allowed_ips = Attributes::default();
            for prefix in now {
                allowed_ips.add_nest(0, &allowed_ip(*prefix));
            }
            let mut peer = Attributes::with_capacity(own_len + allowed_ips.len());
            peer.append(&head);
            peer.append(fields);
            if !now.is_empty() {
                peer.add_nest(PEER_ALLOWED_IPS, &allowed_ips);
            }
            self.peers.add_nest(0, &peer);
            if later.is_empty() {
                return;
            }
            // The rest must neither take away what was just given, nor make a peer that is gone meanwhile.
            (flags, prefixes) = (PEER_UPDATE_ONLY, later);
            fields.clear();
        }
    }

    fn flush(&mut self) {
        if self.peers.len() > 0 {
            let mut peers = Attributes::with_capacity(MESSAGE_BYTES_MAX);
            peers.add_nest(DEVICE_PEERS, &self.peers);
            self.send(&peers);
            self.peers.clear();
        }
    }

    fn send(&mut self, attributes: &Attributes) {
        let mut name = Attributes::default();
        name.add_name(DEVICE_IFNAME, self.ifname);
        let message = [&header(CMD_SET_DEVICE)[..], name.as_bytes(), attributes.as_bytes()].concat();
        self.done.push(Zeroizing::new(message));
    }
}

/// What peers may take of a message: not the headers, nor the name.
const PEERS_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64;
/// Room for the fields of a device, or of a peer without its prefixes.
const FIELDS_BYTES: usize = 160;
/// Of one prefix, for IPv6: its nest, family, address and length.
const ALLOWED_IP_LEN_MAX: usize = ATTRIBUTE_HEADER_LEN + 8 + 20 + 8;

pub(super) fn allowed_ip(prefix: IpNet) -> Attributes {
    let (family, address) = address(prefix.network());
    let mut attributes = Attributes::default();
    attributes.add(ALLOWED_IP_FAMILY, &family.to_ne_bytes());
    attributes.add(ALLOWED_IP_ADDRESS, &address);
    attributes.add(ALLOWED_IP_LENGTH, &[prefix.prefix_len()]);
    attributes
}

/// `struct genlmsghdr`.
fn header(command: u8) -> [u8; 4] {
    [command, VERSION, 0, 0]
}

fn checked(ifname: &str) -> Result<&str, DeviceError> {
    if ifname.is_empty() || ifname.len() > IFNAME_BYTES_MAX || ifname.contains('\0') {
        return Err(DeviceError::Name { ifname: ifname.to_owned() });
    }
    Ok(ifname)
}
