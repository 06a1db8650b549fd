// SPDX-License-Identifier: Apache-2.0
//! What can be wrong with an object, and with the room for it.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An object is refused. Displays as `Service default/web: spec.ports[0].port: 70000 is not in 1..=65535`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{object}: {field}: {reason}")]
pub struct ObjectError {
    /// Kind, namespace and name: `Service default/web`.
    pub object: String,
    /// Path of the field as in the manifest: `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with the value, and what would be right.
    pub reason: String,
}

/// Part of an object that is left out of the result; the rest goes on. Displays like [`ObjectError`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Kind, namespace and name: `EndpointSlice default/web-1`.
    pub object: String,
    /// Path of the field as in the manifest.
    pub field: String,
    /// What was left out, and why.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason)
    }
}

impl From<ObjectError> for Problem {
    fn from(error: ObjectError) -> Self {
        Self { object: error.object, field: error.field, reason: error.reason }
    }
}

/// A field that is well formed but that nothing here acts upon. Displays as its path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IgnoredField {
    /// Path of the field as in the manifest: `spec.sessionAffinity`.
    pub path: String,
}

impl fmt::Display for IgnoredField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// Which of the map sizes is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// Backends of services with affinity: one for each (frontends with the same backends, backend).
    AffinityBackends,
    /// Distinct (address, port, protocol) of backends.
    Backends,
    /// Frontends: one for each (address, port, protocol, who asks), and one for each ClusterIP.
    Services,
    /// Slots: one for each backend of a Service's port, and thousands where they are a table.
    Slots,
    /// Prefixes of load balancers' source ranges: one for each (frontend, prefix).
    SourceRanges,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AffinityBackends => "backends with affinity",
            Self::Backends => "backends",
            Self::Services => "frontends",
            Self::Slots => "slots",
            Self::SourceRanges => "source ranges",
        })
    }
}

/// A frontend did not fit into the maps. Its last good value stays; a new one is not reachable. Where source ranges do
/// not fit, nobody is let in; where affinity does not, clients go anywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
#[error(
    "Service {frontend}: needs {wanted} {limit}, {free} of {max} are free and {waiting} become free after the grace \
     period; the last good value stays: make the map larger, or remove services or endpoints that are not needed"
)]
pub struct CapacityError {
    /// The frontend, as in [`crate::Image::names`]: `default/web:80/tcp`.
    pub frontend: String,
    /// The limit that was reached.
    pub limit: Limit,
    /// Its size.
    pub max: u32,
    /// What the frontend needs of it.
    pub wanted: u32,
    /// What is free (for slots: in the longest run).
    pub free: u32,
    /// What was retired and is not free yet.
    pub waiting: u32,
}
