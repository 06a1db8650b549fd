// SPDX-License-Identifier: Apache-2.0
//! What maps and programs are called, in the object file and as pins (`<pin dir>/<map name>`).

/// [`ServiceKey`](crate::ServiceKey) to [`ServiceValue`](crate::ServiceValue), hash.
pub const SERVICES: &str = "SERVICES";
/// Backend identifier to [`BackendValue`](crate::BackendValue), array.
pub const BACKENDS: &str = "BACKENDS";
/// Slot number to backend identifier (`u32`), array that user space maps into memory.
pub const SLOTS: &str = "SLOTS";
/// [`FlowKey`](crate::FlowKey) to [`FlowValue`](crate::FlowValue), LRU hash.
pub const FLOWS: &str = "FLOWS";
/// Service identifier to [`ServiceCounters`](crate::ServiceCounters), per-CPU array.
pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
/// [`PodKey`](crate::PodKey) to [`PodValue`](crate::PodValue), hash.
pub const PODS: &str = "PODS";
/// [`Pod6Key`](crate::Pod6Key) to [`PodValue`](crate::PodValue), hash.
pub const PODS6: &str = "PODS6";
/// Interface index of the host end to [`PodLink`](crate::PodLink), hash.
pub const POD_LINKS: &str = "POD_LINKS";
/// [`PodAddressKey`](crate::PodAddressKey) to a reserved `u32` of zero, hash.
pub const POD_ADDRESSES: &str = "POD_ADDRESSES";
/// [`DropReason`](crate::DropReason) to a packet count (`u64`), per-CPU array.
pub const DROPS: &str = "DROPS";
/// Array of one `u32`: interface index of the overlay device; 0 while there is none.
pub const OVERLAY: &str = "OVERLAY";

/// Every map of the datapath.
pub const MAPS: [&str; 11] = [
    SERVICES,
    BACKENDS,
    SLOTS,
    FLOWS,
    SERVICE_COUNTERS,
    PODS,
    PODS6,
    POD_LINKS,
    POD_ADDRESSES,
    DROPS,
    OVERLAY,
];

/// cgroup/connect4: translates a connection once, at the socket.
pub const CONNECT4: &str = "weft_connect4";
/// cgroup/sendmsg4: translates each datagram of an unconnected UDP socket.
pub const SENDMSG4: &str = "weft_sendmsg4";
/// cgroup/recvmsg4: gives the ClusterIP back as the source of a received datagram.
pub const RECVMSG4: &str = "weft_recvmsg4";
/// cgroup/getpeername4: gives the ClusterIP back as the peer of a connected socket.
pub const GETPEERNAME4: &str = "weft_getpeername4";
/// TC ingress of a pod's host end: source checks and same-node delivery.
pub const POD_INGRESS: &str = "weft_pod_ingress";
/// TC program at the ingress of the overlay device: packets from other nodes' pods.
pub const OVERLAY_INGRESS: &str = "weft_overlay_ingress";
