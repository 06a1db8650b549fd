// SPDX-License-Identifier: Apache-2.0
//! Kubernetes v1 shapes, reduced to the fields that Weft acts upon. Everything else is kept in `extra`, so
//! that what we read and write back is not poorer than what came.
//!
//! Field meanings: <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/>.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `clusterIP` of a headless Service.
pub const CLUSTER_IP_NONE: &str = "None";
/// Label of an EndpointSlice: the Service (same namespace) that it belongs to.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice: who wrote it.
pub const LABEL_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label of a Service that another proxy serves: no frontends of ours.
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Label of a Service that no proxy serves: no frontends of ours.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// Fields of ours are typed; all others stay here under their names.
pub(crate) type Extra = BTreeMap<String, Value>;

/// `metadata` of every object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Unique among the kind in its namespace.
    pub name: String,
    /// `default` where the manifest has none.
    pub namespace: String,
    /// For selectors.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `weft.dev/…` are ours; others are kept.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `v1` `Service`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// `v1`.
    pub api_version: String,
    /// `Service`.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: Metadata,
    /// The wish.
    pub spec: ServiceSpec,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `spec` of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` (also when empty), `NodePort`, `LoadBalancer`, `ExternalName`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// An address, `None` for headless, or empty: to be allocated.
    #[serde(rename = "clusterIP", skip_serializing_if = "String::is_empty")]
    pub cluster_ip: String,
    /// One for each family; the first equals `clusterIP`.
    #[serde(rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<String>,
    /// Pods of the namespace with all of these labels are the backends; empty: the slices come from elsewhere.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// The frontends' ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// DNS name that an `ExternalName` Service stands for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub external_name: String,
    /// All backends count as ready.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub publish_not_ready_addresses: bool,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Needed where there are several ports; named in SRV records.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// TCP where the manifest has none.
    pub protocol: Protocol,
    /// Port of the ClusterIP, 1..=65535.
    pub port: u16,
    /// Port of the backend: a number, a name that each pod resolves, or the same as `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// Fields that nothing here acts upon (`nodePort`, `appProtocol`).
    #[serde(flatten)]
    pub extra: Extra,
}

/// Transport protocol, spelled as Kubernetes does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// In names only; no frontends yet.
    Sctp,
    /// The default.
    #[default]
    Tcp,
    /// Connected and unconnected sockets.
    Udp,
}

impl Protocol {
    /// `tcp`, `udp`, `sctp`.
    #[must_use]
    pub fn as_lower(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "SCTP",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A number or the name of a pod's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// 1..=65535.
    Number(u16),
    /// At most 15 of `a-z 0-9 -` with a letter (RFC 6335).
    Name(String),
}

/// `discovery.k8s.io/v1` `EndpointSlice`: some backends of one Service, in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `discovery.k8s.io/v1`.
    pub api_version: String,
    /// `EndpointSlice`.
    pub kind: String,
    /// Its label [`LABEL_SERVICE_NAME`] names the Service.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN` (the last is not used).
    pub address_type: String,
    /// The backends.
    pub endpoints: Vec<Endpoint>,
    /// Their ports; matched to the Service's by name and protocol.
    pub ports: Vec<EndpointPort>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One backend of an [`EndpointSlice`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Of the slice's family; all of them reach the same backend, and the first is used.
    pub addresses: Vec<String>,
    /// Ready, serving, terminating.
    #[serde(skip_serializing_if = "Conditions::is_unset")]
    pub conditions: Conditions,
    /// First label of the backend's own DNS name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Node that the backend runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The pod behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Unset means: ready, serving as ready, not terminating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conditions {
    /// Serving and not terminating.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Answers, perhaps its last requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// Going away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

impl Conditions {
    /// Nothing is said.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

/// What an endpoint stands for; for people only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// `Pod`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One of an [`EndpointSlice`]'s ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Name of the Service's port; empty for the unnamed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// TCP where the manifest has none.
    pub protocol: Protocol,
    /// Where the backend listens. Without one the slice's port is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Service {
    /// `Service default/web`, as errors name it.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("Service {}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// No ClusterIP by wish: DNS answers with the backends.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == CLUSTER_IP_NONE
            || self.spec.cluster_ips.first().is_some_and(|ip| ip == CLUSTER_IP_NONE)
    }

    /// A name for a name outside.
    #[must_use]
    pub fn is_external_name(&self) -> bool {
        self.spec.kind == "ExternalName"
    }

    /// Wants a ClusterIP and has none yet.
    #[must_use]
    pub fn needs_cluster_ip(&self) -> bool {
        !self.is_headless() && !self.is_external_name() && self.cluster_ips().is_empty()
    }

    /// The parsed ClusterIPs in their order: `clusterIPs`, else `clusterIP`. Unparsable ones are left out.
    #[must_use]
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        let all = self.spec.cluster_ips.iter();
        let ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
        if ips.is_empty() { self.spec.cluster_ip.parse().into_iter().collect() } else { ips }
    }

    /// Records an allocated ClusterIP in both fields.
    pub fn set_cluster_ip(&mut self, ip: IpAddr) {
        self.spec.cluster_ip = ip.to_string();
        self.spec.cluster_ips = vec![ip.to_string()];
    }
}

impl EndpointSlice {
    /// `EndpointSlice default/web-1`, as errors name it.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("EndpointSlice {}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Name of the Service it belongs to, in its own namespace.
    #[must_use]
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.labels.get(LABEL_SERVICE_NAME).map(String::as_str)
    }
}
