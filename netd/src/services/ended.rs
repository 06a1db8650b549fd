// SPDX-License-Identifier: Apache-2.0
//! Connections to backends that are gone. A socket that came through a service is destroyed, in whatever netns it is, so that
//! its program hears of it at once; one that was opened to the same backend directly lives. Datagrams only have to choose anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Result;
use ebpf_abi::{PROTO_TCP, PROTO_UDP};
use ebpf_loader::{Datapath, Forget, ServiceSocket};
use lb::{Compiler, GRACE_MS, Standing};
use netd_host::{Destination, Netns, SockDiag, Transport};

use super::ServiceSync;
use crate::node::{Node, lock, monotonic_ms};

/// Looks for them, twice: when the maps have changed, and when no program can be at work any more that had read them before.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// (frontend, backend) to look for again, with the time.
    again: BTreeMap<(u32, u32), u64>,
    /// The kernel cannot destroy sockets: said once.
    unable: bool,
}

/// What is to be done.
struct Found {
    sockets: Vec<ServiceSocket>,
    /// Whose connections end, those of the packet path with the next packet: it reaches another backend, which knows nothing of it.
    connections: BTreeSet<(u32, u32)>,
    /// Whose datagrams choose anew.
    datagrams: BTreeSet<(u32, u32)>,
    /// The same, and nobody waits for their answers any more.
    over: BTreeSet<(u32, u32)>,
}

impl Ended {
    /// When it is due by itself.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        self.again.values().min().copied()
    }

    /// Ends what has to end.
    pub(crate) async fn pass(&mut self, node: &Node) -> Result<()> {
        let now = monotonic_ms();
        let found = tokio::task::block_in_place(|| {
            let mut services = lock(&node.services);
            let left = services.take_left();
            let due: BTreeSet<(u32, u32)> =
                self.again.extract_if(.., |_, at| *at <= now).map(|(pair, _)| pair).collect();
            self.again.extend(left.pairs.iter().map(|pair| (*pair, now + GRACE_MS)));
            let mut pairs: BTreeSet<(u32, u32)> = left.pairs.into_iter().chain(due.iter().copied()).collect();
            let datapath = lock(&node.datapath);
            if left.all {
                pairs.extend(remembered(&datapath)?);
            }
            if pairs.is_empty() {
                return Ok(None);
            }
            find(&services, &datapath, &pairs, &due).map(Some)
        })?;
        let Some(found) = found else { return Ok(()) };
        {
            let mut datapath = lock(&node.datapath);
            tokio::task::block_in_place(|| {
                datapath.forget_flows(PROTO_TCP, &found.connections, Forget::All)?;
                datapath.forget_flows(PROTO_UDP, &found.datagrams, Forget::Questions)?;
                datapath.forget_flows(PROTO_UDP, &found.over, Forget::All)
            })?;
        }
        let mut by_netns: BTreeMap<Option<PathBuf>, BTreeMap<u64, Destination>> = BTreeMap::new();
        for socket in &found.sockets {
            let Some(peer) = socket.backend else { continue };
            let transport = if socket.proto == PROTO_TCP { Transport::Tcp } else { Transport::Udp };
            let destination = Destination { transport, peer };
            for place in places(node, socket) {
                by_netns.entry(place).or_default().insert(socket.cookie, destination);
            }
        }
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
                // A netns that has gone took its sockets along.
                Err(error) => tracing::debug!(%error, netns = ?place, "sockets were not destroyed"),
            }
        }
        Ok(())
    }
}

/// Every frontend and backend that a connection goes by.
fn remembered(datapath: &Datapath) -> Result<BTreeSet<(u32, u32)>> {
    let sockets = datapath.sockets_where(|_, _| true)?;
    let sockets = sockets.iter().map(|socket| (socket.service_id, socket.backend_id));
    let now = ebpf_loader::monotonic_secs()?;
    // What is only kept apart from services' flows has no service.
    let flows = datapath.tracked_flows(now, usize::MAX, |_, value| value.service_id != 0)?;
    let flows = flows.iter().map(|flow| (flow.value.service_id, flow.value.backend_id));
    Ok(sockets.chain(flows).collect())
}

fn find(
    services: &ServiceSync,
    datapath: &Datapath,
    pairs: &BTreeSet<(u32, u32)>,
    due: &BTreeSet<(u32, u32)>,
) -> Result<Found> {
    let compiler = services.compiler();
    let sockets = datapath.sockets_to(pairs)?;
    let sockets = sockets.into_iter().filter(|socket| {
        is_ended(compiler.standing(socket.service_id, socket.backend_id), socket.proto != PROTO_TCP)
    });
    let datagrams: BTreeSet<(u32, u32)> =
        pairs.iter().copied().filter(|pair| is_ended(standing(compiler, *pair), true)).collect();
    let connections =
        pairs.iter().copied().filter(|pair| is_ended(standing(compiler, *pair), false)).collect();
    let (over, datagrams) = datagrams.into_iter().partition(|pair| due.contains(pair));
    Ok(Found { sockets: sockets.collect(), connections, datagrams, over })
}

fn standing(compiler: &Compiler, (service_id, backend_id): (u32, u32)) -> Standing {
    compiler.standing(service_id, backend_id)
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
}
