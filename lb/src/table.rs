// SPDX-License-Identifier: Apache-2.0
//! The service table: every Service at one revision with its backends and their verdicts.

use std::fmt;
use std::sync::Arc;

use crate::{Catalogue, EndpointSlice, Problem, Service, ServiceEntry, ServiceMap};

/// Namespace and name of a Service. Displays as `default/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name in it.
    pub name: String,
}

impl ServiceName {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Of an object.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        Self::new(&service.metadata.namespace, &service.metadata.name)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All services at one store revision. A copy costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// The revision that the inputs were read at.
    pub revision: u64,
    /// By name.
    pub services: ServiceMap,
}

impl ServiceTable {
    /// Joins Services with their slices. Whatever is wrong with one object is a [`Problem`] and leaves out that object or
    /// part; the order of the inputs does not matter. Whoever has a stream of changes keeps a [`Catalogue`] instead.
    pub fn build<'a>(
        revision: u64,
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> (Self, Vec<Problem>) {
        let mut catalogue = Catalogue::new();
        for service in services {
            catalogue.set_service(Arc::new(service.clone()));
        }
        for (index, slice) in slices.into_iter().enumerate() {
            catalogue.set_slice(&index.to_string(), Arc::new(slice.clone()));
        }
        (catalogue.table(revision), catalogue.problems())
    }

    /// One entry by namespace and name.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(&ServiceName::new(namespace, name)).map(Arc::as_ref)
    }
}
