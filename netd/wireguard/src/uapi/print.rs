// SPDX-License-Identifier: Apache-2.0
//! Requests of a client and answers of a device, written.

use std::fmt::{self, Write};

use zeroize::Zeroizing;

use super::{PROTOCOL_VERSION, Snapshot};
use crate::{DeviceChange, KEY_LEN, PeerChange, PeerState, PublicKey};

/// Bytes that the lines of a device, a peer and a prefix take at most: a text with secrets does not move while it grows.
const DEVICE_BYTES: usize = 256;
const PEER_BYTES: usize = 640;
const PREFIX_BYTES: usize = 64;

/// A whole `set` request.
#[must_use]
pub fn print_set(change: &DeviceChange) -> Zeroizing<String> {
    let prefixes = change.peers.iter().map(|peer| peer.add_allowed_ips.len() + peer.remove_allowed_ips.len());
    let mut text = Text::new(change.peers.len(), prefixes.sum());
    text.line("set", 1);
    if let Some(key) = &change.private_key {
        text.secret("private_key", key.as_ref().map(|key| key.to_hex()));
    }
    text.optional("listen_port", change.listen_port);
    text.optional("fwmark", change.fwmark);
    text.flag("replace_peers", change.replace_peers);
    for peer in &change.peers {
        set_peer(&mut text, peer);
    }
    text.end()
}

fn set_peer(text: &mut Text, peer: &PeerChange) {
    text.public_key(&peer.public_key);
    text.flag("remove", peer.remove);
    text.flag("update_only", peer.update_only);
    if let Some(key) = &peer.preshared_key {
        text.secret("preshared_key", key.as_ref().map(|key| key.to_hex()));
    }
    text.optional("endpoint", peer.endpoint);
    text.optional("persistent_keepalive_interval", peer.persistent_keepalive);
    text.flag("replace_allowed_ips", peer.replace_allowed_ips);
    for prefix in &peer.remove_allowed_ips {
        text.line("allowed_ip", format_args!("-{prefix}"));
    }
    for prefix in &peer.add_allowed_ips {
        text.line("allowed_ip", prefix);
    }
}

/// A whole answer to `get`, its `errno=0` included.
#[must_use]
pub fn print_get(snapshot: &Snapshot) -> Zeroizing<String> {
    let state = &snapshot.state;
    let prefixes = state.peers.values().map(|peer| peer.config.allowed_ips.len());
    let mut text = Text::new(state.peers.len(), prefixes.sum());
    if let Some(key) = &snapshot.private_key {
        text.secret("private_key", Some(key.to_hex()));
    }
    text.optional("listen_port", Some(state.listen_port).filter(|port| *port != 0));
    text.optional("fwmark", Some(state.fwmark).filter(|fwmark| *fwmark != 0));
    for (key, peer) in &state.peers {
        tell_peer(&mut text, key, peer);
    }
    text.line("errno", 0);
    text.end()
}

fn tell_peer(text: &mut Text, key: &PublicKey, peer: &PeerState) {
    let config = &peer.config;
    text.public_key(key);
    text.secret("preshared_key", config.preshared_key.as_ref().map(|key| key.to_hex()));
    text.line("protocol_version", PROTOCOL_VERSION);
    text.optional("endpoint", config.endpoint);
    let handshake = peer.last_handshake.unwrap_or_default();
    text.line("last_handshake_time_sec", handshake.as_secs());
    text.line("last_handshake_time_nsec", handshake.subsec_nanos());
    text.line("tx_bytes", peer.tx_bytes);
    text.line("rx_bytes", peer.rx_bytes);
    text.line("persistent_keepalive_interval", config.persistent_keepalive);
    for prefix in &config.allowed_ips {
        text.line("allowed_ip", prefix);
    }
}

/// A whole answer to a request that was carried out (0) or not (a positive number of errno.h, written as a
/// negative one, as the kernel and wireguard-go do and `wg` expects).
#[must_use]
pub fn print_errno(errno: i32) -> String {
    format!("errno={}\n\n", -i64::from(errno).abs())
}

struct Text(Zeroizing<String>);

impl Text {
    fn new(peers: usize, prefixes: usize) -> Self {
        let bytes = DEVICE_BYTES + peers * PEER_BYTES + prefixes * PREFIX_BYTES;
        Self(Zeroizing::new(String::with_capacity(bytes)))
    }

    fn line(&mut self, key: &str, value: impl fmt::Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{key}={value}");
    }

    fn optional(&mut self, key: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }

    fn flag(&mut self, key: &str, is_set: bool) {
        if is_set {
            self.line(key, true);
        }
    }

    fn public_key(&mut self, key: &PublicKey) {
        self.line("public_key", key.to_hex());
    }

    fn secret(&mut self, key: &str, hex: Option<Zeroizing<String>>) {
        match hex {
            Some(hex) => self.line(key, &*hex),
            None => self.line(key, "00".repeat(KEY_LEN)),
        }
    }

    fn end(mut self) -> Zeroizing<String> {
        self.0.push('\n');
        self.0
    }
}
