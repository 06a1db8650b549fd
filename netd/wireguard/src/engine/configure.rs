// SPDX-License-Identifier: Apache-2.0
//! The device under the configuration protocol: reads and changes, while packets flow.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::cipher::{Cipher, Due, MESSAGE_MAX};
use super::peer::{Peer, PeerState};
use super::tunnel::{Identity, Tunnel, lock};
use super::udp::{Endpoint, Flushed, Sender, Sockets};
use crate::{
    Configurable, DeviceChange, DeviceKind, DeviceState, PeerChange, PeerConfig, PresharedKey, PrivateKey,
    PublicKey, Snapshot,
};

/// Session indices have 24 bits for the peer.
const INDEX_MASK: u32 = 0x00ff_ffff;

impl Configurable for Tunnel {
    fn read(&self) -> Snapshot {
        let setup = lock(&self.setup);
        let identity = self.identity();
        let mut state = DeviceState::new(DeviceKind::User);
        state.public_key = identity.as_ref().map(|identity| identity.public);
        state.listen_port = self.sockets().map_or(setup.listen_port, |sockets| sockets.port);
        state.fwmark = setup.fwmark;
        let tables = self.tables();
        for peer in tables.iter() {
            state.peers.insert(peer.key, read_peer(&peer.lock()));
        }
        for (net, id) in tables.allowed() {
            let peer = tables.by_id(id).and_then(|peer| state.peers.get_mut(&peer.key));
            if let Some(peer) = peer {
                peer.config.allowed_ips.insert(net);
            }
        }
        Snapshot { private_key: identity.map(|identity| identity.private.clone()), state }
    }

    fn set(&self, change: DeviceChange) -> io::Result<()> {
        let mut setup = lock(&self.setup);
        // First what can fail: then nothing has changed.
        let wants_key = matches!(change.private_key, Some(Some(_)));
        if change.listen_port.is_some() || (wants_key && self.sockets().is_none()) {
            let port = change.listen_port.unwrap_or(setup.listen_port);
            self.listen(port, change.fwmark.unwrap_or(setup.fwmark))?;
            setup.listen_port = port;
        }
        if let Some(mark) = change.fwmark {
            if let Some(sockets) = self.sockets() {
                sockets.set_fwmark(mark)?;
            }
            setup.fwmark = mark;
        }
        if let Some(private) = change.private_key {
            self.set_private_key(private);
        }
        if change.replace_peers {
            let keys: Vec<_> = self.tables().iter().map(|peer| peer.key).collect();
            keys.iter().for_each(|key| self.remove_peer(key));
        }
        let own = self.identity().map(|identity| identity.public);
        let mut sender = Sender::new();
        for peer in change.peers.into_iter().filter(|peer| Some(peer.public_key) != own) {
            self.set_peer(peer, &mut sender)?;
        }
        self.send_rest(&mut sender);
        self.wake();
        Ok(())
    }
}

impl Tunnel {
    /// Becomes what the process before us had: its sockets, keys and peers; those with a session are greeted at the start.
    pub(crate) fn inherit(&self, sockets: Option<Sockets>, snapshot: &Snapshot) -> io::Result<()> {
        lock(&self.setup).listen_port = sockets.as_ref().map_or(snapshot.state.listen_port, |s| s.port);
        self.set_sockets(sockets.map(Arc::new));
        self.set(as_change(snapshot))?;
        for (key, was) in &snapshot.state.peers {
            let Some(peer) = self.tables().by_key(key).cloned() else { continue };
            let mut state = peer.lock();
            (state.rx_bytes, state.tx_bytes) = (was.rx_bytes, was.tx_bytes);
            state.last_handshake = was.last_handshake;
            if was.last_handshake.is_some() && state.endpoint.is_some() && state.cipher.is_some() {
                state.greeting = true;
                self.greet();
                if !state.ticking {
                    state.ticking = true;
                    self.wake_peer(peer.id);
                }
            }
        }
        Ok(())
    }

    /// Binds, unless it listens there already.
    fn listen(&self, port: u16, fwmark: u32) -> io::Result<()> {
        if port != 0 && self.sockets().is_some_and(|sockets| sockets.port == port) {
            return Ok(());
        }
        let sockets = Sockets::bind(port, fwmark, &self.options)?;
        tracing::info!(
            device = self.tun.name(),
            port = sockets.port,
            ipv6 = sockets.v6.is_some(),
            udp_gso = sockets.v4.gso(),
            udp_gro = sockets.v4.gro(),
            "listening"
        );
        self.set_sockets(Some(Arc::new(sockets)));
        Ok(())
    }

    fn set_private_key(&self, private: Option<PrivateKey>) {
        let current = self.identity();
        if current.as_ref().map(|identity| &identity.private) == private.as_ref() {
            return;
        }
        let identity = private.map(|private| Arc::new(Identity::new(private)));
        if let Some(identity) = &identity {
            // A peer with our own key would be ourselves.
            self.remove_peer(&identity.public);
        }
        self.set_identity(identity.clone());
        let peers: Vec<_> = self.tables().iter().cloned().collect();
        for peer in peers {
            let mut state = peer.lock();
            match (&identity, &mut state.cipher) {
                (Some(identity), Some(cipher)) => {
                    cipher.set_private_key(&identity.private, Arc::clone(&identity.unlimited));
                }
                _ => state.cipher = self.cipher(&peer, state.preshared_key.as_ref()),
            }
        }
    }

    fn remove_peer(&self, key: &PublicKey) {
        let removed = self.tables_mut().remove(key);
        if removed.is_some_and(|peer| std::mem::take(&mut peer.lock().greeting)) {
            self.greeted();
        }
    }

    fn set_peer(&self, change: PeerChange, sender: &mut Sender) -> io::Result<()> {
        let key = change.public_key;
        if change.remove {
            self.remove_peer(&key);
            return Ok(());
        }
        let known = self.tables().by_key(&key).cloned();
        // To a new one it goes at the next tick: at a handover its sockets are still the other process's.
        let at_once = known.is_some().then_some(sender);
        let peer = match known {
            Some(peer) => peer,
            None if change.update_only => return Ok(()),
            None => {
                let mut random = Random::new()?;
                let peer = self.tables_mut().insert(key, || random.next() & INDEX_MASK);
                // Key agreement with the peer's key: outside the tables' lock, for packets wait for that one.
                let cipher = self.cipher(&peer, None);
                peer.lock().cipher = cipher;
                peer
            }
        };
        self.change_state(&peer, &change, at_once);
        let mut tables = self.tables_mut();
        if change.replace_allowed_ips {
            tables.disallow_all(peer.id);
        }
        change.remove_allowed_ips.iter().for_each(|net| tables.disallow(net, peer.id));
        change.add_allowed_ips.iter().for_each(|net| tables.allow(*net, peer.id));
        Ok(())
    }

    /// `at_once`: takes the keepalive of a peer for which keepalives are switched on, as in the kernel (`set_peer` of its
    /// netlink.c), also where they are off again before the next tick.
    fn change_state(&self, peer: &Peer, change: &PeerChange, at_once: Option<&mut Sender>) {
        let mut state = peer.lock();
        let state = &mut *state;
        if let Some(preshared) = &change.preshared_key
            && *preshared != state.preshared_key
        {
            // boringtun takes it only at the start: the session is made anew, as it would be soon in any case.
            state.preshared_key.clone_from(preshared);
            state.cipher = self.cipher(peer, preshared.as_ref());
        }
        if let Some(remote) = change.endpoint
            && state.endpoint.is_none_or(|endpoint| endpoint.remote != remote)
        {
            state.endpoint = Some(Endpoint::new(remote));
        }
        if let Some(secs) = change.persistent_keepalive {
            let before = std::mem::replace(&mut state.keepalive_secs, secs);
            if secs != 0 && before != secs {
                // Due at the next tick: it brings the handshake.
                state.last_authentic = None;
            }
            if let Some(sender) = at_once.filter(|_| secs != 0 && before == 0) {
                self.send_keepalive(state, sender);
            }
        }
        if state.keepalive_secs != 0 && !state.ticking && state.cipher.is_some() {
            state.ticking = true;
            self.wake_peer(peer.id);
        }
    }

    fn send_keepalive(&self, state: &mut PeerState, sender: &mut Sender) {
        let (Some(sockets), Some(to)) = (self.sockets(), state.endpoint) else { return };
        let mut message = [0; MESSAGE_MAX];
        // One that slept has to learn the time first.
        let due = state.cipher.as_mut().filter(|_| !state.ticking).map(|cipher| cipher.tick(&mut message));
        let len = match due {
            Some(Due::Send(len)) => Some(len),
            _ => state.keepalive(&mut message, Instant::now()),
        };
        if let Some(len) = len {
            state.tx_bytes += len as u64;
            sender.push(&message[..len], &to, &sockets, &self.counters);
        }
    }

    fn send_rest(&self, sender: &mut Sender) {
        if let Some(sockets) = self.sockets().filter(|_| !sender.is_empty())
            && sender.flush(&sockets, &self.counters) == Flushed::Blocked
        {
            sender.wait(&sockets);
            // What it does not take now is lost, as any packet may be.
            sender.flush(&sockets, &self.counters);
        }
    }

    fn cipher(&self, peer: &Peer, preshared: Option<&PresharedKey>) -> Option<Cipher> {
        let identity = self.identity()?;
        let limiter = Arc::clone(&identity.unlimited);
        let off = self.options.cipher_off();
        Some(Cipher::new(&identity.private, &peer.key, preshared, peer.index, limiter, off))
    }
}

/// What makes an empty device the one in the snapshot; its port comes with its sockets.
fn as_change(snapshot: &Snapshot) -> DeviceChange {
    let peers = snapshot.state.peers.iter().map(|(key, peer)| PeerChange {
        public_key: *key,
        remove: false,
        update_only: false,
        preshared_key: Some(peer.config.preshared_key.clone()),
        endpoint: peer.config.endpoint,
        persistent_keepalive: Some(peer.config.persistent_keepalive),
        replace_allowed_ips: true,
        add_allowed_ips: peer.config.allowed_ips.iter().copied().collect(),
        remove_allowed_ips: Vec::new(),
    });
    DeviceChange {
        private_key: snapshot.private_key.clone().map(Some),
        listen_port: None,
        fwmark: Some(snapshot.state.fwmark),
        replace_peers: true,
        peers: peers.collect(),
    }
}

fn read_peer(state: &PeerState) -> crate::PeerState {
    crate::PeerState {
        config: PeerConfig {
            preshared_key: state.preshared_key.clone(),
            endpoint: state.endpoint.map(|endpoint| endpoint.remote),
            persistent_keepalive: state.keepalive_secs,
            ..PeerConfig::default()
        },
        last_handshake: state.last_handshake,
        rx_bytes: state.rx_bytes,
        tx_bytes: state.tx_bytes,
    }
}

/// Numbers that nobody outside can guess, for session indices.
struct Random(u32, std::fs::File);

impl Random {
    fn new() -> io::Result<Self> {
        Ok(Self(0, std::fs::File::open("/dev/urandom")?))
    }

    fn next(&mut self) -> u32 {
        let mut bytes = [0; 4];
        // A failed read (it never fails) leaves a counter: indices must differ, that nobody guesses them is only nice.
        self.0 = match io::Read::read_exact(&mut self.1, &mut bytes) {
            Ok(()) => u32::from_ne_bytes(bytes),
            Err(_) => self.0.wrapping_add(1),
        };
        self.0
    }
}
