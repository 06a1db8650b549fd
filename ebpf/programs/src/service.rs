// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! From a frontend to one of its backends.

use ebpf_abi::{PROTO_WILDCARD, v1::{BackendValue, ServiceKey}};

use crate::{maps, packet};

/// What to do with a connection or datagram to an address.
pub(crate) enum Choice {
    /// Not an address of ours.
    Pass,
    /// Ours, with nobody behind it.
    Refuse { service_id: u32 },
    /// Ours: send it here.
    Forward { service_id: u32, backend_id: u32, backend: BackendValue },
}

/// Looks the frontend up and takes a random slot.
#[inline(always)]
pub(crate) fn choose(key: &ServiceKey) -> Choice {
    let service = match maps::service(key) {
        Some(service) => service,
        None => {
            let wildcard = ServiceKey { addr: key.addr, port: [0; 2], proto: PROTO_WILDCARD, pad: 0 };
            match maps::service(&wildcard) {
                Some(service) => service,
                None => return Choice::Pass,
            }
        }
    };
    let refuse = Choice::Refuse { service_id: service.service_id };
    if service.slot_count == 0 {
        return refuse;
    }
    let slot = service.slot_offset.wrapping_add(packet::random() % service.slot_count);
    let Some(backend_id) = maps::slot(slot) else { return refuse };
    let Some(backend) = maps::backend(backend_id) else { return refuse };
    Choice::Forward { service_id: service.service_id, backend_id, backend }
}
