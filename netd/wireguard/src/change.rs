// SPDX-License-Identifier: Apache-2.0
//! What is to be altered on a device: computed from a wish, or asked for by a client.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use ipnet::IpNet;

use crate::{DeviceConfig, DeviceState, PeerConfig, PeerState, PresharedKey, PrivateKey, PublicKey};

/// One request to a device. Parts apply in the order of the fields, peers in their own order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceChange {
    /// `Some(None)` takes the key away.
    pub private_key: Option<Option<PrivateKey>>,
    /// UDP port; 0 for any free one.
    pub listen_port: Option<u16>,
    /// Mark of the outer packets; 0: none.
    pub fwmark: Option<u32>,
    /// Removes all peers before those below are looked at.
    pub replace_peers: bool,
    /// Each applied after the one before; a key may come twice.
    pub peers: Vec<PeerChange>,
}

/// What is to be altered on a peer. Without `remove` and `update_only` it is made where it is missing. A peer
/// with the device's own public key is passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// The peer.
    pub public_key: PublicKey,
    /// It goes, whatever else is said; nothing happens where it is missing.
    pub remove: bool,
    /// Nothing happens where it is missing.
    pub update_only: bool,
    /// `Some(None)` takes the key away.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where to send to from now on.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0: none.
    pub persistent_keepalive: Option<u16>,
    /// Forgets the peer's prefixes before those below are looked at.
    pub replace_allowed_ips: bool,
    /// Prefixes to forget, each only where it is this peer's.
    pub remove_allowed_ips: Vec<IpNet>,
    /// Prefixes that are this peer's from now on, whoever had them.
    pub add_allowed_ips: Vec<IpNet>,
}

impl DeviceChange {
    /// The least that turns `observed` into `desired`; `None` where nothing is to be done.
    ///
    /// An endpoint is set where the wish for it differs from the one in `last_applied`, or where the device
    /// has none: a peer that moved by itself is left where it is. Without a `last_applied` (after a restart)
    /// wished endpoints are set anew, for the wish is true of somebody who cannot speak first, and a peer
    /// that can corrects it with its next packet.
    ///
    /// No packet of a prefix that has an owner before and after finds none in between, in whatever order a
    /// device applies the change: a prefix that moves is only added, which takes it from its owner, and peers
    /// are removed last. Where two wished peers claim one prefix, the one with the lower key has it.
    #[must_use]
    pub fn between(
        desired: &DeviceConfig,
        last_applied: Option<&DeviceConfig>,
        observed: &DeviceState,
    ) -> Option<Self> {
        let mut change = Self::default();
        let public_key = desired.private_key.as_ref().map(PrivateKey::public);
        if public_key.is_some() && public_key != observed.public_key {
            change.private_key = Some(desired.private_key.clone());
        }
        change.listen_port = desired.listen_port.filter(|port| match port {
            0 => observed.listen_port == 0,
            port => *port != observed.listen_port,
        });
        change.fwmark = Some(desired.fwmark).filter(|fwmark| *fwmark != observed.fwmark);

        let own_key = public_key.or(observed.public_key);
        let wished: BTreeMap<_, _> = desired.peers.iter().filter(|(key, _)| Some(**key) != own_key).collect();
        let owners = owners(&wished);
        for (key, wish) in &wished {
            let prefixes = wish.allowed_ips.iter().map(IpNet::trunc);
            let prefixes = prefixes.filter(|prefix| owners.get(prefix) == Some(key)).collect();
            let last_wish = last_applied.and_then(|config| config.peers.get(key));
            change.peers.extend(match observed.peers.get(key) {
                Some(peer) => PeerChange::between(**key, wish, prefixes, last_wish, peer, &owners),
                None => Some(PeerChange::added(**key, wish, prefixes)),
            });
        }
        let gone = observed.peers.keys().filter(|key| !wished.contains_key(key));
        change.peers.extend(gone.copied().map(PeerChange::removed));
        Some(change).filter(|change| *change != Self::default())
    }
}

/// Which of the peers has a prefix.
fn owners(peers: &BTreeMap<&PublicKey, &PeerConfig>) -> BTreeMap<IpNet, PublicKey> {
    let mut owners = BTreeMap::new();
    for (key, peer) in peers {
        for prefix in &peer.allowed_ips {
            owners.entry(prefix.trunc()).or_insert(**key);
        }
    }
    owners
}

impl PeerChange {
    /// Nothing yet, for a peer that is made where it is missing.
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            remove_allowed_ips: Vec::new(),
            add_allowed_ips: Vec::new(),
        }
    }

    /// The peer goes.
    #[must_use]
    pub fn removed(public_key: PublicKey) -> Self {
        Self { remove: true, ..Self::new(public_key) }
    }

    /// A new peer; right also where it turned up meanwhile.
    fn added(public_key: PublicKey, wish: &PeerConfig, prefixes: BTreeSet<IpNet>) -> Self {
        Self {
            preshared_key: wish.preshared_key.clone().map(Some),
            endpoint: wish.endpoint,
            persistent_keepalive: Some(wish.persistent_keepalive).filter(|seconds| *seconds != 0),
            replace_allowed_ips: true,
            add_allowed_ips: prefixes.into_iter().collect(),
            ..Self::new(public_key)
        }
    }

    fn between(
        public_key: PublicKey,
        wish: &PeerConfig,
        prefixes: BTreeSet<IpNet>,
        last_wish: Option<&PeerConfig>,
        observed: &PeerState,
        owners: &BTreeMap<IpNet, PublicKey>,
    ) -> Option<Self> {
        let observed = &observed.config;
        let unchanged = Self { update_only: true, ..Self::new(public_key) };
        let mut change = unchanged.clone();
        if wish.preshared_key != observed.preshared_key {
            change.preshared_key = Some(wish.preshared_key.clone());
        }
        if wish.endpoint != observed.endpoint {
            let is_new_wish = last_wish.is_none_or(|last| last.endpoint != wish.endpoint);
            change.endpoint = wish.endpoint.filter(|_| is_new_wish || observed.endpoint.is_none());
        }
        if wish.persistent_keepalive != observed.persistent_keepalive {
            change.persistent_keepalive = Some(wish.persistent_keepalive);
        }
        // One with a wished owner goes there by being added there.
        let goes = |prefix: &&IpNet| !owners.contains_key(*prefix);
        change.remove_allowed_ips = observed.allowed_ips.iter().filter(goes).copied().collect();
        change.add_allowed_ips = prefixes.difference(&observed.allowed_ips).copied().collect();
        Some(change).filter(|change| *change != unchanged)
    }
}

impl DeviceConfig {
    /// What a change means: this, after it. A device does the same.
    pub fn apply(&mut self, change: &DeviceChange) {
        if let Some(key) = &change.private_key {
            self.private_key.clone_from(key);
        }
        self.listen_port = change.listen_port.or(self.listen_port);
        self.fwmark = change.fwmark.unwrap_or(self.fwmark);
        if change.replace_peers {
            self.peers.clear();
        }
        let own_key = self.private_key.as_ref().map(PrivateKey::public);
        if let Some(own_key) = &own_key {
            self.peers.remove(own_key);
        }
        let mut owners = owners(&self.peers.iter().collect());
        for peer in change.peers.iter().filter(|peer| Some(peer.public_key) != own_key) {
            self.apply_to_peer(peer, &mut owners);
        }
    }

    fn apply_to_peer(&mut self, change: &PeerChange, owners: &mut BTreeMap<IpNet, PublicKey>) {
        let key = change.public_key;
        if change.remove {
            self.peers.remove(&key);
            return;
        }
        if change.update_only && !self.peers.contains_key(&key) {
            return;
        }
        for prefix in change.add_allowed_ips.iter().map(IpNet::trunc) {
            let former = owners.insert(prefix, key).filter(|former| *former != key);
            if let Some(former) = former.and_then(|former| self.peers.get_mut(&former)) {
                former.allowed_ips.remove(&prefix);
            }
        }
        let peer = self.peers.entry(key).or_default();
        if let Some(key) = &change.preshared_key {
            peer.preshared_key.clone_from(key);
        }
        peer.endpoint = change.endpoint.or(peer.endpoint);
        peer.persistent_keepalive = change.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
        if change.replace_allowed_ips {
            peer.allowed_ips.clear();
        }
        for prefix in &change.remove_allowed_ips {
            peer.allowed_ips.remove(&prefix.trunc());
        }
        peer.allowed_ips.extend(change.add_allowed_ips.iter().map(IpNet::trunc));
    }
}

/// One line for the log, without secrets: `private key, listen port 51820, peers: 2 set, 1 updated, 1 removed`.
impl fmt::Display for DeviceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match self.private_key {
            Some(Some(_)) => parts.push("private key".to_owned()),
            Some(None) => parts.push("no private key".to_owned()),
            None => {}
        }
        parts.extend(self.listen_port.map(|port| format!("listen port {port}")));
        parts.extend(self.fwmark.map(|fwmark| format!("fwmark {fwmark}")));
        if self.replace_peers {
            parts.push("all peers replaced".to_owned());
        }
        let removed = self.peers.iter().filter(|peer| peer.remove).count();
        let updated = self.peers.iter().filter(|peer| !peer.remove && peer.update_only).count();
        let counts =
            [(self.peers.len() - removed - updated, "set"), (updated, "updated"), (removed, "removed")];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
        if !counts.is_empty() {
            parts.push(format!("peers: {}", counts.join(", ")));
        }
        if parts.is_empty() {
            parts.push("nothing".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests;
