// SPDX-License-Identifier: Apache-2.0
//! Packets that are longer than the way on.

use std::net::SocketAddr;

use ebpf_abi::{BackendValue, FrontendKey, Protocol, SCOPE_INTERNAL, ServiceValue, names};

use super::bytes::{Bench, HOST_MAC, NEXT, POD_MAC, Packet, REDIRECT, backend, client, complement, of_world};
use crate::{lab::in_lab, pod::v4};

#[test]
fn a_pods_packet_that_may_be_cut_is_translated_and_left_to_the_stack() {
    in_lab(|_| {
        let mut bench = Bench::new();
        let vip: SocketAddr = "10.96.0.1:53".parse().unwrap();
        let frontend = FrontendKey::new(vip.ip(), vip.port(), Protocol::Udp, SCOPE_INTERNAL);
        let service =
            ServiceValue { service_id: 50, slot_offset: 50, slot_count: 1, ..ServiceValue::default() };
        bench.put(names::SERVICES, frontend, service);
        bench.set(names::SLOTS, 50, 50_u32);
        let to = client(v4(0)).ip();
        bench.set(names::BACKENDS, 50, BackendValue::new(to, 53, Protocol::Udp).on_node(2, false));
        // The way to the other node.
        let overlay = bench.uplink;
        bench.set(names::OVERLAY, 0, overlay);
        let from = SocketAddr::new(backend(v4(0)).ip(), 40_000);
        let asked = |payload, may_be_cut: bool| {
            let mut packet = Packet { macs: (HOST_MAC, POD_MAC), ..of_world(from, vip, None) };
            packet.payload = vec![1; payload];
            let mut bytes = packet.bytes();
            if may_be_cut {
                bytes[20] = 0;
                bytes[24..26].fill(0);
                let sum = complement(&bytes[14..34]);
                bytes[24..26].copy_from_slice(&sum);
            }
            let (verdict, out) = bench.leaves_pod(&bytes);
            (verdict, out[30..34] == [192, 0, 2, 9])
        };
        assert_eq!(asked(100, true), (REDIRECT, true), "it fits");
        assert_eq!(asked(1_600, true), (NEXT, true));
        let (verdict, is_translated) = asked(1_600, false);
        assert!(verdict != NEXT && !is_translated, "its sender is told what fits: {verdict}");
    });
}
