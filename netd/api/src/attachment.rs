// SPDX-License-Identifier: Apache-2.0
//! Attachments: what weft-cni asks of netd. An attachment is (network, container ID, ifname).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The name of an attachment: the whole body of [`ReleaseRequest`] and [`CheckRequest`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// The CNI network's name.
    pub network: String,
    /// The runtime's container ID.
    pub container_id: String,
    /// The link's name in the container.
    pub ifname: String,
}

/// POST [`crate::paths::RELEASE`]: withdraw the endpoint, detach, delete the host veth, free the addresses. An
/// attachment that netd does not know is a success.
pub type ReleaseRequest = AttachmentId;

/// POST [`crate::paths::CHECK`]: what netd knows of an attachment.
pub type CheckRequest = AttachmentId;

/// The answer `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// The Kubernetes pod (or a pod by another orchestrator's name) that an attachment belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    /// K8S_POD_NAMESPACE; `default` where the runtime sent none.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// POST [`crate::paths::ALLOCATE`]: reserve addresses, phase pending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocateRequest {
    /// The CNI network's name.
    pub network: String,
    /// The runtime's container ID.
    pub container_id: String,
    /// The link's name in the container.
    pub ifname: String,
    /// The pod, where the runtime named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodIdentity>,
    /// The pod's labels (args.cni.labels).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Addresses that the caller wants, one of a family at most; empty for any.
    #[serde(default)]
    pub requested_ips: Vec<IpAddr>,
    /// Capability ipRanges: each set stands for one address of its family, from any range in it; empty for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// The name whose addresses this attachment gets again, wherever it runs; none for ordinary addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// Capability aliases: further names of the pod in its namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Capability portMappings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Capability bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Capability cgroupPath, as the runtime gave it; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// Whether packets of this pod may pass by the host's stack; no where another plugin of the chain works there.
    #[serde(default = "yes")]
    pub fast_path: bool,
    /// The link that an earlier plugin of the chain made: netd gives no addresses and touches no link, it publishes the pod
    /// with these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<AdoptedLink>,
}

fn yes() -> bool {
    true
}

/// A range of addresses (CNI capability ipRanges), both ends in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRange {
    /// The prefix that the range lies in.
    pub subnet: IpNet,
    /// First address; that of the subnet where none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<IpAddr>,
    /// Last address; that of the subnet where none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<IpAddr>,
}

/// A port of the host that leads to one of the pod (CNI capability portMappings).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address; none for every address of the host in the pod's families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The host's port, never 0.
    pub host_port: u16,
    /// The pod's port, never 0.
    pub container_port: u16,
    /// The transport.
    pub protocol: PortProtocol,
}

/// Transport protocol of a port mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// SCTP (RFC 9260)
    Sctp,
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl std::fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Limits of a pod's traffic (CNI capability bandwidth), as the pod sees it. A rate of 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// To the pod, in bits per second.
    #[serde(default)]
    pub ingress_rate: u64,
    /// Burst to the pod, in bits.
    #[serde(default)]
    pub ingress_burst: u64,
    /// From the pod, in bits per second.
    #[serde(default)]
    pub egress_rate: u64,
    /// Burst from the pod, in bits.
    #[serde(default)]
    pub egress_burst: u64,
}

/// A link that another plugin made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedLink {
    /// Its addresses, as that plugin's result has them.
    pub addresses: Vec<IpNet>,
    /// Its MAC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// What the pod's link shall look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocateReply {
    /// The pod's addresses, each with its full-length prefix (/32, /128).
    pub addresses: Vec<IpNet>,
    /// The pod's gateways, one of each family: link-local, reached on link. None for an adopted link.
    pub gateways: Vec<IpAddr>,
    /// MTU of both ends of the veth, in bytes.
    pub mtu: u32,
    /// Most segments of a packet that the container end may leave to be cut later (`IFLA_GSO_MAX_SEGS`), where the tunnel
    /// wants fewer than the kernel's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gso_max_segs: Option<u32>,
    /// The veth's host end; empty for an adopted link.
    pub host_ifname: String,
    /// What the pod's resolv.conf shall say.
    #[serde(default)]
    pub dns: DnsReply,
}

/// DNS settings for a pod, in the shape of a CNI result's `dns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsReply {
    /// DNS servers, preferred first.
    #[serde(default)]
    pub nameservers: Vec<IpAddr>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains, preferred first.
    #[serde(default)]
    pub search: Vec<String>,
    /// resolv.conf options, such as `ndots:5`.
    #[serde(default)]
    pub options: Vec<String>,
}

/// POST [`crate::paths::COMMIT`]: the links exist; attach the programs, commit the addresses, publish the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRequest {
    /// The CNI network's name.
    pub network: String,
    /// The runtime's container ID.
    pub container_id: String,
    /// The link's name in the container.
    pub ifname: String,
    /// CNI_NETNS, a path in the runtime's mount namespace.
    pub netns: String,
    /// Interface index of the veth's host end, in netd's netns.
    pub host_index: u32,
    /// MAC of the veth's host end, `aa:bb:cc:dd:ee:ff`.
    pub host_mac: String,
    /// MAC of the veth's container end.
    pub container_mac: String,
}

/// What netd knows of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReply {
    /// The pod's addresses, each with its full-length prefix.
    pub addresses: Vec<IpNet>,
    /// The pod's gateways, one of each family; none for an adopted link.
    pub gateways: Vec<IpAddr>,
    /// The veth's host end; empty for an adopted link.
    pub host_ifname: String,
    /// MAC of the container end; nothing before the commit.
    #[serde(default)]
    pub container_mac: Option<String>,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// Whether the datapath programs are attached to the host end now; true for an adopted link, which has none.
    pub attached: bool,
    /// Whether an earlier plugin of the chain made the link.
    #[serde(default)]
    pub adopted: bool,
    /// What netd itself finds wrong: a missing rule of a mapped port, a missing limit, an address it has no record of.
    #[serde(default)]
    pub differences: Vec<String>,
}

/// One entry of GET [`crate::paths::PODS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name; the container ID where the runtime named no pod.
    pub name: String,
    /// The name of the node it runs on; its UUID where the node's record is missing.
    pub node: String,
    /// The node's UUID.
    pub node_uuid: Uuid,
    /// The CNI network's name.
    pub network: String,
    /// The runtime's container ID.
    pub container_id: String,
    /// The link's name in the container.
    pub ifname: String,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// The veth's host end on that node.
    pub host_ifname: String,
    /// The pod's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Further names of the pod in its namespace.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its control group, as the runtime named it; told by its own node only, as what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// The sticky name that its addresses follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Its limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// The MAC of its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether it runs on the node that answers.
    pub local: bool,
}

macro_rules! attachment_id {
    ($($request:ty),*) => {$(
        impl $request {
            /// The attachment's name.
            pub fn id(&self) -> AttachmentId {
                AttachmentId {
                    network: self.network.clone(),
                    container_id: self.container_id.clone(),
                    ifname: self.ifname.clone(),
                }
            }
        }
    )*};
}
attachment_id!(AllocateRequest, CommitRequest, PodInfo);

impl std::fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}
