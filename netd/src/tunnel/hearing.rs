// SPDX-License-Identifier: Apache-2.0
//! When a peer was last heard, and whether it should have been heard since: pure.

use netd_wireguard::PeerState;

/// Bytes of a keepalive: a header and an empty packet's tag (WireGuard paper, 5.4.6). It asks for no answer.
pub(super) const KEEPALIVE_BYTES: u64 = 32;
/// Whoever gets a packet sends one back within 10 s, if only an empty one (KEEPALIVE_TIMEOUT, WireGuard paper 6.5).
pub(super) const SILENT_MS: u64 = 15_000;

/// What a device's counters say of a peer, from read to read. Times are milliseconds of a clock that is never set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hearing {
    rx_bytes: u64,
    /// Sent when it was last heard.
    tx_bytes: u64,
    at_ms: u64,
    /// Keepalives that were asked for since.
    asked_for: u64,
    /// Since when more was sent than what asks for no answer.
    unanswered_ms: Option<u64>,
}

impl Hearing {
    pub(super) fn new(peer: &PeerState, now_ms: u64) -> Self {
        Self {
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            at_ms: now_ms,
            asked_for: 0,
            unanswered_ms: None,
        }
    }

    pub(super) fn note(&mut self, peer: &PeerState, now_ms: u64) {
        // Less: another device by the same name.
        if peer.rx_bytes != self.rx_bytes || peer.tx_bytes < self.tx_bytes {
            *self = Self::new(peer, now_ms);
            return;
        }
        let every_ms = u64::from(peer.config.persistent_keepalive) * 1_000;
        // One more than the persistent ones: what was heard is acknowledged by itself after 10 s.
        let own = now_ms.saturating_sub(self.at_ms).checked_div(every_ms).unwrap_or(0) + 1;
        let keepalives = own.saturating_add(self.asked_for);
        if peer.tx_bytes - self.tx_bytes > keepalives.saturating_mul(KEEPALIVE_BYTES) {
            self.unanswered_ms.get_or_insert(now_ms);
        }
    }

    /// The device was made to send a keepalive. Counted here, for the kernel's device may show it only later.
    pub(super) fn spoken_to(&mut self) {
        self.asked_for = self.asked_for.saturating_add(1);
    }

    pub(super) fn is_silent(&self, now_ms: u64) -> bool {
        self.unanswered_ms.is_some_and(|since| now_ms.saturating_sub(since) >= SILENT_MS)
    }
}

#[cfg(test)]
mod tests {
    use netd_wireguard::PeerConfig;

    use super::*;

    fn counted(keepalive_secs: u16, rx_bytes: u64, tx_bytes: u64) -> PeerState {
        let config = PeerConfig { persistent_keepalive: keepalive_secs, ..PeerConfig::default() };
        PeerState { config, last_handshake: None, rx_bytes, tx_bytes }
    }

    #[test]
    fn a_peer_is_silent_when_packets_that_ask_for_an_answer_get_none() {
        let counted = |rx_bytes, tx_bytes| counted(25, rx_bytes, tx_bytes);
        let mut heard = Hearing::new(&counted(100, 100), 0);
        for now_ms in (5_000..=60_000).step_by(5_000) {
            let keepalives = 100 + now_ms / 25_000 * KEEPALIVE_BYTES;
            heard.note(&counted(100, keepalives), now_ms);
            assert!(!heard.is_silent(now_ms), "keepalives alone, at {now_ms}");
        }
        for now_ms in (65_000..80_000).step_by(5_000) {
            heard.note(&counted(100, 500), now_ms);
            assert!(!heard.is_silent(now_ms), "at {now_ms}");
        }
        assert!(heard.is_silent(80_000));
        heard.note(&counted(101, 600), 80_000);
        assert!(!heard.is_silent(100_000), "heard again");
        heard.note(&counted(101, 700), 100_000);
        heard.note(&counted(0, 0), 120_000);
        assert!(!heard.is_silent(120_000), "another device");
    }

    #[test]
    fn keepalives_that_were_asked_for_are_no_questions() {
        // As a device shows them: at once, or a little later.
        for delay_ms in [0, 100] {
            let mut heard = Hearing::new(&counted(25, 100, 100), 0);
            (0..3).for_each(|_| heard.spoken_to());
            for now_ms in (0..=27_000).step_by(50) {
                let asked_for = (0..3).filter(|n| now_ms >= n * 1_000 + delay_ms).count() as u64;
                let own = u64::from(now_ms >= 27_000);
                heard.note(&counted(25, 100, 100 + (asked_for + own) * KEEPALIVE_BYTES), now_ms);
                assert!(!heard.is_silent(now_ms + SILENT_MS), "at {now_ms}, shown after {delay_ms}");
            }
            heard.note(&counted(25, 100, 400), 28_000);
            assert!(heard.is_silent(28_000 + SILENT_MS), "a packet more is one");
        }
    }

    #[test]
    fn what_a_device_says_by_itself_to_one_that_was_heard_is_no_question() {
        let mut heard = Hearing::new(&counted(0, 100, 100), 0);
        heard.note(&counted(0, 100, 100 + KEEPALIVE_BYTES), 10_000);
        assert!(!heard.is_silent(60_000), "without persistent keepalives, too");
        heard.note(&counted(0, 100, 100 + 2 * KEEPALIVE_BYTES), 60_000);
        assert!(heard.is_silent(60_000 + SILENT_MS));
    }
}
