// SPDX-License-Identifier: Apache-2.0
//! What this node should look like: overlay, deltas, order and back-off, as values.
//!
//! Pure: no clock, no sockets, no environment, no threads. Facts go in, kernel objects come out, and `netd-host`
//! makes the kernel match. The path of a change is
//!
//! 1. [`Generations`] says which WireGuard keys there are and [`Paths`] by which backend each peer is reached;
//!    [`overlay_objects`], [`gate_objects`], [`pod_objects`], [`shape_objects`] and [`node_dns_objects`] compute the
//!    desired [`HostObjects`];
//! 2. `netd-host` reads the observed [`HostObjects`] back;
//! 3. [`plan`] compares both and returns [`HostOp`]s, each after what it depends on;
//! 4. what fails waits in a [`Backoff`] and is tried again.
//!
//! The nft table is one text, rendered whole by [`nft::render`] and replaced in one transaction.

pub mod backoff;
pub mod delta;
pub mod dsr;
pub mod gate;
pub mod generation;
pub mod host;
pub mod links;
pub mod mac;
pub mod members;
pub mod mtu;
pub mod nft;
pub mod order;
pub mod overlay;
pub mod paths;
pub mod pods;
pub mod ports;
pub mod shape;

pub use backoff::Backoff;
pub use delta::DeltaTracker;
pub use dsr::{dsr_mtu, dsr_objects};
pub use gate::{GateConfig, gate_objects, gate_sources};
pub use generation::{
    GenerationInput, GenerationPlan, Generations, PeerGenerationPlan, PeerGenerations, RotationRefused,
};
pub use host::{
    AddressSpec, FdbKey, FdbSpec, HostObject, HostObjects, HostOp, LinkSpec, NeighbourKey, NeighbourSpec,
    ObjectKey, RouteKey, RouteKind, RouteSpec, RuleSpec,
};
pub use links::{
    dsr_port, gate_port, host_veth_name, ifb_name, wireguard_device, wireguard_port, wireguard_ports,
};
pub use mac::{Mac, MacError};
pub use members::{MemberFacts, member_objects};
pub use mtu::{MtuProbe, MtuProber};
pub use nft::{GateEnds, NftConfig, TABLE as NFT_TABLE, render as render_nft};
pub use order::{Step, ordered, plan};
pub use overlay::{
    Backend, NodeFacts, Path, PeerPath, VxlanConfig, WireguardConfig, WireguardKind, allowed_ips,
    overlay_objects, vtep_mac, vxlan_mtu, wireguard_mtu,
};
pub use paths::{
    BackendKind, Overlay, PathChoice, PathPeer, PathProblem, Paths, PathsInput, PathsPlan, WireguardTunnel,
    is_on_link,
};
pub use pods::{PodWiring, node_dns_objects, pod_objects};
pub use ports::{HostPort, PortProtocol};
pub use shape::{Bandwidth, BandwidthError, Rate, TokenBucket, shape_objects};
