// SPDX-License-Identifier: Apache-2.0
//! What is left when everybody is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ipam::Owner;
use netd_store::{Keys, Store};
use uuid::Uuid;

use crate::node::{Node, picture};

/// Waits until nobody holds what nobody uses. The error tells what is left after `limit`.
pub async fn come_to_rest(store: &dyn Store, keys: &Keys, nodes: &[Node], limit: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        let left = left(store, keys, nodes).await?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < limit, "left after a quiet time: {}", left.join(", "));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What nobody uses and somebody still holds.
async fn left(store: &dyn Store, keys: &Keys, nodes: &[Node]) -> Result<Vec<String>> {
    let shown = picture(&store.list(keys.root()).await?, keys, Uuid::nil());
    let mut left: Vec<String> =
        shown.borrowed.values().map(|record| format!("{} lent to {:?}", record.ip, record.node)).collect();
    for record in shown.sticky.values() {
        left.extend(record.attachment.as_ref().map(|holder| format!("{} held by {holder}", record.name)));
    }
    let removed: BTreeSet<Uuid> = nodes.iter().filter(|node| node.removed).map(|node| node.uuid).collect();
    let of_removed = shown.blocks.values().filter(|block| removed.contains(&block.owner));
    left.extend(of_removed.map(|block| format!("block {} of a removed node", block.cidr)));
    let named: BTreeSet<IpAddr> = shown.sticky.values().flat_map(|record| record.ips.clone()).collect();
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| !node.removed) {
        let Some(addressing) = node.addressing() else { continue };
        for (ip, owner) in addressing.allocations() {
            let ours =
                shown.blocks.values().any(|block| block.owner == node.uuid && block.cidr.contains(&ip));
            let fine = match &owner {
                Owner::Node(_) => true,
                Owner::Sticky(_) => named.contains(&ip),
                Owner::Attachment(_) | Owner::Reserved(_) => false,
            };
            if !fine || !ours {
                left.push(format!(
                    "node {index}: {ip} of {owner}{}",
                    if ours { "" } else { ", in no block of it" }
                ));
            }
        }
    }
    Ok(left)
}
