// SPDX-License-Identifier: Apache-2.0
//! What a pod may say of itself in IPv6, and what it may not say of others.

use std::{
    net::{IpAddr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use ebpf_abi::DropReason::{
    self, ExtensionHeaders, Malformed, NeighbourSender, RouterMessage, SourceAddress, SourceAddress6,
};
use ebpf_loader::{AttachMode, Datapath};

use crate::{
    lab::{Lab, in_lab, ip},
    nodes::{FAMILIES, Family, NOBODY, fast_nodes, in_each_mode, nodad},
    pod::{self, Pod, count, counts_up, v6, waits_for},
    raw::{
        ALL_NODES, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, HOST, ICMPV6, PADDING, ROUTER_ALERT, ROUTING,
        Raw, fragment, source_link_layer, target_link_layer,
    },
};

const NOBODYS: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const FOREIGN_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];
/// Of any message that has no more to say: the second half of its header.
const ZEROES: [u8; 4] = [0; 4];

// ICMPv6 types.
const ECHO: u8 = 128;
const LISTENER_QUERY: u8 = 130;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const INVERSE_SOLICITATION: u8 = 141;
const LISTENER_REPORT: u8 = 143;

fn own() -> Ipv6Addr {
    address(1)
}

fn address(number: u8) -> Ipv6Addr {
    match v6(number) {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => unreachable!(),
    }
}

/// A story about one dual-stack pod, in each attach mode.
fn with_pod(story: impl Fn(&Lab, &Pod, &Datapath) + Copy + Send + 'static) {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        in_lab(move |lab| {
            if mode == AttachMode::Tcx && !lab.features.tcx {
                eprintln!("SKIP: this kernel has no TCX");
                return;
            }
            let pod = Pod::dual(1);
            let mut datapath = lab.open(mode);
            datapath.attach_pod(&pod.attachment).unwrap();
            story(lab, &pod, &datapath);
        });
    }
}

fn is_dropped(pod: &Pod, datapath: &Datapath, reason: DropReason, what: &str, packet: &Raw) {
    eprintln!("{what}");
    let before = count(datapath, reason);
    pod.netns.run(|| packet.send());
    counts_up(datapath, reason, before);
}

fn passes(pod: &Pod, datapath: &Datapath, what: &str, packet: &Raw) {
    eprintln!("{what}");
    let (dropped, received) = (datapath.drops().unwrap(), received(pod));
    pod.netns.run(|| packet.send());
    waits_for(|| self::received(pod) > received, || format!("{what}: {:?}", datapath.drops()));
    assert_eq!(datapath.drops().unwrap(), dropped, "{what}");
}

/// IPv6 packets that the host's stack has taken from the pod's link.
fn received(pod: &Pod) -> u64 {
    let path = format!("/proc/thread-self/net/dev_snmp6/{}", pod.attachment.host_ifname);
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Ip6InReceives")).unwrap();
    line.trim().parse().unwrap()
}

/// Waits until the pod's link has an address that duplicate address detection has let pass.
fn settles(pod: &Pod, address: IpAddr) {
    let show = || {
        pod.netns.run(|| {
            let output = std::process::Command::new("ip")
                .args(["-6", "-o", "address", "show", "dev", "eth0"])
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        })
    };
    let is_settled = |text: &str| {
        let line = text.lines().find(|line| line.contains(&format!(" {address}/")));
        line.is_some_and(|line| !line.contains("tentative") && !line.contains("dadfailed"))
    };
    waits_for(|| is_settled(&show()), show);
}

#[test]
fn a_kernel_that_sets_up_ipv6_loses_nothing() {
    with_pod(|_, pod, datapath| {
        let own_link_local = IpAddr::V6(pod.link_local());
        settles(pod, own_link_local);
        // All over again, seen by the program from the start: listener reports, duplicate address detection of both
        // addresses, router solicitations.
        pod.netns.run(|| {
            ip("link set eth0 down");
            ip("address flush dev eth0 scope global");
            ip("link set eth0 up");
            ip(&format!("address add {}/128 dev eth0", own()));
        });
        settles(pod, own_link_local);
        settles(pod, IpAddr::V6(own()));
        assert!(datapath.drops().unwrap().values().all(|count| *count == 0), "{:?}", datapath.drops());

        // It claims the address of another now: nobody hears of that.
        let before = count(datapath, NeighbourSender);
        pod.netns.run(|| ip(&format!("address add {}/128 dev eth0", address(9))));
        counts_up(datapath, NeighbourSender, before);
    });
}

#[test]
fn host_and_pod_find_each_other_by_neighbour_discovery() {
    with_pod(|_, pod, datapath| {
        ip(&format!("route add {}/128 dev {}", own(), pod.attachment.host_ifname));
        settles(pod, IpAddr::V6(pod.link_local()));
        pod.netns.run(|| ip("neighbour delete fe80::1 dev eth0"));
        // Either side has to ask for the other's MAC first.
        let (answered, said) = pod.pings(IpAddr::V6(HOST), "-I eth0");
        assert!(answered, "{said}");
        let (answered, said) = pod::ping(v6(1), "");
        assert!(answered, "{said}: {:?}", datapath.drops());
        assert!(datapath.drops().unwrap().values().all(|count| *count == 0), "{:?}", datapath.drops());
    });
}

#[test]
fn a_source_that_is_not_the_pods_is_dropped() {
    with_pod(|_, pod, datapath| {
        let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0af4, 0x0001);
        let neighbours = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
        for src in [address(9), mapped, neighbours, ALL_NODES, HOST, NOBODYS, Ipv6Addr::LOCALHOST] {
            is_dropped(pod, datapath, SourceAddress6, &format!("udp from {src}"), &Raw::udp(src));
            let echo = Raw::icmp(src, HOST, ECHO, &ZEROES);
            is_dropped(pod, datapath, SourceAddress6, &format!("echo from {src}"), &echo);
        }
        let solicitation = Raw::icmp(NOBODYS, ALL_NODES, ROUTER_SOLICITATION, &ZEROES);
        is_dropped(pod, datapath, SourceAddress6, "router solicitation from ::", &solicitation);
        let later = Raw::udp(address(9)).behind(FRAGMENT, fragment(3, false));
        is_dropped(pod, datapath, SourceAddress6, "a later fragment", &later);
        let report = Raw::icmp(NOBODYS, ALL_NODES, LISTENER_REPORT, &ZEROES);
        is_dropped(pod, datapath, SourceAddress6, "a report from :: without options", &report);

        for src in [own(), pod.link_local()] {
            passes(pod, datapath, "udp", &Raw::udp(src));
            passes(pod, datapath, "echo", &Raw::icmp(src, HOST, ECHO, &ZEROES));
        }
    });
}

#[test]
fn neighbour_discovery_speaks_for_the_pod_only() {
    with_pod(|_, pod, datapath| {
        let (mac, link_local) = (pod.attachment.mac, pod.link_local());
        let (own_source, own_target) = (source_link_layer(mac), target_link_layer(mac));
        let (foreign_source, foreign_target) =
            (source_link_layer(FOREIGN_MAC), target_link_layer(FOREIGN_MAC));
        let neighbour = Raw::neighbour;
        let router_solicitation = |options: &[u8]| {
            Raw::icmp(link_local, ALL_NODES, ROUTER_SOLICITATION, &[&ZEROES, options].concat())
        };

        let second = [&NONCE[..], &own_target, &foreign_target].concat();
        for (what, packet) in [
            ("advertises another's address", neighbour(own(), ADVERTISEMENT, address(9), &own_target)),
            ("advertises the gateway", neighbour(link_local, ADVERTISEMENT, HOST, &own_target)),
            ("advertises another's MAC", neighbour(own(), ADVERTISEMENT, own(), &foreign_target)),
            ("advertises another's MAC, further on", neighbour(own(), ADVERTISEMENT, own(), &second)),
            ("asks with another's MAC", neighbour(own(), SOLICITATION, address(9), &foreign_source)),
            ("asks routers with another's MAC", router_solicitation(&foreign_source)),
            ("claims another's address", neighbour(NOBODYS, SOLICITATION, address(9), &NONCE)),
            ("claims with a MAC", neighbour(NOBODYS, SOLICITATION, own(), &own_source)),
            (
                "a MAC of more than 6 bytes",
                neighbour(own(), ADVERTISEMENT, own(), &[2, 2, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            ),
            ("inverse discovery", Raw::icmp(own(), ALL_NODES, INVERSE_SOLICITATION, &ZEROES)),
        ] {
            is_dropped(pod, datapath, NeighbourSender, what, &packet);
        }
        let nobody_advertises = neighbour(NOBODYS, ADVERTISEMENT, own(), &own_target);
        is_dropped(pod, datapath, SourceAddress6, "advertises from ::", &nobody_advertises);

        for (what, packet) in [
            ("an option of no length", neighbour(own(), ADVERTISEMENT, own(), &[2, 0, 2, 0, 0, 0, 2, 1])),
            ("an option beyond the end", neighbour(own(), ADVERTISEMENT, own(), &[14, 2, 0, 0, 0, 0, 0, 0])),
            ("half an option", neighbour(own(), ADVERTISEMENT, own(), &[2, 1, 2, 0])),
            ("too many options", neighbour(own(), ADVERTISEMENT, own(), &NONCE.repeat(9))),
            ("half a target", Raw::icmp(own(), ALL_NODES, ADVERTISEMENT, &[0; 12])),
        ] {
            is_dropped(pod, datapath, Malformed, what, &packet);
        }

        for (what, packet) in [
            ("advertises itself", neighbour(own(), ADVERTISEMENT, own(), &own_target)),
            (
                "advertises its link-local address",
                neighbour(link_local, ADVERTISEMENT, link_local, &own_target),
            ),
            ("advertises without a MAC", neighbour(own(), ADVERTISEMENT, own(), &[])),
            ("asks for another", neighbour(own(), SOLICITATION, address(9), &own_source)),
            ("claims its address", neighbour(NOBODYS, SOLICITATION, own(), &NONCE)),
            ("claims its link-local address", neighbour(NOBODYS, SOLICITATION, link_local, &[])),
            ("asks routers", router_solicitation(&own_source)),
        ] {
            passes(pod, datapath, what, &packet);
        }
    });
}

#[test]
fn a_pod_is_no_router() {
    with_pod(|_, pod, datapath| {
        for src in [pod.link_local(), own()] {
            for kind in [LISTENER_QUERY, ROUTER_ADVERTISEMENT, REDIRECT, 138, 151, 152, 153] {
                let packet = Raw::icmp(src, ALL_NODES, kind, &[0; 36]);
                is_dropped(pod, datapath, RouterMessage, &format!("type {kind} from {src}"), &packet);
            }
            let query = Raw::icmp(src, ALL_NODES, LISTENER_QUERY, &[0; 20]).behind(HOP_BY_HOP, ROUTER_ALERT);
            is_dropped(pod, datapath, RouterMessage, "a query as routers send it", &query);
        }
        for src in [pod.link_local(), NOBODYS] {
            let report = Raw::icmp(src, ALL_NODES, LISTENER_REPORT, &ZEROES).behind(HOP_BY_HOP, ROUTER_ALERT);
            passes(pod, datapath, "a listener's report", &report);
        }
    });
}

#[test]
fn extension_headers_hide_nothing() {
    with_pod(|_, pod, datapath| {
        let target = target_link_layer(pod.attachment.mac);
        let honest = Raw::neighbour(own(), ADVERTISEMENT, own(), &target);
        let spoof = Raw::neighbour(own(), ADVERTISEMENT, address(9), &target);
        let advertisement = Raw::icmp(own(), ALL_NODES, ROUTER_ADVERTISEMENT, &[0; 12]);
        for packet in [&honest, &spoof, &advertisement] {
            for (what, kind, rest) in [
                ("options for each hop", HOP_BY_HOP, PADDING),
                ("options for the destination", DESTINATION_OPTIONS, PADDING),
                ("a route", ROUTING, [0, 4, 0, 0, 0, 0, 0]),
                ("an only fragment", FRAGMENT, fragment(0, false)),
                ("a first fragment", FRAGMENT, fragment(0, true)),
            ] {
                let what = format!("{packet:?} behind {what}");
                is_dropped(pod, datapath, ExtensionHeaders, &what, &packet.clone().behind(kind, rest));
            }
            let twice = packet.clone().behind(DESTINATION_OPTIONS, PADDING).behind(HOP_BY_HOP, ROUTER_ALERT);
            is_dropped(pod, datapath, ExtensionHeaders, "behind two", &twice);
            let many = (0..7).fold(packet.clone(), |packet, _| packet.behind(DESTINATION_OPTIONS, PADDING));
            is_dropped(pod, datapath, ExtensionHeaders, "behind seven", &many);
            let misplaced = packet.clone().behind(HOP_BY_HOP, PADDING).behind(DESTINATION_OPTIONS, PADDING);
            is_dropped(pod, datapath, ExtensionHeaders, "behind options in the wrong place", &misplaced);
        }

        // The message itself would come with the next fragment, where nobody looks for it.
        let cut = |payload: &[u8], next| Raw { payload: payload.to_vec(), next, ..honest.clone() };
        let nothing = cut(&[], ICMPV6).behind(FRAGMENT, fragment(0, true));
        is_dropped(pod, datapath, ExtensionHeaders, "a first fragment without the message", &nothing);
        let options = cut(&[ICMPV6, 1, 1, 12, 0, 0, 0, 0], DESTINATION_OPTIONS);
        let options = options.behind(FRAGMENT, fragment(0, true));
        is_dropped(pod, datapath, ExtensionHeaders, "a first fragment with half the options", &options);
        // What follows the packet's own end is cut off by whoever receives it.
        let mut beyond = cut(&[ECHO, 0, 0, 0, 0, 0, 0, 0], ICMPV6)
            .behind(DESTINATION_OPTIONS, PADDING)
            .behind(FRAGMENT, fragment(0, true));
        beyond.payload_bytes = Some(16);
        is_dropped(pod, datapath, ExtensionHeaders, "an echo behind the end", &beyond);
        beyond.payload_bytes = Some(25);
        is_dropped(pod, datapath, Malformed, "longer than it is", &beyond);
        let mut beyond =
            Raw::udp(own()).behind(DESTINATION_OPTIONS, PADDING).behind(FRAGMENT, fragment(0, true));
        beyond.payload_bytes = Some(8);
        is_dropped(pod, datapath, ExtensionHeaders, "options and a datagram behind the end", &beyond);

        for (what, packet) in [
            ("options and a datagram", Raw::udp(own()).behind(DESTINATION_OPTIONS, PADDING)),
            ("a first fragment", Raw::udp(own()).behind(FRAGMENT, fragment(0, true))),
            ("a later fragment", Raw::udp(own()).behind(FRAGMENT, fragment(1, false))),
            ("echo and options", Raw::icmp(own(), HOST, ECHO, &ZEROES).behind(DESTINATION_OPTIONS, PADDING)),
        ] {
            passes(pod, datapath, what, &packet);
        }
    });
}

#[test]
fn options_for_each_hop_are_the_stacks_business() {
    in_each_mode(|lab, mode| {
        let (one, two) = fast_nodes(lab, mode);
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (one.address(Family::V6), two.address(Family::V6)) else {
            unreachable!()
        };
        let packet = Raw { dst, ..Raw::udp(src) };
        one.pod.run(|| packet.send());
        one.pod.run(|| packet.clone().behind(HOP_BY_HOP, PADDING).send());
        let seen = || (one.forwarded(), two.forwarded());
        waits_for(|| seen() == (1, 1), || format!("{mode:?}: seen by the stacks: {:?}", seen()));
    });
}

#[test]
fn nothing_with_another_source_reaches_the_overlay() {
    in_each_mode(|lab, mode| {
        let (one, two) = fast_nodes(lab, mode);
        for (family, stranger) in FAMILIES.into_iter().zip(NOBODY) {
            one.pod.run(|| ip(&format!("address add {stranger} dev eth0 {}", nodad(family))));
            let own = one.address(family);
            let receiver = two.pod.run(|| UdpSocket::bind((two.address(family), 0)).unwrap());
            receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let to = receiver.local_addr().unwrap();
            for source in [stranger, own] {
                one.pod.run(|| UdpSocket::bind((source, 0)).unwrap().send_to(b"!", to)).unwrap();
            }
            let (_, from) = receiver.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(from.ip(), own, "{mode:?}: the first to arrive");
            assert_eq!(one.forwarded(), 0, "{mode:?}: the stack saw the others");
        }
        let dropped = one.datapath.drops().unwrap();
        assert!(dropped[&SourceAddress] > 0 && dropped[&SourceAddress6] > 0, "{mode:?}: {dropped:?}");
    });
}
