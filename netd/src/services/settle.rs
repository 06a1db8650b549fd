// SPDX-License-Identifier: Apache-2.0
//! What the maps know of connected sockets, held against the kernel's own list. The programs see each socket's end, but for those that
//! end while maps are replaced by ones of another size: an entry would stay, and its backend be thought busier than it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use ebpf_abi::{PROTO_TCP, PROTO_UDP};
use ebpf_loader::{LoadLook, ServiceSocket};
use netd_host::{HostError, Netns, SockDiag, Transport};

use crate::node::{Node, lock};

/// After the start, when what an earlier netd has begun is finished.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Nothing but a restart leaves anything behind.
const EVERY: Duration = Duration::from_secs(3_600);
/// A socket is in the maps before the kernel lists it, by the time that connect(2) takes.
const LISTED_AFTER_SECS: u32 = 60;

/// Looks; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut rest = FIRST_AFTER;
    loop {
        tokio::time::sleep(rest).await;
        if lock(&node.datapath).is_migrating() {
            rest = FIRST_AFTER;
            continue;
        }
        rest = EVERY;
        match settle(&node).await {
            Ok((0, 0)) => {}
            Ok((sockets, counts)) => {
                tracing::info!(sockets, counts, "closed sockets were still in the maps; forgotten");
            }
            Err(error) => tracing::debug!("closed sockets may still be in the maps: {error:#}"),
        }
    }
}

async fn settle(node: &Node) -> Result<(usize, usize)> {
    let now = ebpf_loader::monotonic_secs()?;
    let known = tokio::task::block_in_place(|| lock(&node.datapath).sockets_where(|_, _| true))?;
    let mut by_netns: BTreeMap<Option<PathBuf>, BTreeMap<u64, u32>> = BTreeMap::new();
    let is_listed = |socket: &&ServiceSocket| {
        let age_secs = now.saturating_sub(socket.since_secs);
        age_secs > LISTED_AFTER_SECS && [PROTO_TCP, PROTO_UDP].contains(&socket.proto)
    };
    for socket in known.iter().filter(is_listed) {
        let place = match socket.netns {
            Some(cookie) if cookie == node.netns_cookie => None,
            // One that netd has not made is let be.
            Some(cookie) => match lock(&node.netnses).path(cookie) {
                Some(path) => Some(path),
                None => continue,
            },
            None => continue,
        };
        by_netns.entry(place).or_default().insert(socket.cookie, socket.since_secs);
    }
    let mut closed = BTreeMap::new();
    for (place, mut cookies) in by_netns {
        match open(place).await {
            Ok(open) => {
                cookies.retain(|cookie, _| !open.contains(cookie));
                closed.append(&mut cookies);
            }
            // The next look finds them, or their netns is gone.
            Err(error) => tracing::debug!(%error, "sockets were not listed"),
        }
    }
    tokio::task::block_in_place(|| {
        let forgotten = lock(&node.datapath).forget_sockets(&closed)?;
        let (first, second) = (look(node)?, look(node)?);
        Ok((forgotten, lock(&node.datapath).correct_loads(&first, &second)?))
    })
}

/// Step by step, for others wait for the maps.
fn look(node: &Node) -> Result<LoadLook> {
    let mut look = LoadLook::default();
    while !lock(&node.datapath).look_at_loads(&mut look)? {}
    Ok(look)
}

/// Cookies of the sockets in a netns on which a program may still wait for its peer.
async fn open(place: Option<PathBuf>) -> Result<BTreeSet<u64>, HostError> {
    let sockets = match place {
        None => SockDiag::open()?,
        Some(path) => SockDiag::open_in(&Netns::open(&path)?)?,
    };
    let mut cookies = BTreeSet::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        cookies.extend(sockets.list(transport, None).await?.into_iter().map(|socket| socket.cookie));
    }
    Ok(cookies)
}
