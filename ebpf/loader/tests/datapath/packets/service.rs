// SPDX-License-Identifier: Apache-2.0
//! Services as the maps hold them, written by hand.

use std::net::{IpAddr, SocketAddr};

use ebpf_abi::{BackendValue, DatapathConfig, FrontendKey, Protocol, SCOPE_INTERNAL, ServiceValue, address};
use ebpf_loader::Datapath;
use lb::Image;

use crate::lab::write;

pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A frontend of both protocols.
#[derive(Clone)]
pub(crate) struct Frontend {
    pub(crate) at: SocketAddr,
    pub(crate) scope: u8,
    pub(crate) flags: u32,
    /// Address, node (an index into NODES) and whether it is this one.
    pub(crate) backends: Vec<(SocketAddr, u32, bool)>,
}

impl Frontend {
    /// For everybody; backends are pods of this node.
    pub(crate) fn new(at: SocketAddr, backends: &[SocketAddr]) -> Self {
        let backends = backends.iter().map(|backend| (*backend, 1, true)).collect();
        Self { at, scope: SCOPE_INTERNAL, flags: 0, backends }
    }
}

/// Makes the maps hold these and nothing else; service identifiers count from 1, protocol by protocol.
pub(crate) fn serve(datapath: &mut Datapath, frontends: &[Frontend]) {
    let mut image = Image::default();
    let mut slot = 1;
    let mut service_id = 0;
    for frontend in frontends {
        for protocol in PROTOCOLS {
            service_id += 1;
            let slot_count = frontend.backends.len() as u32;
            let value = ServiceValue {
                service_id,
                slot_offset: slot,
                slot_count,
                flags: frontend.flags,
                ..ServiceValue::default()
            };
            let at = frontend.at;
            image.services.insert(FrontendKey::new(at.ip(), at.port(), protocol, frontend.scope), value);
            for (backend, node, local) in &frontend.backends {
                let value = BackendValue::new(backend.ip(), backend.port(), protocol).on_node(*node, *local);
                let known = image.backends.iter().find(|(_, known)| **known == value).map(|(id, _)| *id);
                let id = known.unwrap_or(image.backends.len() as u32 + 1);
                image.backends.insert(id, value);
                image.endpoints.insert(value.endpoint(), 1);
                image.slots.insert(slot, id);
                slot += 1;
            }
        }
    }
    write(datapath, &image);
}

/// What a node with these overlay addresses tells its programs.
pub(crate) fn config(overlay4: IpAddr, overlay6: IpAddr) -> DatapathConfig {
    DatapathConfig {
        overlay4: address::address(overlay4),
        overlay6: address::address(overlay6),
        node_port_min: 30_000,
        node_port_max: 32_767,
        snat_port_min: 1_024,
        snat_port_max: 29_999,
        hash_seed: 7,
        ..DatapathConfig::default()
    }
}
