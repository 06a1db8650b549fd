// SPDX-License-Identifier: Apache-2.0
//! Nodes answer each other's pods: where a node's own netd is away, the programs send its pods' questions, those to the node's
//! address as those to the cluster's, to servers of other nodes. Which ones is in the maps beforehand; that netd is away they
//! notice by its silence.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::desired::DNS_PORT;
use crate::node::{Node, lock};
use crate::view::View;

/// Several fit into the time after which netd counts as away ([`ebpf_abi::service::AGENT_SILENT_NS`]).
const BEAT_EVERY: Duration = Duration::from_millis(100);
/// Servers of other nodes that a node's pods may ask: with so many not all of them are away, and more only fill the maps.
const OTHERS_MAX: usize = 8;

/// Says that this node's server answers, as long as it can, and that others may ask it, once they can. After `stop` the server
/// ends, and whatever else netd has to do before its own end, nobody answers: others do from then on.
pub(crate) async fn keep(node: Arc<Node>, stop: CancellationToken) -> Result<()> {
    let heartbeat = lock(&node.datapath).heartbeat().context("cannot open the map of the heartbeat")?;
    let mut bound = node.dns_bound.subscribe();
    let mut beats = tokio::time::interval(BEAT_EVERY);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                if let Err(error) = heartbeat.end() {
                    tracing::debug!(%error, "other nodes' DNS servers are asked after a moment");
                }
                return std::future::pending().await;
            }
            changed = bound.changed() => {
                changed?;
                node.publish_wake.notify_one();
                continue;
            }
            _ = beats.tick() => {}
        }
        // One that does not know the names yet has nothing to say that another could not say better.
        if node.zone.load().is_none() {
            continue;
        }
        let beat = heartbeat.beat();
        if let Err(error) = &beat
            && !failed
        {
            tracing::warn!(%error, "pods of this node ask other nodes' DNS servers");
        }
        failed = beat.is_err();
    }
}

/// Where this node answers others: at its addresses in the overlay, which pods reach from everywhere.
pub(crate) fn addresses(overlays: &[IpAddr]) -> Vec<SocketAddr> {
    overlays.iter().map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect()
}

/// Servers of other nodes that live, as addresses: some of them where there are many, and each node has others.
pub(crate) fn servers(view: &View, own: Uuid) -> Vec<IpAddr> {
    let answers =
        |uuid: &Uuid| *uuid != own && view.alive.contains(uuid) && !view.tombstones.contains_key(uuid);
    let nodes = view.nodes.values().filter(|node| answers(&node.uuid) && !node.dns_serves.is_empty());
    // Rendezvous hashing: one node more or less moves one server.
    let by_rank: BTreeMap<(u64, Uuid), &Vec<IpAddr>> =
        nodes.map(|node| ((rank(own, node.uuid), node.uuid), &node.dns_serves)).collect();
    let mut chosen: Vec<IpAddr> = by_rank.into_values().take(OTHERS_MAX).flatten().copied().collect();
    chosen.sort_unstable();
    chosen
}

/// The same for the same two on all machines and in all versions (FNV-1a, 64 bits).
fn rank(own: Uuid, other: Uuid) -> u64 {
    let bytes = own.as_bytes().iter().chain(other.as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use netd_store::records::{NodeRecord, SCHEMA};

    use super::*;

    fn record(number: u8) -> NodeRecord {
        let value = serde_json::json!({
            "schema": SCHEMA, "uuid": Uuid::from_u128(number.into()), "name": format!("n{number}"),
            "underlay": "192.0.2.1", "dns_serves": [format!("10.244.{number}.1"), format!("fd00:10:244::{number}:1")],
        });
        serde_json::from_value(value).unwrap()
    }

    fn view(count: u8) -> View {
        let nodes: BTreeMap<Uuid, NodeRecord> =
            (1..=count).map(record).map(|record| (record.uuid, record)).collect();
        View { alive: nodes.keys().copied().collect(), nodes, ..View::default() }
    }

    #[test]
    fn other_nodes_that_live_and_answer_are_asked() {
        let own = Uuid::from_u128(1);
        let mut view = view(4);
        view.alive.remove(&Uuid::from_u128(2));
        view.nodes.get_mut(&Uuid::from_u128(3)).unwrap().dns_serves.clear();
        let expected: [IpAddr; 2] = ["10.244.4.1".parse().unwrap(), "fd00:10:244::4:1".parse().unwrap()];
        assert_eq!(servers(&view, own), expected);
        view.tombstones.insert(
            Uuid::from_u128(4),
            serde_json::from_value(
                serde_json::json!({"schema": SCHEMA, "uuid": Uuid::from_u128(4), "name": "n4", "at_ms": 1}),
            )
            .unwrap(),
        );
        assert!(servers(&view, own).is_empty());
    }

    #[test]
    fn of_many_each_node_asks_some_and_one_that_goes_moves_one() {
        let mut view = view(100);
        let of = |view: &View, own: u8| servers(view, Uuid::from_u128(own.into()));
        assert_eq!(of(&view, 1).len(), 2 * OTHERS_MAX);
        assert_ne!(of(&view, 1), of(&view, 2));
        let before = of(&view, 1);
        let IpAddr::V4(first) = before[0] else { panic!("{before:?}") };
        view.alive.remove(&Uuid::from_u128(first.octets()[2].into()));
        let after = of(&view, 1);
        assert_eq!(before.iter().filter(|ip| after.contains(ip)).count(), 2 * (OTHERS_MAX - 1));
    }
}
