// SPDX-License-Identifier: Apache-2.0
//! What comes from outside, and what has to be true of any of it.
//!
//! A [`Target`] is a plain function from bytes to a label; a property that does not hold is a panic. Its corpus is the files
//! in `corpus/<target>/`: written by hand, found by mutation, or once a crash. `tests/corpora.rs` replays all of them and
//! then mutates for a moment from a fixed seed; with `WEFT_SOAK=1` it mutates for minutes from a new one.
//!
//! - [`targets`] has the properties, one file each.
//! - [`Mutator`] changes an input: bytes, tokens, and the JSON inside it.
//! - [`explore()`] keeps each input that leads somewhere new (by its label) and goes on from there, and makes an input that
//!   fails small.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property fails by panicking, as a test does"
)]

mod corpus;
mod explore;
mod mutate;
mod small;
pub mod targets;

pub use corpus::{Input, corpus, corpus_dir, keep};
pub use explore::{Explored, Failure, Limit, explore, run_one};
pub use mutate::Mutator;
pub use targets::{TARGETS, Target};
