// SPDX-License-Identifier: Apache-2.0
//! Every target on its corpus, and on mutations of it.
//!
//! - `WEFT_SOAK=1` mutates for minutes from a new seed (`WEFT_FUZZ_SEED` gives an old one again). An input that fails is
//!   written into the corpus; commit it together with the repair.
//! - `WEFT_FUZZ_GROW=1` writes inputs that lead somewhere new into the corpus too.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weft_fuzz::{Limit, TARGETS, Target, corpus, explore, keep, run_one};

/// Of the short run; any number does.
const SEED: u64 = 1_789;

/// Mutated inputs of the short run: a second or two.
const INPUTS: usize = 4_000;

/// Of the long run, for each target.
const SOAK: Duration = Duration::from_secs(120);

/// Inputs that one run adds to a corpus at most, short and long ones of those that it found: people read it.
const GROWN_MAX: usize = 30;

macro_rules! targets {
    ($($story:ident: $name:literal),* $(,)?) => {
        $(#[test] fn $story() { run($name); })*

        #[test]
        fn every_target_has_a_story() {
            assert_eq!([$($name),*], TARGETS.map(|target| target.name));
        }
    };
}

targets!(
    api_bodies_are_stable: "api",
    cni_calls_get_an_answer: "cni-call",
    cni_results_keep_what_a_version_holds: "cni-result",
    dns_packets_are_answered_within_their_limits: "dns-packet",
    skydns_records_are_served_or_named: "dns-skydns",
    file_logs_open_or_are_refused: "file-log",
    journals_keep_their_invariants: "journal",
    wireguard_requests_are_answered: "wireguard-control",
    what_the_underlay_sends_costs_a_drop: "wireguard-udp",
);

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let inputs = corpus(target).unwrap();
    assert!(inputs.len() >= 5, "the corpus of {name} is missing");
    for input in &inputs {
        if let Err(message) = run_one(target, &input.bytes) {
            panic!("corpus/{name}/{}: {message}", input.name);
        }
    }
    let soak = std::env::var("WEFT_SOAK").is_ok_and(|it| it == "1");
    let (seed, limit) = if soak { (new_seed(), Limit::Time(SOAK)) } else { (SEED, Limit::Inputs(INPUTS)) };
    match explore(target, &inputs, seed, limit) {
        Ok(explored) => {
            eprintln!(
                "{name}: seed {seed}, {} inputs, {} of a new kind",
                explored.inputs,
                explored.new.len()
            );
            if std::env::var("WEFT_FUZZ_GROW").is_ok_and(|it| it == "1") {
                let mut new: Vec<Vec<u8>> = explored.new.into_iter().map(|(_, input)| input).collect();
                new.sort_by_key(Vec::len);
                let step = new.len().div_ceil(GROWN_MAX).max(1);
                new.iter().step_by(step).for_each(|input| drop(keep(target, "found", input).unwrap()));
            }
        }
        Err(failure) => {
            let kept = if soak { written(target, &failure.input) } else { String::new() };
            let input = String::from_utf8_lossy(&failure.input);
            panic!("{name}: seed {seed}{kept}: {}\ninput: {input:?}", failure.message);
        }
    }
}

fn new_seed() -> u64 {
    let given = std::env::var("WEFT_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

fn written(target: &Target, input: &[u8]) -> String {
    match keep(target, "crash", input) {
        Ok(path) => format!(", now in {}", path.display()),
        Err(error) => format!(", not kept ({error})"),
    }
}
