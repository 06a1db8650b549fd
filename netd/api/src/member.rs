// SPDX-License-Identifier: Apache-2.0
//! Members: machines outside the cluster that talk with pods through WireGuard.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// POST [`crate::paths::MEMBER_ADD`]: a machine joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAddRequest {
    /// Its name.
    pub name: String,
    /// Its public key in base64; `None`: a key pair is made for it, whose private part is in the answer and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Where it finds nodes whose own address is of no use to it: by node name, `HOST` or `HOST:PORT`. PORT stands for the
    /// cluster's `wireguard-port`, PORT + 1 for the next. The name may be empty where there is one node only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, String>,
}

/// POST [`crate::paths::MEMBER_REMOVE`]: it leaves, and its addresses are free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRequest {
    /// Its name.
    pub name: String,
}

/// One member with a configuration for the ordinary client: the answer to [`MemberAddRequest`] and to
/// GET [`crate::paths::member`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReply {
    /// Its name.
    pub name: String,
    /// Its addresses, one of a family.
    pub ips: Vec<IpAddr>,
    /// Its public key in base64.
    pub public_key: String,
    /// A file for `wg-quick`, with the private key where it was made for this answer: keep it as a secret.
    pub config: String,
    /// What the configuration lacks, a line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// GET [`crate::paths::MEMBERS`]: one of the members, as the node that is asked sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its name.
    pub name: String,
    /// Its addresses, one of a family.
    pub ips: Vec<IpAddr>,
    /// Its public key in base64.
    pub public_key: String,
    /// Where its packets came from last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Seconds since its last handshake with this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_secs: Option<u64>,
}

/// Without the configuration, which may hold a private key.
impl fmt::Debug for MemberReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ips, public_key, config: _, notes } = self;
        let mut shown = f.debug_struct("MemberReply");
        shown.field("name", name).field("ips", ips).field("public_key", public_key).field("notes", notes);
        shown.finish_non_exhaustive()
    }
}
