// SPDX-License-Identifier: Apache-2.0
//! `weft node rm`: asks again and again, because a removal takes as long as the slowest node needs to let go.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use netd_api::{Client, ClientError, ErrorClass, NodeInfo, NodeRemoveReply, NodeRemoveRequest};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{explain, members_left};
use crate::args::NodeRmArgs;
use crate::output::{self, Answer, Shown};

/// Between two questions: short for a person, long for the store behind the answers.
const POLL: Duration = Duration::from_millis(500);
/// So many pods are told by name.
const PODS_NAMED: usize = 5;

pub(super) async fn remove(client: &Client, args: &NodeRmArgs) -> anyhow::Result<Shown> {
    if !args.yes
        && let Some(refused) = confirm(client, args).await?
    {
        return Ok(refused);
    }
    let request = NodeRemoveRequest { node: args.node.clone(), force: args.force };
    let deadline = Instant::now() + args.wait;
    // The first answer decides whether there is such a node; what fails after it may pass.
    let mut reply = client.node_remove(&request).await.map_err(explain)?;
    let mut told = BTreeSet::new();
    while !reply.done {
        for line in &reply.waiting_for {
            if told.insert(line.clone()) {
                output::progress(line);
            }
        }
        if Instant::now() >= deadline {
            break;
        }
        sleep(POLL.min(deadline.saturating_duration_since(Instant::now()))).await;
        match client.node_remove(&request).await {
            Ok(next) => reply = next,
            // Its record is the last thing to go: somebody else's question may have seen the end first.
            Err(error) if error.is_not_found() => reply.done = true,
            Err(error) if passing(&error) => reply.waiting_for = vec![error.to_string()],
            Err(error) => return Err(explain(error)),
        }
    }
    if reply.done {
        reply.waiting_for.clear();
    }
    Ok(Shown { ok: reply.done, ..Shown::new(text(&reply, args), &reply)? })
}

/// Asks where something would be lost; what to show instead of a removal where the answer is not yes.
async fn confirm(client: &Client, args: &NodeRmArgs) -> anyhow::Result<Option<Shown>> {
    let nodes = client.nodes().await.map_err(explain)?;
    let named = nodes.iter().filter(|node| node.name == args.node || node.uuid.to_string() == args.node);
    let mut open = named.filter(|node| !node.removing);
    // One that netd does not know either, or that was removed already: netd says so.
    let Some(node) = open.next() else { return Ok(None) };
    let pods = client.pods().await.map_err(explain)?;
    let pods: Vec<String> = pods
        .iter()
        .filter(|pod| pod.node_uuid == node.uuid)
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect();
    let members = members_left::in_blocks_of(node, &client.members().await.map_err(explain)?);
    if !node.alive && pods.is_empty() && members.is_empty() {
        return Ok(None);
    }
    let plan = plan(node, &pods, &members);
    let json = json!({ "name": node.name, "uuid": node.uuid, "done": false, "alive": node.alive, "pods": pods, "members": members });
    let note = match output::ask(&plan, "Remove it?") {
        Answer::Yes => return Ok(None),
        Answer::No => "Nothing was changed.",
        Answer::NobodyThere => "Nothing was changed: without a terminal add --yes.",
    };
    Ok(Some(Shown { ok: false, notes: vec![note.to_owned()], ..Shown::new(format!("{plan}\n"), &json)? }))
}

fn plan(node: &NodeInfo, pods: &[String], members: &[String]) -> String {
    let alive = if node.alive { "is alive" } else { "does not answer" };
    let has = match pods {
        [] => "no pods".to_owned(),
        [one] => format!("1 pod ({one})"),
        many if many.len() <= PODS_NAMED => format!("{} pods ({})", many.len(), many.join(", ")),
        many => format!("{} pods ({}, …)", many.len(), many[..PODS_NAMED].join(", ")),
    };
    let theirs = match members {
        [] => String::new(),
        some => format!(
            "\nThe addresses of {} lie in its blocks and are given to others, too: `weft member rm`, then `add` on a node that \
             stays.",
            members_left::named(some)
        ),
    };
    format!(
        "Node {} ({}) {alive} and has {has}.\nA removal is for good and cannot be called off: its pods reach no other node any \
         more, their addresses are given to others,\nand the node itself can come back only as a new one.{theirs}",
        node.name, node.uuid
    )
}

fn passing(error: &ClientError) -> bool {
    error.class() == ErrorClass::Retry
}

fn text(reply: &NodeRemoveReply, args: &NodeRmArgs) -> String {
    let NodeRemoveReply { name, uuid, .. } = reply;
    if reply.done {
        return format!("node {name} ({uuid}) removed, its blocks are free\n");
    }
    let mut text = format!("node {name} ({uuid}) is not removed yet after {:?}:\n", args.wait);
    for line in &reply.waiting_for {
        let _ = writeln!(text, "  - {line}");
    }
    text.push_str(
        "It gives no new addresses any more. The removal goes on without this command and cannot be called off; it is done \
         when\n`weft node ls` does not list the node. Repeat the command to wait for it",
    );
    // netd says so itself where it would help.
    let told = args.force || reply.waiting_for.iter().any(|line| line.contains("--force"));
    text.push_str(if told { ".\n" } else { "; with --force if the machine is off and stays off.\n" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(done: bool, waiting_for: &[&str]) -> NodeRemoveReply {
        NodeRemoveReply {
            name: "n3".into(),
            uuid: "6f1c1b4e-0000-4000-8000-000000000003".into(),
            done,
            waiting_for: waiting_for.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn an_unfinished_removal_says_what_is_waited_for_and_how_to_go_on() {
        let mut args =
            NodeRmArgs { node: "n3".into(), yes: true, force: false, wait: Duration::from_secs(60) };
        assert_eq!(
            text(&reply(false, &["n3 has not acknowledged", "n1 still has routes to it"]), &args),
            "node n3 (6f1c1b4e-0000-4000-8000-000000000003) is not removed yet after 60s:\n  \
             - n3 has not acknowledged\n  - n1 still has routes to it\n\
             It gives no new addresses any more. The removal goes on without this command and cannot be called off; it \
             is done when\n`weft node ls` does not list the node. Repeat the command to wait for it; with --force if the \
             machine is off and stays off.\n"
        );
        let told = reply(false, &["n3 has not acknowledged; where it is off say --force"]);
        assert!(text(&told, &args).ends_with("Repeat the command to wait for it.\n"));
        args.force = true;
        assert!(text(&reply(false, &[]), &args).ends_with("Repeat the command to wait for it.\n"));
        assert!(text(&reply(true, &[]), &args).ends_with(" removed, its blocks are free\n"));
    }
}
