// SPDX-License-Identifier: Apache-2.0
//! Which backend reaches whom: single decisions, and clusters that change their mind while records come late.

use std::collections::{BTreeMap, BTreeSet};

use netd_plan::generation::HANDSHAKE_FRESH_MS;
use netd_plan::paths::{ABSENT_DEADLINE_MS, CHANGE_DEADLINE_MS, CHANGE_SETTLE_MS};
use netd_plan::{
    BackendKind, Overlay, Path, PathPeer, PathProblem, Paths, PathsInput, PathsPlan, WireguardTunnel,
    is_on_link,
};
use proptest::prelude::*;
use uuid::Uuid;

use BackendKind::{Native, Vxlan, Wireguard};

const TUNNEL: Path = Path::Wireguard { generation: 1 };

fn uuid(n: usize) -> Uuid {
    Uuid::from_u128(u128::try_from(n).unwrap())
}

/// A peer on the link; from 100 on, elsewhere.
fn peer(n: usize, up: &[BackendKind], handshake_ms: Option<u64>) -> PathPeer {
    let underlay = if n < 100 { format!("192.0.2.{n}") } else { format!("198.51.100.{n}") };
    PathPeer {
        uuid: uuid(n),
        name: format!("n{n}"),
        underlay: underlay.parse().unwrap(),
        live: true,
        up: up.iter().copied().collect(),
        sends: None,
        wireguard: Some(WireguardTunnel { generation: 1, handshake_ms }),
    }
}

fn input(wanted: Overlay, up: &[BackendKind], peers: Vec<PathPeer>) -> PathsInput {
    let subnets = vec!["192.0.2.0/24".parse().unwrap()];
    PathsInput { wanted, up: up.iter().copied().collect(), subnets, peers, told: true, uptime_ms: 0 }
}

/// One step where both clocks show the same.
fn at(paths: &mut Paths, input: &PathsInput, now_ms: u64) -> PathsPlan {
    paths.step(&PathsInput { uptime_ms: now_ms, ..input.clone() }, now_ms)
}

fn step(input: &PathsInput) -> PathsPlan {
    at(&mut Paths::new(0), input, 0)
}

fn path(plan: &PathsPlan, n: usize) -> Option<Path> {
    plan.peers[&uuid(n)].path
}

#[test]
fn without_a_change_what_is_wanted_is_what_there_is() {
    for (wanted, kind, by) in [
        (Overlay::Native, Native, Path::Native),
        (Overlay::Vxlan, Vxlan, Path::Vxlan),
        (Overlay::Wireguard, Wireguard, TUNNEL),
    ] {
        let plan = step(&input(wanted, &[kind], vec![peer(2, &[kind], None)]));
        assert_eq!((path(&plan, 2), plan.sends), (Some(by), Some(wanted)), "no handshake is waited for");
        assert_eq!((plan.keep, plan.next_ms), (wanted.kinds(), None));
        assert!(plan.peers[&uuid(2)].problem.is_none());
    }
    let plan = step(&input(Overlay::Vxlan, &[], vec![peer(2, &[Vxlan], None)]));
    assert_eq!(
        (path(&plan, 2), plan.sends, plan.keep),
        (None, None, BTreeSet::from([Vxlan])),
        "to be made first"
    );
}

#[test]
fn native_refuses_who_is_elsewhere_and_auto_takes_wireguard_there() {
    let plan =
        step(&input(Overlay::Native, &[Native], vec![peer(2, &[Native], None), peer(100, &[Native], None)]));
    assert_eq!((path(&plan, 2), path(&plan, 100)), (Some(Path::Native), None));
    assert_eq!(plan.clear, BTreeSet::from([uuid(2)]));
    let problem = plan.peers[&uuid(100)].problem.clone().unwrap();
    assert!(matches!(problem, PathProblem::NotOnLink { .. }));
    assert_eq!(
        problem.to_string(),
        "n100 (198.51.100.100) is not on the link of this node's underlay (192.0.2.0/24): overlay native does not reach \
         it; choose auto, wireguard or vxlan"
    );
    let both = [Native, Wireguard];
    let plan = step(&input(Overlay::Auto, &both, vec![peer(2, &both, None), peer(100, &both, None)]));
    assert_eq!((path(&plan, 2), path(&plan, 100)), (Some(Path::Native), Some(TUNNEL)));
    assert_eq!((plan.sends, plan.clear), (Some(Overlay::Auto), BTreeSet::from([uuid(2)])));
    assert!(!is_on_link("0.0.0.0".parse().unwrap(), &["0.0.0.0/0".parse().unwrap()]), "no address");
}

#[test]
fn what_is_missing_is_named() {
    let text = |plan: &PathsPlan| plan.peers[&uuid(2)].problem.clone().unwrap().to_string();
    let plan = step(&input(Overlay::Wireguard, &[Wireguard], vec![peer(2, &[Vxlan], None)]));
    assert_eq!(text(&plan), "n2 does not have overlay wireguard up yet; `weft doctor` on n2 says why");
    let plan = step(&input(Overlay::Vxlan, &[], vec![peer(2, &[Vxlan], None)]));
    assert_eq!(text(&plan), "this node does not have overlay vxlan up yet; `weft doctor` says why");
    let keyless = PathPeer { wireguard: None, ..peer(2, &[Wireguard], None) };
    let plan = step(&input(Overlay::Wireguard, &[Wireguard], vec![keyless]));
    assert!(text(&plan).contains("no key of one generation"), "{}", text(&plan));
    assert_eq!(path(&plan, 2), None);
}

#[test]
fn a_pair_changes_when_both_can_and_the_old_way_goes_last() {
    let (old, both) = ([Vxlan], [Vxlan, Wireguard]);
    let mut paths = Paths::new(0);
    let mut after = |now_ms, up: &[BackendKind], peer: PathPeer| {
        let plan = at(&mut paths, &input(Overlay::Wireguard, up, vec![peer]), now_ms);
        (path(&plan, 2).unwrap(), plan.peers[&uuid(2)].keepalive, plan.sends, plan.keep.len())
    };
    assert_eq!(
        after(0, &old, peer(2, &old, None)),
        (Path::Vxlan, false, None, 2),
        "both devices are wished for"
    );
    assert_eq!(after(1_000, &both, peer(2, &old, None)), (Path::Vxlan, false, None, 2));
    assert_eq!(after(2_000, &both, peer(2, &both, None)), (Path::Vxlan, true, None, 2), "no handshake yet");
    let moved = Some(Overlay::Wireguard);
    assert_eq!(after(3_000, &both, peer(2, &both, Some(2_900))), (TUNNEL, false, moved, 2));
    assert_eq!(after(4_000, &both, peer(2, &both, None)), (TUNNEL, false, moved, 2), "it stays there");
    let settled = || PathPeer { sends: moved, ..peer(2, &both, None) };
    assert_eq!(after(5_000, &both, settled()).3, 2, "it is withdrawn first");
    assert_eq!(after(5_000 + CHANGE_SETTLE_MS, &both, settled()), (TUNNEL, false, moved, 1));
}

#[test]
fn what_goes_is_withdrawn_first_and_offered_again_where_somebody_changes_its_mind() {
    let both = [Vxlan, Wireguard];
    let mut paths = Paths::new(0);
    let mut after = |now_ms, sends| {
        let peer = PathPeer { sends, ..peer(2, &both, Some(1_000)) };
        let plan = at(&mut paths, &input(Overlay::Wireguard, &both, vec![peer]), now_ms);
        (plan.up.len(), plan.keep.len(), plan.next_ms)
    };
    assert_eq!(after(1_000, None), (2, 2, Some(1_000 + CHANGE_DEADLINE_MS)));
    assert_eq!(after(2_000, Some(Overlay::Wireguard)), (1, 2, Some(2_000 + CHANGE_SETTLE_MS)));
    assert_eq!(after(3_000, None).0, 2, "it took that back");
    assert_eq!(after(4_000, Some(Overlay::Wireguard)), (1, 2, Some(4_000 + CHANGE_SETTLE_MS)));
    assert_eq!(after(4_000 + CHANGE_SETTLE_MS, Some(Overlay::Wireguard)), (1, 1, None));
}

#[test]
fn what_nobody_could_read_of_is_not_taken_away() {
    let both = [Vxlan, Wireguard];
    let mut paths = Paths::new(0);
    let mut after = |now_ms, told| {
        let peer = PathPeer { sends: Some(Overlay::Wireguard), ..peer(2, &both, Some(1_000)) };
        let input = PathsInput { told, ..input(Overlay::Wireguard, &both, vec![peer]) };
        let plan = at(&mut paths, &input, now_ms);
        (plan.up.len(), plan.keep.len())
    };
    assert_eq!(after(1_000, true), (1, 2));
    // The store is away: what it said last is that both are up.
    assert_eq!(after(100_000, false), (1, 2));
    assert_eq!(after(100_000 + CHANGE_SETTLE_MS - 1, true), (1, 2), "now they can read it");
    assert_eq!(after(100_000 + CHANGE_SETTLE_MS, true), (1, 1));
}

#[test]
fn a_stale_handshake_proves_nothing() {
    let both = [Vxlan, Wireguard];
    let plan =
        at(&mut Paths::new(0), &input(Overlay::Wireguard, &both, vec![peer(2, &both, Some(1_000))]), 400_000);
    assert_eq!(path(&plan, 2), Some(Path::Vxlan));
}

#[test]
fn the_deadline_cuts_who_does_not_move_but_not_who_cannot() {
    let both = [Vxlan, Wireguard];
    let keep = |peer: PathPeer, now_ms| {
        let mut paths = Paths::new(0);
        let input = input(Overlay::Wireguard, &both, vec![peer]);
        at(&mut paths, &input, 0);
        at(&mut paths, &input, now_ms)
    };
    let before = keep(peer(2, &both, None), CHANGE_DEADLINE_MS - 1);
    assert_eq!((before.up.len(), before.next_ms), (2, Some(CHANGE_DEADLINE_MS)));
    let plan = keep(peer(2, &both, None), CHANGE_DEADLINE_MS);
    assert_eq!((path(&plan, 2), plan.keep.len(), plan.up), (Some(TUNNEL), 2, BTreeSet::from([Wireguard])));
    let plan = keep(peer(2, &[Vxlan], None), CHANGE_DEADLINE_MS * 10);
    assert_eq!((plan.up.len(), path(&plan, 2)), (2, Some(Path::Vxlan)), "its new version is not there yet");
}

#[test]
fn who_has_no_lease_is_waited_for_as_long_as_it_may_come_back() {
    let both = [Vxlan, Wireguard];
    let step_at = |wanted, peers: Vec<PathPeer>, now_ms| {
        let mut paths = Paths::new(0);
        at(&mut paths, &input(wanted, &both, peers.clone()), 0);
        at(&mut paths, &input(wanted, &both, peers), now_ms)
    };
    let absent = |up: &[BackendKind], handshake_ms| PathPeer { live: false, ..peer(2, up, handshake_ms) };
    let moved = PathPeer { sends: Some(Overlay::Wireguard), ..peer(3, &both, Some(0)) };

    // Its netd is dead and did not hear of the change; the other peer did.
    let plan =
        step_at(Overlay::Wireguard, vec![absent(&[Vxlan], None), moved.clone()], ABSENT_DEADLINE_MS - 1);
    assert_eq!((path(&plan, 2), plan.up.len()), (Some(Path::Vxlan), 2));
    assert_eq!((plan.sends, plan.next_ms), (Some(Overlay::Wireguard), Some(ABSENT_DEADLINE_MS)));
    let plan = step_at(Overlay::Wireguard, vec![absent(&[Vxlan], None), moved.clone()], ABSENT_DEADLINE_MS);
    assert_eq!((path(&plan, 2), plan.up.len()), (None, 1), "who is gone holds nobody up for ever");

    let nothing_left = step_at(Overlay::Wireguard, vec![absent(&[], None), moved], 1_000);
    assert_eq!(nothing_left.up.len(), 1, "it takes nothing by what goes");

    // Tunnels live without netd: what is heard of them says that it is there. Leaving WireGuard waits for as long.
    let shaken_ms = 10 * ABSENT_DEADLINE_MS;
    let left = |now_ms| step_at(Overlay::Vxlan, vec![absent(&[Wireguard], Some(shaken_ms))], now_ms);
    let plan = left(shaken_ms + HANDSHAKE_FRESH_MS - 1);
    assert_eq!((plan.up.len(), plan.next_ms), (2, None));
    assert_eq!(
        plan.peers[&uuid(2)].problem.clone().unwrap().to_string(),
        "the change to overlay vxlan waits for n2 (its netd is away): start it, or `weft node rm n2` if it is gone for \
         good"
    );
    assert_eq!(left(shaken_ms + HANDSHAKE_FRESH_MS).up.len(), 1);
}

#[test]
fn what_is_in_the_clear_goes_at_a_deadline_though_a_tunnel_outlives_its_netd() {
    let both = [Vxlan, Wireguard];
    for wanted in [Overlay::Wireguard, Overlay::Auto] {
        // Its netd died in mid-change; its device shakes hands to this day. It is elsewhere: auto wants WireGuard, too.
        let peer = |now_ms| PathPeer { live: false, ..peer(102, &both, Some(now_ms)) };
        let up: BTreeSet<BackendKind> = wanted.kinds().into_iter().chain([Vxlan]).collect();
        let up: Vec<BackendKind> = up.into_iter().collect();
        let mut paths = Paths::new(0);
        at(&mut paths, &input(wanted, &up, vec![peer(0)]), 0);
        let just_before = ABSENT_DEADLINE_MS - 1;
        let plan = at(&mut paths, &input(wanted, &up, vec![peer(just_before)]), just_before);
        assert_eq!((path(&plan, 102), plan.up.len()), (Some(TUNNEL), up.len()), "it may still send by VXLAN");
        assert_eq!(plan.next_ms, Some(ABSENT_DEADLINE_MS));
        assert_eq!(
            plan.peers[&uuid(102)].problem,
            Some(PathProblem::Away { peer: "n102".into(), wanted }),
            "and people can see who is waited for"
        );
        let plan = at(&mut paths, &input(wanted, &up, vec![peer(ABSENT_DEADLINE_MS)]), ABSENT_DEADLINE_MS);
        assert_eq!((path(&plan, 102), plan.up), (Some(TUNNEL), wanted.kinds()));
        assert!(plan.peers[&uuid(102)].problem.is_none(), "nothing is waited for any more");
        let gone_ms = ABSENT_DEADLINE_MS + CHANGE_SETTLE_MS;
        let plan = at(&mut paths, &input(wanted, &up, vec![peer(gone_ms)]), gone_ms);
        assert_eq!((plan.keep, plan.next_ms), (wanted.kinds(), None));
    }
}

#[test]
fn a_clock_that_is_set_moves_no_deadline() {
    let both = [Vxlan, Wireguard];
    let mut paths = Paths::new(500);
    // No handshake, but able: waited for until the deadline.
    let mut after = |uptime_ms, now_ms, sends| {
        let peer = PathPeer { sends, ..peer(2, &both, None) };
        let input = PathsInput { uptime_ms, ..input(Overlay::Wireguard, &both, vec![peer]) };
        let plan = paths.step(&input, now_ms);
        (plan.up.len(), plan.keep.len(), plan.next_ms)
    };
    for (uptime_ms, now_ms) in [(500, 5_000_000), (1_500, 9_000_000_000_000), (2_500, 1_000)] {
        let left_ms = 500 + CHANGE_DEADLINE_MS - uptime_ms;
        assert_eq!(after(uptime_ms, now_ms, None), (2, 2, Some(now_ms + left_ms)));
    }
    let over_ms = 500 + CHANGE_DEADLINE_MS;
    for (uptime_ms, now_ms) in
        [(over_ms, 1_000), (over_ms + 1_000, 9_000_000_000_000), (over_ms + 2_000, 1_000)]
    {
        let left_ms = over_ms + CHANGE_SETTLE_MS - uptime_ms;
        assert_eq!(
            after(uptime_ms, now_ms, None),
            (1, 2, Some(now_ms + left_ms)),
            "peers have time to read that"
        );
    }
    assert_eq!(after(over_ms + CHANGE_SETTLE_MS, 1_000, None), (1, 1, None));
}

#[test]
fn a_change_that_is_taken_back_begins_anew() {
    let both = [Vxlan, Wireguard];
    let mut paths = Paths::new(0);
    let peers = || vec![PathPeer { sends: Some(Overlay::Wireguard), ..peer(2, &both, Some(1_000)) }];
    at(&mut paths, &input(Overlay::Wireguard, &both, peers()), 1_000);
    let plan = at(&mut paths, &input(Overlay::Vxlan, &both, peers()), 2_000);
    assert_eq!((path(&plan, 2), plan.sends), (Some(Path::Vxlan), Some(Overlay::Vxlan)));
    assert_eq!(plan.keep.len(), 2, "the peer still sends by WireGuard");
}

/// A node of the simulation: the wish that it has read, what it has up, and where it sends.
#[derive(Clone, Debug)]
struct Node {
    wanted: Overlay,
    up: BTreeSet<BackendKind>,
    offers: BTreeSet<BackendKind>,
    paths: Option<Paths>,
    routes: BTreeMap<usize, Path>,
    says: Option<Overlay>,
    /// What the others' records said when it read them last.
    read: BTreeMap<usize, (BTreeSet<BackendKind>, Option<Overlay>)>,
    handshakes: BTreeMap<usize, u64>,
    /// When it read each record and worked last.
    read_ms: BTreeMap<usize, u64>,
    worked_ms: u64,
}

/// Nobody is later than this with a record or a pass.
const LATE_MS: u64 = 2_000;
/// The clock of deadlines began later than that of handshakes.
const UPTIME_BEHIND_MS: u64 = 700_000;

struct Cluster {
    now_ms: u64,
    random: u64,
    wanted: Overlay,
    nodes: Vec<Node>,
}

impl Cluster {
    fn new(nodes: usize, seed: u64) -> Self {
        let node = Node {
            wanted: Overlay::Vxlan,
            up: BTreeSet::from([Vxlan]),
            offers: BTreeSet::from([Vxlan]),
            paths: None,
            routes: BTreeMap::new(),
            says: None,
            read: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            read_ms: BTreeMap::new(),
            worked_ms: 0,
        };
        let mut cluster =
            Cluster { now_ms: 1_000_000, random: seed, wanted: Overlay::Vxlan, nodes: vec![node; nodes] };
        for n in 0..nodes {
            for p in 0..nodes {
                cluster.read(n, p);
            }
            cluster.netd(n);
        }
        cluster
    }

    fn chance(&mut self, of_ten: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 10 < of_ten
    }

    fn read(&mut self, n: usize, p: usize) {
        let record = (self.nodes[p].offers.clone(), self.nodes[p].says);
        self.nodes[n].read.insert(p, record);
        self.nodes[n].read_ms.insert(p, self.now_ms);
    }

    /// One second; each hears and works most of the time.
    fn pass(&mut self) {
        self.now_ms += 1_000;
        for n in 0..self.nodes.len() {
            if self.chance(5) {
                self.nodes[n].wanted = self.wanted;
            }
            for p in 0..self.nodes.len() {
                if self.chance(6) || self.now_ms - self.nodes[n].read_ms[&p] >= LATE_MS {
                    self.read(n, p);
                }
            }
            if self.chance(7) || self.now_ms - self.nodes[n].worked_ms >= LATE_MS {
                self.nodes[n].worked_ms = self.now_ms;
                self.netd(n);
            }
        }
        for a in 0..self.nodes.len() {
            for b in 0..a {
                let both_up = [a, b].iter().all(|n| self.nodes[*n].up.contains(&Wireguard));
                if both_up && self.chance(5) {
                    self.nodes[a].handshakes.insert(b, self.now_ms);
                    self.nodes[b].handshakes.insert(a, self.now_ms);
                }
            }
        }
    }

    /// netd is killed and starts. VXLAN and WireGuard are found in the kernel; plain routes count as up where they are
    /// wanted or stand in the node's own record, for what goes in the clear is taken up on no guess. False: they were
    /// withdrawn a moment ago and are still needed, which such a start forgets.
    fn restart(&mut self, n: usize) -> bool {
        let node = &mut self.nodes[n];
        let sure = |kind: &BackendKind| {
            *kind != Native || node.offers.contains(kind) || node.wanted.kinds().contains(kind)
        };
        if !node.up.iter().all(sure) {
            return false;
        }
        (node.paths, node.says) = (None, None);
        true
    }

    fn netd(&mut self, n: usize) {
        let node = &self.nodes[n];
        let peer = |p: usize| {
            let (up, sends) = node.read[&p].clone();
            let up: Vec<BackendKind> = up.into_iter().collect();
            PathPeer { sends, ..peer(p, &up, node.handshakes.get(&p).copied()) }
        };
        let peers = (0..self.nodes.len()).filter(|p| *p != n).map(peer).collect();
        let up: Vec<BackendKind> = node.up.iter().copied().collect();
        let (now_ms, uptime_ms) = (self.now_ms, self.now_ms - UPTIME_BEHIND_MS);
        let input = PathsInput { uptime_ms, ..input(node.wanted, &up, peers) };
        let plan = self.nodes[n].paths.get_or_insert_with(|| Paths::new(uptime_ms)).step(&input, now_ms);
        let node = &mut self.nodes[n];
        // Taken back before the routes move, said after.
        node.says = node.says.filter(|said| Some(*said) == plan.sends);
        let routes =
            plan.peers.iter().map(|(peer, choice)| (peer.as_u128().try_into().unwrap(), choice.path));
        node.routes = routes.filter_map(|(peer, path)| Some((peer, path?))).collect();
        self.check();
        let node = &mut self.nodes[n];
        if !plan.keep.contains(&Wireguard) {
            node.handshakes.clear();
        }
        (node.up, node.offers, node.says) = (plan.keep, plan.up, plan.sends);
        self.check();
    }

    /// Everybody reaches everybody: what is sent is taken by a device that is up.
    fn check(&self) {
        for (n, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.routes.is_empty()) {
            for (p, other) in self.nodes.iter().enumerate().filter(|(p, _)| *p != n) {
                let kind = match node.routes.get(&p) {
                    Some(Path::Native) => Native,
                    Some(Path::Vxlan) => Vxlan,
                    Some(Path::Wireguard { .. }) => Wireguard,
                    None => panic!("{n} has no path to {p}: {node:#?}"),
                };
                assert!(
                    node.up.contains(&kind) && other.up.contains(&kind),
                    "{n} to {p} by {kind}: {other:#?}"
                );
            }
        }
    }
}

#[test]
fn a_netd_that_starts_in_the_middle_of_a_change_goes_on_with_both_ways() {
    for (old, new) in [(Overlay::Native, Overlay::Wireguard), (Overlay::Wireguard, Overlay::Vxlan)] {
        for second in 0..15 {
            let mut cluster = Cluster::new(3, 1 + second);
            cluster.wanted = old;
            (0..120).for_each(|_| cluster.pass());
            cluster.wanted = new;
            (0..second).for_each(|_| cluster.pass());
            for n in 0..3 {
                while !cluster.restart(n) {
                    cluster.pass();
                }
                cluster.pass();
            }
            // `pass` itself sees to it that nobody sends where nobody listens.
            (0..180).for_each(|_| cluster.pass());
            assert!(cluster.nodes.iter().all(|node| node.up == new.kinds() && node.says == Some(new)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Wishes that change in any order, far enough apart that all hear of them, netds that are killed, records that come
    /// late: nobody sends where nobody listens, and in the end only what is wanted is up.
    #[test]
    fn changes_lose_nobody(
        seed in 1..u64::MAX,
        nodes in 2..6_usize,
        changes in prop::collection::vec((12..90_u64, 0..4_usize, 0..12_usize), 1..8),
    ) {
        let mut cluster = Cluster::new(nodes, seed);
        for (seconds, wanted, killed) in changes {
            cluster.wanted = [Overlay::Auto, Overlay::Native, Overlay::Vxlan, Overlay::Wireguard][wanted];
            let mut waits = killed < nodes;
            for second in 0..seconds {
                if waits && second >= seconds / 3 {
                    waits = !cluster.restart(killed);
                }
                cluster.pass();
            }
        }
        for _ in 0..180 {
            cluster.pass();
        }
        for node in &cluster.nodes {
            prop_assert_eq!(&node.up, &cluster.wanted.kinds());
            prop_assert_eq!(node.says, Some(cluster.wanted));
        }
    }
}
