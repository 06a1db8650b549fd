// SPDX-License-Identifier: Apache-2.0
//! `weft ipam show`.

use netd_api::{Client, IpamInfo};

use super::explain;
use crate::output::Shown;
use crate::table::Table;

pub(super) async fn show(client: &Client) -> anyhow::Result<Shown> {
    let ipam = client.ipam().await.map_err(explain)?;
    Shown::new(text(&ipam), &ipam)
}

fn text(ipam: &IpamInfo) -> String {
    let mut pools = Table::new(["POOL", "CIDR", "BLOCK SIZE", "BLOCKS", "ADDRESSES USED"]);
    for pool in &ipam.pools {
        pools.row([
            pool.name.clone(),
            pool.cidr.to_string(),
            format!("/{}", pool.block_prefix),
            format!("{}/{}", pool.blocks_claimed, pool.blocks_total),
            pool.used.to_string(),
        ]);
    }
    let mut blocks = Table::new(["BLOCK", "POOL", "NODE", "USED", "FREE", "STATE"]);
    for block in &ipam.blocks {
        blocks.row([
            block.cidr.to_string(),
            block.pool.clone(),
            block.node.clone().unwrap_or_else(|| block.owner.to_string()),
            block.used.to_string(),
            block.free.to_string(),
            block.state.clone(),
        ]);
    }
    let mut addresses = Table::new(["ADDRESS", "STATE", "OWNER"]);
    for address in &ipam.addresses {
        addresses.row([address.address.to_string(), address.state.clone(), address.owner.clone()]);
    }
    let mut text = pools.render("No pools: the cluster's configuration names none.");
    text.push('\n');
    text.push_str(&blocks.render("No blocks are claimed."));
    if !ipam.addresses.is_empty() {
        text.push_str("\nOn this node:\n");
        text.push_str(&addresses.render(""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_and_blocks_are_two_tables() {
        let ipam: IpamInfo = serde_json::from_value(serde_json::json!({
            "pools": [{"name": "default", "cidr": "10.244.0.0/16", "block_prefix": 26, "blocks_total": 1024,
                       "blocks_claimed": 1, "used": 3}],
            "blocks": [{"cidr": "10.244.0.0/26", "pool": "default",
                        "owner": "6f1c1b4e-0000-4000-8000-000000000001", "node": "n1",
                        "used": 3, "free": 59, "state": "active"}],
            "addresses": [{"address": "10.244.0.0", "owner": "node/6f1c", "state": "committed"}],
        }))
        .unwrap();
        assert_eq!(
            text(&ipam),
            "POOL      CIDR            BLOCK SIZE   BLOCKS   ADDRESSES USED\n\
             default   10.244.0.0/16   /26          1/1024   3\n\
             \n\
             BLOCK           POOL      NODE   USED   FREE   STATE\n\
             10.244.0.0/26   default   n1     3      59     active\n\
             \n\
             On this node:\n\
             ADDRESS      STATE       OWNER\n\
             10.244.0.0   committed   node/6f1c\n"
        );
    }

    #[test]
    fn an_empty_cluster_says_so() {
        assert_eq!(
            text(&IpamInfo::default()),
            "No pools: the cluster's configuration names none.\n\nNo blocks are claimed.\n"
        );
    }
}
