// SPDX-License-Identifier: Apache-2.0
//! Packets as bytes, through BPF_PROG_TEST_RUN: what goes in, what comes out, and the verdict. Checksums are verified anew, from
//! all that they cover.

use std::net::{IpAddr, SocketAddr};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use ebpf_abi::{
    BackendValue, CtKey, CtValue, DatapathConfig, FrontendKey, POD_IPV6, POD_REDIRECT, Pod6Key,
    PodAddressKey, PodKey, PodLink, PodValue, Protocol, SCOPE_EXTERNAL, SCOPE_INTERNAL, ServiceValue,
    address, names, node::ADDRESS_OWN,
};

use super::service::config;
use crate::{
    lab::{in_lab, ip},
    pod::{text, v4, v6},
};

/// TC_ACT_REDIRECT (linux/pkt_cls.h).
pub(super) const REDIRECT: u32 = 7;
/// TC_ACT_UNSPEC: the next program, then the stack.
pub(super) const NEXT: u32 = u32::MAX;
/// `struct __sk_buff` (linux/bpf.h), and where in it, in words, the mark, the interface index and the segment size are.
const CONTEXT_WORDS: usize = 48;
pub(super) const MARK: usize = 2;
const IFINDEX: usize = 10;
const SEGMENTS: usize = 41;
const SEGMENT_BYTES: usize = 44;

pub(super) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
pub(super) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 8, 1];
pub(super) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 8, 2];
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;
/// TC_ACT_SHOT.
pub(super) const DROP: u32 = 2;
/// The marks of a packet that is to be refused.
pub(super) const REFUSED: u32 = 0x1040;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-datapath"));

/// The programs with maps of their own, attached to nothing; an uplink and a pod's link.
pub(super) struct Bench {
    pub(super) ebpf: Ebpf,
    pub(super) uplink: u32,
    pod: u32,
}

pub(super) fn node(like: IpAddr) -> SocketAddr {
    let ip = if like.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    SocketAddr::new(ip.parse().unwrap(), 443)
}

pub(super) fn client(like: IpAddr) -> SocketAddr {
    let ip = if like.is_ipv4() { "192.0.2.9" } else { "2001:db8::9" };
    SocketAddr::new(ip.parse().unwrap(), 40_000)
}

pub(super) fn backend(like: IpAddr) -> SocketAddr {
    SocketAddr::new(if like.is_ipv4() { v4(7) } else { v6(7) }, 8_080)
}

impl Bench {
    pub(super) fn new() -> Self {
        ip(&format!("link add up0 address {} type veth peer name up1", text(UPLINK_MAC)));
        ip(&format!("link add pod0 address {} type veth peer name pod1", text(HOST_MAC)));
        for name in ["up0", "up1", "pod0", "pod1"] {
            ip(&format!("link set {name} up"));
        }
        for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
        }
        for like in [v4(0), v6(0)] {
            let prefix = if like.is_ipv4() { "24" } else { "64 nodad" };
            let (address, bits) = (node(like).ip(), prefix.split(' ').next().unwrap());
            ip(&format!("address add {address}/{bits} dev up0 {}", prefix.trim_start_matches(bits)));
            ip(&format!(
                "neighbour add {} lladdr {} dev up0 nud permanent",
                client(like).ip(),
                text(ROUTER_MAC)
            ));
        }
        let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
        for name in [names::UPLINK_INGRESS, names::UPLINK_EGRESS, names::POD_INGRESS, names::POD_EGRESS] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        let mut bench = Self { ebpf, uplink: index("up0"), pod: index("pod0") };
        bench.fill();
        bench
    }

    fn fill(&mut self) {
        let pod = PodValue { ifindex: self.pod, flags: POD_REDIRECT, mac: POD_MAC, host_mac: HOST_MAC };
        let (IpAddr::V4(pod4), IpAddr::V6(pod6)) = (v4(7), v6(7)) else { unreachable!() };
        self.put(names::PODS, PodKey::new(pod4), pod);
        self.put(names::PODS6, Pod6Key::new(pod6), pod);
        self.put(names::POD_LINKS, self.pod, PodLink::new(Some(pod4), POD_MAC, POD_REDIRECT | POD_IPV6));
        self.put(names::POD_ADDRESSES, PodAddressKey::new(self.pod, v6(7)), 0_u32);
        let mut id = 0;
        for like in [v4(0), v6(0)] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                id += 1;
                let at = node(like);
                let key = FrontendKey::new(at.ip(), at.port(), protocol, SCOPE_EXTERNAL);
                let service = ServiceValue {
                    service_id: id,
                    slot_offset: id,
                    slot_count: 1,
                    ..ServiceValue::default()
                };
                let to = backend(like);
                self.put(names::SERVICES, key, service);
                self.set(names::SLOTS, id, id);
                let value = BackendValue::new(to.ip(), to.port(), protocol).on_node(1, true);
                self.set(names::BACKENDS, id, value);
            }
        }
        self.set::<DatapathConfig>(names::CONFIG, 0, config(v4(250), v6(250)));
    }

    pub(super) fn put<K: aya::Pod, V: aya::Pod>(&mut self, map: &str, key: K, value: V) {
        HashMap::try_from(self.ebpf.map_mut(map).unwrap()).unwrap().insert(key, value, 0).unwrap();
    }

    pub(super) fn set<V: aya::Pod>(&mut self, map: &str, index: u32, value: V) {
        Array::try_from(self.ebpf.map_mut(map).unwrap()).unwrap().set(index, value, 0).unwrap();
    }

    /// Verdict, packet and context after a run.
    pub(super) fn run(
        &self,
        name: &str,
        ifindex: u32,
        packet: &[u8],
        segment: u32,
    ) -> (u32, Vec<u8>, Vec<u32>) {
        let program: &SchedClassifier = self.ebpf.program(name).unwrap().try_into().unwrap();
        let mut context = vec![0_u32; CONTEXT_WORDS];
        context[IFINDEX] = ifindex;
        (context[SEGMENT_BYTES], context[SEGMENTS]) = (segment, if segment == 0 { 0 } else { 2 });
        let context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        let (mut out, mut context_out) = (vec![0; 4_096], vec![0; context.len()]);
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        let context = context_out
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        (result.return_value, out, context)
    }

    pub(super) fn arrives_at_uplink(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        let (verdict, packet, _) = self.run(names::UPLINK_INGRESS, self.uplink, packet, 0);
        (verdict, packet)
    }

    pub(super) fn leaves_by_uplink(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        let (verdict, packet, _) = self.run(names::UPLINK_EGRESS, self.uplink, packet, 0);
        (verdict, packet)
    }

    pub(super) fn comes_to_pod(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        let (verdict, packet, _) = self.run(names::POD_EGRESS, self.pod, packet, 0);
        (verdict, packet)
    }

    pub(super) fn leaves_pod(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        let (verdict, packet, _) = self.run(names::POD_INGRESS, self.pod, packet, 0);
        (verdict, packet)
    }
}

/// A packet as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) macs: ([u8; 6], [u8; 6]),
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) hops: u8,
    /// TCP flags; UDP without.
    pub(super) tcp: Option<u8>,
    pub(super) payload: Vec<u8>,
    /// Bytes of IPv4 options.
    pub(super) options: usize,
}

pub(super) const fn of_world(from: SocketAddr, to: SocketAddr, tcp: Option<u8>) -> Packet {
    Packet { macs: (UPLINK_MAC, ROUTER_MAC), from, to, hops: 64, tcp, payload: Vec::new(), options: 0 }
}

impl Packet {
    fn proto(&self) -> u8 {
        if self.tcp.is_some() { 6 } else { 17 }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        match self.tcp {
            Some(flags) => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(&self.payload);
                let sum = pseudo(self.from.ip(), self.to.ip(), 6, &bytes);
                bytes[16..18].copy_from_slice(&sum);
            }
            None => {
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(&self.payload);
                let sum = match pseudo(self.from.ip(), self.to.ip(), 17, &bytes) {
                    [0, 0] => [0xff, 0xff],
                    sum => sum,
                };
                bytes[6..8].copy_from_slice(&sum);
            }
        }
        bytes
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let ip = header(self.from.ip(), self.to.ip(), self.proto(), self.hops, self.options, transport.len());
        frame(self.macs, self.from.ip(), &[ip, transport].concat())
    }
}

fn frame((dst, src): ([u8; 6], [u8; 6]), like: IpAddr, rest: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if like.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    [&dst[..], &src, &kind, rest].concat()
}

fn header(from: IpAddr, to: IpAddr, proto: u8, hops: u8, options: usize, payload: usize) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let words = (5 + options / 4) as u8;
            let total = (usize::from(words) * 4 + payload) as u16;
            let mut bytes = vec![0x40 | words, 0];
            bytes.extend(total.to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, hops, proto, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            // Options without a meaning.
            bytes.extend(vec![1; options]);
            let sum = complement(&bytes);
            bytes[10..12].copy_from_slice(&sum);
            bytes
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend((payload as u16).to_be_bytes());
            bytes.extend([proto, hops]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            bytes
        }
        _ => unreachable!(),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn pseudo(from: IpAddr, to: IpAddr, proto: u8, bytes: &[u8]) -> [u8; 2] {
    let length = (bytes.len() as u32).to_be_bytes();
    complement(&[&octets(from)[..], &octets(to), &length, &[0, 0, 0, proto], bytes].concat())
}

pub(super) fn complement(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[test]
fn a_packet_to_a_node_port_becomes_one_to_the_backend_and_the_answer_one_of_the_node() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            for tcp in [Some(SYN), None] {
                for (options, payload) in [(0, 0), (0, 1), (0, 333), (8, 40)] {
                    let options = if like.is_ipv4() { options } else { 0 };
                    let mut asked = of_world(client(like), node(like), tcp);
                    (asked.options, asked.payload) = (options, vec![0xa5; payload]);
                    let expected =
                        Packet { macs: (POD_MAC, HOST_MAC), to: backend(like), hops: 63, ..asked.clone() };
                    assert_eq!(
                        bench.arrives_at_uplink(&asked.bytes()),
                        (REDIRECT, expected.bytes()),
                        "{asked:?}"
                    );

                    let answer = Packet {
                        macs: (HOST_MAC, POD_MAC),
                        from: backend(like),
                        to: client(like),
                        tcp: tcp.map(|_| SYN | ACK),
                        ..asked.clone()
                    };
                    let expected = Packet {
                        macs: (ROUTER_MAC, UPLINK_MAC),
                        from: node(like),
                        hops: 63,
                        ..answer.clone()
                    };
                    assert_eq!(bench.leaves_pod(&answer.bytes()), (REDIRECT, expected.bytes()), "{answer:?}");
                }
            }
        }
    });
}

#[test]
fn a_datagram_without_a_checksum_has_none_afterwards() {
    in_lab(|_| {
        let bench = Bench::new();
        let asked = of_world(client(v4(0)), node(v4(0)), None);
        let mut bytes = asked.bytes();
        bytes[40..42].copy_from_slice(&[0, 0]);
        let (verdict, out) = bench.arrives_at_uplink(&bytes);
        assert_eq!((verdict, &out[40..42]), (REDIRECT, &[0, 0][..]));
        assert_eq!(complement(&out[14..34]), [0, 0], "the header's own");
    });
}

#[test]
fn what_a_packet_is_to_be_cut_into_stays() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            bench.arrives_at_uplink(&of_world(client(like), node(like), Some(SYN)).bytes());
            let mut asked = of_world(client(like), node(like), Some(ACK));
            asked.payload = vec![1; 2_000];
            let bytes = asked.bytes();
            let (verdict, out, context) = bench.run(names::UPLINK_INGRESS, bench.uplink, &bytes, 1_000);
            assert_eq!((verdict, out.len()), (REDIRECT, bytes.len()));
            assert_eq!((context[SEGMENT_BYTES], context[SEGMENTS]), (1_000, 2));
        }
    });
}

#[test]
fn what_is_for_nobody_of_ours_stays_as_it_is() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let elsewhere = SocketAddr::new(node(like).ip(), 444);
            for packet in [
                of_world(client(like), elsewhere, Some(SYN)),
                of_world(client(like), elsewhere, None),
                // For another host's MAC.
                Packet { macs: (POD_MAC, ROUTER_MAC), ..of_world(client(like), node(like), Some(SYN)) },
                // On its last hop.
                Packet { hops: 1, ..of_world(client(like), node(like), Some(SYN)) },
            ] {
                assert_eq!(bench.arrives_at_uplink(&packet.bytes()), (NEXT, packet.bytes()), "{packet:?}");
            }
            let empty = ServiceValue { service_id: 9, ..ServiceValue::default() };
            let mut bench = Bench { ebpf: EbpfLoader::new().load(OBJECT).unwrap(), ..bench_like(&bench) };
            let program: &mut SchedClassifier =
                bench.ebpf.program_mut(names::UPLINK_INGRESS).unwrap().try_into().unwrap();
            program.load().unwrap();
            let at = node(like);
            let key = FrontendKey::new(at.ip(), at.port(), Protocol::Tcp, SCOPE_EXTERNAL);
            bench.put(names::SERVICES, key, empty);
            let packet = of_world(client(like), at, Some(SYN)).bytes();
            let (verdict, out, context) = bench.run(names::UPLINK_INGRESS, bench.uplink, &packet, 0);
            assert_eq!((verdict, out, context[MARK]), (NEXT, packet, 0x1040), "to be refused");
        }
    });
}

/// Another one's interfaces.
fn bench_like(other: &Bench) -> Bench {
    Bench { ebpf: EbpfLoader::new().load(OBJECT).unwrap(), uplink: other.uplink, pod: other.pod }
}

#[test]
fn only_a_syn_begins_a_connection() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for own in [false, true] {
            for like in [v4(0), v6(0)] {
                if own {
                    // An answer to a connection of the host's, or to one of a pod's that was masqueraded, is the stack's.
                    bench.put(names::NODE_ADDRESSES, address::address(node(like).ip()), ADDRESS_OWN);
                }
                // Each round is another connection.
                let from = SocketAddr::new(client(like).ip(), 40_000 + u16::from(own));
                for flags in [SYN | ACK, ACK, FIN | ACK, RST, RST | ACK] {
                    let packet = of_world(from, node(like), Some(flags)).bytes();
                    let (verdict, out, context) = bench.run(names::UPLINK_INGRESS, bench.uplink, &packet, 0);
                    let expected = match (own, flags & RST != 0) {
                        (true, _) => (NEXT, 0),
                        (false, true) => (DROP, 0),
                        (false, false) => (NEXT, REFUSED),
                    };
                    assert_eq!((verdict, context[MARK]), expected, "{like} {flags}, own: {own}");
                    assert_eq!(out, packet, "{like} {flags}, own: {own}");
                }
                let packet = of_world(from, node(like), Some(SYN)).bytes();
                assert_eq!(bench.arrives_at_uplink(&packet).0, REDIRECT, "{like}, own: {own}");
                // And is begun: the client goes on.
                let packet = of_world(from, node(like), Some(ACK)).bytes();
                assert_eq!(bench.arrives_at_uplink(&packet).0, REDIRECT, "{like}, own: {own}");
            }
        }
    });
}

#[test]
fn nobody_outside_speaks_for_a_pod() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for (id, like) in [(10, v4(0)), (11, v6(0))] {
            let vip = if like.is_ipv4() { "10.96.0.1:80" } else { "[fd00:10:96::1]:80" };
            let vip: SocketAddr = vip.parse().unwrap();
            let key = FrontendKey::new(vip.ip(), vip.port(), Protocol::Udp, SCOPE_INTERNAL);
            let service =
                ServiceValue { service_id: id, slot_offset: id, slot_count: 1, ..ServiceValue::default() };
            bench.put(names::SERVICES, key, service);
            bench.set(names::SLOTS, id, id);
            let to = client(like);
            bench.set(names::BACKENDS, id, BackendValue::new(to.ip(), to.port(), Protocol::Udp));

            let pod = SocketAddr::new(backend(like).ip(), 50_000);
            let asked = Packet { macs: (HOST_MAC, POD_MAC), ..of_world(pod, vip, None) };
            let (_, out) = bench.leaves_pod(&asked.bytes());
            assert_ne!(out, asked.bytes(), "{like}: a flow of the pod's");
            for to in [vip, node(like)] {
                let forged = of_world(pod, to, None).bytes();
                assert_eq!(bench.arrives_at_uplink(&forged), (NEXT, forged), "{to}: the stack knows better");
            }
        }
    });
}

#[test]
fn a_flow_whose_answers_belong_to_another_begins_anew() {
    in_lab(|_| {
        let mut bench = Bench::new();
        for like in [v4(0), v6(0)] {
            let asked = of_world(client(like), node(like), None);
            let (_, first) = bench.arrives_at_uplink(&asked.bytes());
            let same = Packet { macs: (POD_MAC, HOST_MAC), to: backend(like), hops: 63, ..asked.clone() };
            assert_eq!(first, same.bytes());
            let [from, to] = [backend(like), client(like)];
            let answers = CtKey {
                src: address::address(from.ip()),
                dst: address::address(to.ip()),
                sport: from.port().to_be_bytes(),
                dport: to.port().to_be_bytes(),
                proto: 17,
                pad: [0; 3],
            };
            let map = HashMap::<_, CtKey, CtValue>::try_from(bench.ebpf.map(names::CT_NEW).unwrap()).unwrap();
            let value = map.get(&answers, 0).unwrap();
            // The entry was evicted, and another frontend's flow with the same ports came.
            bench.put(names::CT_NEW, answers, CtValue { sport: [1, 2], ..value });
            let (verdict, out) = bench.arrives_at_uplink(&asked.bytes());
            assert_eq!(verdict, REDIRECT);
            assert_ne!(out, first, "{like}: from another port, so that the answers are its own");
        }
    });
}

#[test]
fn icmp_errors_are_mapped_both_ways() {
    in_lab(|_| {
        let bench = Bench::new();
        for like in [v4(0), v6(0)] {
            for tcp in [Some(SYN), None] {
                let mut asked = of_world(client(like), node(like), tcp);
                asked.payload = vec![7; 100];
                let (_, seen) = bench.arrives_at_uplink(&asked.bytes());
                // The pod about what it got.
                let error =
                    icmp((HOST_MAC, POD_MAC), backend(like).ip(), client(like).ip(), 64, &seen[14..], true);
                let original = Packet { hops: 63, ..asked.clone() }.bytes();
                let expected = icmp(
                    (ROUTER_MAC, UPLINK_MAC),
                    node(like).ip(),
                    client(like).ip(),
                    63,
                    &original[14..],
                    true,
                );
                let (verdict, out) = bench.leaves_pod(&error);
                assert_eq!(verdict, REDIRECT, "{like} {tcp:?}");
                assert_same_error(&out, &expected, tcp.is_some());

                // A router on the client's side about what the client was sent.
                let router: IpAddr =
                    if like.is_ipv4() { "192.0.2.77" } else { "2001:db8::77" }.parse().unwrap();
                let answer = Packet { from: node(like), to: client(like), ..asked.clone() }.bytes();
                let error = icmp((UPLINK_MAC, ROUTER_MAC), router, node(like).ip(), 64, &answer[14..], false);
                let inner = Packet { from: backend(like), to: client(like), ..asked.clone() }.bytes();
                let expected = icmp((POD_MAC, HOST_MAC), router, backend(like).ip(), 63, &inner[14..], false);
                let (verdict, out) = bench.arrives_at_uplink(&error);
                assert_eq!(verdict, REDIRECT, "{like} {tcp:?}");
                assert_same_error(&out, &expected, tcp.is_some());

                // A pod that speaks of a flow of others is not believed.
                let foreign =
                    icmp((HOST_MAC, POD_MAC), backend(like).ip(), node(like).ip(), 64, &answer[14..], false);
                assert_eq!(bench.leaves_pod(&foreign), (NEXT, foreign), "{like} {tcp:?}");
            }
        }
    });
}

/// An ICMP error about a packet, of which it quotes the IP header and 28 bytes: port unreachable, or too big.
fn icmp(macs: ([u8; 6], [u8; 6]), from: IpAddr, to: IpAddr, hops: u8, about: &[u8], port: bool) -> Vec<u8> {
    let is_ipv4 = from.is_ipv4();
    let quoted = if is_ipv4 { 48 } else { 68 };
    let (kind, code) = match (is_ipv4, port) {
        (true, true) => (3, 3),
        (true, false) => (3, 4),
        (false, true) => (1, 4),
        (false, false) => (2, 0),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 5, 0];
    message.extend(&about[..quoted]);
    let sum = if is_ipv4 { complement(&message) } else { pseudo(from, to, 58, &message) };
    message[2..4].copy_from_slice(&sum);
    let proto = if is_ipv4 { 1 } else { 58 };
    frame(macs, from, &[header(from, to, proto, hops, 0, message.len()), message].concat())
}

/// The same but for the checksum of the quoted transport header, which nobody can verify, and with it that of the message:
/// that one is computed anew.
fn assert_same_error(out: &[u8], expected: &[u8], is_tcp: bool) {
    let is_ipv4 = out[12] == 8;
    let ip = if is_ipv4 { 20 } else { 40 };
    let message = 14 + ip;
    let sum = if is_ipv4 {
        complement(&out[message..])
    } else {
        let address = |at: usize| {
            let octets: [u8; 16] = out[14 + at..30 + at].try_into().unwrap();
            IpAddr::from(octets)
        };
        pseudo(address(8), address(24), 58, &out[message..])
    };
    assert_eq!(sum, [0, 0], "the message's checksum: {out:02x?}");
    if is_ipv4 {
        assert_eq!(complement(&out[14..34]), [0, 0], "the header's");
        assert_eq!(complement(&out[42..62]), [0, 0], "the quoted header's");
    }
    let quoted_sum = message + 8 + ip + if is_tcp { 16 } else { 6 };
    let without = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[message + 2..message + 4].fill(0);
        bytes[quoted_sum..quoted_sum + 2].fill(0);
        bytes
    };
    assert_eq!(without(out), without(expected));
}
