// SPDX-License-Identifier: Apache-2.0
//! What the BPF programs and user space share: map keys and values, names and limits.
//!
//! This crate is compiled twice: for the host and for `bpfel-unknown-none`. It is `no_std`, allocates nothing and
//! depends on nothing (`aya::Pod` for the types is behind the feature `user`). Every type is `#[repr(C)]` without implicit
//! padding, so that the bytes in a map are the bytes of the struct on either side; those with addresses are aligned to 4, so
//! that programs copy words.
//!
//! * [`address`]: the one form of an address, for both families;
//! * [`service`]: frontends, backends, slots and counters; the picture of a lookup;
//! * [`socket`]: sockets that go to a backend, and whose they are; [`affinity`]: who stays with which backend;
//! * [`conntrack`]: flows of the packet path; [`hash`]: how they choose a slot;
//! * [`node`]: this node and the others;
//! * [`pod`] and [`pod_address`]: the pods of this node, and what each pod link may send;
//! * [`drop_reason`]: why a packet went nowhere; [`counter`]: what else is counted;
//! * [`limits`]: how large each map is;
//! * [`names`]: what maps, programs and pins are called;
//! * [`v1`]: layouts of the version before.
//!
//! Addresses and ports lie in network order as byte arrays; numbers (identifiers, offsets, interface indexes) in the
//! machine's own order. The constructors hide that.
//!
//! A change to any layout or meaning, and to the size of a map that has only one, raises [`ABI_VERSION`], which is part of
//! the pin path: programs of one version never see maps of another. A new map does not: who does not know it leaves it
//! alone, and who does makes it.

#![no_std]

pub mod address;
pub mod affinity;
pub mod conntrack;
pub mod counter;
pub mod drop_reason;
pub mod hash;
pub mod limits;
pub mod names;
pub mod node;
pub mod pod;
pub mod pod_address;
pub mod protocol;
pub mod service;
pub mod socket;
#[cfg(feature = "user")]
mod user;
pub mod v1;

pub use address::Address;
pub use affinity::{AffinityBackendKey, AffinityKey, AffinityValue};
pub use conntrack::{CtKey, CtState, CtValue, FragmentKey, FragmentValue};
pub use counter::Counter;
pub use drop_reason::DropReason;
pub use node::{DatapathConfig, NodeValue};
pub use pod::{CHECKED_MARK, NO_IPV4, POD_IPV6, POD_REDIRECT, PodLink, PodValue, REFUSE_MARK};
pub use pod_address::{Pod6Key, PodAddressKey, PodKey};
pub use protocol::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_WILDCARD, Protocol};
pub use service::{
    BackendValue, EndpointKey, FrontendKey, SCOPE_DSR, SCOPE_EXTERNAL, SCOPE_INTERNAL, ServiceCounters,
    ServiceValue, SourceRangeKey,
};
pub use socket::{FlowKey, FlowValue, NetnsValue, SocketValue};

/// Version of the layouts, map sizes and meanings here; a part of the pin path.
pub const ABI_VERSION: u32 = 2;
