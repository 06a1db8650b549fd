// SPDX-License-Identifier: Apache-2.0
//! Runs a target on mutated inputs and keeps what leads somewhere new.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::small::small;
use crate::{Input, Mutator, Target};

/// Inputs kept in memory at once: beyond it the mutator looks at each too seldom.
const KEPT_MAX: usize = 2_000;

/// Of a label, in bytes: enough to tell two error texts apart.
const LABEL_BYTES_MAX: usize = 70;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so many inputs.
    Inputs(usize),
    /// After this time.
    Time(Duration),
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Explored {
    /// How many inputs ran.
    pub inputs: usize,
    /// Those that led somewhere new, with the label.
    pub new: Vec<(String, Vec<u8>)>,
}

/// An input of which the property does not hold.
#[derive(Debug)]
pub struct Failure {
    /// The input, made small.
    pub input: Vec<u8>,
    /// What the property said.
    pub message: String,
}

thread_local! {
    /// While a target runs on this thread: where and why it panicked.
    static RUNNING: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a target once; a panic is an `Err` with its place and its message, and is not printed.
pub fn run_one(target: &Target, input: &[u8]) -> Result<String, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            let ours = RUNNING.with_borrow_mut(|running| {
                let story = running.as_mut()?;
                *story = panic.to_string();
                Some(())
            });
            if ours.is_none() {
                usual(panic);
            }
        }));
    });
    RUNNING.set(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    let story = RUNNING.take().unwrap_or_default();
    outcome.map_err(|_| story)
}

/// Mutates the corpus until the limit, or until the property fails. The same seed and corpus give the same inputs.
pub fn explore(target: &Target, corpus: &[Input], seed: u64, limit: Limit) -> Result<Explored, Failure> {
    let started = Instant::now();
    let mut pool: Vec<Vec<u8>> = corpus.iter().map(|input| input.bytes.clone()).collect();
    let mut labels: BTreeSet<String> =
        pool.iter().filter_map(|input| run_one(target, input).ok()).map(|label| kind(&label)).collect();
    let (mut mutator, mut explored) = (Mutator::new(seed, &pool), Explored::default());
    while !match limit {
        Limit::Inputs(inputs) => explored.inputs >= inputs,
        Limit::Time(time) => started.elapsed() >= time,
    } {
        explored.inputs += 1;
        let input = mutator.mutate(&pool);
        match run_one(target, &input) {
            Ok(label) => {
                let label = kind(&label);
                if pool.len() < KEPT_MAX && !labels.contains(&label) {
                    labels.insert(label.clone());
                    explored.new.push((label, input.clone()));
                    pool.push(input);
                }
            }
            Err(message) => {
                let input = small(&input, |input| run_one(target, input).is_err());
                let message = run_one(target, &input).err().unwrap_or(message);
                return Err(Failure { input, message });
            }
        }
    }
    Ok(explored)
}

/// A label without what differs from input to input: numbers, and what is quoted.
fn kind(label: &str) -> String {
    let (mut kind, mut quoted) = (String::new(), false);
    for letter in label.chars() {
        match letter {
            '"' => quoted = !quoted,
            _ if quoted => continue,
            '0'..='9' if kind.ends_with('#') => continue,
            _ => {}
        }
        kind.push(if letter.is_ascii_digit() { '#' } else { letter });
        if kind.len() >= LABEL_BYTES_MAX {
            break;
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_fails_deep_inside_is_found_and_its_input_is_small() {
        let target = Target {
            name: "self",
            check: |input| {
                let value: serde_json::Value = serde_json::from_slice(input).unwrap_or_default();
                assert!(value["a"]["b"] != serde_json::json!([]), "an empty list");
                format!("{}", value["a"]["b"])
            },
        };
        let corpus = [Input { name: "one".into(), bytes: br#"{ "a": { "b": 1, "c": [] } }"#.to_vec() }];
        let failure = explore(&target, &corpus, 7, Limit::Inputs(100_000)).unwrap_err();
        assert_eq!(failure.input, br#"{"a":{"b":[]}}"#);
        assert!(failure.message.contains("explore.rs") && failure.message.ends_with("an empty list"));
    }

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let target =
            Target { name: "self", check: |input| format!("{input:?}").replace(char::is_numeric, "x") };
        let corpus = [Input { name: "one".into(), bytes: b"{\"a\": 1}".to_vec() }];
        let inputs = || explore(&target, &corpus, 3, Limit::Inputs(300)).unwrap().new;
        assert_eq!(inputs(), inputs());
        assert!(!inputs().is_empty());
    }

    #[test]
    fn labels_forget_numbers_and_quotes() {
        assert_eq!(kind(r#"mtu is "abc" at 1234: no"#), r#"mtu is "" at #: no"#);
    }
}
