// SPDX-License-Identifier: Apache-2.0
//! What a device lost and why. A packet that is not wanted costs one of these and nothing else.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of one device, counted by all its threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Received: no WireGuard message at all, or of a wrong length.
    pub malformed: AtomicU64,
    /// Received: for a session that we do not know.
    pub unknown_session: AtomicU64,
    /// Received: not authentic, or seen before.
    pub refused: AtomicU64,
    /// Received: authentic, but from an address that is not the peer's.
    pub source_not_allowed: AtomicU64,
    /// Received: a handshake message that failed, or came while too many waited.
    pub handshake_refused: AtomicU64,
    /// Cookies sent instead of an answer, for there were too many handshakes.
    pub cookies_sent: AtomicU64,
    /// From the TUN: no packet that we can cut.
    pub not_ip: AtomicU64,
    /// From the TUN: for an address that is no peer's.
    pub no_peer: AtomicU64,
    /// From the TUN: for a peer of which nobody knows where it is.
    pub no_endpoint: AtomicU64,
    /// Sends: the path is too narrow.
    pub path_mtu_errors: AtomicU64,
    /// Sends: the socket stayed full.
    pub send_blocked: AtomicU64,
    /// Sends: any other refusal.
    pub send_errors: AtomicU64,
    /// Writes to the TUN that the kernel refused.
    pub tun_write_errors: AtomicU64,
}

impl Counters {
    /// Adds `n`; nobody waits for anybody.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

impl fmt::Display for Counters {
    /// Those that are not zero, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("malformed", &self.malformed),
            ("unknown_session", &self.unknown_session),
            ("refused", &self.refused),
            ("source_not_allowed", &self.source_not_allowed),
            ("handshake_refused", &self.handshake_refused),
            ("cookies_sent", &self.cookies_sent),
            ("not_ip", &self.not_ip),
            ("no_peer", &self.no_peer),
            ("no_endpoint", &self.no_endpoint),
            ("path_mtu_errors", &self.path_mtu_errors),
            ("send_blocked", &self.send_blocked),
            ("send_errors", &self.send_errors),
            ("tun_write_errors", &self.tun_write_errors),
        ];
        let mut some = false;
        for (name, counter) in all {
            let value = counter.load(Ordering::Relaxed);
            if value != 0 {
                write!(f, "{}{name}={value}", if some { " " } else { "" })?;
                some = true;
            }
        }
        if some { Ok(()) } else { f.write_str("nothing") }
    }
}
