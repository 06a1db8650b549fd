// SPDX-License-Identifier: Apache-2.0
//! Which backend a client stays with. Both paths read and write the same entries.

use crate::address::Address;

/// A client of a Service's port. 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address: of a socket that of its pod or host (NETNS), of a packet its source.
    pub client: Address,
    /// [`ServiceValue::affinity_id`](crate::ServiceValue::affinity_id).
    pub affinity_id: u32,
}

/// The backend it was given. 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityValue {
    /// Identifier of the backend.
    pub backend_id: u32,
    /// When it last began a connection: seconds of CLOCK_MONOTONIC.
    pub used_secs: u32,
}

/// Key of AFFINITY_BACKENDS: a backend that clients may still be stuck to. 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityBackendKey {
    /// [`ServiceValue::affinity_id`](crate::ServiceValue::affinity_id).
    pub affinity_id: u32,
    /// Identifier of the backend.
    pub backend_id: u32,
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<AffinityKey>() == 20);
    assert!(size_of::<AffinityValue>() == 8);
    assert!(size_of::<AffinityBackendKey>() == 8);
};
