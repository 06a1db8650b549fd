// SPDX-License-Identifier: Apache-2.0
//! What maps and programs are called, in the object file and as pins (`<pin dir>/<map name>`).

/// [`FrontendKey`](crate::FrontendKey) to [`ServiceValue`](crate::ServiceValue), hash.
pub const SERVICES: &str = "SERVICES";
/// Backend identifier to [`BackendValue`](crate::BackendValue), array.
pub const BACKENDS: &str = "BACKENDS";
/// Slot number to backend identifier (`u32`), array that user space maps into memory.
pub const SLOTS: &str = "SLOTS";
/// Backend identifier to its open connections (`u64`, kept by the programs by atomic additions), array.
pub const BACKEND_LOAD: &str = "BACKEND_LOAD";
/// [`EndpointKey`](crate::EndpointKey) to the number (`u32`) of backend identifiers there, hash.
pub const BACKEND_ENDPOINTS: &str = "BACKEND_ENDPOINTS";
/// [`SourceRangeKey`](crate::SourceRangeKey) to a reserved `u32` of zero, longest-prefix trie.
pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
/// Service identifier to [`ServiceCounters`](crate::ServiceCounters), per-CPU array.
pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
/// Socket cookie (`u64`) to [`SocketValue`](crate::SocketValue), hash.
pub const SOCKETS: &str = "SOCKETS";
/// [`FlowKey`](crate::FlowKey) to [`FlowValue`](crate::FlowValue), LRU hash.
pub const FLOWS: &str = "FLOWS";
/// Netns cookie (`u64`) to [`NetnsValue`](crate::NetnsValue), hash.
pub const NETNS: &str = "NETNS";
/// [`AffinityKey`](crate::AffinityKey) to [`AffinityValue`](crate::AffinityValue), LRU hash.
pub const AFFINITY: &str = "AFFINITY";
/// [`AffinityBackendKey`](crate::AffinityBackendKey) to a reserved `u32` of zero, hash.
pub const AFFINITY_BACKENDS: &str = "AFFINITY_BACKENDS";
/// [`Address`](crate::Address) to flags (`u32`, `ADDRESS_*` of [`node`](crate::node)), hash.
pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
/// Index of a node to [`NodeValue`](crate::NodeValue), array.
pub const NODES: &str = "NODES";
/// Array of one `u64`: nanoseconds of CLOCK_MONOTONIC at which the agent last said that its own servers answer; 0 before.
pub const AGENT: &str = "AGENT";
/// Array of one [`DatapathConfig`](crate::DatapathConfig).
pub const CONFIG: &str = "CONFIG";
/// [`CtKey`](crate::CtKey) to [`CtValue`](crate::CtValue), flows that go on, LRU hash.
pub const CT_LIVE: &str = "CT_LIVE";
/// [`CtKey`](crate::CtKey) to [`CtValue`](crate::CtValue), flows that have only begun, LRU hash.
pub const CT_NEW: &str = "CT_NEW";
/// Array of one `u32`: 1 as soon as there was a flow; before, packets are not looked up in CT_LIVE and CT_NEW.
pub const CT_ACTIVE: &str = "CT_ACTIVE";
/// [`FragmentKey`](crate::FragmentKey) to [`FragmentValue`](crate::FragmentValue), LRU hash.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// [`Counter`](crate::Counter) to a count (`u64`), per-CPU array.
pub const COUNTERS: &str = "COUNTERS";
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
pub const MAPS: [&str; 27] = [
    SERVICES,
    BACKENDS,
    SLOTS,
    BACKEND_LOAD,
    BACKEND_ENDPOINTS,
    SOURCE_RANGES,
    SERVICE_COUNTERS,
    SOCKETS,
    FLOWS,
    NETNS,
    AFFINITY,
    AFFINITY_BACKENDS,
    NODE_ADDRESSES,
    NODES,
    AGENT,
    CONFIG,
    CT_LIVE,
    CT_NEW,
    CT_ACTIVE,
    FRAGMENTS,
    COUNTERS,
    PODS,
    PODS6,
    POD_LINKS,
    POD_ADDRESSES,
    DROPS,
    OVERLAY,
];

/// cgroup/connect4: translates a connection once, at the socket.
pub const CONNECT4: &str = "weft_connect4";
/// cgroup/connect6: the same for IPv6 sockets, which also speak IPv4.
pub const CONNECT6: &str = "weft_connect6";
/// cgroup/sendmsg4: translates each datagram of an unconnected UDP socket.
pub const SENDMSG4: &str = "weft_sendmsg4";
/// cgroup/sendmsg6: the same for IPv6.
pub const SENDMSG6: &str = "weft_sendmsg6";
/// cgroup/recvmsg4: gives the frontend back as the source of a received datagram.
pub const RECVMSG4: &str = "weft_recvmsg4";
/// cgroup/recvmsg6: the same for IPv6 sockets.
pub const RECVMSG6: &str = "weft_recvmsg6";
/// cgroup/getpeername4: gives the frontend back as the peer of a connected socket.
pub const GETPEERNAME4: &str = "weft_getpeername4";
/// cgroup/getpeername6: the same for IPv6 sockets.
pub const GETPEERNAME6: &str = "weft_getpeername6";
/// cgroup/sock_release: a closed socket is no connection any more.
pub const SOCK_RELEASE: &str = "weft_sock_release";
/// cgroup/post_bind4: a node port cannot be bound on the host.
pub const POST_BIND4: &str = "weft_post_bind4";
/// cgroup/post_bind6: the same for IPv6 sockets.
pub const POST_BIND6: &str = "weft_post_bind6";
/// TC ingress of a pod's host end: source checks, services and same-node delivery.
pub const POD_INGRESS: &str = "weft_pod_ingress";
/// TC egress of a pod's host end: answers that came through the host's stack get their frontend back.
pub const POD_EGRESS: &str = "weft_pod_egress";
/// TC program at the ingress of the overlay device: packets from other nodes' pods.
pub const OVERLAY_INGRESS: &str = "weft_overlay_ingress";
/// The same for devices without an Ethernet header.
pub const TUNNEL_INGRESS: &str = "weft_tunnel_ingress";
/// TC program at the ingress of an uplink: services asked from outside.
pub const UPLINK_INGRESS: &str = "weft_uplink_ingress";
/// TC program at the egress of an uplink: answers of the host's own processes get their frontend back.
pub const UPLINK_EGRESS: &str = "weft_uplink_egress";
/// TC program at the ingress of the device for direct server return.
pub const DSR_INGRESS: &str = "weft_dsr_ingress";
