// SPDX-License-Identifier: Apache-2.0
//! Connections to backends that are gone. A socket that came through a service is destroyed, in whatever netns it is, so that
//! its program hears of it at once; one that was opened to the same backend directly lives. Datagrams only have to choose anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use ebpf_abi::PROTO_TCP;
use ebpf_loader::{Datapath, Parting, Search, ServiceSocket};
use lb::{GRACE_MS, Standing};
use netd_host::{Destination, Netns, SockDiag, Transport};

use super::sync::Left;
use crate::node::{Node, lock, monotonic_ms};

/// After that many looks the kernel's refusal is final: the connections end by time-outs.
const LOOKS_MAX: u8 = 5;
/// Between two steps of the walk through all connections, for who waits for the maps: a lock that is taken again at once is
/// hard to get for others.
const STEP_REST: Duration = Duration::from_micros(200);

/// Looks for them, twice: when the maps have changed, and when no program can be at work any more that had read them before.
/// Again where something failed.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// What to look for again.
    again: Looks,
    /// The kernel cannot destroy sockets: said once.
    unable: bool,
}

/// By (frontend, backend).
type Looks = BTreeMap<(u32, u32), Look>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    /// When it is due.
    at: u64,
    /// Where the connections go on the wire: by the time of the second look the maps do not know it any more.
    peer: Option<SocketAddr>,
    /// How often it has been looked for.
    looks: u8,
}

impl Ended {
    /// When it is due by itself.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        self.again.values().map(|look| look.at).min()
    }

    /// There is something to look for now.
    pub(crate) fn is_due(&self, node: &Node) -> bool {
        self.due_ms().is_some_and(|due| due <= monotonic_ms()) || lock(&node.services).has_left()
    }

    /// Ends what has to end. One walk through all connections for everything, in steps: nobody waits for the maps meanwhile.
    pub(crate) async fn pass(&mut self, node: &Node) -> Result<()> {
        let outcome = self.end(node).await;
        lock(&node.services).searched();
        outcome
    }

    async fn end(&mut self, node: &Node) -> Result<()> {
        let now = monotonic_ms();
        let Some((looks, parting)) = tokio::task::block_in_place(|| self.look(node, now))? else {
            return Ok(());
        };
        let mut search = Search::new(parting);
        let searched = tokio::task::block_in_place(|| walk(node, &mut search));
        if searched.is_err() {
            self.fail(&looks, looks.keys().copied(), now);
        }
        let failed = self.destroy(node, &looks, search.sockets()).await;
        self.fail(&looks, failed.into_iter(), now);
        searched
    }

    /// What is to be looked for now, and what of it has to end.
    fn look(&mut self, node: &Node, now: u64) -> Result<Option<(Looks, Parting)>> {
        let mut services = lock(&node.services);
        let mut left = services.take_left();
        if left.all {
            match remembered(&lock(&node.datapath)) {
                Ok(pairs) => {
                    for pair in pairs {
                        left.pairs.entry(pair).or_insert_with(|| services.destination(pair.1));
                    }
                }
                Err(error) => {
                    services.give_back(left);
                    return Err(error);
                }
            }
        }
        let looks = due(&self.again, &left, now);
        if looks.is_empty() {
            return Ok(None);
        }
        let standing = |pair: (u32, u32)| services.compiler().standing(pair.0, pair.1);
        self.done(&looks, now, standing);
        let parting = parting(&looks, standing);
        Ok(Some((looks, parting)))
    }

    /// Those that were looked for once are looked for again, unless nothing of them has to end.
    fn done(&mut self, looks: &Looks, now: u64, standing: impl Fn((u32, u32)) -> Standing) {
        for (pair, look) in looks {
            if look.looks == 0 && standing(*pair) != Standing::Current {
                self.again.insert(*pair, Look { at: now + GRACE_MS, looks: 1, ..*look });
            } else {
                self.again.remove(pair);
            }
        }
    }

    /// Of these something failed: they are looked for again, so many times.
    fn fail(&mut self, looks: &Looks, pairs: impl Iterator<Item = (u32, u32)>, now: u64) {
        for pair in pairs {
            let Some(look) = looks.get(&pair).filter(|look| look.looks + 1 < LOOKS_MAX) else { continue };
            self.again.insert(pair, Look { at: now + GRACE_MS, looks: look.looks + 1, ..*look });
        }
    }

    /// Returns the pairs of which some could not be destroyed.
    async fn destroy(
        &mut self,
        node: &Node,
        looks: &Looks,
        sockets: &[ServiceSocket],
    ) -> BTreeSet<(u32, u32)> {
        let mut by_netns: BTreeMap<Option<PathBuf>, BTreeMap<u64, Destination>> = BTreeMap::new();
        let mut pairs: BTreeMap<Option<PathBuf>, BTreeSet<(u32, u32)>> = BTreeMap::new();
        let is_back = |socket: &&ServiceSocket| {
            let standing = lock(&node.services).compiler().standing(socket.service_id, socket.backend_id);
            !is_ended(standing, socket.proto != PROTO_TCP)
        };
        // The walk takes its time.
        for socket in sockets.iter().filter(|socket| !is_back(socket)) {
            let Some(destination) = destination(looks, socket) else { continue };
            for place in places(node, socket) {
                pairs.entry(place.clone()).or_default().insert((socket.service_id, socket.backend_id));
                by_netns.entry(place).or_default().insert(socket.cookie, destination);
            }
        }
        let mut failed = BTreeSet::new();
        for (place, doomed) in by_netns {
            match destroy(place.as_deref(), &doomed).await {
                Ok(0) => {}
                Ok(count) => {
                    node.counters.sockets_destroyed.inc_by(count as u64);
                    tracing::debug!(count, netns = ?place, "connections to backends that are gone were ended");
                }
                Err(netd_host::HostError::NotSupported { what, needs }) => {
                    if !std::mem::replace(&mut self.unable, true) {
                        tracing::warn!(
                            "{what}: this kernel cannot ({needs}); connections to backends that are gone end by time-outs"
                        );
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, netns = ?place, "sockets were not destroyed");
                    // A netns that has gone took its sockets along.
                    if place.as_ref().is_none_or(|path| path.exists()) {
                        failed.extend(pairs.remove(&place).unwrap_or_default());
                    }
                }
            }
        }
        failed
    }
}

/// What is new, and what was to be looked for again by now. Who left again begins anew.
fn due(again: &Looks, left: &Left, now: u64) -> Looks {
    let mut looks: Looks =
        again.iter().filter(|(_, look)| look.at <= now).map(|(pair, look)| (*pair, *look)).collect();
    for (pair, peer) in &left.pairs {
        let known = again.get(pair).and_then(|look| look.peer);
        looks.insert(*pair, Look { at: now, peer: peer.or(known), looks: 0 });
    }
    looks
}

/// What a socket goes to on the wire. What the maps say of its backend now may be nothing, or another one.
fn destination(looks: &Looks, socket: &ServiceSocket) -> Option<Destination> {
    let noted = looks.get(&(socket.service_id, socket.backend_id)).and_then(|look| look.peer);
    let transport = if socket.proto == PROTO_TCP { Transport::Tcp } else { Transport::Udp };
    Some(Destination { transport, peer: noted.or(socket.backend)? })
}

/// Every frontend and backend that a connection goes by.
pub(super) fn remembered(datapath: &Datapath) -> Result<BTreeSet<(u32, u32)>> {
    let sockets = datapath.sockets_where(|_, _| true)?;
    let sockets = sockets.iter().map(|socket| (socket.service_id, socket.backend_id));
    let now = ebpf_loader::monotonic_secs()?;
    // What is only kept apart from services' flows has no service.
    let flows = datapath.tracked_flows(now, usize::MAX, |_, value| value.service_id != 0)?;
    let flows = flows.iter().map(|flow| (flow.value.service_id, flow.value.backend_id));
    Ok(sockets.chain(flows).collect())
}

/// What has to end.
fn parting(looks: &Looks, standing: impl Fn((u32, u32)) -> Standing) -> Parting {
    let mut parting = Parting::default();
    for (pair, look) in looks {
        let standing = standing(*pair);
        if is_ended(standing, false) {
            parting.connections.insert(*pair);
        }
        if is_ended(standing, true) {
            // Nobody waits for answers any more when it is looked for again.
            let of = if look.looks > 0 { &mut parting.answered } else { &mut parting.datagrams };
            of.insert(*pair);
        }
    }
    parting
}

/// The locks are free between the steps. Who is back meanwhile is not looked for any more: flows that began since are the same by
/// what the maps say.
fn walk(node: &Node, search: &mut Search) -> Result<()> {
    let mut seen = None;
    loop {
        {
            // In this order, and held together: nothing comes back between the look and the step.
            let services = lock(&node.services);
            let mut datapath = lock(&node.datapath);
            if seen.replace(services.passes()) != Some(services.passes()) {
                search.retain(|pair, datagrams| {
                    is_ended(services.compiler().standing(pair.0, pair.1), datagrams)
                });
            }
            if datapath.search(search)? {
                return Ok(());
            }
        }
        std::thread::sleep(STEP_REST);
    }
}

/// A connection may finish on a backend that terminates or is not ready, and after its service is gone. Datagrams are no
/// connection: they go to whoever answers.
fn is_ended(standing: Standing, datagrams: bool) -> bool {
    match standing {
        Standing::Current => false,
        Standing::Removed => true,
        Standing::Draining | Standing::ServiceGone | Standing::Unready => datagrams,
    }
}

/// Where the socket may be: `None` is the node's own netns. One that an older version noted without its netns is looked for
/// everywhere.
fn places(node: &Node, socket: &ServiceSocket) -> Vec<Option<PathBuf>> {
    let known = lock(&node.netnses);
    match socket.netns {
        Some(cookie) if cookie == node.netns_cookie => vec![None],
        Some(cookie) => known.path(cookie).map(Some).into_iter().collect(),
        None => [None].into_iter().chain(known.paths().into_iter().map(Some)).collect(),
    }
}

async fn destroy(
    place: Option<&std::path::Path>,
    doomed: &BTreeMap<u64, Destination>,
) -> Result<usize, netd_host::HostError> {
    let sockets = match place {
        None => SockDiag::open()?,
        Some(path) => SockDiag::open_in(&Netns::open(path)?)?,
    };
    sockets.destroy_all(doomed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_outlives_its_backend_s_readiness_and_datagrams_do_not() {
        for (standing, tcp, udp) in [
            (Standing::Current, false, false),
            (Standing::Draining, false, true),
            (Standing::Unready, false, true),
            (Standing::ServiceGone, false, true),
            (Standing::Removed, true, true),
        ] {
            assert_eq!((is_ended(standing, false), is_ended(standing, true)), (tcp, udp), "{standing:?}");
        }
    }

    fn socket(backend: Option<SocketAddr>) -> ServiceSocket {
        ServiceSocket {
            cookie: 9,
            proto: PROTO_TCP,
            frontend: "10.96.0.1:80".parse().unwrap(),
            service_id: 1,
            backend_id: 2,
            backend,
            netns: None,
            since_secs: 0,
        }
    }

    #[test]
    fn the_second_look_knows_where_sockets_go_when_the_maps_do_not() {
        let peer: SocketAddr = "10.32.0.7:8080".parse().unwrap();
        let left = Left { pairs: [((1, 2), Some(peer)), ((1, 3), None)].into(), ..Left::default() };
        let mut ended = Ended::default();
        let looks = due(&ended.again, &left, 50);
        ended.done(&looks, 50, |pair| if pair == (1, 2) { Standing::Removed } else { Standing::Current });
        assert_eq!(ended.due_ms(), Some(50 + GRACE_MS));
        assert!(due(&ended.again, &Left::default(), 49 + GRACE_MS).is_empty());
        let looks = due(&ended.again, &Left::default(), 50 + GRACE_MS);
        assert_eq!(looks.keys().collect::<Vec<_>>(), [&(1, 2)]);
        // The identifier is free by now, or means something else.
        for backend in [None, Some("10.32.0.9:80".parse().unwrap())] {
            assert_eq!(destination(&looks, &socket(backend)).map(|to| to.peer), Some(peer));
        }
        ended.done(&looks, 60 + GRACE_MS, |_| Standing::Removed);
        assert_eq!(ended.due_ms(), None, "twice is enough");
    }

    #[test]
    fn what_ends_goes_by_what_became_of_the_backend() {
        let pairs = [(1, 1), (1, 2), (1, 3)];
        let look = |looks| Look { at: 0, peer: None, looks };
        let standing = |pair| match pair {
            (1, 1) => Standing::Removed,
            (1, 2) => Standing::Draining,
            _ => Standing::Current,
        };
        let looks: Looks = pairs.into_iter().map(|pair| (pair, look(0))).collect();
        let first = parting(&looks, standing);
        assert_eq!(first.connections, [(1, 1)].into());
        assert_eq!((first.datagrams, first.answered), ([(1, 1), (1, 2)].into(), [].into()));
        let looks: Looks = pairs.into_iter().map(|pair| (pair, look(1))).collect();
        let second = parting(&looks, standing);
        assert_eq!((second.datagrams, second.answered), ([].into(), [(1, 1), (1, 2)].into()));
        assert!(parting(&looks, |_| Standing::Current).is_empty());
    }

    #[test]
    fn what_failed_is_tried_again_and_not_for_ever() {
        let left = Left { pairs: [((1, 2), None)].into(), ..Left::default() };
        let mut ended = Ended::default();
        let (mut now, mut looks) = (0, due(&BTreeMap::new(), &left, 0));
        let mut tries = 0;
        while !looks.is_empty() {
            tries += 1;
            ended.done(&looks, now, |_| Standing::Removed);
            ended.fail(&looks, [(1, 2)].into_iter(), now);
            now += GRACE_MS;
            looks = due(&ended.again, &Left::default(), now);
        }
        assert_eq!(tries, LOOKS_MAX);
    }
}
