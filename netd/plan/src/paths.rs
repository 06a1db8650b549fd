// SPDX-License-Identifier: Apache-2.0
//! Which backend carries packets to which peer, also while the cluster changes from one to another.
//!
//! A change goes pair by pair, each direction for itself: a node brings up what is wanted beside what it has, says so in
//! its record, and sends to a peer by the wanted backend once both have it up (by WireGuard once a handshake was seen, as
//! long as another way is left). Both accept all that is up. What is wanted no more is withdrawn from the record when every
//! peer's record says that it sends by the wanted backend only, or at a deadline, and goes a little later. A peer without a
//! live lease counts, too: its packets flow without its netd, which may come back. Where WireGuard is wanted that has an end,
//! however many packets come: what is accepted in the clear shall not stay so because a netd died in mid-change.
//!
//! `auto` is native to peers on the same link and WireGuard to all others.
//!
//! The state only makes things steadier. A restart without it begins the deadline anew, as long as what the node had up is
//! in [`PathsInput::up`] from the first call on: from the kernel, and from the node's own record. Times are milliseconds:
//! handshakes by the wall clock, deadlines by one that nobody sets ([`PathsInput::uptime_ms`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use uuid::Uuid;

use crate::generation::HANDSHAKE_FRESH_MS;
use crate::overlay::Path;

/// How long what is wanted no more stays at most for peers that could go over: twice the time after which a dead node's lease
/// ends.
pub const CHANGE_DEADLINE_MS: u64 = 60_000;

/// How long it stays at most for a peer without a live lease: as long as for one that misses a change of keys. Longer it is
/// not kept open for a node that may be gone for good. Only where WireGuard itself goes, and packets still come by it, has
/// the peer more time: nothing in the clear is taken meanwhile that would not be afterwards.
pub const ABSENT_DEADLINE_MS: u64 = crate::generation::ROTATION_DEADLINE_MS;

/// How long it stays after it was withdrawn from this node's record: packets under way, and peers that have not read that
/// and may begin to send by it once more, as when the wish changes twice in a row.
pub const CHANGE_SETTLE_MS: u64 = 5_000;

/// What carries packets between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendKind {
    /// Plain routes on one layer 2 network, in the clear.
    Native,
    /// VXLAN.
    Vxlan,
    /// WireGuard.
    Wireguard,
}

/// What the cluster's configuration wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlay {
    /// Native on the same link, WireGuard elsewhere.
    Auto,
    /// Native; a peer elsewhere is refused.
    Native,
    /// VXLAN.
    Vxlan,
    /// WireGuard.
    Wireguard,
}

impl Overlay {
    /// What a node has up for it.
    pub fn kinds(self) -> BTreeSet<BackendKind> {
        match self {
            Overlay::Auto => BTreeSet::from([BackendKind::Native, BackendKind::Wireguard]),
            Overlay::Native => BTreeSet::from([BackendKind::Native]),
            Overlay::Vxlan => BTreeSet::from([BackendKind::Vxlan]),
            Overlay::Wireguard => BTreeSet::from([BackendKind::Wireguard]),
        }
    }

    /// What is to carry packets to a peer.
    fn kind(self, is_on_link: bool) -> BackendKind {
        match self {
            Overlay::Auto if is_on_link => BackendKind::Native,
            Overlay::Native => BackendKind::Native,
            Overlay::Vxlan => BackendKind::Vxlan,
            Overlay::Auto | Overlay::Wireguard => BackendKind::Wireguard,
        }
    }
}

/// What is known at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathsInput {
    /// What the cluster's configuration wants.
    pub wanted: Overlay,
    /// What this node has up and working, as the kernel has it.
    pub up: BTreeSet<BackendKind>,
    /// Prefixes on the link of the underlay device.
    pub subnets: Vec<IpNet>,
    /// All peers.
    pub peers: Vec<PathPeer>,
    /// The store answers, and this node's record there offers what the last plan's [`PathsPlan::up`] says: peers can know.
    pub told: bool,
    /// Milliseconds of a clock that is never set, for deadlines.
    pub uptime_ms: u64,
}

/// A peer as its record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPeer {
    /// Which peer.
    pub uuid: Uuid,
    /// Its name, for people.
    pub name: String,
    /// Its address on the underlay; unspecified where it has none that others reach.
    pub underlay: IpAddr,
    /// Whether its lease lives.
    pub live: bool,
    /// What it has up and offers.
    pub up: BTreeSet<BackendKind>,
    /// The wish by which all that it sends goes already.
    pub sends: Option<Overlay>,
    /// The tunnel of both, where there is a common generation of keys.
    pub wireguard: Option<WireguardTunnel>,
}

/// A WireGuard tunnel to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireguardTunnel {
    /// Generation of its keys, as [`crate::Generations`] chooses.
    pub generation: u64,
    /// Time of the last handshake, in milliseconds.
    pub handshake_ms: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathsPlan {
    /// What this node is to have up: what is wanted, and what cannot go yet.
    pub keep: BTreeSet<BackendKind>,
    /// For the record: what this node has up and offers to its peers. To be said once it is up, and taken back long before
    /// it goes.
    pub up: BTreeSet<BackendKind>,
    /// How each peer is reached.
    pub peers: BTreeMap<Uuid, PathChoice>,
    /// Peers whose packets may come and go in the clear: native is kept up and they are on the link.
    pub clear: BTreeSet<Uuid>,
    /// For the record: the wish by which all that this node sends to live peers goes. To be said once the routes stand, and
    /// taken back before they change.
    pub sends: Option<Overlay>,
    /// When to call again at the latest, if nothing changes before, by the wall clock.
    pub next_ms: Option<u64>,
}

/// How one peer is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathChoice {
    /// The path; `None` where there is none.
    pub path: Option<Path>,
    /// What is not as wanted, for people.
    pub problem: Option<PathProblem>,
    /// The move waits for a handshake: the peer needs [`crate::generation::KEEPALIVE_MOVING_SECS`].
    pub keepalive: bool,
}

/// Why a peer is not reached as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathProblem {
    /// One of both does not have the wanted backend up.
    NotUp {
        /// The peer's name.
        peer: String,
        /// The wanted backend.
        wanted: BackendKind,
        /// Whether it is the peer that lacks it.
        lacks_peer: bool,
    },
    /// Native, and the peer's address is not on our link.
    NotOnLink {
        /// The peer's name.
        peer: String,
        /// Its address.
        underlay: IpAddr,
        /// What is on our link.
        subnets: Vec<IpNet>,
    },
    /// WireGuard, and no generation of keys that both have.
    NoCommonKey {
        /// The peer's name.
        peer: String,
    },
    /// The old way stays for one whose netd may not know of the change: it has no live lease.
    Away {
        /// The peer's name.
        peer: String,
        /// What is changed to.
        wanted: Overlay,
    },
}

/// What is remembered from call to call.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What was wanted last, and since when, by the clock of `uptime_ms`.
    wanted: Option<Overlay>,
    since_ms: u64,
    /// Peers that went over to the wanted backend: they stay there as long as both have it up.
    moved: BTreeSet<Uuid>,
    /// Since when the peers can read that what is wanted no more is not offered any more, by the clock of `uptime_ms`.
    withdrawn_ms: Option<u64>,
}

/// Whether the peer's address is on one of the prefixes of our link.
pub fn is_on_link(peer: IpAddr, subnets: &[IpNet]) -> bool {
    !peer.is_unspecified() && subnets.iter().any(|subnet| subnet.contains(&peer))
}

impl Paths {
    /// As netd starts, by the clock of [`PathsInput::uptime_ms`].
    pub fn new(uptime_ms: u64) -> Self {
        Paths { wanted: None, since_ms: uptime_ms, moved: BTreeSet::new(), withdrawn_ms: None }
    }

    /// One step from what is known to what is to be done; `now_ms` by the wall clock, as handshakes are.
    pub fn step(&mut self, input: &PathsInput, now_ms: u64) -> PathsPlan {
        if self.wanted != Some(input.wanted) {
            *self = Paths { wanted: Some(input.wanted), ..Paths::new(input.uptime_ms) };
        }
        self.moved.retain(|uuid| input.peers.iter().any(|peer| peer.uuid == *uuid));
        let mut plan = PathsPlan { peers: self.choices(input, &input.up, now_ms), ..PathsPlan::default() };
        plan.sends = says(input, &plan.peers);
        let wanted = input.wanted.kinds();
        plan.keep = wanted.union(&input.up).copied().collect();
        plan.up = input.up.clone();
        let uptime_ms = input.uptime_ms;
        let over_ms = self.over_ms(input, plan.sends, now_ms);
        let next_ms = if over_ms.is_some_and(|over_ms| over_ms <= uptime_ms) {
            // Offered no more, and taken away when that must have been heard.
            let withdrawn_ms = self.withdrawn_ms.filter(|_| input.told).unwrap_or(uptime_ms);
            self.withdrawn_ms = Some(withdrawn_ms);
            let gone_ms = withdrawn_ms.saturating_add(CHANGE_SETTLE_MS);
            plan.up = input.up.intersection(&wanted).copied().collect();
            plan.peers = self.choices(input, &plan.up, now_ms);
            plan.sends = says(input, &plan.peers);
            let is_gone = gone_ms <= uptime_ms;
            if is_gone {
                plan.keep = wanted;
            }
            (!is_gone).then_some(gone_ms)
        } else {
            self.withdrawn_ms = None;
            note_away(input, &mut plan.peers, now_ms);
            over_ms
        };
        plan.next_ms = next_ms.map(|at_ms| now_ms.saturating_add(at_ms.saturating_sub(uptime_ms)));
        if plan.keep.contains(&BackendKind::Native) {
            let on_link = input.peers.iter().filter(|peer| is_on_link(peer.underlay, &input.subnets));
            plan.clear = on_link.map(|peer| peer.uuid).collect();
        }
        plan
    }

    /// When what is wanted no more has had its time, by the clock of `uptime_ms`: as soon as nobody sends by it, or at the
    /// deadline. `None` where there is nothing of the kind, or no end to see.
    fn over_ms(&self, input: &PathsInput, says: Option<Overlay>, now_ms: u64) -> Option<u64> {
        let wanted = input.wanted.kinds();
        if input.up.is_subset(&wanted) {
            return None;
        }
        let is_here = |peer: &&PathPeer| peer.is_live_or_heard(input, now_ms);
        let (here, away): (Vec<&PathPeer>, Vec<&PathPeer>) = input.peers.iter().partition(is_here);
        let is_awaited = away.iter().any(|peer| peer.may_send_by_what_goes(input));
        if says.is_some() && !is_awaited && here.iter().all(|peer| peer.has_moved(input)) {
            return Some(input.uptime_ms);
        }
        // One that is there and cannot go over yet is not cut off.
        let can = |peer: &PathPeer| {
            peer.up.contains(&input.wanted.kind(is_on_link(peer.underlay, &input.subnets)))
                && (peer.live || peer.has_moved(input))
        };
        let all_up = wanted.is_subset(&input.up) && here.iter().all(|peer| can(peer));
        let deadline_ms = if is_awaited { ABSENT_DEADLINE_MS } else { CHANGE_DEADLINE_MS };
        all_up.then(|| self.since_ms.saturating_add(deadline_ms))
    }

    fn choices(
        &mut self,
        input: &PathsInput,
        usable: &BTreeSet<BackendKind>,
        now_ms: u64,
    ) -> BTreeMap<Uuid, PathChoice> {
        input.peers.iter().map(|peer| (peer.uuid, self.choose(input, usable, peer, now_ms))).collect()
    }

    fn choose(
        &mut self,
        input: &PathsInput,
        usable: &BTreeSet<BackendKind>,
        peer: &PathPeer,
        now_ms: u64,
    ) -> PathChoice {
        let wanted = input.wanted.kind(is_on_link(peer.underlay, &input.subnets));
        let path = |kind: BackendKind| {
            let both = usable.contains(&kind) && peer.up.contains(&kind);
            path(kind, input, peer).filter(|_| both)
        };
        // The most careful first, where something is left from several changes.
        let others = [BackendKind::Wireguard, BackendKind::Vxlan, BackendKind::Native];
        let other = others.into_iter().filter(|other| *other != wanted).find_map(path);
        let problem = problem(wanted, input, usable, peer);
        let Some(path) = path(wanted) else {
            self.moved.remove(&peer.uuid);
            return PathChoice { path: other, problem, keepalive: false };
        };
        let is_proven = wanted != BackendKind::Wireguard
            || self.moved.contains(&peer.uuid)
            || peer.wireguard.is_some_and(|tunnel| tunnel.is_fresh(now_ms));
        if let (false, Some(other)) = (is_proven, other) {
            return PathChoice { path: Some(other), problem, keepalive: true };
        }
        self.moved.insert(peer.uuid);
        PathChoice { path: Some(path), problem, keepalive: false }
    }
}

impl PathPeer {
    fn has_moved(&self, input: &PathsInput) -> bool {
        self.sends == Some(input.wanted)
    }

    /// Something that is wanted no more is up at both ends, and the peer did not say that it sends nothing by it.
    fn may_send_by_what_goes(&self, input: &PathsInput) -> bool {
        let wanted = input.wanted.kinds();
        let is_left = |kind: &BackendKind| input.up.contains(kind) && !wanted.contains(kind);
        !self.has_moved(input) && self.up.iter().any(is_left)
    }

    /// It lives, or packets come from it although its lease does not. These are no reason to wait for it without an end
    /// where WireGuard is wanted: all that goes is in the clear then.
    fn is_live_or_heard(&self, input: &PathsInput, now_ms: u64) -> bool {
        let seals = input.wanted.kinds().contains(&BackendKind::Wireguard);
        self.live || (!seals && self.wireguard.is_some_and(|tunnel| tunnel.is_fresh(now_ms)))
    }
}

impl WireguardTunnel {
    fn is_fresh(&self, now_ms: u64) -> bool {
        self.handshake_ms.is_some_and(|at| now_ms.saturating_sub(at) < HANDSHAKE_FRESH_MS)
    }
}

fn kind_of(path: Path) -> BackendKind {
    match path {
        Path::Native => BackendKind::Native,
        Path::Vxlan => BackendKind::Vxlan,
        Path::Wireguard { .. } => BackendKind::Wireguard,
    }
}

/// The path by a backend, should both have it up.
fn path(kind: BackendKind, input: &PathsInput, peer: &PathPeer) -> Option<Path> {
    match kind {
        BackendKind::Native => is_on_link(peer.underlay, &input.subnets).then_some(Path::Native),
        BackendKind::Vxlan => (!peer.underlay.is_unspecified()).then_some(Path::Vxlan),
        BackendKind::Wireguard => {
            peer.wireguard.map(|tunnel| Path::Wireguard { generation: tunnel.generation })
        }
    }
}

/// The wish, where all that goes to live peers goes by it.
fn says(input: &PathsInput, choices: &BTreeMap<Uuid, PathChoice>) -> Option<Overlay> {
    let follows = |peer: &PathPeer| {
        let path = choices.get(&peer.uuid).and_then(|choice| choice.path);
        path.is_none_or(|path| kind_of(path) == input.wanted.kind(is_on_link(peer.underlay, &input.subnets)))
    };
    let is_up = input.wanted.kinds().is_subset(&input.up);
    let all = input.peers.iter().filter(|peer| peer.live).all(follows);
    (is_up && all).then_some(input.wanted)
}

fn problem(
    wanted: BackendKind,
    input: &PathsInput,
    usable: &BTreeSet<BackendKind>,
    peer: &PathPeer,
) -> Option<PathProblem> {
    let name = peer.name.clone();
    let lacks_peer = !peer.up.contains(&wanted);
    if wanted == BackendKind::Native && !is_on_link(peer.underlay, &input.subnets) {
        let (underlay, subnets) = (peer.underlay, input.subnets.clone());
        return Some(PathProblem::NotOnLink { peer: name, underlay, subnets });
    }
    if lacks_peer || !usable.contains(&wanted) {
        return Some(PathProblem::NotUp { peer: name, wanted, lacks_peer });
    }
    (wanted == BackendKind::Wireguard && peer.wireguard.is_none())
        .then_some(PathProblem::NoCommonKey { peer: name })
}

/// While what goes is still there: says of peers without a live lease that they are waited for.
fn note_away(input: &PathsInput, choices: &mut BTreeMap<Uuid, PathChoice>, now_ms: u64) {
    let wanted = input.wanted;
    if input.up.is_subset(&wanted.kinds()) {
        return;
    }
    let is_awaited = |peer: &&PathPeer| {
        let heard = peer.is_live_or_heard(input, now_ms) && !peer.has_moved(input);
        !peer.live && (heard || peer.may_send_by_what_goes(input))
    };
    for peer in input.peers.iter().filter(is_awaited) {
        let Some(choice) = choices.get_mut(&peer.uuid) else { continue };
        // Nobody answers there who could say why it lacks something.
        if matches!(choice.problem, None | Some(PathProblem::NotUp { lacks_peer: true, .. })) {
            choice.problem = Some(PathProblem::Away { peer: peer.name.clone(), wanted });
        }
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Overlay::Auto => "auto",
            Overlay::Native => "native",
            Overlay::Vxlan => "vxlan",
            Overlay::Wireguard => "wireguard",
        })
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendKind::Native => "native",
            BackendKind::Vxlan => "vxlan",
            BackendKind::Wireguard => "wireguard",
        })
    }
}

impl fmt::Display for PathProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathProblem::Away { peer, wanted } => {
                write!(
                    f,
                    "the change to overlay {wanted} waits for {peer} (its netd is away): start it, or `weft node rm {peer}` \
                     if it is gone for good"
                )
            }
            PathProblem::NoCommonKey { peer } => {
                write!(
                    f,
                    "{peer} and this node have no key of one generation yet; they find one by themselves"
                )
            }
            PathProblem::NotOnLink { peer, underlay, subnets } => {
                let subnets: Vec<String> = subnets.iter().map(IpNet::to_string).collect();
                write!(
                    f,
                    "{peer} ({underlay}) is not on the link of this node's underlay ({}): overlay native does not \
                     reach it; choose auto, wireguard or vxlan",
                    subnets.join(", ")
                )
            }
            PathProblem::NotUp { peer, wanted, lacks_peer: true } => {
                write!(f, "{peer} does not have overlay {wanted} up yet; `weft doctor` on {peer} says why")
            }
            PathProblem::NotUp { wanted, lacks_peer: false, .. } => {
                write!(f, "this node does not have overlay {wanted} up yet; `weft doctor` says why")
            }
        }
    }
}
