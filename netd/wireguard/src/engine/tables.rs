// SPDX-License-Identifier: Apache-2.0
//! The peers of a device and the three ways to find one: by key, by session index, by address inside the tunnel.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::peer::{Peer, PeerId};
use crate::PublicKey;
use crate::trie::AllowedIps;

/// Looked up once per super-packet or merged datagram; none of it grows with the number of peers.
#[derive(Default)]
pub(crate) struct Tables {
    peers: Vec<Option<Arc<Peer>>>,
    free: Vec<PeerId>,
    by_key: BTreeMap<PublicKey, PeerId>,
    by_index: HashMap<u32, PeerId>,
    allowed: AllowedIps<PeerId>,
}

impl Tables {
    /// The peer with this key, made when it is new. `index` gives numbers of 24 bits, called until one is free.
    pub(crate) fn insert(&mut self, key: PublicKey, mut index: impl FnMut() -> u32) -> Arc<Peer> {
        if let Some(peer) = self.by_key(&key) {
            return Arc::clone(peer);
        }
        let mut free_index = index();
        while self.by_index.contains_key(&free_index) {
            free_index = index();
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.peers.push(None);
            (self.peers.len() - 1) as PeerId
        });
        let peer = Arc::new(Peer::new(id, key, free_index));
        self.peers[id as usize] = Some(Arc::clone(&peer));
        self.by_key.insert(key, id);
        self.by_index.insert(free_index, id);
        peer
    }

    pub(crate) fn remove(&mut self, key: &PublicKey) -> Option<Arc<Peer>> {
        let id = self.by_key.remove(key)?;
        let peer = self.peers.get_mut(id as usize).and_then(Option::take)?;
        self.by_index.remove(&peer.index);
        self.allowed.remove_all(&id);
        self.free.push(id);
        Some(peer)
    }

    /// Makes `net` this peer's, whoever had it before.
    pub(crate) fn allow(&mut self, net: IpNet, id: PeerId) {
        self.allowed.insert(net, id);
    }

    /// Takes `net` from this peer when it is its own.
    pub(crate) fn disallow(&mut self, net: &IpNet, id: PeerId) {
        if self.allowed.of(&id).any(|own| own == net.trunc()) {
            self.allowed.remove(net);
        }
    }

    /// Takes all from this peer.
    pub(crate) fn disallow_all(&mut self, id: PeerId) {
        self.allowed.remove_all(&id);
    }

    /// All prefixes of all peers.
    pub(crate) fn allowed(&self) -> impl Iterator<Item = (IpNet, PeerId)> {
        self.allowed.iter().map(|(net, id)| (net, *id))
    }

    /// Whose address it is, inside the tunnel.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<PeerId> {
        self.allowed.lookup(address).copied()
    }

    pub(crate) fn by_id(&self, id: PeerId) -> Option<&Arc<Peer>> {
        self.peers.get(id as usize)?.as_ref()
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(key).and_then(|id| self.by_id(*id))
    }

    /// By the upper 24 bits of a receiver index.
    pub(crate) fn by_index(&self, index: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&index).and_then(|id| self.by_id(*id))
    }

    /// In the order of their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_key.values().filter_map(|id| self.by_id(*id))
    }
}
