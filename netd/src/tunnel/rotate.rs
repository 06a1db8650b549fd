// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/keys/rotate`.

use std::sync::Arc;
use std::time::Duration;

use netd_api::{ApiError, KeyRotateReply, KeyRotateRequest};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::state::Tunnel;
use crate::node::Node;

/// For a whole request: less than its client waits ([`netd_api::DEFAULT_TIMEOUT`]). A device that does not answer is waited
/// for in each round, some 3 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// For two rounds with devices that answer, on a machine that has other work, too.
const LOOK_WAIT: Duration = Duration::from_secs(3);

/// Asks for a new key and tells how far the peers are with it.
pub(crate) async fn rotate(node: &Arc<Node>, request: &KeyRotateRequest) -> Result<KeyRotateReply, ApiError> {
    ask(&node.tunnel, request.only_look, Instant::now() + ANSWER_WITHIN).await?;
    Ok(reply(node))
}

/// Looks at the devices now, for whoever shows what they say; for a while only, as one that does not answer is known then.
pub(crate) async fn look(node: &Node) {
    let mut rounds = node.tunnel.rounds.subscribe();
    let wanted = *rounds.borrow_and_update() + 2;
    let _ = timeout(LOOK_WAIT, after(&node.tunnel, &mut rounds, wanted)).await;
}

/// For the operator: why there is none.
pub(super) fn no_new_key(generation: u64, why: &str) -> String {
    let device = netd_plan::wireguard_device(generation);
    format!(
        "no new key is made: {device} would not take it (generation {generation}): {why}; see `weft doctor`"
    )
}

async fn ask(tunnel: &Tunnel, only_look: bool, deadline: Instant) -> Result<(), ApiError> {
    looked(tunnel, deadline).await?;
    if tunnel.state.load().generations.is_empty() {
        return Err(ApiError::invalid(
            "this node has no WireGuard keys: the cluster's overlay is another (`weft config show`)",
        ));
    }
    if only_look {
        return Ok(());
    }
    let mut rounds = tunnel.rounds.subscribe();
    // Whether the new key's device lives is looked at before: a key that cannot come into use is of no use.
    if !two_rounds(tunnel, &mut rounds, deadline).await {
        return Err(late(tunnel, "no new key is made"));
    }
    let state = tunnel.state.load_full();
    let next = state.generations.last().map_or(1, |newest| newest.saturating_add(1));
    if let Some(why) = state.dead(next) {
        return Err(ApiError::conflict(no_new_key(next, why)));
    }
    tunnel.ask_to_rotate();
    if !two_rounds(tunnel, &mut rounds, deadline).await {
        // Nobody waits for it any more: it is not to come as a surprise.
        let withdrawn = tunnel.take_rotate();
        return Err(late(
            tunnel,
            if withdrawn { "no new key is made" } else { "a new key may be on its way" },
        ));
    }
    match tunnel.refused.load_full() {
        Some(refused) => Err(ApiError::conflict(refused.to_string())),
        None => Ok(()),
    }
}

/// Waits until a netd that has just started knows its keys and devices.
async fn looked(tunnel: &Tunnel, deadline: Instant) -> Result<(), ApiError> {
    let mut rounds = tunnel.rounds.subscribe();
    let done = async {
        while !tunnel.state.load().looked {
            if rounds.changed().await.is_err() {
                return;
            }
        }
    };
    let done = timeout_at(deadline, done).await;
    done.map_err(|_| ApiError::retry("netd knows nothing of the cluster yet (see `weft status`)"))
}

/// Waits for a round that began after now: one may be under way. False: not before the deadline.
async fn two_rounds(tunnel: &Tunnel, rounds: &mut watch::Receiver<u64>, deadline: Instant) -> bool {
    let wanted = *rounds.borrow_and_update() + 2;
    timeout_at(deadline, after(tunnel, rounds, wanted)).await.is_ok()
}

/// Until so many rounds were made.
async fn after(tunnel: &Tunnel, rounds: &mut watch::Receiver<u64>, wanted: u64) {
    while *rounds.borrow_and_update() < wanted {
        tunnel.wake.notify_one();
        if rounds.changed().await.is_err() {
            return;
        }
    }
}

fn late(tunnel: &Tunnel, so: &str) -> ApiError {
    let errors = tunnel.state.load().errors.join("; ");
    let why = if errors.is_empty() { String::new() } else { format!(" ({errors})") };
    ApiError::retry(format!(
        "the WireGuard devices take too long to answer{why}, and {so}: see `weft status`"
    ))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netd_wireguard::DeviceKind;

    use super::super::state::TunnelState;
    use super::*;

    /// Long enough for what needs no time.
    const SOON: Duration = Duration::from_secs(15);

    fn tunnel(dead: [Option<&str>; 2]) -> Arc<Tunnel> {
        let tunnel = Tunnel::new(DeviceKind::User);
        let dead = dead.map(|why| why.map(str::to_owned));
        let generations = BTreeSet::from([4]);
        let state = TunnelState { looked: true, generations, answers: true, dead, ..TunnelState::default() };
        tunnel.state.store(Arc::new(state));
        Arc::new(tunnel)
    }

    /// Asks while the task makes so many rounds; gives the answer and whether a key was asked for.
    async fn asked(tunnel: &Arc<Tunnel>, rounds: usize, within: Duration) -> (Result<(), ApiError>, bool) {
        let keeper = Arc::clone(tunnel);
        let keeper = tokio::spawn(async move {
            let mut rotated = false;
            for _ in 0..rounds {
                keeper.wake.notified().await;
                rotated |= keeper.take_rotate();
                keeper.rounds.send_modify(|rounds| *rounds += 1);
            }
            rotated
        });
        let answer = timeout(SOON, ask(tunnel, false, Instant::now() + within)).await.expect("one deadline");
        let is_done = keeper.is_finished() || answer.is_ok();
        let rotated = if is_done {
            keeper.await.unwrap()
        } else {
            keeper.abort();
            false
        };
        (answer, rotated)
    }

    #[tokio::test]
    async fn a_key_is_asked_for_where_its_device_answers() {
        let (answer, rotated) = asked(&tunnel([Some("no answer"), None]), 4, SOON).await;
        assert!(answer.is_ok() && rotated, "{answer:?}: the dead device has only the key that is to go");
    }

    #[tokio::test]
    async fn no_key_is_asked_for_where_its_device_does_not_answer() {
        let (answer, rotated) = asked(&tunnel([None, Some("no answer")]), 2, SOON).await;
        let message = answer.unwrap_err().message;
        assert!(message.contains("generation 5") && message.contains("weft.wg1"), "{message}");
        assert!(!rotated);
    }

    #[tokio::test]
    async fn a_request_has_one_deadline_and_is_withdrawn_with_it() {
        assert!(ANSWER_WITHIN + Duration::from_secs(1) < netd_api::DEFAULT_TIMEOUT);
        let within = Duration::from_secs(1);
        for rounds in [0, 2] {
            let tunnel = tunnel([None, None]);
            let (answer, rotated) = asked(&tunnel, rounds, within).await;
            let message = answer.unwrap_err().message;
            assert!(message.contains("no new key is made") && !rotated, "{message}");
            assert!(!tunnel.take_rotate(), "nothing is left to be done");
        }
        let (answer, rotated) = asked(&tunnel([None, None]), 3, within).await;
        assert!(answer.unwrap_err().message.contains("may be on its way") && rotated);
    }
}
