// SPDX-License-Identifier: Apache-2.0
//! The CNI rows: ADD and DEL of weft-cni against the reference plugins, in batches that take turns; and ADD with few and
//! with many pods present.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cni::{self, Container, Side};
use crate::pairs::{Bound, Pair, Row, Terms, at_share};

/// Containers of one batch.
const BATCH: usize = 50;
/// Batches of each side for one `--pairs`: ten of them make a thousand calls.
const BATCHES_PER_PAIR: usize = 2;
/// Pods present in the two cases of the growth row, and ADDs measured in each.
const FEW: usize = 10;
const MANY: usize = 500;
const GROWTH_SAMPLES: usize = 100;
/// The kernel takes namespaces apart after the call that removed them; that work is nobody's ADD.
const SETTLE: Duration = Duration::from_millis(300);

const WEFT: &str = "weft-cni";
const REFERENCE: &str = "bridge + host-local";

/// Microseconds of each call.
#[derive(Debug, Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

/// Measures; rows for ADD and DEL by p50 and p99, and for growth.
pub(crate) fn run(pairs: usize) -> Result<Vec<Row>> {
    let books = std::env::temp_dir().join(format!("weft-bench-ipam-{}", std::process::id()));
    let outcome = measure(pairs, &books);
    let _ = std::fs::remove_dir_all(&books);
    outcome
}

fn measure(pairs: usize, books: &std::path::Path) -> Result<Vec<Row>> {
    cni::remove();
    let sides = [Side::weft()?, Side::reference(books)?];
    // The first call makes the bridge, and claims Weft's first block.
    for side in &sides {
        batch(side, 1).context("a first ADD and DEL")?;
    }
    let mut batches: [Vec<Times>; 2] = Default::default();
    for round in 0..pairs * BATCHES_PER_PAIR {
        // The side that goes first alternates.
        for i in [round % 2, 1 - round % 2] {
            batches[i].push(batch(&sides[i], BATCH)?);
        }
    }
    let [weft, reference] = batches;
    let mut rows = Vec::new();
    for (verb, of) in [("add", (|times| &times.add) as fn(&Times) -> &Vec<f64>), ("del", |times| &times.del)]
    {
        let by_batch = weft.iter().zip(&reference);
        let medians = by_batch.map(|(w, r)| Pair::new(at_share(of(w), 0.5), at_share(of(r), 0.5))).collect();
        rows.push(Row::new(&format!("cni-{verb}-p50"), terms(Bound::AtMost(0.5), "µs p50"), medians));
        // A p99 needs all calls at once.
        let all = |side: &[Times]| at_share(&side.iter().flat_map(of).copied().collect::<Vec<_>>(), 0.99);
        let tail = vec![Pair::new(all(&weft), all(&reference))];
        rows.push(Row::new(&format!("cni-{verb}-p99"), terms(Bound::AtMost(1.0), "µs p99"), tail));
    }
    rows.push(growth(&sides[0])?);
    Ok(rows)
}

fn terms(bound: Bound, unit: &'static str) -> Terms {
    Terms { unit, weft: WEFT, baseline: REFERENCE, bound, by_best: false }
}

/// Containers come, are added, deleted, and go.
fn batch(side: &Side, count: usize) -> Result<Times> {
    let mut containers = cni::containers(count)?;
    let add = side.add(&mut containers)?;
    let del = side.del(&containers)?;
    cni::discard(containers)?;
    std::thread::sleep(SETTLE);
    Ok(Times { add, del })
}

/// ADD with many pods present against few: few, many, few again, so that a drift of the machine shows on both.
fn growth(side: &Side) -> Result<Row> {
    let mut present = fill(side, FEW)?;
    let before = one_more(side)?;
    present.extend(fill(side, MANY - FEW)?);
    let many = one_more(side)?;
    let rest = present.split_off(FEW);
    side.del(&rest)?;
    cni::discard(rest)?;
    std::thread::sleep(SETTLE * 10);
    let after = one_more(side)?;
    side.del(&present)?;
    cni::discard(present)?;
    let pairs = vec![Pair::new(many, before), Pair::new(many, after)];
    let terms = Terms {
        unit: "µs p50",
        weft: "weft-cni, 500 pods present",
        baseline: "10 present",
        bound: Bound::AtMost(1.05),
        by_best: false,
    };
    Ok(Row::new("cni-add-growth", terms, pairs))
}

fn fill(side: &Side, count: usize) -> Result<Vec<Container>> {
    let mut containers = cni::containers(count)?;
    side.add(&mut containers)?;
    std::thread::sleep(SETTLE);
    Ok(containers)
}

/// The median of one ADD more, again and again.
fn one_more(side: &Side) -> Result<f64> {
    let mut times = Vec::new();
    while times.len() < GROWTH_SAMPLES {
        let mut containers = cni::containers(FEW)?;
        for container in containers.chunks_mut(1) {
            times.extend(side.add(container)?);
            side.del(container)?;
        }
        cni::discard(containers)?;
        std::thread::sleep(SETTLE);
    }
    Ok(at_share(&times, 0.5))
}
