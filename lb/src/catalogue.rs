// SPDX-License-Identifier: Apache-2.0
//! The service table, kept in step with a stream of changed objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::{
    Backend, EndpointSlice, Extras, Problem, Service, ServiceEntry, ServiceMap, ServiceName, ServiceTable,
    Unread, join, validate, validate_service,
};

/// Names of services whose entry may differ from what it was.
pub type Changed = BTreeSet<ServiceName>;

/// Services and their slices, joined as they come, in any order. An object that is refused, and an extra that is not
/// understood, is a [`Problem`], and its last good value stays.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    services: BTreeMap<ServiceName, Known>,
    /// What this program itself provides; a Service of the same name in the store wins.
    own: BTreeMap<ServiceName, (Arc<Service>, Vec<Backend>)>,
    /// By the key that they came under.
    slices: BTreeMap<String, Arc<EndpointSlice>>,
    /// Keys of slices by Service, which may come later.
    by_service: BTreeMap<ServiceName, BTreeSet<String>>,
    /// Who wants a ClusterIP; the first by name has it.
    cluster_ips: BTreeMap<IpAddr, BTreeSet<ServiceName>>,
    refused_services: BTreeMap<ServiceName, Problem>,
    refused_slices: BTreeMap<String, Problem>,
    /// Whose present value does not even read.
    unread_services: BTreeSet<ServiceName>,
    /// By key, the Service of a slice that does not read or is refused.
    unread_slices: BTreeMap<String, ServiceName>,
    unread: Arc<Unread>,
    /// What is wrong with parts of an entry.
    problems: BTreeMap<ServiceName, Vec<Problem>>,
    entries: ServiceMap,
    /// Entries to be made anew.
    stale: Changed,
}

#[derive(Clone, Debug)]
struct Known {
    service: Arc<Service>,
    extras: Extras,
    wrong_extras: Vec<Problem>,
}

impl Catalogue {
    /// Without any service.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a Service in, or its new content.
    pub fn set_service(&mut self, service: Arc<Service>) -> Changed {
        let name = ServiceName::of(&service);
        self.unread_services.remove(&name);
        if self.services.get(&name).is_some_and(|known| known.service == service) {
            self.refused_services.remove(&name);
            return Changed::new();
        }
        if let Err(error) = validate_service::check(&service) {
            self.refused_services.insert(name, error.into());
            return Changed::new();
        }
        self.refused_services.remove(&name);
        let last = self.services.get(&name).map(|known| known.extras.clone()).unwrap_or_default();
        let (extras, wrong) = Extras::parse(&service.metadata.annotations, &last);
        let wrong_extras = wrong.into_iter().map(|mismatch| Problem {
            object: service.display_name(),
            field: mismatch.field,
            reason: mismatch.reason,
        });
        let known = Known { wrong_extras: wrong_extras.collect(), service, extras };
        let before = self.effective(&name);
        self.services.insert(name.clone(), known);
        self.replaced(&name, before)
    }

    /// The present value of a Service does not read: its last good one stays.
    pub fn unread_service(&mut self, name: ServiceName) -> Changed {
        self.refused_services.remove(&name);
        self.unread_services.insert(name.clone());
        Changed::from([name])
    }

    /// Forgets a Service. Its slices stay, in case that it comes back.
    pub fn remove_service(&mut self, name: &ServiceName) -> Changed {
        let was_doubted = self.refused_services.remove(name).is_some() | self.unread_services.remove(name);
        let before = self.effective(name);
        if self.services.remove(name).is_none() {
            return Changed::from_iter(was_doubted.then(|| name.clone()));
        }
        self.replaced(name, before)
    }

    /// A Service that this program itself provides, with backends that no slice may name (loopback, link-local). It is
    /// not checked; a Service of that name in the store stands in its place.
    pub fn set_own(&mut self, service: Service, backends: Vec<Backend>) -> Changed {
        let name = ServiceName::of(&service);
        let before = self.effective(&name);
        let own = (Arc::new(service), backends);
        if self.own.get(&name) == Some(&own) {
            return Changed::new();
        }
        self.own.insert(name.clone(), own);
        self.replaced(&name, before)
    }

    /// Takes it back.
    pub fn remove_own(&mut self, name: &ServiceName) -> Changed {
        let before = self.effective(name);
        if self.own.remove(name).is_none() {
            return Changed::new();
        }
        self.replaced(name, before)
    }

    /// Takes a slice in, or its new content. `key` is what it is stored under: two sources may give two slices one name.
    pub fn set_slice(&mut self, key: &str, slice: Arc<EndpointSlice>) -> Changed {
        if self.slices.get(key) == Some(&slice) {
            self.refused_slices.remove(key);
            self.unread_slices.remove(key);
            return Changed::new();
        }
        if let Err(error) = validate::slice(&slice) {
            self.refused_slices.insert(key.to_owned(), error.into());
            return service_of(&slice).map(|service| self.doubt(key, service)).unwrap_or_default();
        }
        let mut changed = self.remove_slice(key);
        if let Some(service) = service_of(&slice) {
            self.by_service.entry(service.clone()).or_default().insert(key.to_owned());
            changed.insert(service);
        }
        self.slices.insert(key.to_owned(), slice);
        self.touch(changed)
    }

    /// The present value of a Service's slice does not read: its last good one stays.
    pub fn unread_slice(&mut self, key: &str, service: ServiceName) -> Changed {
        self.refused_slices.remove(key);
        self.doubt(key, service)
    }

    fn doubt(&mut self, key: &str, service: ServiceName) -> Changed {
        self.unread_slices.insert(key.to_owned(), service.clone());
        Changed::from([service])
    }

    /// Forgets a slice.
    pub fn remove_slice(&mut self, key: &str) -> Changed {
        self.refused_slices.remove(key);
        let doubted = Changed::from_iter(self.unread_slices.remove(key));
        let Some(slice) = self.slices.remove(key) else { return doubted };
        let Some(service) = service_of(&slice) else { return doubted };
        if let Some(keys) = self.by_service.get_mut(&service) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_service.remove(&service);
            }
        }
        self.touch(Changed::from_iter(doubted.into_iter().chain([service])))
    }

    /// Everything as of now.
    pub fn table(&mut self, revision: u64) -> ServiceTable {
        for name in std::mem::take(&mut self.stale) {
            let mut problems = Vec::new();
            match self.join(&name, &mut problems) {
                None => drop(self.entries.remove(&name)),
                Some(entry) => drop(self.entries.insert(name.clone(), Arc::new(entry))),
            }
            if problems.is_empty() {
                self.problems.remove(&name);
            } else {
                self.problems.insert(name, problems);
            }
        }
        let unread = self.unread();
        if *self.unread != unread {
            self.unread = Arc::new(unread);
        }
        ServiceTable { revision, services: self.entries.clone(), unread: self.unread.clone() }
    }

    /// Services whose present value does not read or is refused, whether or not a good one is known.
    #[must_use]
    pub fn doubted(&self) -> BTreeSet<ServiceName> {
        self.unread_services.iter().chain(self.refused_services.keys()).cloned().collect()
    }

    /// The Service in force, as somebody stored it: its last good value.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name).map(|known| &known.service)
    }

    /// Of what no good value is known. What is claimed for it, others know.
    fn unread(&self) -> Unread {
        let slices = self.unread_slices.iter().filter(|(key, _)| !self.slices.contains_key(*key));
        Unread {
            services: self.doubted().into_iter().filter(|name| !self.services.contains_key(name)).collect(),
            endpoints: slices.map(|(_, service)| service.clone()).collect(),
            ..Unread::default()
        }
    }

    /// What is wrong as of the last [`Self::table`], sorted.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let parts = self.problems.values().flatten();
        let refused = self.refused_services.values().chain(self.refused_slices.values());
        let mut problems: Vec<Problem> = refused.chain(parts).cloned().collect();
        problems.sort();
        problems
    }

    fn join(&self, name: &ServiceName, problems: &mut Vec<Problem>) -> Option<ServiceEntry> {
        let service = self.effective(name)?;
        let known = self.services.get(name);
        problems.extend(known.iter().flat_map(|known| known.wrong_extras.iter().cloned()));
        let extras = known.map(|known| known.extras.clone()).unwrap_or_default();
        let mut entry = ServiceEntry::new(&service, extras);
        // ClusterIPs are claimed by transaction, so two owners mean a value written past us: the first by name
        // keeps it, on every node alike.
        entry.cluster_ips.retain(|ip| {
            let owner = self.cluster_ips.get(ip).and_then(BTreeSet::first).filter(|owner| *owner != name);
            if let Some(owner) = owner {
                problems.push(Problem {
                    object: service.display_name(),
                    field: "spec.clusterIP".to_owned(),
                    reason: format!("{ip} already belongs to Service {owner}; delete one of the two"),
                });
            }
            owner.is_none()
        });
        let keys = self.by_service.get(name).into_iter().flatten();
        let slices = keys.filter_map(|key| self.slices.get(key)).map(Arc::as_ref);
        entry.backends = join::backends(slices, entry.publish_not_ready, problems);
        if known.is_none() {
            entry.backends.extend(self.own.get(name).into_iter().flat_map(|(_, own)| own.iter().cloned()));
        }
        Some(entry)
    }

    fn effective(&self, name: &ServiceName) -> Option<Arc<Service>> {
        let known = self.services.get(name).map(|known| &known.service);
        known.or_else(|| self.own.get(name).map(|(service, _)| service)).cloned()
    }

    /// Another object stands under `name` now: claims of ClusterIPs follow it.
    fn replaced(&mut self, name: &ServiceName, before: Option<Arc<Service>>) -> Changed {
        let ips = |service: Option<Arc<Service>>| -> BTreeSet<IpAddr> {
            service.map(|service| service.cluster_ips().into_iter().collect()).unwrap_or_default()
        };
        let (before, now) = (ips(before), ips(self.effective(name)));
        let mut changed = Changed::from([name.clone()]);
        for ip in before.symmetric_difference(&now) {
            let claims = self.cluster_ips.entry(*ip).or_default();
            changed.extend(claims.iter().cloned());
            if now.contains(ip) {
                claims.insert(name.clone());
            } else {
                claims.remove(name);
            }
            if claims.is_empty() {
                self.cluster_ips.remove(ip);
            }
        }
        self.touch(changed)
    }

    fn touch(&mut self, changed: Changed) -> Changed {
        self.stale.extend(changed.iter().cloned());
        changed
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ServiceName> {
    Some(ServiceName::new(&slice.metadata.namespace, slice.service_name()?))
}
