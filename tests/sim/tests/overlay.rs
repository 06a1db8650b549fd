// SPDX-License-Identifier: Apache-2.0
//! Keys are renewed and the overlay changes while watch events come late, twice or not at all: nobody loses anybody.

#![allow(clippy::print_stdout, reason = "a test tells its seed")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use netd_store::records::OverlayBackend;
use weft_sim::fabric::Fabric;

const NODES: usize = 4;
/// Events of one day.
const EVENTS: u32 = 25;
/// A node or the store is away for less than a lease lives, and netd for less than peers wait for it.
const AWAY_MAX: u64 = 20;
/// Records of everything, the longest deadline, and the settling of what began last.
const QUIET: u64 = 700;

/// What may happen beside the faults.
#[derive(Clone, Copy)]
struct Day {
    rotations: bool,
    changes: bool,
}

fn soaking() -> bool {
    std::env::var_os("WEFT_SOAK").is_some_and(|value| value == "1")
}

async fn live(day: Day, seed: u64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut wanted = OverlayBackend::Wireguard;
    let mut fabric = Fabric::new(seed, NODES, wanted).await?;
    let faults = fabric.store.faults();
    fabric.seconds(60).await?;
    for _ in 0..EVENTS {
        let (node, away) = (random.usize(0..NODES), random.u64(1..=AWAY_MAX));
        match random.u32(0..10) {
            0 | 1 if day.rotations => fabric.rotate(node),
            2 | 3 if day.changes => {
                wanted = match wanted {
                    OverlayBackend::Wireguard => OverlayBackend::Vxlan,
                    _ => OverlayBackend::Wireguard,
                };
                fabric.want(wanted).await?;
            }
            4 => {
                fabric.kill(node);
                fabric.seconds(away).await?;
                fabric.start(node);
            }
            5 => {
                fabric.nodes[node].away = true;
                fabric.seconds(away).await?;
                fabric.nodes[node].away = false;
            }
            6 => {
                // What the watches had not told yet is lost; a listing has it.
                faults.outage(true);
                fabric.seconds(away).await?;
                faults.outage(false);
            }
            7 => faults.disconnect(),
            8 => faults.watch_delay(Duration::from_millis(random.u64(0..3_000))),
            _ => faults.duplicates(random.bool()),
        }
        fabric.seconds(random.u64(0..40)).await?;
    }
    faults.watch_delay(Duration::ZERO);
    fabric.seconds(QUIET).await?;
    let generation = fabric.assert_settled(wanted)?;
    println!("seed {seed}: generation {generation} at the end, overlay {wanted:?}");
    Ok(())
}

fn days(first_seed: u64, day: Day) -> Result<()> {
    let days = if soaking() { 200 } else { 8 };
    let seeds = match std::env::var("WEFT_SEED") {
        Ok(seed) => seed.parse()?..=seed.parse()?,
        Err(_) => first_seed..=first_seed + days - 1,
    };
    for seed in seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
        runtime.block_on(live(day, seed)).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

#[test]
fn keys_are_renewed() -> Result<()> {
    days(1, Day { rotations: true, changes: false })
}

#[test]
fn the_overlay_changes() -> Result<()> {
    days(1_000, Day { rotations: false, changes: true })
}

#[test]
fn both_at_once() -> Result<()> {
    days(2_000, Day { rotations: true, changes: true })
}
