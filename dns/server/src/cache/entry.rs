// SPDX-License-Identifier: Apache-2.0
//! One answer of an upstream, kept as the bytes that go to the client.
//!
//! The client's question takes the place of the one that was asked, so its case comes back (the records' names point
//! there), each record's TTL is lowered by the answer's age, and addresses take turns in being the first. Aliases of ours may
//! go in front.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use dns_zone::{Query, Rcode, Record, Written};

use super::merge::{self, Front};
use crate::wire::{CD, HEADER, OPT_BYTES, QR, RA, RD, RecordAt, TC, UDP_BYTES_MAX, code_of, opt, qtype};

/// TTL of an answer that is out of date (RFC 8767 section 4).
const STALE_TTL_SECS: u32 = 30;
/// An answer in its last tenth is asked for again while it is still good.
const PREFETCH_SHARE: u64 = 10;
/// Answers shorter than this are not asked for early: they would be asked for all the time.
const PREFETCH_LIFETIME_MIN_MS: u64 = 10_000;
/// Askers that make a name worth asking for early.
const PREFETCH_HITS_MIN: u32 = 2;
/// What an entry takes beside its bytes: the structures here, the hash table's and the queue's places.
pub(super) const OVERHEAD_BYTES: usize = 240;

/// An answer of others.
#[derive(Debug)]
pub(crate) struct Entry {
    wire: Box<[u8]>,
    records: Box<[Place]>,
    question_end: usize,
    answers: u16,
    authorities: u16,
    turning: Option<Turning>,
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

/// Octets from a record's TTL to its data: the TTL and the data's length.
const TTL_TO_DATA: usize = 6;

/// Addresses of one name, any of which may come first.
#[derive(Clone, Copy, Debug)]
struct Turning {
    first: usize,
    count: usize,
    /// Octets of one.
    bytes: usize,
}

/// How good an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
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
        let mut turning: Option<(Turning, &[u8])> = None;
        for index in 0..total {
            let record = RecordAt::read(&wire, at)?;
            if record.rtype(&wire) == qtype::OPT {
                return None;
            }
            let bytes = record.end - record.fixed - TTL_TO_DATA - 4;
            let owner = &wire[at..record.fixed];
            match (record.rtype(&wire), bytes) {
                (qtype::A, 4) | (qtype::AAAA, 16) if index < usize::from(answers) => match &mut turning {
                    Some((run, of))
                        if *of == owner && run.bytes == bytes && run.first + run.count == index =>
                    {
                        run.count += 1
                    }
                    _ => turning = Some((Turning { first: index, count: 1, bytes }, owner)),
                },
                _ => {}
            }
            at = record.end;
            records.push(Place { ttl: u16::try_from(record.fixed + 4).ok()?, end: u16::try_from(at).ok()? });
        }
        let turning = turning.map(|(run, _)| run).filter(|run| run.count > 1);
        (at == wire.len()).then(|| Entry {
            wire: wire.into(),
            turning,
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

    /// The upstream's code.
    pub(crate) fn code(&self) -> u16 {
        code_of(&self.wire)
    }

    /// How good it is now; `stale_ms`: how long past its time it may still be given. Looking changes nothing.
    pub(crate) fn freshness(&self, now_ms: u64, stale_ms: u64) -> Freshness {
        let age = now_ms.saturating_sub(self.stored_ms);
        if age < self.lifetime_ms {
            return Freshness::Fresh;
        }
        // An old "no" is not better than none: clients take it as final, where after SERVFAIL they ask elsewhere.
        let may_be_stale = self.code() == Rcode::NOERROR.0 && self.answers > 0;
        match may_be_stale && age - self.lifetime_ms < stale_ms {
            false => Freshness::Dead,
            true if now_ms < self.retry_at_ms.load(Relaxed) => Freshness::StaleForNow,
            true => Freshness::Stale,
        }
    }

    /// Somebody was given it. Whether it is to be asked for again now, before it is out of date: said once, then
    /// [`Entry::not_refreshed`] or a newer entry must follow.
    pub(crate) fn was_given(&self, now_ms: u64) -> bool {
        let age = now_ms.saturating_sub(self.stored_ms);
        let hits = self.hits.load(Relaxed);
        if hits < PREFETCH_HITS_MIN {
            self.hits.store(hits + 1, Relaxed);
            return false;
        }
        age < self.lifetime_ms
            && self.lifetime_ms >= PREFETCH_LIFETIME_MIN_MS
            && self.lifetime_ms - age < self.lifetime_ms / PREFETCH_SHARE
            && now_ms >= self.retry_at_ms.load(Relaxed)
            && !self.refreshing.swap(true, Relaxed)
    }

    /// It could not be asked for again just now; the next asker may try.
    pub(crate) fn not_refreshed(&self) {
        self.refreshing.store(false, Relaxed);
    }

    /// The upstreams failed, or are slow: until `retry_at_ms` nobody need wait for them.
    pub(crate) fn refresh_failed(&self, retry_at_ms: u64) {
        self.retry_at_ms.store(retry_at_ms, Relaxed);
        self.not_refreshed();
    }

    /// Writes the answer to `query` into `out`, which is as long as the answer may be. `aliases` lead from the question to the name and
    /// type that this answers; without any, it is about these. `seed` says which address comes first.
    pub(crate) fn write(
        &self,
        aliases: &[Record],
        query: &Query<'_>,
        out: &mut [u8],
        now_ms: u64,
        seed: u64,
    ) -> Written {
        let edns = query.edns();
        let room = out.len() - if edns.is_some() { OPT_BYTES } else { 0 };
        let front = match aliases {
            [] => self.question(query, out),
            _ => merge::front(aliases, self.name(), query, &mut out[..room]),
        };
        // Aliases that have no room may end before the entry's own question would.
        let shift = if front.is_whole { front.end - self.question_end } else { 0 };
        let mut fits = match front.is_whole {
            true => self.records.partition_point(|record| usize::from(record.end) + shift <= room),
            false => 0,
        };
        let mut end = front.end;
        if let Some(last) = fits.checked_sub(1) {
            end = usize::from(self.records[last].end) + shift;
            out[front.end..end].copy_from_slice(&self.wire[self.question_end..end - shift]);
        }
        let mut is_lost = false;
        if shift > 0 && merge::shift_pointers(&mut out[..end], front, self.question_end, fits).is_none() {
            (fits, end) = (0, front.end);
            // Who is told to come over a stream gets the same there.
            is_lost = out.len() > usize::from(UDP_BYTES_MAX);
        }
        self.age(&mut out[..end], fits, shift, now_ms);
        self.turn(&mut out[..end], fits, shift, seed);
        // What is cut from the additional section only is no loss that a client must know of (RFC 2181 section 9).
        let fits = fits as u16;
        let answers = fits.min(self.answers);
        let authorities = (fits - answers).min(self.authorities);
        let is_cut = !front.is_whole || answers < self.answers || authorities < self.authorities;
        let truncated = is_cut && !is_lost;
        let additionals = fits - answers - authorities + u16::from(edns.is_some());
        let code = if is_lost { Rcode::SERVFAIL.0 } else { self.code() };
        out[..2].copy_from_slice(&query.id().to_be_bytes());
        out[2] = QR | if truncated { TC } else { 0 } | if query.recursion_desired() { RD } else { 0 };
        out[3] = RA | if query.checking_disabled() { CD } else { 0 } | code as u8;
        for (at, count) in [(4, 1), (6, front.aliases + answers), (8, authorities), (10, additionals)] {
            out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        if let Some(edns) = edns {
            out[end..end + OPT_BYTES].copy_from_slice(&opt(edns.dnssec_ok));
            end += OPT_BYTES;
        }
        Written { len: end, rcode: Rcode(code), truncated }
    }

    /// The name that was asked for.
    fn name(&self) -> &[u8] {
        &self.wire[HEADER..self.question_end - 4]
    }

    /// The question, in the case that this client asked.
    fn question(&self, query: &Query<'_>, out: &mut [u8]) -> Front {
        let question = query.question();
        let same = question.len() == self.question_end - HEADER;
        out[HEADER..self.question_end].copy_from_slice(if same {
            question
        } else {
            &self.wire[HEADER..self.question_end]
        });
        Front { end: self.question_end, name: HEADER, aliases: 0, is_whole: true }
    }

    /// Lowers the TTLs of the first `fits` records, which stand `shift` octets behind their place in the entry.
    fn age(&self, out: &mut [u8], fits: usize, shift: usize, now_ms: u64) {
        let age_secs = (now_ms.saturating_sub(self.stored_ms) / 1_000) as u32;
        let is_stale = now_ms.saturating_sub(self.stored_ms) >= self.lifetime_ms && self.is_cacheable();
        for record in &self.records[..fits] {
            let at = usize::from(record.ttl) + shift;
            if let Some(ttl) = out.get_mut(at..at + 4) {
                let kept = u32::from_be_bytes([ttl[0], ttl[1], ttl[2], ttl[3]]);
                let left = if is_stale { STALE_TTL_SECS } else { kept.saturating_sub(age_secs) };
                ttl.copy_from_slice(&left.to_be_bytes());
            }
        }
    }

    /// Begins with another address each time: many clients take the first.
    fn turn(&self, out: &mut [u8], fits: usize, shift: usize, seed: u64) {
        let Some(Turning { first, count, bytes }) = self.turning else { return };
        let by = (seed % count as u64) as usize;
        for index in 0..count.min(fits.saturating_sub(first)) {
            let from = usize::from(self.records[first + (index + by) % count].ttl) + TTL_TO_DATA;
            let to = usize::from(self.records[first + index].ttl) + TTL_TO_DATA + shift;
            out[to..to + bytes].copy_from_slice(&self.wire[from..from + bytes]);
        }
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
        let written = entry.write(&[], &query, &mut out, now_ms, 0);
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
        assert_eq!([at(0), at(99_999), at(100_000)], [Freshness::Fresh, Freshness::Fresh, Freshness::Stale]);
        entry.refresh_failed(130_000);
        assert_eq!([at(129_999), at(130_000)], [Freshness::StaleForNow, Freshness::Stale]);
        assert_eq!(at(1_100_000), Freshness::Dead);
        let (out, _) = ask(&entry, false, 512, 120_000);
        assert_eq!(RecordAt::read(&out, HEADER + QUESTION.len()).unwrap().ttl(&out), STALE_TTL_SECS);
    }

    #[test]
    fn the_third_asker_of_the_last_tenth_has_it_asked_for_again_once() {
        let entry = entry(1);
        let given = |now_ms| entry.was_given(now_ms);
        assert_eq!([given(0), given(1), given(50_000)], [false; 3]);
        assert_eq!([given(95_000), given(95_001)], [true, false]);
        entry.not_refreshed();
        assert_eq!([given(95_002), given(95_003)], [true, false], "it could not be asked for");
        entry.refresh_failed(99_000);
        assert_eq!([given(95_004), given(99_000), given(100_000)], [false, true, false]);
    }

    #[test]
    fn an_old_no_is_given_to_nobody() {
        let mut wire = vec![0, 0, 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0];
        wire.extend_from_slice(QUESTION);
        let no = Entry::new(wire, 10_000, 0).unwrap();
        assert_eq!([9_999, 10_000].map(|now| no.freshness(now, 1_000)), [Freshness::Fresh, Freshness::Dead]);
    }

    #[test]
    fn each_address_is_the_first_at_times_and_none_is_lost() {
        let entry = entry(4);
        let packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03org\0\0\x01\0\x01";
        let Incoming::Query(query) = dns_zone::parse(packet) else { panic!("a question") };
        for seed in 0..8 {
            let mut out = [0; 512];
            let written = entry.write(&[], &query, &mut out, 0, seed);
            let last = |n: usize| out[HEADER + QUESTION.len() + 16 * n + 15];
            assert_eq!(written.len, HEADER + QUESTION.len() + 16 * 4);
            assert_eq!([0, 1, 2, 3].map(last), [0, 1, 2, 3].map(|n| (n + seed as u8) % 4));
        }
    }
}
