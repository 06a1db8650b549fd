// SPDX-License-Identifier: Apache-2.0
//! Packets that pods send: checked, and delivered on the same node.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use ebpf_abi::DropReason;
use ebpf_loader::{AttachMode, Attached, Datapath, PodAttachment};

use crate::{
    client::by_tcp,
    lab::{Lab, Netns, in_lab, ip, serve_at},
};

/// A pod as weft-cni wires it: veth, /32, gateway 169.254.1.1 with a permanent neighbour.
struct Pod {
    netns: Netns,
    attachment: PodAttachment,
}

impl Pod {
    fn new(number: u8) -> Self {
        let netns = Netns::new();
        let (host_mac, mac) = ([2, 0, 0, 0, 1, number], [2, 0, 0, 0, 2, number]);
        let host_ifname = format!("wefttest{number}");
        let address = Ipv4Addr::new(10, 244, 0, number);
        ip(&format!(
            "link add {host_ifname} address {} type veth peer name eth0 address {} netns {}",
            text(host_mac),
            text(mac),
            netns.path().display()
        ));
        ip(&format!("link set {host_ifname} up"));
        ip("address replace 169.254.1.1/32 dev lo");
        netns.run(|| {
            ip("link set eth0 up");
            ip(&format!("address add {address}/32 dev eth0"));
            ip("route add default via 169.254.1.1 dev eth0 onlink");
            ip(&format!("neighbour replace 169.254.1.1 lladdr {} dev eth0 nud permanent", text(host_mac)));
        });
        let host_index = nix::net::if_::if_nametoindex(host_ifname.as_str()).unwrap();
        let attachment =
            PodAttachment { host_ifname, host_index, ip: address, mac, host_mac, redirect: true };
        Self { netns, attachment }
    }

    fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.attachment.ip, 8080)
    }

    fn serve(&self, name: &'static str) {
        let address = self.address();
        self.netns.run(move || serve_at(address, name));
    }

    fn asks(&self, other: &Self) -> Option<String> {
        let to = SocketAddr::V4(other.address());
        self.netns.run(move || by_tcp(to)).ok().map(|(_, said)| said)
    }

    /// Sends a datagram to the gateway from this address.
    fn sends_from(&self, source: Ipv4Addr) {
        self.netns.run(move || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            let _ = socket.send_to(b"!", "169.254.1.1:9");
        });
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Routes through the host's stack in the lab's netns, for packets that are not redirected.
fn forward(pods: &[&Pod]) {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    for pod in pods {
        let PodAttachment { host_ifname, ip: address, mac, .. } = &pod.attachment;
        ip(&format!("route replace {address}/32 dev {host_ifname}"));
        ip(&format!("neighbour replace {address} lladdr {} dev {host_ifname} nud permanent", text(*mac)));
    }
}

fn count(datapath: &Datapath, reason: DropReason) -> u64 {
    datapath.drops().unwrap()[&reason]
}

/// Waits for a counter: packets are sent by other threads.
fn counts_up(datapath: &Datapath, reason: DropReason, from: u64) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while count(datapath, reason) == from {
        assert!(Instant::now() < deadline, "{reason} stays at {from}: {:?}", datapath.drops());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn pods_of_a_node_reach_each_other_past_the_host_stack_by_tcx() {
    in_lab(|lab| {
        if !lab.features.tcx {
            eprintln!("SKIP: this kernel has no TCX");
            return;
        }
        redirects(lab, AttachMode::Tcx);
    });
}

#[test]
fn pods_of_a_node_reach_each_other_past_the_host_stack_by_clsact() {
    in_lab(|lab| redirects(lab, AttachMode::Clsact));
}

/// The lab's netns does not forward and has no routes: only the redirect gets a packet across.
fn redirects(lab: &Lab, mode: AttachMode) {
    let (one, two) = (Pod::new(1), Pod::new(2));
    two.serve("two");
    let mut datapath = lab.open(mode);
    assert_eq!(one.asks(&two), None, "no way yet");
    for pod in [&one, &two] {
        assert_eq!(datapath.attach_pod(&pod.attachment).unwrap(), Attached::Created);
        assert_eq!(datapath.attach_pod(&pod.attachment).unwrap(), Attached::Updated, "may be repeated");
    }
    assert_eq!(one.asks(&two).as_deref(), Some("two"));

    // The loader goes; the next one takes over what it finds.
    drop(datapath);
    assert_eq!(one.asks(&two).as_deref(), Some("two"));
    let mut datapath = lab.open(mode);
    let pods = datapath.pods().unwrap();
    assert_eq!(pods.len(), 2);
    let observed = &pods[&one.attachment.host_index];
    assert_eq!((observed.ip, observed.mac), (one.attachment.ip, one.attachment.mac));
    assert_eq!((observed.host_mac, observed.redirect), (Some(one.attachment.host_mac), true));
    assert_eq!(observed.attached, mode == AttachMode::Tcx);
    assert_eq!(datapath.attach_pod(&one.attachment).unwrap(), Attached::Updated);
    assert_eq!(one.asks(&two).as_deref(), Some("two"));

    // Without the flag packets belong to the host's stack, in both directions.
    let plain = PodAttachment { redirect: false, ..two.attachment.clone() };
    datapath.attach_pod(&plain).unwrap();
    assert_eq!(one.asks(&two), None, "the host does not forward");
    forward(&[&one, &two]);
    assert_eq!(one.asks(&two).as_deref(), Some("two"));

    for pod in [&one, &two] {
        datapath.detach_pod(pod.attachment.host_index, pod.attachment.ip).unwrap();
        datapath.detach_pod(pod.attachment.host_index, pod.attachment.ip).unwrap();
    }
    assert!(datapath.pods().unwrap().is_empty());
    assert_eq!(one.asks(&two).as_deref(), Some("two"), "nothing of ours is in the way");
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
            assert_eq!(lab.pin_dir("node").join("links").read_dir().unwrap().count(), {
                if mode == AttachMode::Clsact { 0 } else { 2 }
            });
        }
        let removed = ebpf_loader::remove_all(&lab.pin_dir("node")).unwrap();
        assert_eq!(removed.filters, 2);
        assert_eq!(one.asks(&two), None);
    });
}

#[test]
fn a_pod_cannot_send_from_an_address_or_mac_that_is_not_its_own() {
    in_lab(|lab| {
        let pod = Pod::new(1);
        let stranger = Ipv4Addr::new(10, 244, 9, 9);
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_pod(&pod.attachment).unwrap();
        forward(&[&pod]);
        pod.netns.run(|| ip(&format!("address add {stranger}/32 dev eth0")));

        let before = count(&datapath, DropReason::SourceAddress);
        pod.sends_from(pod.attachment.ip);
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
        pod.sends_from(pod.attachment.ip);
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
        next.attachment.ip = pod.attachment.ip;
        datapath.attach_pod(&next.attachment).unwrap();
        datapath.detach_pod(pod.attachment.host_index, pod.attachment.ip).unwrap();
        let pods = datapath.pods().unwrap();
        assert_eq!(pods.keys().copied().collect::<Vec<_>>(), [next.attachment.host_index]);
        assert_eq!(pods[&next.attachment.host_index].host_mac, Some(next.attachment.host_mac));
    });
}
