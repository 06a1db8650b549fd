// SPDX-License-Identifier: Apache-2.0

//! The kernel's network objects of one node: links, addresses, routes, neighbours, FDB entries, queues, pods' veths,
//! sysctls, the nft table, the FORWARD chain and conntrack. The only crate that speaks rtnetlink.
//!
//! [`Host`] reads back what is ours as [`netd_plan::HostObjects`] and applies one [`netd_plan::HostOp`] at a time; every
//! operation is idempotent. What is ours is told by a mark: the link prefix `weft`, route protocol and address protocol
//! [`ROUTE_PROTOCOL`], [`traffic::QUEUE_HANDLE`], the table `inet weft`, the comment `weft`, the record of sysctls. What has another mark is
//! never changed: [`HostError::Foreign`].
//!
//! Everything acts on the netns of the calling thread, except where a [`netns::Netns`] is given. Asynchronous functions
//! need a tokio runtime (of any flavour) with I/O and time enabled.

mod address;
mod bucket;
pub mod conntrack;
mod error;
mod events;
mod exchange;
mod follow;
pub mod forward;
mod host;
mod link;
mod local;
mod neighbour;
pub mod netns;
pub mod nft;
pub mod offload;
mod podcheck;
mod podmtu;
mod process;
mod route;
pub mod router;
mod rule;
mod sockdiag;
mod socket;
pub mod sysctl;
pub mod traffic;
mod underlay;
pub mod veth;
mod wiring;

pub use error::{Class, HostError};
pub use events::Events;
pub use follow::follow_container_mac;
pub use forward::{Forward, ForwardError, Forwarding};
pub use host::Host;
pub use link::{Link, LinkKind, interface_index};
pub use local::local_addresses;
pub use netns::Netns;
pub use nft::{Nft, NftError};
pub use podmtu::change_pod_mtu;
pub use route::ROUTE_PROTOCOL;
pub use sockdiag::{ConnectedSocket, Destination, SockDiag, Transport};
pub use socket::{DUMP_TRIES_MAX, REQUEST_TIMEOUT};
pub use sysctl::{Restored, SysctlError, Sysctls, read as read_sysctl};
pub use underlay::{Underlay, UnderlayNow};
