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
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary::change;
    use crate::{DeviceConfig, PeerConfig, PublicKey};

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
            let peer = |(key, peer): (&PublicKey, &crate::PeerState)| (*key, peer.config.clone());
            let peers: std::collections::BTreeMap<PublicKey, PeerConfig> = is.state.peers.iter().map(peer).collect();
            prop_assert_eq!(peers, meant.peers);
        }
    }
}
