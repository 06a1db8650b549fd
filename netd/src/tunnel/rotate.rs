// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/keys/rotate`.

use std::sync::Arc;
use std::time::Duration;

use netd_api::{ApiError, KeyRotateReply, KeyRotateRequest};
use tokio::sync::watch;

use crate::node::Node;

/// For two rounds: in each of them a device that does not answer is waited for, some 3 s.
const ROUND_WAIT: Duration = Duration::from_secs(8);

/// For two rounds with devices that answer.
const LOOK_WAIT: Duration = Duration::from_secs(1);

/// Asks for a new key and tells how far the peers are with it.
pub(crate) async fn rotate(node: &Arc<Node>, request: &KeyRotateRequest) -> Result<KeyRotateReply, ApiError> {
    looked(node).await?;
    if node.tunnel.state.load().generations.is_empty() {
        return Err(ApiError::invalid(
            "this node has no WireGuard keys: the cluster's overlay is another (`weft config show`)",
        ));
    }
    if !request.only_look {
        let mut rounds = node.tunnel.rounds.subscribe();
        // Whether the devices live is looked at before: a key that cannot come into use is of no use.
        two_rounds(node, &mut rounds).await?;
        let state = node.tunnel.state.load();
        if !state.answers {
            return Err(ApiError::conflict(dead(&state.errors)));
        }
        drop(state);
        node.tunnel.ask_to_rotate();
        two_rounds(node, &mut rounds).await?;
        if let Some(refused) = node.tunnel.refused.load_full() {
            return Err(ApiError::conflict(refused.to_string()));
        }
    }
    Ok(reply(node))
}

/// Waits until a netd that has just started knows its keys and devices.
async fn looked(node: &Node) -> Result<(), ApiError> {
    let mut rounds = node.tunnel.rounds.subscribe();
    let done = async {
        while !node.tunnel.state.load().looked {
            if rounds.changed().await.is_err() {
                return;
            }
        }
    };
    let done = tokio::time::timeout(ROUND_WAIT, done).await;
    done.map_err(|_| ApiError::retry("netd knows nothing of the cluster yet (see `weft status`)"))
}

/// Waits for a round that began after now: one may be under way.
async fn two_rounds(node: &Node, rounds: &mut watch::Receiver<u64>) -> Result<(), ApiError> {
    let wanted = *rounds.borrow_and_update() + 2;
    let done = tokio::time::timeout(ROUND_WAIT, after(node, rounds, wanted)).await;
    done.map_err(|_| ApiError::retry("the WireGuard devices do not answer (see `weft status`)"))
}

/// Looks at the devices now, for whoever shows what they say; for a while only, as one that does not answer is known then.
pub(crate) async fn look(node: &Node) {
    let mut rounds = node.tunnel.rounds.subscribe();
    let wanted = *rounds.borrow_and_update() + 2;
    let _ = tokio::time::timeout(LOOK_WAIT, after(node, &mut rounds, wanted)).await;
}

/// Until so many rounds were made.
async fn after(node: &Node, rounds: &mut watch::Receiver<u64>, wanted: u64) {
    while *rounds.borrow_and_update() < wanted {
        node.tunnel.wake.notify_one();
        if rounds.changed().await.is_err() {
            return;
        }
    }
}

fn dead(errors: &[String]) -> String {
    format!(
        "WireGuard does not run on this node, so no new key is made: {}; see `weft doctor`",
        errors.join("; ")
    )
}

fn reply(node: &Node) -> KeyRotateReply {
    let (state, view) = (node.tunnel.state.load(), node.view.load());
    let generation = state.generations.last().copied().unwrap_or_default();
    let mut waiting_for: Vec<String> = state
        .plan
        .peers
        .iter()
        .filter(|(_, plan)| plan.path != Some(generation))
        .map(|(uuid, plan)| {
            let name = view.nodes.get(uuid).map_or_else(|| uuid.to_string(), |record| record.name.clone());
            let away =
                if view.alive.contains(uuid) { "" } else { " (its lease is gone: is netd running there?)" };
            match plan.path {
                Some(older) => format!("{name} is still reached with keys of generation {older}{away}"),
                None => format!("{name} has no key in common with this node{away}"),
            }
        })
        .collect();
    let only_new = state.generations.len() == 1;
    if waiting_for.is_empty() && !only_new {
        waiting_for
            .push("the older key stays for some seconds, for packets that are on their way".to_owned());
    }
    KeyRotateReply { generation, done: only_new && waiting_for.is_empty(), waiting_for }
}
