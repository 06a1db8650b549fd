// SPDX-License-Identifier: Apache-2.0
//! Twenty nodes add and delete at once on a real etcd that hangs and crashes: no address twice, none lost.

#![allow(clippy::print_stdout, reason = "the seed of a failed race belongs into its output")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use ipam::Pool;
use weft_sim::race::{Race, Round};

const NODES: usize = 20;

/// ADDs and DELs of all nodes together, besides those of the outages.
fn operations() -> usize {
    let soaking = std::env::var_os("WEFT_SOAK").is_some_and(|value| value == "1");
    if soaking { 10_000 } else { 600 }
}

fn seed() -> Result<u64> {
    Ok(std::env::var("WEFT_SEED").ok().map(|seed| seed.parse()).transpose()?.unwrap_or(7))
}

async fn race(seed: u64) -> Result<Race> {
    // 32 blocks of 32 for 20 nodes: they run out, and claims meet.
    let mut race = Race::new(seed, NODES, &Pool::new("all", "10.1.0.0/22".parse()?, Some(27))).await?;
    let usual = Round { operations: operations() / NODES / 3, kills: 8 };
    let away = Round { operations: 4, kills: 0 };
    race.run(usual).await.context("before the outages")?;

    race.rested().await?;
    race.server.freeze()?;
    race.add_from_own_blocks().await.context("while etcd hangs")?;
    race.run(away).await.context("while etcd hangs")?;
    race.server.thaw()?;
    race.run(usual).await.context("after etcd hung")?;

    race.rested().await?;
    race.server.stop();
    race.add_from_own_blocks().await.context("while etcd is down")?;
    race.run(away).await.context("while etcd is down")?;
    race.server.start()?;
    race.run(usual).await.context("after etcd crashed")?;
    race.end().await?;
    Ok(race)
}

#[test]
fn twenty_nodes_on_one_etcd_that_hangs_and_crashes() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    let seed = seed()?;
    let raced = runtime.block_on(race(seed)).with_context(|| format!("seed {seed}"))?;
    println!("seed {seed}: {:?}", raced.counts());
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(())
}
