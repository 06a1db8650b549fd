// SPDX-License-Identifier: Apache-2.0
//! What a client asks.

use ipnet::IpNet;

use super::{PROTOCOL_VERSION, UapiError, decimal, is_zero};
use crate::{DeviceChange, PeerChange, PresharedKey, PrivateKey, PublicKey};

/// A request that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Tell the device.
    Get,
    /// Alter the device.
    Set(DeviceChange),
}

/// Reads a request, with or without the empty line that ends it. Nothing after that line is looked at.
///
/// # Errors
/// [`UapiError::Operation`] and [`UapiError::Line`]; then nothing of the request is to be done.
pub fn parse_request(text: &str) -> Result<Request, UapiError> {
    let mut lines = text.split('\n').take_while(|line| !line.is_empty());
    let operation = lines.next().unwrap_or_default();
    let mut lines = lines.zip(2..);
    match operation {
        "get=1" => match lines.next() {
            None => Ok(Request::Get),
            Some((line, number)) => Err(UapiError::line(number, line, "get=1 stands alone")),
        },
        "set=1" => {
            let mut change = DeviceChange::default();
            for (line, number) in lines {
                take(&mut change, line).map_err(|why| UapiError::line(number, line, why))?;
            }
            Ok(Request::Set(change))
        }
        other => Err(UapiError::Operation(other.chars().take(LINE_SHOWN_MAX).collect())),
    }
}

/// Characters of a wrong first line in the error: enough to tell HTTP or TLS from a slip of the pen.
const LINE_SHOWN_MAX: usize = 40;

fn take(change: &mut DeviceChange, line: &str) -> Result<(), &'static str> {
    let (key, value) = line.split_once('=').ok_or("not of the form key=value")?;
    if key == "public_key" {
        let key = PublicKey::from_hex(value).map_err(|_| "not a key of 64 hexadecimal digits")?;
        change.peers.push(PeerChange::new(key));
        return Ok(());
    }
    match change.peers.last_mut() {
        None => take_device(change, key, value),
        Some(peer) if key == "allowed_ip" => {
            let another = take_allowed_ip(peer, value)?;
            change.peers.extend(another);
            Ok(())
        }
        Some(peer) => take_peer(peer, key, value),
    }
}

fn take_device(change: &mut DeviceChange, key: &str, value: &str) -> Result<(), &'static str> {
    match key {
        "private_key" => {
            let key = PrivateKey::from_hex(value).map_err(|_| "not a key of 64 hexadecimal digits")?;
            change.private_key = Some(Some(key).filter(|_| !is_zero(value)));
        }
        "listen_port" => change.listen_port = Some(decimal(value).ok_or("not a port: 0 to 65535")?),
        "fwmark" => change.fwmark = Some(decimal(value).ok_or("not a mark: 0 to 4294967295")?),
        "replace_peers" => {
            change.replace_peers = is_true(value)?;
        }
        "preshared_key"
        | "endpoint"
        | "persistent_keepalive_interval"
        | "replace_allowed_ips"
        | "allowed_ip"
        | "remove"
        | "update_only"
        | "protocol_version" => return Err("a key of peers: a public_key must come first"),
        _ => return Err("unknown key"),
    }
    Ok(())
}

fn take_peer(peer: &mut PeerChange, key: &str, value: &str) -> Result<(), &'static str> {
    match key {
        "remove" => peer.remove = is_true(value)?,
        "update_only" => peer.update_only = is_true(value)?,
        "preshared_key" => {
            let key = PresharedKey::from_hex(value).map_err(|_| "not a key of 64 hexadecimal digits")?;
            peer.preshared_key = Some(Some(key).filter(|_| !is_zero(value)));
        }
        "endpoint" => {
            let endpoint = value
                .parse()
                .map_err(|_| "not an address with a port, as 192.0.2.1:51820 or [2001:db8::1]:51820")?;
            peer.endpoint = Some(endpoint);
        }
        "persistent_keepalive_interval" => {
            peer.persistent_keepalive = Some(decimal(value).ok_or("not seconds: 0 to 65535")?);
        }
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = is_true(value)?;
            // Those of this request that came before it, too.
            peer.add_allowed_ips.clear();
            peer.remove_allowed_ips.clear();
        }
        "protocol_version" if value == PROTOCOL_VERSION => {}
        "protocol_version" => return Err("the only version is 1"),
        "private_key" | "listen_port" | "fwmark" | "replace_peers" => {
            return Err("a key of the device: it must come before the first public_key");
        }
        _ => return Err("unknown key"),
    }
    Ok(())
}

/// In a change, removals come before additions: one that comes after them starts another change of the same peer.
fn take_allowed_ip(peer: &mut PeerChange, value: &str) -> Result<Option<PeerChange>, &'static str> {
    let (prefix, is_removed) = match value.strip_prefix('-') {
        Some(prefix) => (prefix, true),
        None => (value, false),
    };
    let prefix: IpNet = prefix.parse().map_err(|_| "not a prefix, as 10.244.1.0/26")?;
    let prefix = prefix.trunc();
    match (is_removed, peer.add_allowed_ips.is_empty()) {
        (false, _) => peer.add_allowed_ips.push(prefix),
        (true, true) => peer.remove_allowed_ips.push(prefix),
        (true, false) => {
            let (remove, update_only) = (peer.remove, peer.update_only);
            let another = PeerChange { remove, update_only, ..PeerChange::new(peer.public_key) };
            return Ok(Some(PeerChange { remove_allowed_ips: vec![prefix], ..another }));
        }
    }
    Ok(None)
}

fn is_true(value: &str) -> Result<bool, &'static str> {
    if value == "true" { Ok(true) } else { Err("the only value is true") }
}
