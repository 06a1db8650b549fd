// SPDX-License-Identifier: Apache-2.0
//! What the BPF programs and user space share: map keys and values, names and limits.
//!
//! This crate is compiled twice: for the host and for `bpfel-unknown-none`. It is `no_std`, allocates nothing and
//! depends on nothing (`aya::Pod` for the types is behind the feature `user`). Every type is `#[repr(C)]` without implicit padding, so that the bytes in a map are the bytes of
//! the struct on either side.
//!
//! * [`service`]: services, backends, slots, flows and counters of the socket load balancer;
//! * [`pod`] and [`pod_address`]: the pods of this node, and what each pod link may send;
//! * [`drop_reason`]: why a packet of a pod went nowhere;
//! * [`limits`]: how large each map is;
//! * [`names`]: what maps, programs and pins are called.
//!
//! Addresses and ports lie in network order as byte arrays; numbers (identifiers, offsets, interface indexes) in the
//! machine's own order. The constructors hide that.
//!
//! A change to any layout, map size or meaning raises [`ABI_VERSION`], which is part of the pin path: programs of one
//! version never see maps of another. A new map does not: who does not know it leaves it alone, and who does makes it.

#![no_std]

pub mod drop_reason;
pub mod limits;
pub mod names;
pub mod pod;
pub mod pod_address;
pub mod service;
#[cfg(feature = "user")]
mod user;

pub use drop_reason::DropReason;
pub use pod::{CHECKED_MARK, NO_IPV4, POD_IPV6, POD_REDIRECT, PodLink, PodValue};
pub use pod_address::{Pod6Key, PodAddressKey, PodKey};
pub use service::{
    BackendValue, FlowKey, FlowValue, PROTO_TCP, PROTO_UDP, PROTO_WILDCARD, Protocol, ServiceCounters,
    ServiceKey, ServiceValue,
};

/// Version of the layouts, map sizes and meanings here; a part of the pin path.
pub const ABI_VERSION: u32 = 1;
