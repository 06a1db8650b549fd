// SPDX-License-Identifier: Apache-2.0
//! Which block a node should try to claim next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use uuid::Uuid;

use crate::family::Family;
use crate::hash::hash;
use crate::pool::Pool;
use crate::want::AddressRange;

/// Blocks of a family that nobody has, as (pool name, block), in the order in which this node should try them: pool by
/// pool as given, and inside a pool in an order of the node's own, so that nodes that claim at the same time rarely meet.
/// Pools that drain and pools whose selector the node's labels do not match are left out.
///
/// `taken` holds the blocks that have an owner, of any size; what overlaps one of them is left out. Invalid pools
/// have no blocks. The order depends on nothing but the arguments.
pub fn claim_candidates(
    pools: &[Pool],
    taken: &BTreeSet<IpNet>,
    node: Uuid,
    node_labels: &BTreeMap<String, String>,
    family: Family,
) -> impl Iterator<Item = (String, IpNet)> {
    let open =
        move |pool: &&Pool| pool.state.is_active() && pool.family() == family && pool.admits(node_labels);
    pools.iter().filter(open).flat_map(move |pool| {
        let count = pool.block_count();
        let start = u128::from(hash(&[b"start", node.as_bytes(), pool.name.as_bytes()]));
        // The count is a power of two, so any odd stride visits each block once.
        let stride = u128::from(hash(&[b"stride", node.as_bytes(), pool.name.as_bytes()])) | 1;
        (0..count)
            .map(move |step| start.wrapping_add(step.wrapping_mul(stride)) % count)
            .filter_map(|index| pool.block(index))
            .filter(|block| !overlaps(taken, block))
            .map(|block| (pool.name.clone(), block))
    })
}

/// Blocks that nobody has and that share an address with one of the ranges, as (pool name, block), in the order of the
/// ranges and of the addresses. Else as [`claim_candidates`].
pub fn claim_candidates_within(
    pools: &[Pool],
    taken: &BTreeSet<IpNet>,
    node_labels: &BTreeMap<String, String>,
    ranges: &[AddressRange],
) -> impl Iterator<Item = (String, IpNet)> {
    ranges.iter().flat_map(move |range| {
        let open = move |pool: &&Pool| pool.state.is_active() && pool.admits(node_labels);
        pools.iter().filter(open).flat_map(move |pool| {
            pool.indices(range)
                .filter_map(|index| pool.block(index))
                .filter(|block| !overlaps(taken, block))
                .map(|block| (pool.name.clone(), block))
        })
    })
}

/// The first address of the range that lies in a block nobody has, of a pool that is not draining: claim the block around
/// it.
pub fn free_block_in(pools: &[Pool], taken: &BTreeSet<IpNet>, range: &AddressRange) -> Option<IpAddr> {
    pools.iter().filter(|pool| pool.state.is_active()).find_map(|pool| {
        let mut blocks = pool.indices(range).filter_map(|index| pool.block(index));
        blocks.find(|block| !overlaps(taken, block)).map(|block| block.network().max(range.first))
    })
}

/// Whether any member of the set shares an address with the block.
fn overlaps(taken: &BTreeSet<IpNet>, block: &IpNet) -> bool {
    // Members inside the block sort right after it; members around it are among its supernets.
    let inside = taken.range(block..).next().is_some_and(|next| block.contains(next));
    inside || std::iter::successors(Some(*block), IpNet::supernet).any(|net| taken.contains(&net))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(cidr: &str, block_prefix: u8) -> Pool {
        Pool::new("default", cidr.parse().unwrap(), Some(block_prefix))
    }

    fn candidates(pools: &[Pool], taken: &BTreeSet<IpNet>, node: Uuid) -> Vec<(String, IpNet)> {
        claim_candidates(pools, taken, node, &BTreeMap::new(), Family::V4).collect()
    }

    #[test]
    fn pool_must_be_active_of_the_family_and_for_this_node() {
        let mut selective = pool("10.1.0.0/30", 30);
        selective.node_selector.insert("zone".to_owned(), "a".to_owned());
        let drains = Pool { state: crate::PoolState::Draining, ..pool("10.2.0.0/30", 30) };
        let pools = [pool("10.0.0.0/30", 30), selective, drains, pool("fd00::/126", 126)];
        let list = |labels: &BTreeMap<String, String>, family| {
            let taken = BTreeSet::new();
            let found = claim_candidates(&pools, &taken, Uuid::nil(), labels, family);
            found.map(|(_, block)| block.to_string()).collect::<Vec<_>>()
        };
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        assert_eq!(list(&labels, Family::V4), ["10.0.0.0/30", "10.1.0.0/30"]);
        assert_eq!(list(&BTreeMap::new(), Family::V4), ["10.0.0.0/30"]);
        assert_eq!(list(&labels, Family::V6), ["fd00::/126"]);
    }

    #[test]
    fn hundred_nodes_rarely_meet_at_first() {
        let pools = [pool("10.244.0.0/16", 26)];
        let first: BTreeSet<IpNet> = (0..100)
            .filter_map(|node| candidates(&pools, &BTreeSet::new(), Uuid::from_u128(node)).into_iter().next())
            .map(|(_, block)| block)
            .collect();
        assert!(first.len() > 85, "{} different first choices", first.len());
    }

    #[test]
    fn block_of_another_size_takes_what_it_overlaps() {
        let pools = [pool("10.244.0.0/24", 26)];
        let taken = ["10.244.0.0/25", "10.244.0.130/31"].map(|net| net.parse().unwrap()).into();
        let left: Vec<_> =
            candidates(&pools, &taken, Uuid::from_u128(7)).into_iter().map(|(_, net)| net).collect();
        assert_eq!(left, ["10.244.0.192/26".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn second_pool_comes_after_the_first() {
        let mut second = pool("10.245.0.0/24", 26);
        second.name = "second".to_owned();
        let pools = [pool("10.244.0.0/24", 26), second];
        let names: Vec<_> =
            candidates(&pools, &BTreeSet::new(), Uuid::nil()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["default", "default", "default", "default", "second", "second", "second", "second"]
        );
    }

    #[test]
    fn blocks_of_a_range_come_in_its_order_also_from_a_pool_of_countless_blocks() {
        let pools = [pool("10.0.0.0/24", 28), pool("fd00::/56", 122)];
        let range = |first: &str, last: &str| AddressRange {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        };
        let taken = ["10.0.0.32/28", "fd00:0:0:40::/122"].map(|net| net.parse().unwrap()).into();
        let list = |ranges: &[AddressRange]| {
            let labels = BTreeMap::new();
            let found = claim_candidates_within(&pools, &taken, &labels, ranges);
            found.take(3).map(|(_, block)| block.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(list(&[range("10.0.0.17", "10.0.0.50")]), ["10.0.0.16/28", "10.0.0.48/28"]);
        assert_eq!(
            list(&[range("10.0.0.250", "10.9.0.0"), range("9.0.0.0", "10.0.0.3")]),
            ["10.0.0.240/28", "10.0.0.0/28"]
        );
        assert_eq!(
            list(&[range("fd00:0:0:40::", "fd00:0:0:ff::")]),
            ["fd00:0:0:40::40/122", "fd00:0:0:40::80/122", "fd00:0:0:40::c0/122"]
        );
        assert_eq!(list(&[range("10.2.0.0", "10.3.0.0")]), [""; 0]);
        let free = |range| free_block_in(&pools, &taken, &range).map(|ip| ip.to_string());
        assert_eq!(free(range("10.0.0.35", "10.0.0.47")), None);
        assert_eq!(free(range("10.0.0.35", "10.0.0.60")).as_deref(), Some("10.0.0.48"));
        assert_eq!(free(range("10.0.0.61", "10.0.0.62")).as_deref(), Some("10.0.0.61"));
    }

    proptest! {
        #[test]
        fn every_free_block_comes_once(node: u128, taken in prop::collection::btree_set(0_u128..64, 0..64)) {
            let pools = [pool("10.244.0.0/20", 26)];
            let all: BTreeSet<IpNet> = (0..64).map(|index| pools[0].block(index).unwrap()).collect();
            let taken: BTreeSet<IpNet> = taken.iter().map(|index| pools[0].block(*index).unwrap()).collect();
            let listed: Vec<IpNet> =
                candidates(&pools, &taken, Uuid::from_u128(node)).into_iter().map(|(_, block)| block).collect();
            let unique: BTreeSet<IpNet> = listed.iter().copied().collect();
            prop_assert_eq!(listed.len(), unique.len());
            prop_assert_eq!(unique, &all - &taken);
        }
    }
}
