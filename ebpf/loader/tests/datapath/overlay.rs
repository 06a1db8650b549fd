// SPDX-License-Identifier: Apache-2.0
//! Pods of two nodes over a real VXLAN: past the nodes' stacks while all agree, through them otherwise. The witness at
//! each node's forward hook is an nft counter.

use ebpf_loader::{AttachMode, Attached};

use crate::{
    lab::{Lab, in_lab, ip},
    nodes::{
        BULK_BYTES, DEVICE, NOBODY, Node, OVERLAY_MTU, PING_HEADERS, UPLINK_MTU, fast_nodes, in_each_mode,
        nft_is_there, overlay, ping, sends_bulk, uplink, works,
    },
};

#[test]
fn pods_of_two_nodes_reach_each_other_past_both_stacks() {
    in_each_mode(|lab, mode| {
        let (mut one, mut two) = fast_nodes(lab, mode);
        works(&one, &two);
        assert_eq!((one.forwarded(), two.forwarded()), (0, 0), "{mode:?}: a stack saw packets");
        let filters = if mode == AttachMode::Clsact { 1 } else { 0 };
        for node in [&mut one, &mut two] {
            assert_eq!(node.datapath.overlay().unwrap(), Some(node.device_index()));
            assert_eq!(node.attach_overlay(), Attached::Updated, "may be repeated");
            assert_eq!(node.filters(), filters, "{mode:?}");
        }
        works(&one, &two);
        assert_eq!((one.forwarded(), two.forwarded()), (0, 0), "{mode:?}: a stack saw packets");
        assert_eq!((one.fragments(), two.fragments()), (0, 0), "{mode:?}: the underlay had to cut packets");
    });
}

#[test]
fn the_fast_path_stays_when_the_loader_goes() {
    in_each_mode(|lab, mode| {
        let (mut one, two) = fast_nodes(lab, mode);
        // Another one in its place, which knows nothing of it.
        one.datapath = lab.open_at("spare", &lab.cgroup, mode);
        works(&one, &two);
        assert_eq!(one.forwarded(), 0, "{mode:?}");

        one.datapath = lab.open_at("n1", &lab.cgroup, mode);
        let index = one.device_index();
        assert_eq!(one.datapath.overlay().unwrap(), Some(index), "read back from the pinned map");
        let outcome = one.attach_overlay();
        assert_eq!(outcome, Attached::Updated, "{mode:?}");
        works(&one, &two);
        assert_eq!(one.forwarded(), 0, "{mode:?}");
    });
}

#[test]
fn without_the_flag_packets_of_a_pod_take_its_nodes_stack() {
    in_each_mode(|lab, mode| {
        let (mut one, mut two) = fast_nodes(lab, mode);
        two.attach_pod(false);
        works(&one, &two);
        assert_eq!(one.forwarded(), 0, "{mode:?}: the other node's pod has nothing to do with it");
        let seen = two.forwarded();
        assert!(seen > 0, "{mode:?}: the witness sees nothing");

        one.attach_pod(false);
        works(&one, &two);
        assert!(one.forwarded() > 0 && two.forwarded() > seen, "{mode:?}");

        for node in [&mut one, &mut two] {
            node.attach_pod(true);
        }
        let seen = (one.forwarded(), two.forwarded());
        works(&one, &two);
        assert_eq!((one.forwarded(), two.forwarded()), seen, "{mode:?}: back on the fast path");
    });
}

#[test]
fn each_node_counts_the_ttl_down_by_one_and_says_when_it_is_over() {
    in_each_mode(|lab, mode| {
        let (one, two) = fast_nodes(lab, mode);
        // Each says so from the address that its route to the sender has.
        for (ttl, hop) in [(1, uplink(1)), (2, overlay(2))] {
            let (answered, said) = ping(&one, two.attachment.ip, &format!("-t {ttl}"));
            assert!(!answered, "{mode:?}: TTL {ttl} went too far: {said}");
            assert!(said.contains("Time to live exceeded"), "{mode:?}: TTL {ttl}: {said}");
            assert!(said.contains(&format!("From {hop} ")), "{mode:?}: TTL {ttl} ended elsewhere: {said}");
        }
        let (answered, said) = ping(&one, two.attachment.ip, "-t 3");
        assert!(answered, "{mode:?}: two hops took more than two: {said}");
    });
}

#[test]
fn a_block_without_a_node_is_unreachable_and_nothing_leaks() {
    in_each_mode(|lab, mode| {
        let (one, two) = fast_nodes(lab, mode);
        let (_, said) = ping(&one, NOBODY, "");
        assert!(said.contains("Unreachable"), "{mode:?}: {said}");
        assert_eq!((two.stray(), one.forwarded()), (0, 0), "{mode:?}: it left the node");
        // Without the fail-closed route it would have left by the default route, and been seen.
        one.netns.run(|| ip("route delete unreachable 10.244.0.0/16 metric 1000000"));
        ping(&one, NOBODY, "");
        assert!(two.stray() > 0, "{mode:?}: the witness is blind");
    });
}

/// Pods from before the path's MTU went down.
fn with_longer_mtu(lab: &Lab, mode: AttachMode) -> (Node, Node) {
    let (one, two) = fast_nodes(lab, mode);
    for node in [&one, &two] {
        node.pod.run(|| ip(&format!("link set eth0 mtu {UPLINK_MTU}")));
        node.netns.run(|| ip(&format!("link set {} mtu {UPLINK_MTU}", node.attachment.host_ifname)));
    }
    (one, two)
}

/// A packet of this length that must not be cut must come back as "too long", with the overlay's MTU.
fn is_too_long(one: &Node, two: &Node, length: u32) {
    let (answered, said) = ping(one, two.attachment.ip, &format!("-M do -s {}", length - PING_HEADERS));
    assert!(!answered, "{length} bytes got through: {said}");
    assert!(said.contains(&format!("mtu = {OVERLAY_MTU}")), "{length} bytes: {said}");
}

#[test]
fn a_packet_too_long_for_the_overlay_is_refused_with_the_mtu() {
    in_each_mode(|lab, mode| {
        let (one, two) = with_longer_mtu(lab, mode);
        let (answered, said) =
            ping(&one, two.attachment.ip, &format!("-M do -s {}", OVERLAY_MTU - PING_HEADERS));
        assert!(answered, "{mode:?}: as long as the MTU: {said}");
        for length in [UPLINK_MTU, OVERLAY_MTU + 10] {
            is_too_long(&one, &two, length);
        }
        // One that may be cut is cut before the tunnel, not in it.
        let (answered, said) =
            ping(&one, two.attachment.ip, &format!("-M dont -s {}", UPLINK_MTU - PING_HEADERS));
        assert!(answered, "{mode:?}: {said}");
        assert_eq!((one.fragments(), two.fragments()), (0, 0), "{mode:?}: the underlay had to cut packets");
    });
}

#[test]
fn the_mtu_holds_to_the_byte() {
    in_each_mode(|lab, mode| {
        let (one, two) = with_longer_mtu(lab, mode);
        for beyond in 1..=5 {
            is_too_long(&one, &two, OVERLAY_MTU + beyond);
        }
        assert_eq!(two.fragments(), 0, "{mode:?}: the underlay had to cut packets");
    });
}

#[test]
fn tcp_of_pods_with_a_longer_mtu_learns_the_overlays() {
    in_each_mode(|lab, mode| {
        let (one, two) = with_longer_mtu(lab, mode);
        assert_eq!(sends_bulk(&one, &two), BULK_BYTES, "{mode:?}");
        assert_eq!(two.fragments(), 0, "{mode:?}: the underlay had to cut packets");
    });
}

#[test]
fn a_device_that_was_remade_under_the_same_name_is_attached_again() {
    in_each_mode(|lab, mode| {
        let (mut one, two) = fast_nodes(lab, mode);
        let old = one.device_index();
        one.remove_overlay();
        let (answered, said) = ping(&one, two.attachment.ip, "");
        assert!(!answered && said.contains("Unreachable"), "{mode:?}: {said}");
        assert!(
            one.netns.run(|| one.datapath.attach_overlay(DEVICE)).is_err(),
            "{mode:?}: there is no device"
        );

        one.add_overlay();
        assert_ne!(one.device_index(), old);
        works(&one, &two);
        let seen = one.forwarded();
        assert!(seen > 0, "{mode:?}: nobody told the programs of the new device yet");
        let outcome = if mode == AttachMode::Tcx { Attached::Replaced } else { Attached::Created };
        assert_eq!(one.attach_overlay(), outcome, "{mode:?}");
        assert_eq!(one.datapath.overlay().unwrap(), Some(one.device_index()));
        works(&one, &two);
        assert_eq!(one.forwarded(), seen, "{mode:?}: a stack saw packets");
    });
}

#[test]
fn detached_the_overlay_is_the_stacks() {
    in_each_mode(|lab, mode| {
        let (mut one, mut two) = fast_nodes(lab, mode);
        one.detach_overlay();
        one.detach_overlay();
        assert_eq!(one.datapath.overlay().unwrap(), None);
        assert_eq!(one.filters(), 0, "{mode:?}");
        assert!(!lab.pin_dir("n1").join("links/overlay").exists());
        works(&one, &two);
        assert!(one.forwarded() > 0, "{mode:?}: something of ours still is in the way");
        assert_eq!(two.forwarded(), 0, "{mode:?}: the other node is as it was");

        two.detach_overlay();
        works(&one, &two);
        assert!(two.forwarded() > 0, "{mode:?}");
        assert_eq!(one.attach_overlay(), Attached::Created, "{mode:?}");
        let seen = one.forwarded();
        works(&one, &two);
        assert_eq!(one.forwarded(), seen, "{mode:?}: back on the fast path");
    });
}

#[test]
fn the_attach_mode_of_the_overlay_can_change_between_runs() {
    in_lab(|lab| {
        if !lab.features.tcx || !nft_is_there() {
            eprintln!("SKIP: this kernel has no TCX, or there is no nft");
            return;
        }
        let (mut one, two) = fast_nodes(lab, AttachMode::Clsact);
        for (mode, filters) in [(AttachMode::Tcx, 0), (AttachMode::Clsact, 1), (AttachMode::Auto, 0)] {
            one.datapath = lab.open_at("n1", &lab.cgroup, mode);
            one.attach_overlay();
            one.attach_pod(true);
            assert_eq!(one.filters(), filters, "{mode:?}");
            assert_eq!(lab.pin_dir("n1").join("links/overlay").exists(), filters == 0, "{mode:?}");
            works(&one, &two);
            assert_eq!(one.forwarded(), 0, "{mode:?}");
        }
    });
}

#[test]
fn cleaning_takes_the_program_off_the_overlay_device() {
    in_each_mode(|lab, mode| {
        let (one, two) = fast_nodes(lab, mode);
        one.netns.run(|| ebpf_loader::remove_all(&lab.pin_dir("n1"))).unwrap();
        assert_eq!(one.filters(), 0, "{mode:?}: a filter stays on {DEVICE}");
        works(&one, &two);
        assert!(one.forwarded() > 0, "{mode:?}: something of ours still is in the way");
    });
}
