// SPDX-License-Identifier: Apache-2.0
//! The mark of what the pod's program passes on, as nft in the host's prerouting sees it.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ebpf_abi::CHECKED_MARK;
use ebpf_loader::AttachMode;

use crate::{
    lab::{Lab, in_lab},
    pod::{Pod, forward, v4, v6},
};

const PATIENCE: Duration = Duration::from_secs(5);
/// Pings, of two seconds each.
const TRIES: u32 = 5;

#[test]
fn what_was_checked_is_marked_by_tcx() {
    in_lab(|lab| {
        if !lab.features.tcx {
            eprintln!("SKIP: this kernel has no TCX");
            return;
        }
        marks(lab, AttachMode::Tcx);
    });
}

#[test]
fn what_was_checked_is_marked_by_clsact() {
    in_lab(|lab| marks(lab, AttachMode::Clsact));
}

fn marks(lab: &Lab, mode: AttachMode) {
    let pod = Pod::dual(1);
    forward(&[&pod]);
    let Some(()) = nft(&format!(
        "table inet test {{
            counter marked {{}}
            counter plain {{}}
            chain in {{
                type filter hook prerouting priority raw;
                iifname {name} udp dport 9 meta mark & {CHECKED_MARK} == {CHECKED_MARK} counter name marked
                iifname {name} udp dport 9 meta mark & {CHECKED_MARK} == 0 counter name plain
            }}
        }}",
        name = pod.attachment.host_ifname
    )) else {
        eprintln!("SKIP: nft is missing (package nftables)");
        return;
    };
    // A link loses what is sent before the kernel has seen it up.
    for gateway in ["169.254.1.1", "fe80::1"] {
        let address = gateway.parse().unwrap();
        let answered = (0..TRIES).any(|_| pod.pings(address, "-I eth0").0);
        assert!(answered, "{gateway} does not answer");
    }
    // Without the program nothing is marked; with it everything is, of both families.
    let sends = |expected| {
        for source in [v4(1), v6(1)] {
            pod.sends_from(source);
        }
        let end = Instant::now() + PATIENCE;
        while counters() != expected && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(counters(), expected, "marked, and without the mark");
    };
    sends((0, 2));
    let mut datapath = lab.open(mode);
    datapath.attach_pod(&pod.attachment).unwrap();
    sends((2, 2));
    // A long one comes in fragments, and each of them was checked.
    let (answered, said) = pod.pings("169.254.1.1".parse().unwrap(), "-s 5000");
    assert!(answered, "{said}");
    datapath.detach_pod(pod.attachment.host_index, &pod.attachment.addresses).unwrap();
    // The kernel lets a bpf_link go a moment after its pin; until then the pod may send nothing.
    let end = Instant::now() + PATIENCE;
    while counters().1 < 4 && Instant::now() < end {
        pod.sends_from(v4(1));
        thread::sleep(Duration::from_millis(10));
    }
    let (marked, plain) = counters();
    assert!(marked == 2 && plain >= 4, "{marked} marked, {plain} without the mark");
}

/// Packets so far: marked, and without the mark.
fn counters() -> (u64, u64) {
    let one = |name: &str| {
        let output = Command::new("nft").args(["list", "counter", "inet", "test", name]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse::<u64>().unwrap()
    };
    (one("marked"), one("plain"))
}

/// `None` without nft.
fn nft(script: &str) -> Option<()> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().ok()?;
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
    Some(())
}
