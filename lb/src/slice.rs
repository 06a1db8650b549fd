// SPDX-License-Identifier: Apache-2.0
//! `discovery.k8s.io/v1` `EndpointSlice`, reduced to the fields that Weft acts upon.

use serde::{Deserialize, Deserializer, Serialize};

use crate::kubernetes::{Extra, LABEL_SERVICE_NAME, Metadata, Protocol};

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
    #[serde(deserialize_with = "fitting")]
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
    #[serde(deserialize_with = "fitting")]
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
    /// Zone that the node is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// For whom it is meant, where traffic is to stay near.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hints: Option<Box<EndpointHints>>,
    /// The pod behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<Box<TargetRef>>,
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

/// For whom an endpoint is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Clients in these zones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub for_zones: Vec<HintTarget>,
    /// Clients on these nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub for_nodes: Vec<HintTarget>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A zone or a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HintTarget {
    /// Its name.
    pub name: String,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
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
    /// What is spoken there; informative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Where the backend listens. Without one the slice's port is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Slices are kept, each by every node: a list takes no more room than what is in it.
fn fitting<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let mut list = Vec::deserialize(from)?;
    list.shrink_to_fit();
    Ok(list)
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
