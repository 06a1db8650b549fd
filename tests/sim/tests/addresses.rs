// SPDX-License-Identifier: Apache-2.0
//! No address with two owners, none lost after a quiet time: over random days of a cluster.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a test fails by panicking, and tells its seed")]

use anyhow::{Context as _, Result};
use ipam::{Pool, PoolState};
use weft_sim::world::World;

fn pool(name: &str, cidr: &str, block_prefix: u8) -> Pool {
    Pool {
        name: name.into(),
        cidr: cidr.parse().unwrap(),
        block_prefix,
        node_selector: Default::default(),
        state: PoolState::Active,
    }
}

fn soaking() -> bool {
    std::env::var_os("WEFT_SOAK").is_some_and(|value| value == "1")
}

/// One day: so many steps, then a quiet time. The seed of one that failed is given by hand.
async fn day(seed: u64, steps: usize, pools: &[Pool]) -> Result<()> {
    let mut world = World::new(seed, 5, pools).await?;
    for step in 0..steps {
        world.step().await.with_context(|| format!("seed {seed}, step {step}, {:?}", world.counts))?;
    }
    world.come_to_rest().await.with_context(|| format!("seed {seed}, at rest, {:?}", world.counts))?;
    world.check().with_context(|| format!("seed {seed}, after the rest"))?;
    println!("seed {seed}: {:?}, last refused: {}", world.counts, world.last_refusal);
    Ok(())
}

fn days(first_seed: u64, pools: &[Pool]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (days, steps) = if soaking() { (60, 400) } else { (3, 120) };
    let seeds = match std::env::var("WEFT_SEED") {
        Ok(seed) => seed.parse()?..=seed.parse()?,
        Err(_) => first_seed..=first_seed + days - 1,
    };
    for seed in seeds {
        runtime.block_on(day(seed, steps, pools))?;
    }
    Ok(())
}

#[test]
fn one_family_and_small_pools_that_run_out() -> Result<()> {
    days(1, &[pool("a", "10.1.0.0/25", 28), pool("b", "10.1.0.128/25", 29)])
}

#[test]
fn both_families_at_once() -> Result<()> {
    days(1_000, &[pool("v4", "10.1.0.0/24", 28), pool("v6", "fd00:1::/120", 124)])
}

#[test]
fn pools_for_some_nodes_only() -> Result<()> {
    let ssd = Pool {
        node_selector: [("disk".to_owned(), "ssd".to_owned())].into(),
        ..pool("ssd", "10.1.0.128/25", 29)
    };
    days(2_000, &[pool("all", "10.1.0.0/25", 28), ssd])
}
