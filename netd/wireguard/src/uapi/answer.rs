// SPDX-License-Identifier: Apache-2.0
//! What a device answers.

use std::time::Duration;

use ipnet::IpNet;

use super::{Snapshot, UapiError, decimal, is_zero};
use crate::{DeviceKind, DeviceState, PeerState, PresharedKey, PrivateKey, PublicKey};

/// Reads the answer to a `set`.
///
/// # Errors
/// [`UapiError::Errno`] where the device refused, [`UapiError::CutOff`] where it said nothing of the kind.
pub fn parse_errno(text: &str) -> Result<(), UapiError> {
    let lines = text.split('\n').take_while(|line| !line.is_empty()).zip(1..);
    for (line, number) in lines {
        if let Some(value) = line.strip_prefix("errno=") {
            return errno(value).unwrap_or_else(|| Err(UapiError::line(number, line, "not a number")));
        }
    }
    Err(UapiError::CutOff)
}

/// Reads the answer to a `get`. Keys that are not known are passed over: a newer device may tell more.
///
/// # Errors
/// [`UapiError`]; [`UapiError::Errno`] where the device refused.
pub fn parse_get(text: &str) -> Result<Snapshot, UapiError> {
    let mut reader = Reader {
        snapshot: Snapshot { private_key: None, state: DeviceState::new(DeviceKind::User) },
        peer: None,
    };
    for (line, number) in text.split('\n').take_while(|line| !line.is_empty()).zip(1..) {
        let at = |why| UapiError::line(number, line, why);
        let (key, value) = line.split_once('=').ok_or_else(|| at("not of the form key=value"))?;
        if key == "errno" {
            errno(value).ok_or_else(|| at("not a number"))??;
            reader.end_peer();
            return Ok(reader.snapshot);
        }
        reader.take(key, value).ok_or_else(|| at("not a value of this key, or not in this place"))?;
    }
    Err(UapiError::CutOff)
}

/// Some devices answer negative numbers, some positive ones.
fn errno(value: &str) -> Option<Result<(), UapiError>> {
    let number: i32 = decimal(value.strip_prefix('-').unwrap_or(value))?;
    Some(if number == 0 { Ok(()) } else { Err(UapiError::Errno(number)) })
}

struct Reader {
    snapshot: Snapshot,
    /// The one that the lines are about.
    peer: Option<(PublicKey, PeerState)>,
}

impl Reader {
    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        if key == "public_key" {
            self.end_peer();
            self.peer = Some((PublicKey::from_hex(value).ok()?, PeerState::default()));
            return Some(());
        }
        match &mut self.peer {
            None => self.take_device(key, value),
            Some((_, peer)) => take_peer(peer, key, value),
        }
    }

    fn take_device(&mut self, key: &str, value: &str) -> Option<()> {
        let state = &mut self.snapshot.state;
        match key {
            "private_key" => {
                let key = PrivateKey::from_hex(value).ok().filter(|_| !is_zero(value));
                state.public_key = key.as_ref().map(PrivateKey::public);
                if key.is_none() {
                    PublicKey::from_hex(value).ok()?;
                }
                self.snapshot.private_key = key;
            }
            "listen_port" => state.listen_port = decimal(value)?,
            "fwmark" => state.fwmark = decimal(value)?,
            _ => {}
        }
        Some(())
    }

    fn end_peer(&mut self) {
        if let Some((key, peer)) = self.peer.take() {
            self.snapshot.state.peers.insert(key, peer);
        }
    }
}

fn take_peer(peer: &mut PeerState, key: &str, value: &str) -> Option<()> {
    let config = &mut peer.config;
    let handshake = peer.last_handshake.unwrap_or_default();
    match key {
        "preshared_key" => {
            config.preshared_key = Some(PresharedKey::from_hex(value).ok()?).filter(|_| !is_zero(value));
        }
        "endpoint" => config.endpoint = Some(value.parse().ok()?),
        "persistent_keepalive_interval" => config.persistent_keepalive = decimal(value)?,
        "allowed_ip" => {
            config.allowed_ips.insert(value.parse::<IpNet>().ok()?.trunc());
        }
        "last_handshake_time_sec" => {
            let since_epoch = Duration::new(decimal(value)?, handshake.subsec_nanos());
            peer.last_handshake = Some(since_epoch).filter(|time| !time.is_zero());
        }
        "last_handshake_time_nsec" => {
            let nanos = decimal(value).filter(|nanos| *nanos < 1_000_000_000)?;
            peer.last_handshake =
                Some(Duration::new(handshake.as_secs(), nanos)).filter(|time| !time.is_zero());
        }
        "rx_bytes" => peer.rx_bytes = decimal(value)?,
        "tx_bytes" => peer.tx_bytes = decimal(value)?,
        _ => {}
    }
    Some(())
}
