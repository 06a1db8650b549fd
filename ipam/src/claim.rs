// SPDX-License-Identifier: Apache-2.0
//! Which block a node should try to claim next.

use std::collections::BTreeSet;

use ipnet::IpNet;
use uuid::Uuid;

use crate::hash::hash;
use crate::pool::Pool;

/// Blocks that nobody has, as (pool name, block), in the order in which this node should try them: pool by pool as
/// given, and inside a pool in an order of the node's own, so that nodes that claim at the same time rarely meet.
///
/// `taken` holds the blocks that have an owner, of any size; what overlaps one of them is left out. Invalid pools
/// have no blocks. The order depends on nothing but the arguments.
pub fn claim_candidates(
    pools: &[Pool],
    taken: &BTreeSet<IpNet>,
    node: Uuid,
) -> impl Iterator<Item = (String, IpNet)> {
    pools.iter().flat_map(move |pool| {
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
        Pool { name: "default".to_owned(), cidr: cidr.parse().unwrap(), block_prefix }
    }

    #[test]
    fn hundred_nodes_rarely_meet_at_first() {
        let pools = [pool("10.244.0.0/16", 26)];
        let first: BTreeSet<IpNet> = (0..100)
            .filter_map(|node| claim_candidates(&pools, &BTreeSet::new(), Uuid::from_u128(node)).next())
            .map(|(_, block)| block)
            .collect();
        assert!(first.len() > 85, "{} different first choices", first.len());
    }

    #[test]
    fn block_of_another_size_takes_what_it_overlaps() {
        let pools = [pool("10.244.0.0/24", 26)];
        let taken = ["10.244.0.0/25", "10.244.0.130/31"].map(|net| net.parse().unwrap()).into();
        let left: Vec<_> = claim_candidates(&pools, &taken, Uuid::from_u128(7)).map(|(_, net)| net).collect();
        assert_eq!(left, ["10.244.0.192/26".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn second_pool_comes_after_the_first() {
        let mut second = pool("10.245.0.0/24", 26);
        second.name = "second".to_owned();
        let pools = [pool("10.244.0.0/24", 26), second];
        let names: Vec<_> =
            claim_candidates(&pools, &BTreeSet::new(), Uuid::nil()).map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["default", "default", "default", "default", "second", "second", "second", "second"]
        );
    }

    proptest! {
        #[test]
        fn every_free_block_comes_once(node: u128, taken in prop::collection::btree_set(0_u128..64, 0..64)) {
            let pools = [pool("10.244.0.0/20", 26)];
            let all: BTreeSet<IpNet> = (0..64).map(|index| pools[0].block(index).unwrap()).collect();
            let taken: BTreeSet<IpNet> = taken.iter().map(|index| pools[0].block(*index).unwrap()).collect();
            let listed: Vec<IpNet> =
                claim_candidates(&pools, &taken, Uuid::from_u128(node)).map(|(_, block)| block).collect();
            let unique: BTreeSet<IpNet> = listed.iter().copied().collect();
            prop_assert_eq!(listed.len(), unique.len());
            prop_assert_eq!(unique, &all - &taken);
        }
    }
}
