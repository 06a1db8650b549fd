// SPDX-License-Identifier: Apache-2.0
//! How much longer things may take here than on a machine of its own.

use std::env;
use std::sync::OnceLock;
use std::time::Duration;

/// A whole number: as many times as long are the limits of a lab, of its workers and of the stories that wait.
const VARIABLE: &str = "WEFT_SLOW";
/// Beyond that a limit is none.
const SLOWEST: u32 = 100;

/// How many times slower this machine is than one that the limits were chosen for: `WEFT_SLOW`, else 1. An emulated processor
/// needs 4 and more.
pub fn slow() -> u32 {
    static SLOW: OnceLock<u32> = OnceLock::new();
    *SLOW.get_or_init(|| env::var(VARIABLE).map_or(1, |text| factor(&text)))
}

/// A limit on this machine. What waits in this crate does so itself, and takes limits as they would be elsewhere.
pub fn patient(limit: Duration) -> Duration {
    limit.saturating_mul(slow())
}

fn factor(text: &str) -> u32 {
    text.parse().unwrap_or(1).clamp(1, SLOWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_never_faster_than_the_limits_and_never_without_one() {
        assert_eq!(["4", "0", "-1", "", "4.5", "4000000"].map(factor), [4, 1, 1, 1, 1, SLOWEST]);
    }
}
