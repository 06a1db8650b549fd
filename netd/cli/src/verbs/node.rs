// SPDX-License-Identifier: Apache-2.0
//! `weft node rm`: asks again and again, because a removal takes as long as the slowest node needs to let go.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use netd_api::{Client, ClientError, ErrorClass, NodeRemoveReply, NodeRemoveRequest};
use tokio::time::{Instant, sleep};

use super::explain;
use crate::args::NodeRmArgs;
use crate::output::{self, Shown};

/// Between two questions: short for a person, long for the store behind the answers.
const POLL: Duration = Duration::from_millis(500);

pub(super) async fn remove(client: &Client, args: &NodeRmArgs) -> anyhow::Result<Shown> {
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
    text.push_str("It gives no new addresses any more. Repeat the command to go on");
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
        let mut args = NodeRmArgs { node: "n3".into(), force: false, wait: Duration::from_secs(60) };
        assert_eq!(
            text(&reply(false, &["n3 has not acknowledged", "n1 still has routes to it"]), &args),
            "node n3 (6f1c1b4e-0000-4000-8000-000000000003) is not removed yet after 60s:\n  \
             - n3 has not acknowledged\n  - n1 still has routes to it\n\
             It gives no new addresses any more. Repeat the command to go on; with --force if the machine is off and \
             stays off.\n"
        );
        let told = reply(false, &["n3 has not acknowledged; where it is off say --force"]);
        assert!(text(&told, &args).ends_with("Repeat the command to go on.\n"));
        args.force = true;
        assert!(text(&reply(false, &[]), &args).ends_with("Repeat the command to go on.\n"));
        assert!(text(&reply(true, &[]), &args).ends_with(" removed, its blocks are free\n"));
    }
}
