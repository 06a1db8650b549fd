// SPDX-License-Identifier: Apache-2.0
//! What this node should look like: overlay, deltas, order and back-off, as values.
//!
//! Pure: no clock, no sockets, no environment, no threads. Facts go in, kernel objects come out, and `netd-host`
//! makes the kernel match. The path of a change is
//!
//! 1. [`overlay_objects`], [`pod_objects`], [`shape_objects`] and [`node_dns_objects`] compute the desired
//!    [`HostObjects`];
//! 2. `netd-host` reads the observed [`HostObjects`] back;
//! 3. [`plan`] compares both and returns [`HostOp`]s, each after what it depends on;
//! 4. what fails waits in a [`Backoff`] and is tried again.
//!
//! The nft table is one text, rendered whole by [`nft::render`] and replaced in one transaction.

pub mod backoff;
pub mod delta;
pub mod host;
pub mod links;
pub mod mac;
pub mod nft;
pub mod order;
pub mod overlay;
pub mod pods;
pub mod ports;
pub mod shape;

pub use backoff::Backoff;
pub use delta::DeltaTracker;
pub use host::{
    AddressSpec, FdbKey, FdbSpec, HostObject, HostObjects, HostOp, LinkSpec, NeighbourKey, NeighbourSpec,
    ObjectKey, RouteKey, RouteKind, RouteSpec,
};
pub use links::{host_veth_name, ifb_name};
pub use mac::{Mac, MacError};
pub use nft::{NftConfig, TABLE as NFT_TABLE, render as render_nft};
pub use order::{Step, ordered, plan};
pub use overlay::{Backend, NodeFacts, VxlanConfig, overlay_objects, vtep_mac, vxlan_mtu};
pub use pods::{PodWiring, node_dns_objects, pod_objects};
pub use ports::{HostPort, PortProtocol};
pub use shape::{Bandwidth, BandwidthError, Rate, TokenBucket, shape_objects};
