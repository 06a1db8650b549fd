// SPDX-License-Identifier: Apache-2.0
//! A row: interleaved pairs, their ratios, the median, and whether it keeps what was promised.

use anyhow::Result;
use serde::Serialize;

/// What a row promises of the ratio Weft / baseline.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// Latency and cost: at most this.
    AtMost(f64),
    /// Throughput: at least this.
    AtLeast(f64),
}

/// One sample of each side, taken one right after the other.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Pair {
    pub weft: f64,
    pub baseline: f64,
    pub ratio: f64,
}

impl Pair {
    pub(crate) fn new(weft: f64, baseline: f64) -> Self {
        Self { weft, baseline, ratio: weft / baseline }
    }
}

/// A measured row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub name: String,
    pub unit: &'static str,
    pub weft: &'static str,
    pub baseline: &'static str,
    pub pairs: Vec<Pair>,
    /// Median of the pairs' ratios.
    pub median_ratio: f64,
    /// Best of each side over the run, divided: what is left when the machine's noise is not there.
    pub best_ratio: f64,
    /// Which of the two the bound speaks of.
    pub judged_by: &'static str,
    pub bound: Bound,
    pub kept: bool,
    /// What would be better still than the bound, where somebody said so.
    pub wanted: Option<f64>,
}

/// Takes `count` pairs; the side that goes first alternates, so that a drift of the machine hits both alike.
pub(crate) fn measure(
    count: usize,
    mut weft: impl FnMut() -> Result<f64>,
    mut baseline: impl FnMut() -> Result<f64>,
) -> Result<Vec<Pair>> {
    (0..count)
        .map(|round| {
            let (w, b) = if round % 2 == 0 {
                let b = baseline()?;
                (weft()?, b)
            } else {
                let w = weft()?;
                (w, baseline()?)
            };
            Ok(Pair::new(w, b))
        })
        .collect()
}

/// How a row is named and judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub unit: &'static str,
    pub weft: &'static str,
    pub baseline: &'static str,
    pub bound: Bound,
    /// Judge by the best of each side instead of the median of ratios.
    pub by_best: bool,
}

impl Row {
    pub(crate) fn new(name: &str, terms: Terms, pairs: Vec<Pair>) -> Self {
        let median_ratio = median(pairs.iter().map(|p| p.ratio).collect());
        let best = |pick: fn(&Pair) -> f64| {
            let values = pairs.iter().map(pick);
            match terms.bound {
                Bound::AtMost(_) => values.fold(f64::INFINITY, f64::min),
                Bound::AtLeast(_) => values.fold(0.0, f64::max),
            }
        };
        let best_ratio = best(|p| p.weft) / best(|p| p.baseline);
        let judged = if terms.by_best { best_ratio } else { median_ratio };
        let kept = match terms.bound {
            Bound::AtMost(limit) => judged <= limit,
            Bound::AtLeast(limit) => judged >= limit,
        };
        let judged_by = if terms.by_best { "best" } else { "median" };
        Self {
            name: name.to_owned(),
            unit: terms.unit,
            weft: terms.weft,
            baseline: terms.baseline,
            pairs,
            median_ratio,
            best_ratio,
            judged_by,
            bound: terms.bound,
            kept,
            wanted: None,
        }
    }

    /// The same with a further aim.
    pub(crate) fn wanting(self, wanted: Option<f64>) -> Self {
        Self { wanted, ..self }
    }

    /// The row as text: the verdict first, then every pair.
    pub(crate) fn text(&self) -> String {
        let bound = match self.bound {
            Bound::AtMost(limit) => format!("≤ {limit}"),
            Bound::AtLeast(limit) => format!("≥ {limit}"),
        };
        let mut text = format!(
            "{:<34} {} / {}: median {:.3}, best {:.3} ({} must be {}{}): {}\n",
            self.name,
            self.weft,
            self.baseline,
            self.median_ratio,
            self.best_ratio,
            self.judged_by,
            bound,
            self.wanted.map(|wanted| format!(", wanted {wanted}")).unwrap_or_default(),
            if self.kept { "reached" } else { "NOT REACHED" }
        );
        for pair in &self.pairs {
            text.push_str(&format!(
                "    {:>12.2} {:>12.2} {}  ratio {:.3}\n",
                pair.weft, pair.baseline, self.unit, pair.ratio
            ));
        }
        text
    }
}

/// The middle value, or the mean of the two in the middle; not a number for none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The value below which this share (0 to 1) of them lies; not a number for none.
pub(crate) fn at_share(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_bounds() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let hundred: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert!((at_share(&hundred, 0.99) - 99.0).abs() < 1e-9);
        assert!(at_share(&[], 0.5).is_nan());
        let pairs = measure(4, || Ok(105.0), || Ok(100.0)).unwrap();
        let terms =
            Terms { unit: "µs", weft: "w", baseline: "b", bound: Bound::AtMost(1.10), by_best: false };
        assert!(Row::new("r", terms, pairs.clone()).kept);
        assert!(!Row::new("r", Terms { bound: Bound::AtMost(1.04), ..terms }, pairs.clone()).kept);
        assert!(!Row::new("r", Terms { bound: Bound::AtLeast(1.06), ..terms }, pairs).kept);
    }
}
