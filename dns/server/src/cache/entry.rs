// SPDX-License-Identifier: Apache-2.0
//! One answer of an upstream, kept as the bytes that go to the client.
//!
//! The client's question takes the place of the one that was asked, so its case comes back (the records' names point
//! there), and each record's TTL is lowered by the answer's age.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use dns_zone::{Query, Rcode, Written};

use crate::wire::{CD, HEADER, OPT_BYTES, QR, RA, RD, RecordAt, TC, code_of, opt, qtype};

/// TTL of an answer that is out of date (RFC 8767 section 4).
const STALE_TTL_SECS: u32 = 30;
/// An answer in its last tenth is asked for again while it is still good.
const PREFETCH_SHARE: u64 = 10;
/// Answers shorter than this are not asked for early: they would be asked for all the time.
const PREFETCH_LIFETIME_MIN_MS: u64 = 10_000;
/// Askers that make a name worth asking for early.
const PREFETCH_HITS_MIN: u32 = 2;
/// What an entry takes beside its bytes: the structures here, the hash table's and the queue's places.
const OVERHEAD_BYTES: usize = 240;

/// An answer of others.
#[derive(Debug)]
pub(crate) struct Entry {
    wire: Box<[u8]>,
    records: Box<[Place]>,
    question_end: usize,
    answers: u16,
    authorities: u16,
    stored_ms: u64,
    lifetime_ms: u64,
    hits: AtomicU32,
    /// Since the cache last looked for something to drop.
    pub(super) used: AtomicBool,
    refreshing: AtomicBool,
    /// The upstreams failed: until then nobody asks them again, the old answer is given at once.
    retry_at_ms: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    ttl: u16,
    end: u16,
}

/// How good an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    /// Good, and the first to see that it should be asked for again soon.
    Prefetch,
    /// Too old; the upstreams are to be asked, and if they fail this is better than nothing.
    Stale,
    /// Too old, and the upstreams failed a moment ago.
    StaleForNow,
    /// Nothing to give to anybody.
    Dead,
}

impl Entry {
    /// From an answer without OPT record whose records may be kept for `lifetime_ms`. `None`: these bytes are no message.
    pub(crate) fn new(wire: Vec<u8>, lifetime_ms: u64, now_ms: u64) -> Option<Self> {
        if u16::from_be_bytes([*wire.get(4)?, *wire.get(5)?]) != 1 {
            return None;
        }
        let question_end = crate::wire::plain_name(&wire, HEADER)? + 4;
        let count = |at: usize| Some(u16::from_be_bytes([*wire.get(at)?, *wire.get(at + 1)?]));
        let (answers, authorities, additionals) = (count(6)?, count(8)?, count(10)?);
        let total = usize::from(answers) + usize::from(authorities) + usize::from(additionals);
        let mut records = Vec::with_capacity(total.min(wire.len() / 11));
        let mut at = question_end;
        for _ in 0..total {
            let record = RecordAt::read(&wire, at)?;
            if record.rtype(&wire) == qtype::OPT {
                return None;
            }
            at = record.end;
            records.push(Place { ttl: u16::try_from(record.fixed + 4).ok()?, end: u16::try_from(at).ok()? });
        }
        (at == wire.len()).then(|| Entry {
            wire: wire.into(),
            records: records.into(),
            question_end,
            answers,
            authorities,
            stored_ms: now_ms,
            lifetime_ms,
            hits: AtomicU32::new(0),
            used: AtomicBool::new(false),
            refreshing: AtomicBool::new(false),
            retry_at_ms: AtomicU64::new(0),
        })
    }

    /// Bytes that it takes in the cache, with a key of this length.
    pub(crate) fn cost(&self, key_bytes: usize) -> usize {
        self.wire.len() + self.records.len() * size_of::<Place>() + key_bytes + OVERHEAD_BYTES
    }

    /// Whether it may be kept at all.
    pub(crate) fn is_cacheable(&self) -> bool {
        self.lifetime_ms > 0
    }

    /// The message as it was stored.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The upstream's code.
    pub(crate) fn code(&self) -> u16 {
        code_of(&self.wire)
    }

    /// How good it is now; `stale_ms`: how long past its time it may still be given.
    pub(crate) fn freshness(&self, now_ms: u64, stale_ms: u64) -> Freshness {
        let age = now_ms.saturating_sub(self.stored_ms);
        if age < self.lifetime_ms {
            let hits = self.hits.load(Relaxed);
            if hits < PREFETCH_HITS_MIN {
                self.hits.store(hits + 1, Relaxed);
            } else if self.lifetime_ms >= PREFETCH_LIFETIME_MIN_MS
                && self.lifetime_ms - age < self.lifetime_ms / PREFETCH_SHARE
                && !self.refreshing.swap(true, Relaxed)
            {
                return Freshness::Prefetch;
            }
            return Freshness::Fresh;
        }
        match age - self.lifetime_ms < stale_ms {
            false => Freshness::Dead,
            true if now_ms < self.retry_at_ms.load(Relaxed) => Freshness::StaleForNow,
            true => Freshness::Stale,
        }
    }

    /// The upstreams failed: until `retry_at_ms` nobody need wait for them.
    pub(crate) fn refresh_failed(&self, retry_at_ms: u64) {
        self.retry_at_ms.store(retry_at_ms, Relaxed);
        self.refreshing.store(false, Relaxed);
    }

    /// Writes the answer to `query` (of the same name and type) into `out`, which holds `limit` bytes.
    pub(crate) fn write(&self, query: &Query<'_>, out: &mut [u8], limit: usize, now_ms: u64) -> Written {
        let edns = query.edns();
        let room = limit.min(out.len()) - if edns.is_some() { OPT_BYTES } else { 0 };
        let question = query.question();
        let fits = match self.wire.len() <= room {
            true => self.records.len(),
            false => self.records.partition_point(|record| usize::from(record.end) <= room),
        };
        let mut end =
            fits.checked_sub(1).map_or(self.question_end, |last| usize::from(self.records[last].end));
        out[..end].copy_from_slice(&self.wire[..end]);
        // The same name in the case that this client asked.
        if question.len() == self.question_end - HEADER {
            out[HEADER..self.question_end].copy_from_slice(question);
        }
        let age_secs = (now_ms.saturating_sub(self.stored_ms) / 1_000) as u32;
        let stale = now_ms.saturating_sub(self.stored_ms) >= self.lifetime_ms && self.is_cacheable();
        for record in &self.records[..fits] {
            let at = usize::from(record.ttl);
            if let Some(ttl) = out[..end].get_mut(at..at + 4) {
                let kept = u32::from_be_bytes([ttl[0], ttl[1], ttl[2], ttl[3]]);
                let left = if stale { STALE_TTL_SECS } else { kept.saturating_sub(age_secs) };
                ttl.copy_from_slice(&left.to_be_bytes());
            }
        }
        // What is cut from the additional section only is no loss that a client must know of (RFC 2181 section 9).
        let fits = fits as u16;
        let answers = fits.min(self.answers);
        let authorities = (fits - answers).min(self.authorities);
        let truncated = answers < self.answers || authorities < self.authorities;
        let additionals = fits - answers - authorities + u16::from(edns.is_some());
        let code = self.code();
        out[..2].copy_from_slice(&query.id().to_be_bytes());
        out[2] = QR | if truncated { TC } else { 0 } | if query.recursion_desired() { RD } else { 0 };
        out[3] = RA | if query.checking_disabled() { CD } else { 0 } | code as u8;
        for (at, count) in [(4, 1), (6, answers), (8, authorities), (10, additionals)] {
            out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        if let Some(edns) = edns {
            out[end..end + OPT_BYTES].copy_from_slice(&opt(edns.dnssec_ok));
            end += OPT_BYTES;
        }
        Written { len: end, rcode: Rcode(code), truncated }
    }
}

#[cfg(test)]
mod tests {
    use dns_zone::Incoming;

    use super::*;

    const QUESTION: &[u8] = b"\x03www\x07example\x03org\0\0\x01\0\x01";

    /// `count` addresses with a TTL of 100 s.
    fn entry(count: u16) -> Entry {
        let mut wire = vec![0, 0, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        wire[6..8].copy_from_slice(&count.to_be_bytes());
        wire.extend_from_slice(QUESTION);
        for n in 0..count {
            wire.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 100, 0, 4, 192, 0, 2, n as u8]);
        }
        Entry::new(wire, 100_000, 0).unwrap()
    }

    fn ask(entry: &Entry, edns: bool, limit: usize, now_ms: u64) -> (Vec<u8>, Written) {
        let mut packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03WWW\x07example\x03org\0\0\x01\0\x01".to_vec();
        if edns {
            packet[11] = 1;
            packet.extend_from_slice(b"\0\0\x29\x10\0\0\0\0\0\0\0");
        }
        let Incoming::Query(query) = dns_zone::parse(&packet) else { panic!("a question") };
        let mut out = vec![0; limit];
        let written = entry.write(&query, &mut out, limit, now_ms);
        out.truncate(written.len);
        (out, written)
    }

    #[test]
    fn the_clients_case_comes_back_and_the_ttl_goes_down() {
        let (out, written) = ask(&entry(2), false, 512, 40_500);
        assert!(!written.truncated);
        assert_eq!(&out[13..16], b"WWW");
        assert_eq!(out[..8], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 2]);
        let record = RecordAt::read(&out, HEADER + QUESTION.len()).unwrap();
        assert_eq!(record.ttl(&out), 60);
    }

    #[test]
    fn what_does_not_fit_is_cut_between_records_and_tc_is_set() {
        for (edns, limit) in [(false, 512), (true, 1232)] {
            let (out, written) = ask(&entry(200), edns, limit, 0);
            assert!(written.truncated && out[2] & TC != 0);
            assert!(out.len() <= limit && out.len() > limit - 16, "{}", out.len());
            let mut at = HEADER + QUESTION.len();
            for _ in 0..u16::from_be_bytes([out[6], out[7]]) + u16::from(edns) {
                at = RecordAt::read(&out, at).unwrap().end;
            }
            assert_eq!(at, out.len());
        }
    }

    #[test]
    fn it_ages_from_fresh_over_stale_to_dead() {
        let entry = entry(1);
        let at = |now_ms| entry.freshness(now_ms, 1_000_000);
        assert_eq!(
            [at(0), at(1), at(95_000), at(95_000)],
            [Freshness::Fresh, Freshness::Fresh, Freshness::Prefetch, Freshness::Fresh]
        );
        assert_eq!(at(100_000), Freshness::Stale);
        entry.refresh_failed(130_000);
        assert_eq!([at(129_999), at(130_000)], [Freshness::StaleForNow, Freshness::Stale]);
        assert_eq!(at(1_100_000), Freshness::Dead);
        let (out, _) = ask(&entry, false, 512, 120_000);
        assert_eq!(RecordAt::read(&out, HEADER + QUESTION.len()).unwrap().ttl(&out), STALE_TTL_SECS);
    }
}
