// SPDX-License-Identifier: Apache-2.0
//! Packets that pods send: checked, and delivered on the same node.

use std::{collections::BTreeSet, net::IpAddr};

use ebpf_abi::DropReason;
use ebpf_loader::{AttachMode, Attached, Datapath, PodAttachment};

use crate::{
    lab::{Lab, in_lab, ip},
    pod::{Pod, count, counts_up, forward, forwarded, v4, v6},
};

#[test]
fn pods_of_a_node_reach_each_other_past_the_host_stack_by_tcx() {
    for pods in [Pod::new, Pod::dual, Pod::ipv6] {
        in_lab(move |lab| {
            if !lab.features.tcx {
                eprintln!("SKIP: this kernel has no TCX");
                return;
            }
            redirects(lab, AttachMode::Tcx, pods);
        });
    }
}

#[test]
fn pods_of_a_node_reach_each_other_past_the_host_stack_by_clsact() {
    for pods in [Pod::new, Pod::dual, Pod::ipv6] {
        in_lab(move |lab| redirects(lab, AttachMode::Clsact, pods));
    }
}

/// The lab's netns does not forward and has no routes: only the redirect gets a packet across.
fn redirects(lab: &Lab, mode: AttachMode, pod: fn(u8) -> Pod) {
    let (one, two) = (pod(1), pod(2));
    two.serve("two");
    let mut datapath = lab.open(mode);
    nobody_answers(&one, &two, "no way yet");
    for pod in [&one, &two] {
        assert_eq!(datapath.attach_pod(&pod.attachment).unwrap(), Attached::Created);
        assert_eq!(datapath.attach_pod(&pod.attachment).unwrap(), Attached::Updated, "may be repeated");
    }
    two_answers(&one, &two, "by the redirect");
    for address in &two.attachment.addresses {
        // Fragments, too; and a hop counts, as it would in the stack.
        for options in ["-s 56", "-s 5000"] {
            let (answered, said) = one.pings(*address, options);
            assert!(answered && said.contains("ttl=63"), "{address} {options}: {said}");
        }
    }

    // The loader goes; the next one takes over what it finds.
    drop(datapath);
    two_answers(&one, &two, "without the loader");
    let mut datapath = lab.open(mode);
    let pods = datapath.pods().unwrap();
    assert_eq!(pods.len(), 2);
    let observed = &pods[&one.attachment.host_index];
    let addresses: BTreeSet<IpAddr> = one.attachment.addresses.iter().copied().collect();
    assert_eq!((&observed.addresses, observed.mac), (&addresses, one.attachment.mac));
    assert_eq!((observed.host_mac, observed.redirect), (Some(one.attachment.host_mac), true));
    assert_eq!(observed.attached, mode == AttachMode::Tcx);
    assert_eq!(datapath.attach_pod(&one.attachment).unwrap(), Attached::Updated);
    two_answers(&one, &two, "after the takeover");

    // Without the flag packets from and to the pod belong to the host's stack.
    for (plain, other) in [(&two, &one), (&one, &two)] {
        let attachment = PodAttachment { redirect: false, ..plain.attachment.clone() };
        datapath.attach_pod(&attachment).unwrap();
        datapath.attach_pod(&other.attachment).unwrap();
        assert!(!datapath.pods().unwrap()[&attachment.host_index].redirect);
        nobody_answers(&one, &two, "the host does not forward");
    }
    forward(&[&one, &two]);
    two_answers(&one, &two, "through the host's stack");
    takes_the_stack_both_ways(&mut datapath, &one, &two);

    for pod in [&one, &two] {
        let PodAttachment { host_index, addresses, .. } = &pod.attachment;
        datapath.detach_pod(*host_index, addresses).unwrap();
        datapath.detach_pod(*host_index, addresses).unwrap();
    }
    assert!(datapath.pods().unwrap().is_empty());
    two_answers(&one, &two, "nothing of ours is in the way");
}

/// With the flag of only one of them off, as with both; and not with both on.
fn takes_the_stack_both_ways(datapath: &mut Datapath, one: &Pod, two: &Pod) {
    for (of_one, of_two) in [(true, true), (true, false), (false, true), (false, false), (true, true)] {
        for (pod, redirect) in [(one, of_one), (two, of_two)] {
            let attachment = PodAttachment { redirect, ..pod.attachment.clone() };
            datapath.attach_pod(&attachment).unwrap();
        }
        for address in &two.attachment.addresses {
            let before = forwarded();
            let (answered, said) = one.pings(*address, "");
            assert!(answered, "{address}: {said}");
            let expected = if of_one && of_two { 0 } else { 2 };
            assert_eq!(forwarded() - before, expected, "{address}: question and answer, {of_one} {of_two}");
        }
    }
}

/// At every address.
fn two_answers(one: &Pod, two: &Pod, when: &str) {
    for address in &two.attachment.addresses {
        assert_eq!(one.asks_at(*address).as_deref(), Some("two"), "{address}: {when}");
    }
}

fn nobody_answers(one: &Pod, two: &Pod, why: &str) {
    for address in &two.attachment.addresses {
        let (answered, said) = one.pings(*address, "-W 0.5");
        assert!(!answered, "{address}: {why}: {said}");
    }
}

#[test]
fn an_attach_mode_can_change_between_runs() {
    in_lab(|lab| {
        if !lab.features.tcx {
            eprintln!("SKIP: this kernel has no TCX");
            return;
        }
        let (one, two) = (Pod::new(1), Pod::new(2));
        two.serve("two");
        for mode in [AttachMode::Clsact, AttachMode::Auto, AttachMode::Clsact] {
            let mut datapath = lab.open(mode);
            for pod in [&one, &two] {
                datapath.attach_pod(&pod.attachment).unwrap();
            }
            assert_eq!(one.asks(&two).as_deref(), Some("two"), "{mode:?}");
            // A bpf_link each for both directions; with clsact the marks of what is at egress.
            assert_eq!(lab.pin_dir("node").join("links").read_dir().unwrap().count(), {
                if mode == AttachMode::Clsact { 2 } else { 4 }
            });
            assert!(datapath.pod_has_egress(one.attachment.host_index), "{mode:?}");
        }
        let removed = ebpf_loader::remove_all(&lab.pin_dir("node")).unwrap();
        assert_eq!(removed.filters, 4);
        assert_eq!(one.asks(&two), None);
    });
}

#[test]
fn a_pod_cannot_send_from_an_address_or_mac_that_is_not_its_own() {
    in_lab(|lab| {
        let pod = Pod::new(1);
        let stranger = v4(99);
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_pod(&pod.attachment).unwrap();
        forward(&[&pod]);
        pod.add_address(stranger);

        let before = count(&datapath, DropReason::SourceAddress);
        pod.sends_from(pod.address());
        assert_eq!(count(&datapath, DropReason::SourceAddress), before, "its own address passes");
        pod.sends_from(stranger);
        counts_up(&datapath, DropReason::SourceAddress, before);

        // The gateway's MAC is not known: an ARP request with the stranger as its sender.
        let before = count(&datapath, DropReason::ArpSender);
        pod.netns.run(|| ip("neighbour delete 169.254.1.1 dev eth0"));
        pod.sends_from(stranger);
        counts_up(&datapath, DropReason::ArpSender, before);

        let before = count(&datapath, DropReason::SourceMac);
        pod.netns.run(|| ip("link set eth0 address 02:00:00:00:99:99"));
        pod.sends_from(pod.address());
        counts_up(&datapath, DropReason::SourceMac, before);
    });
}

#[test]
fn a_pod_link_that_is_gone_leaves_nothing_in_the_way() {
    in_lab(|lab| {
        let pod = Pod::new(1);
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_pod(&pod.attachment).unwrap();
        ip(&format!("link delete {}", pod.attachment.host_ifname));
        drop(datapath);

        let mut datapath = lab.open(AttachMode::Auto);
        assert_eq!(lab.pin_dir("node").join("links").read_dir().unwrap().count(), 0, "the dead pin is swept");
        assert!(!datapath.pods().unwrap()[&pod.attachment.host_index].attached);

        // Its address was given to another pod meanwhile: a late removal of the old one leaves that alone.
        let mut next = Pod::new(2);
        next.attachment.addresses = pod.attachment.addresses.clone();
        datapath.attach_pod(&next.attachment).unwrap();
        datapath.detach_pod(pod.attachment.host_index, &pod.attachment.addresses).unwrap();
        let pods = datapath.pods().unwrap();
        assert_eq!(pods.keys().copied().collect::<Vec<_>>(), [next.attachment.host_index]);
        assert_eq!(pods[&next.attachment.host_index].host_mac, Some(next.attachment.host_mac));
    });
}

#[test]
fn an_address_that_is_no_longer_listed_is_gone_from_the_maps() {
    in_lab(|lab| {
        let (one, mut two) = (Pod::dual(1), Pod::dual(2));
        // Two of each family.
        for address in [v4(12), v6(12)] {
            two.add_address(address);
            two.attachment.addresses.push(address);
        }
        two.serve("two");
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_pod(&one.attachment).unwrap();
        datapath.attach_pod(&two.attachment).unwrap();
        two_answers(&one, &two, "each address can be reached and sends");

        // Another loader, which knows from the maps what the link has.
        drop(datapath);
        let mut datapath = lab.open(AttachMode::Auto);
        let gone = [v4(2), v6(12)];
        two.attachment.addresses.retain(|address| !gone.contains(address));
        datapath.attach_pod(&two.attachment).unwrap();
        two_answers(&one, &two, "those that stay");
        for address in gone {
            let (answered, said) = one.pings(address, "-W 0.5");
            assert!(!answered, "{address} is still delivered: {said}");
        }
        let before = [DropReason::SourceAddress, DropReason::SourceAddress6].map(|why| count(&datapath, why));
        two.sends_from(v4(2));
        counts_up(&datapath, DropReason::SourceAddress, before[0]);
        two.sends_from(v6(12));
        counts_up(&datapath, DropReason::SourceAddress6, before[1]);

        let observed = datapath.pods().unwrap()[&two.attachment.host_index].clone();
        assert_eq!(observed.addresses, two.attachment.addresses.iter().copied().collect());
        assert_eq!(observed.host_mac, Some(two.attachment.host_mac));
        datapath.detach_pod(two.attachment.host_index, &[]).unwrap();
        assert!(!datapath.pods().unwrap().contains_key(&two.attachment.host_index), "whatever was named");
    });
}

#[test]
fn a_pod_without_an_address_of_a_family_may_not_send_it() {
    in_lab(|lab| {
        let (one, two) = (Pod::dual(1), Pod::dual(2));
        let mut datapath = lab.open(AttachMode::Auto);
        let only = |pod: &Pod, address| PodAttachment { addresses: vec![address], ..pod.attachment.clone() };
        datapath.attach_pod(&only(&two, v6(2))).unwrap();
        assert_eq!(count(&datapath, DropReason::EtherType), 0);
        two.sends_from(v4(2));
        counts_up(&datapath, DropReason::EtherType, 0);
        // ARP neither: the gateway is not known.
        let before = count(&datapath, DropReason::EtherType);
        two.netns.run(|| ip("neighbour delete 169.254.1.1 dev eth0"));
        two.sends_from(v4(2));
        counts_up(&datapath, DropReason::EtherType, before);

        datapath.attach_pod(&only(&one, v4(1))).unwrap();
        let before = count(&datapath, DropReason::EtherType);
        one.sends_from(v6(1));
        counts_up(&datapath, DropReason::EtherType, before);
    });
}
