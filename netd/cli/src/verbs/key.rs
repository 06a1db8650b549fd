// SPDX-License-Identifier: Apache-2.0
//! `weft key rotate`: one question starts it, the same question without effect tells how far it is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use netd_api::{Client, KeyRotateReply, KeyRotateRequest};
use tokio::time::{Instant, sleep};

use super::{explain, members_left};
use crate::output::{self, Shown};

/// Between two questions: short for a person, long for a handshake.
const POLL: Duration = Duration::from_millis(500);

pub(super) async fn rotate(client: &Client, wait: Duration, yes: bool) -> anyhow::Result<Shown> {
    let members = members_left::all(client).await?;
    if !yes
        && !members.is_empty()
        && let Some(refused) = members_left::ask(&plan(&members), "Rotate the keys?", &members)?
    {
        return Ok(refused);
    }
    let deadline = Instant::now() + wait;
    let mut reply = client.key_rotate(&KeyRotateRequest { only_look: false }).await.map_err(explain)?;
    let mut told = BTreeSet::new();
    while !reply.done && Instant::now() < deadline {
        for line in &reply.waiting_for {
            if told.insert(line.clone()) {
                output::progress(line);
            }
        }
        sleep(POLL.min(deadline.saturating_duration_since(Instant::now()))).await;
        reply = client.key_rotate(&KeyRotateRequest { only_look: true }).await.map_err(explain)?;
    }
    let notes = match members.as_slice() {
        [] => Vec::new(),
        some => vec![format!(
            "note: {} must get a new configuration: `weft member show NAME`",
            members_left::named(some)
        )],
    };
    Ok(Shown { ok: reply.done, notes, ..Shown::new(text(&reply, wait), &reply)? })
}

fn plan(members: &[String]) -> String {
    format!(
        "New keys cut off {}: each needs a new configuration (`weft member show NAME`), and reaches nothing until it has it.",
        members_left::named(members)
    )
}

fn text(reply: &KeyRotateReply, wait: Duration) -> String {
    if reply.done {
        return format!(
            "every peer uses the keys of generation {}, the older ones are gone\n",
            reply.generation
        );
    }
    let mut text = format!(
        "generation {} is in use with those who have it; after {wait:?} still waiting for:\n",
        reply.generation
    );
    for line in &reply.waiting_for {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  - {line}");
    }
    text.push_str("it goes on by itself\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_moved_is_named() {
        let mut reply = KeyRotateReply { generation: 2, done: false, waiting_for: vec!["n3".into()] };
        assert!(text(&reply, Duration::from_secs(60)).contains("after 60s still waiting for:\n  - n3\n"));
        reply.done = true;
        assert!(text(&reply, Duration::ZERO).starts_with("every peer uses the keys of generation 2"));
    }
}
