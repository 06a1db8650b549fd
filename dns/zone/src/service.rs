// SPDX-License-Identifier: Apache-2.0
//! What a zone is built from: services as DNS sees them.

use std::fmt;
use std::net::IpAddr;

use crate::Views;

/// A service with everything that names come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneService {
    /// Kubernetes namespace, in lower case.
    pub namespace: String,
    /// Name in it, in lower case.
    pub name: String,
    /// What its name stands for.
    pub kind: ZoneKind,
    /// Ports of the ClusterIPs; named ones get SRV records.
    pub ports: Vec<ZonePort>,
    /// Backends to be named: those that are ready, or all where the service says so. Looked at when headless.
    pub endpoints: Vec<ZoneEndpoint>,
    /// Backends that are not to be named now; they are told to whoever asks why.
    pub left_out: Vec<LeftOut>,
    /// Who may see the service's names; `None`: everybody.
    pub views: Option<Views>,
    /// Further names of it, `NAME` or `NAME.NAMESPACE`, also where that is the namespace of others. A service of that name wins;
    /// of several that claim one those of the name's own namespace come first, then by namespace and name, each for the clients
    /// that may see it. Who gets it for nobody is told ([`crate::Zone::problems`]).
    pub aliases: Vec<String>,
}

impl ZoneService {
    /// Without ports and endpoints, for everybody.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, kind: ZoneKind) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            kind,
            ports: Vec::new(),
            endpoints: Vec::new(),
            left_out: Vec::new(),
            views: None,
            aliases: Vec::new(),
        }
    }
}

/// A backend that DNS does not name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// Of the backend.
    pub address: IpAddr,
    /// What its verdict rests on: `not ready`, `terminating, serving`, …
    pub reason: String,
}

/// What the name of a service stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZoneKind {
    /// Its own addresses, any number of either family.
    ClusterIp(Vec<IpAddr>),
    /// Another name.
    ExternalName(String),
    /// The addresses of its endpoints.
    Headless,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneEndpoint {
    /// Any number of either family.
    pub addresses: Vec<IpAddr>,
    /// First label of its own name; without one, each address gets a label of its own: `10-244-0-7`.
    pub hostname: Option<String>,
    /// Where it listens; named ones get SRV records.
    pub ports: Vec<ZonePort>,
}

/// A port of a service or endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ZonePort {
    /// `_name` of the SRV record; none without.
    pub name: Option<String>,
    /// `_protocol` of the SRV record.
    pub protocol: ZoneProtocol,
    /// 1..=65535.
    pub port: u16,
}

/// Transport protocol. Displays in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ZoneProtocol {
    /// `_sctp`
    Sctp,
    /// `_tcp`
    Tcp,
    /// `_udp`
    Udp,
}

impl fmt::Display for ZoneProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A name of a service that cannot be made, or is another's; all its other names are in the zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ZoneProblem {
    /// `namespace/name`.
    pub service: String,
    /// What was left out, and why.
    pub reason: String,
}

impl fmt::Display for ZoneProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.reason)
    }
}
