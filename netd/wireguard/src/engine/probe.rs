// SPDX-License-Identifier: Apache-2.0
//! A device without a TUN, for tests: a Unix socket stands in its place, and the caller's thread does each turn.
//!
//! What it sends goes out of real UDP sockets; what it receives is handed in. Needs no privilege.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use super::options::EngineOptions;
use super::timers::Timers;
use super::tun::{Tun, TunOffloads};
use super::tunnel::Tunnel;
use super::udp::{Datagrams, Endpoint};
use super::worker::Worker;
use crate::Configurable;
use crate::segment::READ_MAX;

/// Room for what one turn gives to the TUN; the host may allow less to one who is not root.
const TUN_BYTES: usize = 8 << 20;

/// A device that does nothing by itself.
pub struct Probe {
    tunnel: Arc<Tunnel>,
    worker: Worker,
    timers: Timers,
    /// Where the kernel would be.
    kernel: OwnedFd,
}

impl Probe {
    /// One without keys, with all offloads of a TUN in force.
    ///
    /// # Errors
    /// The system gives no sockets.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, kernel) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let _ = setsockopt(&ours, sockopt::SndBufForce, &TUN_BYTES)
            .or_else(|_| setsockopt(&ours, sockopt::SndBuf, &TUN_BYTES));
        let tun = Tun::over(ours, "probe", TunOffloads { tcp: true, udp: true });
        let options = EngineOptions { workers: 1, persist: false, ..EngineOptions::default() };
        let tunnel = Arc::new(Tunnel::new(tun, options)?);
        let worker = Worker::new(Arc::clone(&tunnel));
        Ok(Self { tunnel, worker, timers: Timers::new(Instant::now()), kernel })
    }

    /// To read and change it.
    #[must_use]
    pub fn device(&self) -> &dyn Configurable {
        &*self.tunnel
    }

    /// Datagrams as one receive call gives them: `bytes`, cut every `segment` (at least 1), all from one sender.
    pub fn receive(&mut self, bytes: &[u8], segment: usize, from: SocketAddr) {
        self.worker.refresh();
        self.worker.open(&Datagrams { bytes, segment: segment.max(1), from: Endpoint::new(from) });
    }

    /// One read of the TUN: virtio-net header and packet, which is changed on the way.
    pub fn read(&mut self, packet: &mut [u8]) {
        self.worker.refresh();
        self.worker.seal(packet);
    }

    /// The rest of a turn: handshakes, timers, and everything that waits goes out.
    pub fn turn(&mut self) {
        self.worker.refresh();
        self.worker.flush_tun();
        self.worker.handle_handshakes(false);
        self.timers.run(&mut self.worker);
        self.worker.flush_udp();
    }

    /// What went to the TUN since the last call, each with its virtio-net header.
    pub fn delivered(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; READ_MAX];
        while let Ok(length @ 1..) = nix::unistd::read(&self.kernel, &mut buffer) {
            packets.push(buffer[..length].to_vec());
        }
        packets
    }

    /// What was lost and why, since the start: `malformed=1 refused=2`, or `nothing`.
    #[must_use]
    pub fn lost(&self) -> String {
        self.tunnel.counters.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary::change;
    use crate::engine::cipher::DATA_OVERHEAD;
    use crate::{DeviceChange, DeviceConfig, PeerChange, PeerConfig, PeerState, PrivateKey, PublicKey};

    /// A device that knows one peer, and where its packets to that one come out.
    struct End {
        probe: Probe,
        peer: PublicKey,
        out: UdpSocket,
    }

    impl End {
        fn two() -> [Self; 2] {
            let [a, b] = [1, 2].map(|n| PrivateKey::from([n; 32]));
            [Self::new(a.clone(), b.public()), Self::new(b, a.public())]
        }

        fn new(private: PrivateKey, peer: PublicKey) -> Self {
            let out = UdpSocket::bind("127.0.0.1:0").unwrap();
            out.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            let probe = Probe::new().unwrap();
            let peers = vec![PeerChange { endpoint: out.local_addr().ok(), ..PeerChange::new(peer) }];
            let private_key = Some(Some(private));
            probe.device().set(DeviceChange { private_key, peers, ..DeviceChange::default() }).unwrap();
            Self { probe, peer, out }
        }

        /// Keepalives on and off in one request.
        fn speak(&self, each: [u16; 3]) {
            let change = |secs| PeerChange { persistent_keepalive: Some(secs), ..PeerChange::new(self.peer) };
            let peers = each.into_iter().map(change).collect();
            self.probe.device().set(DeviceChange { peers, ..DeviceChange::default() }).unwrap();
        }

        fn next(&self) -> Vec<u8> {
            let mut bytes = [0; 2_048];
            let len = self.out.recv(&mut bytes).unwrap();
            bytes[..len].to_vec()
        }

        fn is_quiet(&self) -> bool {
            self.out.set_nonblocking(true).unwrap();
            let error = self.out.recv(&mut [0; 2_048]).map_err(|error| error.kind());
            self.out.set_nonblocking(false).unwrap();
            error == Err(io::ErrorKind::WouldBlock)
        }

        /// From where this end's own packets come out: there is its peer.
        fn take(&mut self, message: &[u8]) {
            self.probe.receive(message, message.len(), self.out.local_addr().unwrap());
            self.probe.turn();
        }

        fn state(&self) -> PeerState {
            self.probe.device().read().state.peers[&self.peer].clone()
        }
    }

    #[test]
    fn a_keepalive_that_is_switched_on_goes_at_once_even_where_it_is_off_again() {
        let [mut a, mut b] = End::two();
        // Without a session it begins one. No turn is taken: what comes out was sent by the change.
        a.speak([0, 1, 0]);
        let initiation = a.next();
        assert_eq!((initiation.len(), a.state().tx_bytes), (148, 148));
        a.speak([0, 1, 0]);
        assert!(a.is_quiet(), "the handshake is under way");
        b.take(&initiation);
        a.take(&b.next());
        assert_eq!(a.next().len(), DATA_OVERHEAD, "a confirms the session");
        assert!(a.state().last_handshake.is_some());
        for each in [[0, 1, 0], [0, 25, 25]] {
            let before = a.state().tx_bytes;
            a.speak(each);
            assert_eq!(a.next().len(), DATA_OVERHEAD);
            assert!(a.is_quiet(), "one packet");
            assert_eq!(a.state().tx_bytes, before + DATA_OVERHEAD as u64, "and the device shows it");
            assert_eq!(a.state().config.persistent_keepalive, each[2]);
        }
    }

    proptest! {
        // Each case binds sockets.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_engine_takes_a_change_as_it_is_meant(changes in proptest::collection::vec(change(), 1..4)) {
            let probe = Probe::new().unwrap();
            let mut meant = DeviceConfig::default();
            for mut change in changes {
                // Ports and marks are the host's.
                (change.listen_port, change.fwmark) = (None, None);
                meant.apply(&change);
                probe.device().set(change).unwrap();
            }
            let is = probe.device().read();
            prop_assert_eq!(is.private_key, meant.private_key);
            let peer = |(key, peer): (&PublicKey, &PeerState)| (*key, peer.config.clone());
            let peers: std::collections::BTreeMap<PublicKey, PeerConfig> = is.state.peers.iter().map(peer).collect();
            prop_assert_eq!(peers, meant.peers);
        }
    }
}
