// SPDX-License-Identifier: Apache-2.0
//! Generations of WireGuard keys: which keys this node holds, which of them it speaks with each peer, and when a key goes.
//!
//! ```text
//!   {1} ──rotate, or a peer has 2──▶ {1,2} ──all peers moved to 2 and 10 s passed──▶ {2} ──▶ …
//!                                      └──5 min, or at most 20 min for peers that came back late──▲
//! ```
//!
//! A key of generation g lives on device g % 2 ([`crate::links::wireguard_device`]), so that a key and its successor stand
//! side by side with devices and ports of their own. Both devices accept a peer's packets; so each end moves its routes for
//! itself, once it has seen a handshake on the newer device, and nothing is lost. A key goes when no peer sends over it any
//! more, which the peers say in their records (`sends`), or at the deadline: then a peer that missed the change is cut off
//! until it hears of the newer generation and makes its own key for it. A peer that came back late has a deadline of its own,
//! but all of them together only so much ([`LATE_DEADLINES_MAX`]): nodes that reboot one after the other keep no key alive
//! for hours.
//!
//! A node that is more than one generation behind may find the device of the newest one taken by a key that others like it
//! still use with it. It then makes the generation before the newest, moves to that, and goes on from there.
//!
//! A node that does not have the store ([`GenerationInput::in_touch`]) goes on with what it holds: a key that nobody hears
//! of leads nowhere, and one that goes without a word takes the way to those who still use it.
//!
//! The state only makes things steadier: a restart without it costs nothing, because what was seen of handshakes is kept by
//! the devices. Times are milliseconds: handshakes and the age of keys by the wall clock, deadlines by one that nobody
//! sets ([`GenerationInput::uptime_ms`]). Feed it once the peers' records are known (listed, or last known good), never
//! with an empty list before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use uuid::Uuid;

/// How long a key stays after the peers could read of its successor, for those who were there all the time: as long as an
/// operator waits for a command's effect. For peers that come back late it stays longer, see [`LATE_DEADLINES_MAX`].
pub const ROTATION_DEADLINE_MS: u64 = 300_000;

/// A key stays at most for so many deadlines after the peers could read of its successor, whoever comes back: the first is
/// for those who were there, a peer that comes back at its very end has one of its own and [`CATCH_UP_MS`], and so has one
/// that comes back as that ends. An old key that somebody may have stolen is worth something for as long as it stays.
pub const LATE_DEADLINES_MAX: u64 = 4;

/// The time for a key, a record and a handshake. A peer that lives has it from when it was first seen to need the older key,
/// and one without the newer key a deadline of its own before, for it may have to wait for a peer that is away.
pub const CATCH_UP_MS: u64 = 60_000;

/// How long a key stays after the last peer moved: packets under way, and records that a peer has not read yet.
pub const ROTATION_SETTLE_MS: u64 = 10_000;

/// Persistent keepalive in seconds towards a peer whose move waits for a handshake: the least that WireGuard knows.
pub const KEEPALIVE_MOVING_SECS: u16 = 1;

/// A handshake not older than this means a session that carries packets: `REJECT_AFTER_TIME` of the WireGuard paper,
/// section 6.1.
pub const HANDSHAKE_FRESH_MS: u64 = 180_000;

/// Generations in records beyond this are not believed: a bad record would otherwise leave nothing to count up to.
pub const GENERATION_MAX: u64 = 1 << 48;

/// What is known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationInput {
    /// Keys on this node: when each generation's was made, in milliseconds.
    pub own: BTreeMap<u64, u64>,
    /// All peers with a WireGuard record, those without a live lease too.
    pub peers: Vec<PeerGenerations>,
    /// Somebody asks for a new key now.
    pub rotate: bool,
    /// A new key is made when the newest is as old as this, in milliseconds.
    pub rotation_ms: Option<u64>,
    /// How long a key stays after the peers could read of its successor, in milliseconds: for those who were there all the
    /// time, and for one that comes back late from then on; [`LATE_DEADLINES_MAX`] times that in all.
    /// [`ROTATION_DEADLINE_MS`] unless configured.
    pub deadline_ms: u64,
    /// The store answers, and the peers' records are as it has them now. Without, no key goes and no further one is made.
    pub in_touch: bool,
    /// Since when the newest key stands in this node's own record, by the clock of `uptime_ms`; `None` while it does not.
    pub told_ms: Option<u64>,
    /// Milliseconds of a clock that is never set, for deadlines.
    pub uptime_ms: u64,
}

/// A peer and the devices' word about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerGenerations {
    /// Which peer.
    pub uuid: Uuid,
    /// Whether its lease lives.
    pub live: bool,
    /// Generations in its record, without those whose key cannot be read.
    pub published: BTreeSet<u64>,
    /// The lowest generation that it still sends over, as its record has it.
    pub sends: Option<u64>,
    /// When the last handshake with its present key was, by generation, in milliseconds.
    pub handshakes: BTreeMap<u64, u64>,
}

/// What is to be done. In this order nothing is lost: the peers of the devices that stay, the record with their keys, the
/// routes, what the record says about the routes (`sends`), the key that goes, the key that is made; and after either of
/// the last two the next plan at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationPlan {
    /// The key that goes; its device is free then.
    pub drop: Option<u64>,
    /// The key to make and keep, after the one that goes is gone: it may want its device.
    pub make: Option<u64>,
    /// What concerns each peer, without the key that goes.
    pub peers: BTreeMap<Uuid, PeerGenerationPlan>,
    /// For the record, once the routes stand: the lowest generation that this node sends over. `None` without a key.
    pub sends: Option<u64>,
    /// Why no key was made although somebody asked.
    pub refused: Option<RotationRefused>,
    /// When to call again at the latest, if nothing changes before.
    pub next_ms: Option<u64>,
}

/// What concerns one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerGenerationPlan {
    /// Generations of both: on these devices the peer is installed, with all its allowed IPs.
    pub common: BTreeSet<u64>,
    /// The generation that routes to it go over; `None` where there is no common one.
    pub path: Option<u64>,
    /// On this generation's device it needs [`KEEPALIVE_MOVING_SECS`], so that there is a handshake to move on.
    pub keepalive: Option<u64>,
}

/// Why no key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationRefused {
    /// Peers have a newer generation already; this node makes its key for that one by itself.
    #[error(
        "this node has generation {own} and is about to follow its peers to {seen}: try again when it has"
    )]
    Behind {
        /// This node's newest.
        own: u64,
        /// The newest of a peer.
        seen: u64,
    },
    /// The peers would not learn of a new key.
    #[error(
        "the store does not answer, and without it the peers would not learn of the new key: try again when it does"
    )]
    NoStore,
    /// The counter is at its end.
    #[error("generation {0} is the last one that there is")]
    End(u64),
    /// A rotation is under way.
    #[error(
        "the last rotation, from generation {older} to {newer}, is not over: try again when the old key is gone"
    )]
    Holding {
        /// The key that has not gone yet.
        older: u64,
        /// Its successor.
        newer: u64,
    },
}

/// What is remembered from call to call.
#[derive(Clone, Debug, Default)]
pub struct Generations {
    /// The path that each peer had last. It never goes back to an older one that is still common.
    paths: BTreeMap<Uuid, u64>,
    /// The newer of two keys, and since when no peer needs the older one, by the clock of `uptime_ms`.
    settled_since: Option<(u64, u64)>,
    /// The newer of two keys, and until when each peer that was seen alive before it moved has time, by the clock of
    /// `uptime_ms`.
    behind: (u64, BTreeMap<Uuid, u64>),
}

impl Generations {
    /// One step from what is known to what is to be done.
    pub fn step(&mut self, input: &GenerationInput, now_ms: u64) -> GenerationPlan {
        self.paths.retain(|uuid, _| input.peers.iter().any(|peer| peer.uuid == *uuid));
        let mut own: BTreeSet<u64> = input.own.keys().copied().collect();
        let mut plan = GenerationPlan::default();
        let pairs = self.pairs(&own, input, now_ms);
        plan.drop = crowded(&own).or_else(|| self.retire(&pairs, input, now_ms, &mut plan.next_ms));
        if plan.drop.is_none() && (input.in_touch || own.is_empty()) {
            follow(&own, &pairs, &mut plan);
            rotate(input, &own, &pairs, now_ms, &mut plan);
        }
        if !input.in_touch && input.rotate {
            plan.refused = Some(RotationRefused::NoStore);
        }
        let pairs = match plan.drop {
            Some(gone) => {
                own.remove(&gone);
                self.pairs(&own, input, now_ms)
            }
            None => pairs,
        };
        let used = pairs.iter().filter(|pair| pair.is_present).filter_map(|pair| pair.path).min();
        plan.sends = used.or(own.last().copied());
        plan.peers = pairs.into_iter().map(|pair| (pair.peer.uuid, pair.plan())).collect();
        plan
    }

    fn pairs<'a>(&mut self, own: &BTreeSet<u64>, input: &'a GenerationInput, now_ms: u64) -> Vec<Pair<'a>> {
        let mut seen = BTreeSet::new();
        let peers = input.peers.iter().filter(|peer| seen.insert(peer.uuid));
        peers.map(|peer| self.pair(own, peer, now_ms)).collect()
    }

    fn pair<'a>(&mut self, own: &BTreeSet<u64>, peer: &'a PeerGenerations, now_ms: u64) -> Pair<'a> {
        let common: BTreeSet<u64> = believed(peer).filter(|generation| own.contains(generation)).collect();
        let shaken = common.iter().rev().find(|generation| peer.handshakes.contains_key(generation));
        let before = self.paths.get(&peer.uuid).filter(|generation| common.contains(generation));
        // Without any sign the one that the peer surely takes: what it sends over itself, or its oldest.
        let sign = peer.sends.filter(|generation| common.contains(generation));
        let path = shaken.max(before).copied().or(sign).or(common.first().copied());
        match path {
            Some(path) => self.paths.insert(peer.uuid, path),
            None => self.paths.remove(&peer.uuid),
        };
        let fresh = |at: &u64| now_ms.saturating_sub(*at) < HANDSHAKE_FRESH_MS;
        let is_present =
            peer.live || own.iter().filter_map(|generation| peer.handshakes.get(generation)).any(fresh);
        Pair { peer, common, path, is_present }
    }

    /// The older of two keys, when it may go. Says so until it has gone.
    fn retire(
        &mut self,
        pairs: &[Pair<'_>],
        input: &GenerationInput,
        now_ms: u64,
        next_ms: &mut Option<u64>,
    ) -> Option<u64> {
        let (Some(older), Some(newer), 2) =
            (input.own.keys().next(), input.own.keys().last(), input.own.len())
        else {
            self.settled_since = None;
            return None;
        };
        // Nothing is left for a key that nobody could read of: its device may not even listen.
        let told_ms = input.told_ms.filter(|_| input.in_touch)?;
        let settled_since = if pairs.iter().all(|pair| pair.has_left_for(*newer)) {
            let known = self.settled_since.filter(|(of, _)| of == newer).map(|(_, since)| since);
            Some(known.unwrap_or(input.uptime_ms))
        } else {
            None
        };
        self.settled_since = settled_since.map(|since| (*newer, since));
        let last_ms = told_ms.saturating_add(input.deadline_ms.saturating_mul(LATE_DEADLINES_MAX));
        let catch_up_ms = self.catch_up_ms(pairs, input, *newer);
        let late_ms = told_ms.saturating_add(input.deadline_ms).max(catch_up_ms).min(last_ms);
        let at_ms =
            settled_since.map_or(late_ms, |since| late_ms.min(since.saturating_add(ROTATION_SETTLE_MS)));
        if input.uptime_ms < at_ms {
            *next_ms = Some(now_ms.saturating_add(at_ms - input.uptime_ms));
            return None;
        }
        Some(*older)
    }

    /// Until when peers that live and still need the older key may keep it.
    fn catch_up_ms(&mut self, pairs: &[Pair<'_>], input: &GenerationInput, newer: u64) -> u64 {
        if self.behind.0 != newer {
            self.behind = (newer, BTreeMap::new());
        }
        let waiting = pairs.iter().filter(|pair| pair.peer.live && !pair.has_left_for(newer));
        let until = waiting.map(|pair| {
            let is_behind = believed(pair.peer).max().is_none_or(|highest| highest < newer);
            let own_deadline_ms = if is_behind { input.deadline_ms } else { 0 };
            let until_ms = input.uptime_ms.saturating_add(own_deadline_ms).saturating_add(CATCH_UP_MS);
            *self.behind.1.entry(pair.peer.uuid).or_insert(until_ms)
        });
        until.max().unwrap_or(0)
    }
}

/// A peer as seen from here.
struct Pair<'a> {
    peer: &'a PeerGenerations,
    common: BTreeSet<u64>,
    path: Option<u64>,
    /// It lives, or packets come from it although its lease does not.
    is_present: bool,
}

impl Pair<'_> {
    /// Whether neither end sends over anything older than `newer`, nor will.
    fn has_left_for(&self, newer: u64) -> bool {
        let highest = believed(self.peer).max();
        let theirs = self.peer.sends.or(highest);
        !self.is_present
            || (self.path.is_none_or(|path| path >= newer)
                && theirs.is_some_and(|theirs| theirs >= newer)
                && highest.is_some_and(|highest| highest >= newer))
    }

    fn plan(self) -> PeerGenerationPlan {
        let keepalive = self.common.last().copied().filter(|newest| Some(*newest) > self.path);
        PeerGenerationPlan { common: self.common, path: self.path, keepalive }
    }
}

fn believed(peer: &PeerGenerations) -> impl Iterator<Item = u64> {
    peer.published.iter().copied().filter(|generation| *generation <= GENERATION_MAX)
}

fn is_same_device(one: u64, other: u64) -> bool {
    one % 2 == other % 2
}

/// The older of two keys that want the same device; only damage on the disk brings that about.
fn crowded(own: &BTreeSet<u64>) -> Option<u64> {
    own.iter().copied().find(|older| own.iter().any(|other| other > older && is_same_device(*other, *older)))
}

/// The first key, or one for the newest generation that a peer has.
fn follow(own: &BTreeSet<u64>, pairs: &[Pair<'_>], plan: &mut GenerationPlan) {
    let seen = pairs.iter().flat_map(|pair| believed(pair.peer)).max();
    let Some(highest) = own.last().copied() else {
        plan.make = Some(seen.unwrap_or(1).max(1));
        return;
    };
    let Some(target) = seen.filter(|seen| *seen > highest) else { return };
    let is_shared =
        |generation: &u64| pairs.iter().any(|pair| pair.is_present && pair.common.contains(generation));
    let in_the_way = |wanted: u64| own.iter().copied().find(|key| is_same_device(*key, wanted));
    // The generation before the newest goes on the other device: a bridge for those who share what is in the way.
    for wanted in [target, target - 1] {
        if wanted <= highest {
            return;
        }
        match in_the_way(wanted) {
            None => plan.make = Some(wanted),
            Some(key) if !is_shared(&key) => (plan.drop, plan.make) = (Some(key), Some(wanted)),
            // What is in the way goes when those who share it have moved, or at the deadline.
            Some(_) => continue,
        }
        return;
    }
}

/// A new key, because somebody asks or because it is time.
fn rotate(
    input: &GenerationInput,
    own: &BTreeSet<u64>,
    pairs: &[Pair<'_>],
    now_ms: u64,
    plan: &mut GenerationPlan,
) {
    let Some((highest, made_ms)) = input.own.last_key_value() else { return };
    let due_ms = input.rotation_ms.map(|every| made_ms.saturating_add(every));
    let is_due = due_ms.is_some_and(|due| due <= now_ms);
    let seen = pairs.iter().flat_map(|pair| believed(pair.peer)).max().filter(|seen| seen > highest);
    let refused = match (own.first(), seen) {
        (_, Some(seen)) => Some(RotationRefused::Behind { own: *highest, seen }),
        (Some(older), _) if older != highest => {
            Some(RotationRefused::Holding { older: *older, newer: *highest })
        }
        _ if *highest >= GENERATION_MAX => Some(RotationRefused::End(*highest)),
        _ => None,
    };
    match refused {
        Some(refused) => plan.refused = input.rotate.then_some(refused),
        None if input.rotate || is_due => plan.make = Some(highest + 1),
        None => plan.next_ms = earlier(plan.next_ms, due_ms),
    }
}

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

impl fmt::Display for GenerationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved =
            self.peers.values().filter(|peer| peer.path.is_some() && peer.keepalive.is_none()).count();
        write!(f, "{moved} of {} peers on their newest common generation", self.peers.len())?;
        self.make.map_or(Ok(()), |made| write!(f, "; makes a key of generation {made}"))?;
        self.drop.map_or(Ok(()), |gone| write!(f, "; drops that of generation {gone}"))
    }
}
