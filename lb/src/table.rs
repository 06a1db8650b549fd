// SPDX-License-Identifier: Apache-2.0
//! The service table: every Service at one revision with its backends and their verdicts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Backend, Catalogue, EndpointSlice, Problem, Service, ServiceEntry, ServiceMap, Unread};

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
    /// What it lacks, because an object does not read or is refused and no good value of it is known.
    pub unread: Arc<Unread>,
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

    /// Services with backends on some of these nodes.
    pub(crate) fn naming<'a, T>(
        &'a self,
        nodes: &BTreeMap<&str, T>,
    ) -> impl Iterator<Item = &'a ServiceName> {
        let is_on = |backend: &Backend| backend.node.as_deref().is_some_and(|node| nodes.contains_key(node));
        // Mostly none has moved: then there is nothing to look through.
        let services = (!nodes.is_empty()).then(|| self.services.iter()).into_iter().flatten();
        services.filter(move |(_, entry)| entry.backends.iter().any(is_on)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeInfo, NodeView, Verdict};

    #[test]
    fn a_node_concerns_those_who_have_backends_on_it() {
        let mut table = ServiceTable::default();
        for (service, node) in [("a", Some("n1")), ("b", Some("n2")), ("c", Some("n3")), ("d", None)] {
            let verdict = Verdict { state: crate::VerdictState::Up, source: "ready" };
            let mut backend = Backend::new([10, 244, 0, 1].into(), [].into(), verdict);
            backend.node = node.map(str::to_owned);
            let entry = ServiceEntry { backends: vec![backend], ..ServiceEntry::default() };
            table.services.insert(ServiceName::new("default", service), Arc::new(entry));
        }
        let view = |nodes: &[(&str, u32)]| NodeView {
            nodes: nodes
                .iter()
                .map(|(name, index)| ((*name).to_owned(), NodeInfo { index: *index }))
                .collect(),
            ..NodeView::default()
        };
        let before = view(&[("n1", 1), ("n2", 2)]);
        let named = |now: &NodeView| -> Vec<String> {
            table.naming(&before.moved(now)).map(|service| service.name.clone()).collect()
        };
        assert_eq!(named(&before), [""; 0]);
        assert_eq!(named(&view(&[("n1", 1), ("n2", 2), ("n9", 9)])), [""; 0], "nobody is there yet");
        assert_eq!(named(&view(&[("n1", 1), ("n2", 4), ("n3", 3)])), ["b", "c"]);
        assert_eq!(named(&view(&[("n2", 2)])), ["a"]);
        assert!(!before.is_same_node(&NodeView { zone: Some("z".into()), ..before.clone() }), "all of them");
    }
}
