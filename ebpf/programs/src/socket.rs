// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! What the cgroup programs do to a socket's peer.

use ebpf_abi::v1::FlowValue;

use crate::{
    maps,
    packet::{self, Peer},
    service::{self, Choice},
};

/// Let the system call go on.
const ALLOW: i32 = 1;
/// Let it fail.
const REFUSE: i32 = 0;
/// asm-generic/errno.h: what a closed port says, and what clients expect of a service without backends.
const ECONNREFUSED: i32 = 111;

/// Towards the service: a ClusterIP becomes a backend.
#[inline(always)]
pub(crate) fn translate(peer: &Peer) -> i32 {
    let Some(protocol) = peer.protocol() else { return ALLOW };
    let key = peer.service_key(protocol);
    match service::choose(&key) {
        Choice::Pass => ALLOW,
        Choice::Refuse { service_id } => {
            maps::count_refusal(service_id);
            packet::fail_with(ECONNREFUSED);
            REFUSE
        }
        Choice::Forward { service_id, backend_id, backend } => {
            let flow = peer.flow_key(backend.addr, backend.port, protocol);
            let value = FlowValue { addr: key.addr, port: key.port, pad: [0; 2], service_id, backend_id };
            maps::remember_flow(&flow, &value);
            peer.set_address(backend.addr, backend.port);
            maps::count_connection(service_id);
            ALLOW
        }
    }
}

/// Towards the program: the backend becomes the ClusterIP it stands for. These hooks cannot refuse.
#[inline(always)]
pub(crate) fn translate_back(peer: &Peer) -> i32 {
    let Some(protocol) = peer.protocol() else { return ALLOW };
    let (addr, port) = peer.address();
    if let Some(flow) = maps::flow(&peer.flow_key(addr, port, protocol)) {
        peer.set_address(flow.addr, flow.port);
    }
    ALLOW
}
