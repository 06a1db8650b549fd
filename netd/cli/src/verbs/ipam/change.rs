// SPDX-License-Identifier: Apache-2.0
//! `weft ipam pool`, `weft ipam sticky rm`: one change each, told in one line.

use netd_api::{Client, PoolAddRequest, PoolRequest, StickyRequest};

use super::super::explain;
use crate::args::{PoolAddArgs, PoolVerb, StickyVerb};
use crate::output::Shown;

pub(super) async fn pool(client: &Client, verb: &PoolVerb) -> anyhow::Result<Shown> {
    let request = |name: &str| PoolRequest { name: name.to_owned() };
    let (name, done, reply) = match verb {
        PoolVerb::Add(args) => (&args.name, "added", client.pool_add(&addition(args)).await),
        PoolVerb::Drain { name } => (name, "draining", client.pool_drain(&request(name)).await),
        PoolVerb::Undrain { name } => (name, "active", client.pool_undrain(&request(name)).await),
        PoolVerb::Rm { name } => (name, "removed", client.pool_remove(&request(name)).await),
    };
    let notes = reply.map_err(explain)?.notes;
    Ok(Shown {
        notes: notes.iter().map(|note| format!("note: {note}.")).collect(),
        ..changed("pool", name, done)?
    })
}

pub(super) async fn sticky(client: &Client, verb: &StickyVerb) -> anyhow::Result<Shown> {
    let StickyVerb::Rm { name } = verb;
    client.sticky_remove(&StickyRequest { name: name.clone() }).await.map_err(explain)?;
    changed("sticky", name, "removed")
}

fn addition(args: &PoolAddArgs) -> PoolAddRequest {
    PoolAddRequest {
        name: args.name.clone(),
        cidr: args.cidr,
        block_prefix: args.block_prefix,
        node_selector: args.node_selector.iter().cloned().collect(),
    }
}

/// As apply tells it: the object, then what it is now.
fn changed(kind: &str, name: &str, done: &str) -> anyhow::Result<Shown> {
    let text = format!("{kind} {name} {done}\n");
    Shown::new(text, &serde_json::json!({ "kind": kind, "name": name, "state": done }))
}
