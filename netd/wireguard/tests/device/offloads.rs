// SPDX-License-Identifier: Apache-2.0
//! Every offload, on and off: the same bytes arrive.

use crate::bulk::pass;
use crate::ground::{must_skip, tunnel};

const BYTES: u64 = 4 << 20;
const ALL_OFF: &[&str] = &["--no-tso", "--no-uso", "--no-udp-gso", "--no-udp-gro"];

#[test]
fn with_all_offloads_over_ipv4() {
    both(&[], &[], false);
}

#[test]
fn with_all_offloads_over_ipv6() {
    both(&[], &[], true);
}

#[test]
fn without_tso() {
    both(&["--no-tso"], &["--no-tso"], false);
}

#[test]
fn without_uso() {
    both(&["--no-uso"], &["--no-uso"], false);
}

#[test]
fn without_udp_gso() {
    both(&["--no-udp-gso"], &["--no-udp-gso"], false);
}

#[test]
fn without_udp_gro() {
    both(&["--no-udp-gro"], &["--no-udp-gro"], false);
}

#[test]
fn without_any_on_one_end_and_ipv6() {
    both(&[], ALL_OFF, true);
}

#[test]
fn with_several_workers() {
    both(&["--workers", "3"], &["--workers", "2", "--no-udp-gro"], false);
}

fn both(a_flags: &[&str], b_flags: &[&str], outer_v6: bool) {
    if must_skip() {
        return;
    }
    let [a, b] = tunnel([a_flags, b_flags], outer_v6);
    pass(&a, &b, BYTES);
    for (node, flags) in [(&a, a_flags), (&b, b_flags)] {
        let off = |flag: &str, word: &str| {
            assert!(
                !flags.contains(&flag) || node.log().contains(&format!("{word}=false")),
                "{flag}:\n{}",
                node.log()
            );
        };
        off("--no-tso", "tso");
        off("--no-uso", "uso");
        off("--no-udp-gso", "udp_gso");
        off("--no-udp-gro", "udp_gro");
    }
}
