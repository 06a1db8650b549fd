// SPDX-License-Identifier: Apache-2.0
//! Kubernetes v1 shapes, reduced to the fields that Weft acts upon. Everything else is kept in `extra`, so
//! that what we read and write back is not poorer than what came.
//!
//! Field meanings: <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/>.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `clusterIP` of a headless Service.
pub const CLUSTER_IP_NONE: &str = "None";
/// Label of an EndpointSlice: the Service (same namespace) that it belongs to.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice: who wrote it.
pub const LABEL_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Annotation of Kubernetes' older topology hints; the hints themselves say what happens.
pub(crate) const ANNOTATION_TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
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

/// Transport protocol, spelled as Kubernetes does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// In maps and names; no sockets of ours.
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

impl From<Protocol> for ebpf_abi::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Sctp => Self::Sctp,
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
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
