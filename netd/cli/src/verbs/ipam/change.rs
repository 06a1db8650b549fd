// SPDX-License-Identifier: Apache-2.0
//! `weft ipam pool`, `weft ipam sticky rm`: one change each, told in one line.

use netd_api::{Client, PoolAddRequest, PoolRequest, StickyRequest};

use super::super::explain;
use crate::args::{PoolAddArgs, PoolVerb, StickyVerb};
use crate::output::Shown;

pub(super) async fn pool(client: &Client, verb: &PoolVerb) -> anyhow::Result<Shown> {
    let request = |name: &str| PoolRequest { name: name.to_owned() };
    let (name, done) = match verb {
        PoolVerb::Add(args) => {
            client.pool_add(&addition(args)).await.map_err(explain)?;
            (&args.name, "added")
        }
        PoolVerb::Drain { name } => {
            client.pool_drain(&request(name)).await.map_err(explain)?;
            (name, "draining")
        }
        PoolVerb::Undrain { name } => {
            client.pool_undrain(&request(name)).await.map_err(explain)?;
            (name, "active")
        }
        PoolVerb::Rm { name } => {
            client.pool_remove(&request(name)).await.map_err(explain)?;
            (name, "removed")
        }
    };
    changed("pool", name, done)
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
