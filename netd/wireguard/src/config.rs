// SPDX-License-Identifier: Apache-2.0
//! What a device should be ([`DeviceConfig`]) and what it is ([`DeviceState`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    time::Duration,
};

use ipnet::IpNet;

use crate::{PresharedKey, PrivateKey, PublicKey};

/// The wish for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceConfig {
    /// `None`: the key is left as it is; a new device has none and is silent.
    pub private_key: Option<PrivateKey>,
    /// UDP port, 0 for any free one. `None`: left as it is.
    pub listen_port: Option<u16>,
    /// Mark of the outer packets; 0: none.
    pub fwmark: u32,
    /// All peers. One with the device's own public key is left out of every change, for devices ignore it.
    pub peers: BTreeMap<PublicKey, PeerConfig>,
}

/// The wish for a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// A symmetric key mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Where to send to first; the device follows the peer when it moves. `None`: wait until the peer speaks.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0: none.
    pub persistent_keepalive: u16,
    /// Addresses inside the tunnel that are this peer's: where to send them, and the only sources accepted
    /// from it. A prefix has one owner in a device.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// Who runs a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// The kernel's module.
    Kernel,
    /// A process: weft-wireguard, or another that speaks the configuration protocol.
    User,
}

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Who runs it.
    pub kind: DeviceKind,
    /// `None`: it has no key yet.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0: it does not listen.
    pub listen_port: u16,
    /// Mark of the outer packets; 0: none.
    pub fwmark: u32,
    /// All peers.
    pub peers: BTreeMap<PublicKey, PeerState>,
}

/// What a device says of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// As it is configured; the endpoint is where the last authenticated packet came from.
    pub config: PeerConfig,
    /// Since the Unix epoch. `None`: none yet.
    pub last_handshake: Option<Duration>,
    /// Bytes of authenticated packets received, headers of WireGuard included.
    pub rx_bytes: u64,
    /// Bytes sent, headers of WireGuard included.
    pub tx_bytes: u64,
}

impl DeviceState {
    /// A device that nobody configured.
    #[must_use]
    pub const fn new(kind: DeviceKind) -> Self {
        Self { kind, public_key: None, listen_port: 0, fwmark: 0, peers: BTreeMap::new() }
    }
}

impl DeviceKind {
    /// `kernel` or `user`, as in node records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::User => "user",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
