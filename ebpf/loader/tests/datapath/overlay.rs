// SPDX-License-Identifier: Apache-2.0
//! Pods of two nodes over a real VXLAN: past the nodes' stacks while all agree, through them otherwise. The witness at
//! each node's forward hook is an nft counter.

use ebpf_loader::{AttachMode, Attached};

use crate::{
    lab::{Lab, in_lab, ip},
    nodes::{
        BULK_BYTES, DEVICE, FAMILIES, Family, NOBODY, Node, OVERLAY_MTU, UPLINK_MTU, fast_nodes,
        in_each_mode, nft_is_there, overlay, ping, sends_bulk, uplink, works,
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
        // Those that it sends and those that it gets.
        let seen = FAMILIES.map(|family| sees_both_ways(&one, &two, family));

        one.attach_pod(false);
        works(&one, &two);
        for (family, seen) in FAMILIES.into_iter().zip(seen) {
            assert!(one.forwarded_in(family) > 0 && two.forwarded_in(family) > seen, "{mode:?} {family:?}");
        }

        for node in [&mut one, &mut two] {
            node.attach_pod(true);
        }
        let seen = (one.forwarded(), two.forwarded());
        works(&one, &two);
        assert_eq!((one.forwarded(), two.forwarded()), seen, "{mode:?}: back on the fast path");
    });
}

/// One ping is two packets for the second node's stack; how many it has seen in all.
fn sees_both_ways(one: &Node, two: &Node, family: Family) -> u64 {
    let seen = two.forwarded_in(family);
    let (answered, said) = ping(one, two.address(family), "");
    assert!(answered, "{said}");
    assert_eq!(two.forwarded_in(family), seen + 2, "{family:?}");
    seen + 2
}

#[test]
fn each_node_counts_the_ttl_down_by_one_and_says_when_it_is_over() {
    in_each_mode(|lab, mode| {
        let (one, two) = fast_nodes(lab, mode);
        for (family, why) in [(Family::V4, "Time to live exceeded"), (Family::V6, "Hop limit")] {
            // Each says so from the address that its route to the sender has.
            for (ttl, hops) in [(1, [uplink(1, family), overlay(1, family)]), (2, [overlay(2, family); 2])] {
                let (answered, said) = ping(&one, two.address(family), &format!("-t {ttl}"));
                assert!(!answered, "{mode:?}: TTL {ttl} went too far: {said}");
                assert!(said.contains(why), "{mode:?}: TTL {ttl}: {said}");
                let ended = hops.iter().any(|hop| said.contains(&format!("From {hop} ")));
                assert!(ended, "{mode:?}: TTL {ttl} ended elsewhere: {said}");
            }
            let (answered, said) = ping(&one, two.address(family), "-t 3");
            assert!(answered, "{mode:?}: two hops took more than two: {said}");
        }
    });
}

#[test]
fn a_block_without_a_node_is_unreachable_and_nothing_leaks() {
    in_each_mode(|lab, mode| {
        let (one, two) = fast_nodes(lab, mode);
        for (nobody, all) in NOBODY.into_iter().zip(["10.244.0.0/16", "fd00:10:244::/56"]) {
            let seen = two.stray();
            let (answered, said) = ping(&one, nobody, "");
            assert!(!answered && said.contains("nreachable"), "{mode:?}: {said}");
            assert_eq!(two.stray(), seen, "{mode:?}: it left the node");
            // Without the fail-closed route it would have left by the default route, and been seen.
            one.netns.run(|| ip(&format!("route delete unreachable {all} metric 1000000")));
            let (_, said) = ping(&one, nobody, "");
            assert!(two.stray() > seen, "{mode:?}: the witness is blind: {said}");
            one.netns.run(|| ip(&format!("route add unreachable {all} metric 1000000")));
        }
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
fn is_too_long(one: &Node, two: &Node, family: Family, length: u32) {
    let payload = length - family.ping_headers();
    let (answered, said) = ping(one, two.address(family), &format!("-M do -s {payload}"));
    assert!(!answered, "{length} bytes got through: {said}");
    let mtu = match family {
        Family::V4 => format!("mtu = {OVERLAY_MTU}"),
        Family::V6 => format!("Packet too big: mtu={OVERLAY_MTU}"),
    };
    assert!(said.contains(&mtu), "{length} bytes: {said}");
}

#[test]
fn a_packet_too_long_for_the_overlay_is_refused_with_the_mtu() {
    in_each_mode(|lab, mode| {
        let (one, two) = with_longer_mtu(lab, mode);
        for family in FAMILIES {
            let longest = OVERLAY_MTU - family.ping_headers();
            let (answered, said) = ping(&one, two.address(family), &format!("-M do -s {longest}"));
            assert!(answered, "{mode:?}: as long as the MTU: {said}");
            for length in [UPLINK_MTU, OVERLAY_MTU + 10] {
                is_too_long(&one, &two, family, length);
            }
        }
        // One that may be cut is cut before the tunnel, not in it (of IPv6 none may).
        let longest = UPLINK_MTU - Family::V4.ping_headers();
        let (answered, said) = ping(&one, two.address(Family::V4), &format!("-M dont -s {longest}"));
        assert!(answered, "{mode:?}: {said}");
        assert_eq!((one.fragments(), two.fragments()), (0, 0), "{mode:?}: the underlay had to cut packets");
    });
}

#[test]
fn the_mtu_holds_to_the_byte() {
    in_each_mode(|lab, mode| {
        let (one, two) = with_longer_mtu(lab, mode);
        for family in FAMILIES {
            for beyond in 1..=5 {
                is_too_long(&one, &two, family, OVERLAY_MTU + beyond);
            }
        }
        assert_eq!(two.fragments(), 0, "{mode:?}: the underlay had to cut packets");
    });
}

#[test]
fn tcp_of_pods_with_a_longer_mtu_learns_the_overlays() {
    in_each_mode(|lab, mode| {
        let (one, two) = with_longer_mtu(lab, mode);
        for family in FAMILIES {
            assert_eq!(sends_bulk(&one, &two, family), BULK_BYTES, "{mode:?} {family:?}");
        }
        assert_eq!(two.fragments(), 0, "{mode:?}: the underlay had to cut packets");
    });
}

#[test]
fn a_device_that_was_remade_under_the_same_name_is_attached_again() {
    in_each_mode(|lab, mode| {
        let (mut one, two) = fast_nodes(lab, mode);
        let old = one.device_index();
        one.remove_overlay();
        for family in FAMILIES {
            let (answered, said) = ping(&one, two.address(family), "");
            assert!(!answered && said.contains("nreachable"), "{mode:?}: {said}");
        }
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
