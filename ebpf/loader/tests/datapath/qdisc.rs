// SPDX-License-Identifier: Apache-2.0
//! A packet that is not redirected goes on to the qdisc's filters behind our program: what shapes a pod's traffic on an ifb
//! must see it. (A pod whose traffic is shaped has its redirect off.)

use std::process::Command;

use ebpf_abi::DropReason;
use ebpf_loader::{AttachMode, Attached, PodAttachment};

use crate::{
    lab::{Lab, in_lab, ip},
    pod::{Pod, count, counts_up, forward, v4, v6},
};

/// Packets from an address that is not the pod's.
const SPOOFED: u64 = 20;
const IFB: &str = "wefttestifb";
const ALL: &str = "protocol all pref 200 u32 match u32 0 0 action mirred egress redirect dev";

/// How the filter that shapes is put on the pod's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shaper {
    /// On an ingress qdisc that is there before our program.
    IngressBefore,
    /// On an ingress qdisc that is added behind our program.
    IngressAfter,
    /// On the clsact qdisc that our program has brought.
    Clsact,
}

fn tc(arguments: &str) -> (bool, String) {
    let output = Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn shape(device: &str, shaper: Shaper) {
    let parent = if shaper == Shaper::Clsact { "ingress" } else { "parent ffff:" };
    for arguments in [
        (shaper != Shaper::Clsact).then(|| format!("qdisc add dev {device} handle ffff: ingress")),
        Some(format!("filter add dev {device} {parent} {ALL} {IFB}")),
    ]
    .into_iter()
    .flatten()
    {
        let (done, said) = tc(&arguments);
        assert!(done, "tc {arguments}: {said}");
    }
}

/// Packets that took the way over the ifb.
fn shaped() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{IFB}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn has_shaping() -> bool {
    if !Command::new("ip").args(["link", "add", IFB, "type", "ifb"]).output().unwrap().status.success() {
        eprintln!("SKIP: this kernel has no ifb");
        return false;
    }
    ip(&format!("link set {IFB} up"));
    let (done, said) = tc(&format!("qdisc add dev {IFB} root tbf rate 1gbit burst 1mb latency 50ms"));
    if !done {
        eprintln!("SKIP: this kernel has no tbf: {said}");
    }
    done
}

fn in_mode(mode: AttachMode, shaper: Shaper) {
    in_lab(move |lab| {
        if mode == AttachMode::Tcx && !lab.features.tcx {
            eprintln!("SKIP: this kernel has no TCX");
            return;
        }
        if has_shaping() {
            is_shaped(lab, mode, shaper);
        }
    });
}

fn is_shaped(lab: &Lab, mode: AttachMode, shaper: Shaper) {
    let (one, two) = (Pod::dual(1), Pod::dual(2));
    two.serve("two");
    forward(&[&one, &two]);
    let mut datapath = lab.open(mode);
    datapath.attach_pod(&two.attachment).unwrap();
    let plain = PodAttachment { redirect: false, ..one.attachment.clone() };
    let device = &plain.host_ifname;
    if shaper == Shaper::IngressBefore {
        shape(device, shaper);
    }
    assert_eq!(datapath.attach_pod(&plain).unwrap(), Attached::Created, "{mode:?}");
    // An ingress qdisc takes a filter for egress as one for ingress: there must be none.
    let excludes_egress = mode == AttachMode::Clsact && shaper == Shaper::IngressBefore;
    assert_eq!(datapath.pod_has_egress(plain.host_index), !excludes_egress, "{mode:?} {shaper:?}");
    if shaper != Shaper::IngressBefore {
        shape(device, shaper);
    }
    for address in [v4(2), v6(2)] {
        let before = shaped();
        assert_eq!(one.asks_at(address).as_deref(), Some("two"), "{mode:?} {shaper:?}");
        assert!(shaped() > before, "{mode:?} {shaper:?}: nothing of {address} went by the ifb");
    }
    // Checked before it is shaped.
    one.add_address(v6(99));
    let passed = shaped();
    for _ in 0..SPOOFED {
        let dropped = count(&datapath, DropReason::SourceAddress6);
        one.sends_from(v6(99));
        counts_up(&datapath, DropReason::SourceAddress6, dropped);
    }
    // What the pod's kernel says of itself meanwhile (MLD) goes by it, and is less than that.
    assert!(shaped() - passed < SPOOFED, "{mode:?} {shaper:?}: spoofed packets went by the ifb");

    assert_eq!(datapath.attach_pod(&plain).unwrap(), Attached::Updated, "{mode:?}");
    datapath.detach_pod(plain.host_index, &plain.addresses).unwrap();
    let before = shaped();
    assert_eq!(one.asks(&two).as_deref(), Some("two"), "{mode:?} {shaper:?}: detached");
    assert!(shaped() > before, "{mode:?} {shaper:?}: the filter of others stays");
}

#[test]
fn an_ingress_qdisc_behind_tcx_sees_what_is_not_redirected() {
    in_mode(AttachMode::Tcx, Shaper::IngressBefore);
    in_mode(AttachMode::Tcx, Shaper::IngressAfter);
}

#[test]
fn a_filter_behind_ours_on_clsact_sees_what_is_not_redirected() {
    in_mode(AttachMode::Clsact, Shaper::Clsact);
}

#[test]
fn our_filter_takes_its_place_on_an_ingress_qdisc_that_is_there() {
    in_mode(AttachMode::Clsact, Shaper::IngressBefore);
}
