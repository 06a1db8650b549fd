// SPDX-License-Identifier: Apache-2.0
//! What the node's DNS answers, and why.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// POST [`crate::paths::DNS_QUERY`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQueryRequest {
    /// The name; without a dot at its end and with `client` it goes through the search path of that pod.
    pub name: String,
    /// The type's mnemonic, or `TYPE65`.
    #[serde(rename = "type")]
    pub record_type: String,
    /// `NAMESPACE/NAME` of the pod that asks; without: somebody who is no pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// What it is answered with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQueryReply {
    /// What the pod's resolver asks, in its order, up to the name that there is.
    pub questions: Vec<DnsAnswer>,
}

/// The answer to one question. Records are as in a zone file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsAnswer {
    /// The whole name.
    pub name: String,
    /// The type's mnemonic.
    #[serde(rename = "type")]
    pub record_type: String,
    /// `NAMESPACE/NAME` of the pod that asks, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Of the service table that the answer is from.
    pub revision: u64,
    /// `answer`, `NODATA`, `NXDOMAIN`, `forward`.
    pub outcome: String,
    /// Steps on the way, endpoints that are left out and why, names that the client may not see.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// The answer section, as far as it is known here.
    #[serde(default)]
    pub answer: Vec<String>,
    /// The authority section.
    #[serde(default)]
    pub authority: Vec<String>,
    /// The additional section.
    #[serde(default)]
    pub additional: Vec<String>,
    /// Names that the upstreams are asked for, in this order; the first one that there is counts.
    #[serde(default)]
    pub forward: Vec<String>,
}

/// POST [`crate::paths::DNS_QUESTIONS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQuestionsRequest {
    /// How many to pass over: those of the answers before.
    #[serde(default)]
    pub skip: usize,
}

/// Every question that the node answers itself, a part at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQuestionsReply {
    /// Where this node answers.
    pub servers: Vec<SocketAddr>,
    /// Of the service table.
    pub revision: u64,
    /// Names and types, sorted.
    pub questions: Vec<DnsQuestion>,
    /// There are more.
    #[serde(default)]
    pub more: bool,
}

/// A name and a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQuestion {
    /// The whole name.
    pub name: String,
    /// The type's mnemonic.
    #[serde(rename = "type")]
    pub record_type: String,
}
