// SPDX-License-Identifier: Apache-2.0
//! The MTU of the path to one peer, found by probes (the idea of RFC 8899: no ICMP is trusted or needed).
//!
//! ```text
//!   holds ──probe of the MTU lost, but a small one answered──▶ searches ──range narrow──▶ holds
//!     └──────────every 10 min: is there more again?───────────────▲
//! ```
//!
//! All sizes are those of whole inner packets in bytes. The largest possible one is believed until it is refuted: a path is
//! seldom narrower than its ends. While it searches, only what was proven counts. A size is refuted by several losses in a
//! row while the smallest one is answered; where that is lost too the peer is away, which says nothing about sizes.

use std::collections::VecDeque;

/// Smallest size: what every IPv6 link carries (RFC 8200, section 5).
pub const MTU_MIN: u32 = 1280;

/// A probe without an answer counts as lost after so long: some slow round trips.
pub const PROBE_TIMEOUT_MS: u64 = 1_000;

/// So many losses in a row refute a size: with a tenth of all packets lost, wrongly so once in a thousand times.
pub const PROBE_LOSSES_MAX: u32 = 3;

/// How often the MTU is confirmed: a path that became narrower swallows large packets for so long at most.
pub const CONFIRM_MS: u64 = 60_000;

/// How often more is tried after less was found, unless said otherwise (RFC 8899, section 5.1.1).
pub const RAISE_MS: u64 = 600_000;

/// When a peer that answers nothing is asked again.
pub const AWAY_MS: u64 = 10_000;

/// After the link of an end has changed, more is tried again every so often ..
pub const SETTLING_RAISE_MS: u64 = 5_000;

/// .. for so long: netd of the other end hears of it at once, or after 30 s at the latest.
pub const SETTLE_MS: u64 = 60_000;

/// A search ends within so many bytes of the truth: an eighth byte more is worth no further probe.
pub const PRECISION: u32 = 8;

/// So many probes are remembered, for answers that come late: those of one size and of the small ones after it.
const RECENT_MAX: usize = 8;

/// A packet to send to the peer, which answers with its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MtuProbe {
    /// Which probe.
    pub id: u64,
    /// Size of the inner packet in bytes; it must not be fragmented.
    pub size: u32,
}

/// What is known about the path to one peer.
#[derive(Clone, Debug)]
pub struct MtuProber {
    /// What the devices at both ends take.
    ceiling: u32,
    /// The largest size that is believed to arrive.
    low: u32,
    /// The largest size that may; above [`Self::low`] while it searches.
    high: u32,
    /// A search begins at its upper end: mostly the whole path is back.
    is_first: bool,
    /// The size that seems lost, while the smallest one is asked for.
    doubt: Option<u32>,
    losses: u32,
    sent_ms: Option<u64>,
    recent: VecDeque<MtuProbe>,
    last_id: u64,
    next_ms: u64,
    /// A search is under way; more is tried again so long after its end.
    searches: bool,
    raise_ms: u64,
    raise_every_ms: u64,
    /// More is tried more often until then.
    settling_ms: Option<u64>,
    /// When [`Self::low`] was last seen to arrive.
    proven_ms: Option<u64>,
}

impl MtuProber {
    /// For a path between devices of that MTU, in bytes.
    pub fn new(ceiling: u32, now_ms: u64) -> Self {
        MtuProber {
            ceiling,
            low: ceiling,
            high: ceiling,
            is_first: false,
            doubt: None,
            losses: 0,
            sent_ms: None,
            recent: VecDeque::new(),
            last_id: 0,
            next_ms: now_ms,
            searches: false,
            raise_ms: now_ms,
            raise_every_ms: RAISE_MS,
            settling_ms: None,
            proven_ms: None,
        }
    }

    /// The same, but more is tried so often after less was found.
    #[must_use]
    pub fn raising_every(mut self, every_ms: u64) -> Self {
        self.raise_every_ms = every_ms;
        self
    }

    /// The devices have another MTU now.
    pub fn set_ceiling(&mut self, ceiling: u32, now_ms: u64) {
        if ceiling == self.ceiling {
            return;
        }
        let was_whole = self.low == self.ceiling;
        self.ceiling = ceiling;
        (self.doubt, self.losses, self.sent_ms) = (None, 0, None);
        if was_whole || ceiling <= self.low {
            (self.low, self.high) = (ceiling, ceiling);
        } else {
            (self.high, self.is_first, self.searches) = (ceiling, true, true);
        }
        self.next_ms = now_ms;
        self.ends_changed(now_ms);
    }

    /// The link of one end has changed, be it back and forth: what was found meanwhile may be of a moment, so more is tried
    /// again soon.
    pub fn ends_changed(&mut self, now_ms: u64) {
        self.settling_ms = Some(now_ms.saturating_add(SETTLE_MS));
        if self.low < self.ceiling {
            self.raise_ms = self.raise_ms.min(now_ms);
            self.suspect(now_ms);
        }
    }

    /// Something looks as if large packets were lost: confirm at once.
    pub fn suspect(&mut self, now_ms: u64) {
        if self.sent_ms.is_none() {
            self.next_ms = self.next_ms.min(now_ms);
        }
    }

    /// The next probe, when it is time for one. A former one that is still out counts as lost then.
    pub fn next(&mut self, now_ms: u64) -> Option<MtuProbe> {
        if now_ms < self.next_ms {
            return None;
        }
        if self.sent_ms.take().is_some() {
            self.lost(now_ms);
            if now_ms < self.next_ms {
                return None;
            }
        }
        let may_raise = self.low == self.high && self.doubt.is_none() && self.low < self.ceiling;
        // A search takes time, in which nobody asks for what is believed: that is confirmed before.
        let is_sure = self.proven_ms.is_some_and(|at| now_ms.saturating_sub(at) < PROBE_TIMEOUT_MS);
        if may_raise && is_sure && self.raise_ms <= now_ms {
            (self.high, self.is_first, self.searches) = (self.ceiling, true, true);
        }
        self.last_id += 1;
        let probe = MtuProbe { id: self.last_id, size: self.size() };
        self.recent.push_back(probe);
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        self.sent_ms = Some(now_ms);
        self.next_ms = now_ms.saturating_add(PROBE_TIMEOUT_MS);
        Some(probe)
    }

    /// The peer answered that probe.
    pub fn answered(&mut self, id: u64, now_ms: u64) {
        let Some(size) = self.take(id) else { return };
        match self.doubt {
            // Only those in between are lost.
            Some(doubt) if size < doubt => self.refuted(doubt, now_ms),
            _ => self.passed(size, now_ms),
        }
    }

    /// A router or our own device says that the probe is too big.
    pub fn too_big(&mut self, id: u64, now_ms: u64) {
        if let Some(size) = self.take(id).filter(|size| *size > self.floor()) {
            self.refuted(size, now_ms);
        }
    }

    /// The MTU of the path in bytes, as far as it is known.
    pub fn mtu(&self) -> u32 {
        self.low
    }

    /// When [`Self::next`] is to be called.
    pub fn next_ms(&self) -> u64 {
        self.next_ms
    }

    fn size(&self) -> u32 {
        match self.doubt {
            Some(_) => self.floor(),
            None if self.low == self.high || self.is_first => self.high,
            None => self.low + (self.high - self.low).div_ceil(2),
        }
    }

    fn floor(&self) -> u32 {
        self.ceiling.min(MTU_MIN)
    }

    fn take(&mut self, id: u64) -> Option<u32> {
        let at = self.recent.iter().position(|probe| probe.id == id)?;
        self.recent.remove(at).map(|probe| probe.size)
    }

    /// The probe that was out got no answer.
    fn lost(&mut self, now_ms: u64) {
        self.losses += 1;
        if self.losses < PROBE_LOSSES_MAX {
            return;
        }
        self.losses = 0;
        let size = self.size();
        if size > self.floor() {
            self.doubt = Some(size);
        } else {
            self.doubt = None;
            self.next_ms = now_ms.saturating_add(AWAY_MS);
        }
    }

    fn passed(&mut self, size: u32, now_ms: u64) {
        if size < self.low || size > self.high {
            return;
        }
        (self.low, self.is_first, self.proven_ms) = (size, false, Some(now_ms));
        self.go_on(now_ms.saturating_add(CONFIRM_MS), now_ms);
    }

    fn refuted(&mut self, size: u32, now_ms: u64) {
        if size <= self.low {
            // What was believed is wrong: nothing but the least is certain.
            (self.low, self.searches) = (self.floor(), true);
            self.high = self.high.min(size);
        }
        self.high = self.high.min(size.saturating_sub(1)).max(self.low);
        self.is_first = false;
        // A search that ends with what is too large has said nothing about what is left, which may be lost by now, too.
        self.go_on(now_ms, now_ms);
    }

    /// Searches on, or confirms what was found at `confirm_ms`.
    fn go_on(&mut self, confirm_ms: u64, now_ms: u64) {
        (self.doubt, self.losses, self.sent_ms) = (None, 0, None);
        if self.high - self.low >= PRECISION {
            self.next_ms = now_ms;
            return;
        }
        if std::mem::take(&mut self.searches) {
            let settles = self.settling_ms.is_some_and(|until| now_ms < until);
            let every_ms =
                if settles { self.raise_every_ms.min(SETTLING_RAISE_MS) } else { self.raise_every_ms };
            self.raise_ms = now_ms.saturating_add(every_ms);
        }
        self.high = self.low;
        self.next_ms = confirm_ms;
        if self.low < self.ceiling {
            self.next_ms = self.next_ms.min(self.raise_ms);
        }
    }
}
