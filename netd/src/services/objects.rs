// SPDX-License-Identifier: Apache-2.0
//! Services and their endpoint slices as the store has them, taken into the catalogue difference by difference: of
//! thousands of objects one change makes one be parsed, and one entry of the table be made anew. Likewise the claims of what
//! services hold, which are as many.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb::{
    Catalogue, Changed, ChunkMap, EndpointSlice, Forwarding, Service, ServiceEntry, ServiceName,
    ServiceTable, Unread,
};
use netd_api::BadValue;
use netd_store::records::{NodePortRecord, ServiceIpRecord, decode};
use netd_store::{Items, Key, Keys, MirrorState};
use serde::de::DeserializeOwned;

/// What was taken in so far.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    services: Prefix<Service>,
    /// The last good value of each, by its key.
    in_force: ChunkMap<String, Service>,
    slices: Prefix<EndpointSlice>,
    addresses: Claims<IpAddr, ServiceIpRecord>,
    ports: Claims<u16, NodePortRecord>,
    catalogue: Catalogue,
    /// The service that netd itself provides, as it was last set.
    own: Option<ServiceName>,
    /// Differs from what the maps were made from.
    changed: Changed,
    /// Ports that no backend has, by service.
    unserved: BTreeMap<ServiceName, Vec<BadValue>>,
    /// Names whose ports are to be looked at again.
    unchecked: Changed,
    /// Who wants direct server return.
    dsr: BTreeSet<ServiceName>,
    /// Who has a port for load balancers' health checks.
    health_checked: Arc<BTreeMap<ServiceName, u16>>,
}

impl Objects {
    /// Takes over what differs; returns the values that do not parse. Of those the last good one stays in force.
    pub(crate) fn update(&mut self, state: &MirrorState, keys: &Keys) -> Vec<BadValue> {
        let mut bad = Vec::new();
        for step in self.services.follow(state, &keys.services(), keys, service_name) {
            let (Step::Set(key, _) | Step::Bad(key) | Step::Gone(key)) = &step;
            let key = key.clone();
            let Some(Key::Service { namespace, name }) = keys.parse(&key) else { continue };
            let name = ServiceName::new(namespace, name);
            let changed = match step {
                Step::Set(_, service) => self.catalogue.set_service(service),
                Step::Bad(_) => self.catalogue.unread_service(name.clone()),
                Step::Gone(_) => self.catalogue.remove_service(&name),
            };
            // One that reads may be refused.
            match self.catalogue.service(&name) {
                Some(service) => drop(self.in_force.insert(key, service.clone())),
                None => drop(self.in_force.remove(&key)),
            }
            self.note(changed);
        }
        for step in self.slices.follow(state, &keys.endpoints(), keys, |_, _| Ok(())) {
            let changed = match step {
                Step::Set(key, slice) => self.catalogue.set_slice(&key, slice),
                Step::Bad(key) => match keys.parse(&key) {
                    Some(Key::Endpoint { namespace, name, .. }) => {
                        self.catalogue.unread_slice(&key, ServiceName::new(namespace, name))
                    }
                    _ => Changed::new(),
                },
                Step::Gone(key) => self.catalogue.remove_slice(&key),
            };
            self.note(changed);
        }
        self.addresses.follow(state, &keys.service_ips(), keys, |key| match key {
            Key::ServiceIp(ip) => Some(*ip),
            _ => None,
        });
        self.ports.follow(state, &keys.node_ports(), keys, |key| match key {
            Key::NodePort(port) => Some(*port),
            _ => None,
        });
        bad.extend(self.services.bad());
        bad.extend(self.slices.bad());
        bad.extend(self.addresses.known.bad());
        bad.extend(self.ports.known.bad());
        bad
    }

    /// Whose addresses of services are; a copy costs nothing.
    pub(crate) fn service_ips(&self) -> ChunkMap<IpAddr, ServiceIpRecord> {
        self.addresses.by.clone()
    }

    /// Whose node ports are; a copy costs nothing.
    pub(crate) fn node_ports(&self) -> ChunkMap<u16, NodePortRecord> {
        self.ports.by.clone()
    }

    /// The service that netd itself provides; one of that name in the store wins.
    pub(crate) fn set_own(&mut self, own: Option<(Service, Vec<lb::Backend>)>) {
        let name = own.as_ref().map(|(service, _)| ServiceName::of(service));
        if let Some(before) = self.own.take()
            && Some(&before) != name.as_ref()
        {
            let changed = self.catalogue.remove_own(&before);
            self.note(changed);
        }
        if let Some((service, backends)) = own {
            let changed = self.catalogue.set_own(service, backends);
            self.note(changed);
        }
        self.own = name;
    }

    /// The table as of now, and what is wrong with single objects. `cluster_ranges` are those that ClusterIPs are taken from.
    pub(crate) fn table(&mut self, revision: u64, cluster_ranges: &[IpNet]) -> (ServiceTable, Vec<BadValue>) {
        let mut table = self.catalogue.table(revision);
        if !table.unread.services.is_empty() {
            self.tell_claims(Arc::make_mut(&mut table.unread), cluster_ranges);
        }
        for name in std::mem::take(&mut self.unchecked) {
            let entry = table.services.get(&name);
            self.check(name, entry);
        }
        let wrong = |problem: lb::Problem| BadValue {
            key: problem.object.clone(),
            reason: format!("{}: {}", problem.field, problem.reason),
        };
        let problems = self.catalogue.problems().into_iter().map(wrong);
        (table, problems.chain(self.unserved.values().flatten().cloned()).collect())
    }

    /// Every Service that is in force, by its key; a copy costs nothing.
    pub(crate) fn services(&self) -> ChunkMap<String, Service> {
        self.in_force.clone()
    }

    /// Services whose present value does not read or is refused: what they hold is not known.
    pub(crate) fn doubted(&self) -> BTreeSet<ServiceName> {
        self.catalogue.doubted()
    }

    /// What Services that do not read may hold.
    fn tell_claims(&self, unread: &mut Unread, cluster_ranges: &[IpNet]) {
        let is_theirs =
            |namespace: &String, name: &String| unread.services.contains(&ServiceName::new(namespace, name));
        let addresses = self.addresses.by.iter();
        let addresses = addresses.filter(|(_, claim)| is_theirs(&claim.namespace, &claim.name));
        unread.cluster_ips = addresses.map(|(ip, _)| *ip).collect();
        let ports = self.ports.by.iter().filter(|(_, claim)| is_theirs(&claim.namespace, &claim.name));
        unread.node_ports = ports.map(|(port, _)| *port).collect();
        unread.cluster_ranges = cluster_ranges.to_vec();
    }

    /// Some service wants direct server return.
    pub(crate) fn has_dsr(&self) -> bool {
        !self.dsr.is_empty()
    }

    /// Ports for load balancers' health checks; a copy costs nothing.
    pub(crate) fn health_checked(&self) -> Arc<BTreeMap<ServiceName, u16>> {
        self.health_checked.clone()
    }

    /// Names of services that differ since the last call.
    pub(crate) fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// What is known of single services beside their entries.
    fn check(&mut self, name: ServiceName, entry: Option<&Arc<ServiceEntry>>) {
        // Another proxy's service is that one's to answer for.
        let served = entry.filter(|entry| entry.is_served());
        let port = served.and_then(|entry| entry.health_check_node_port);
        if self.health_checked.get(&name).copied() != port {
            let all = Arc::make_mut(&mut self.health_checked);
            match port {
                Some(port) => drop(all.insert(name.clone(), port)),
                None => drop(all.remove(&name)),
            }
        }
        match entry.is_some_and(|entry| entry.extras.forwarding == Forwarding::Dsr) {
            true => drop(self.dsr.insert(name.clone())),
            false => drop(self.dsr.remove(&name)),
        }
        let found = entry.map(|entry| unserved(&name, entry)).unwrap_or_default();
        match found.is_empty() {
            true => drop(self.unserved.remove(&name)),
            false => drop(self.unserved.insert(name, found)),
        }
    }

    fn note(&mut self, changed: Changed) {
        self.unchecked.extend(changed.iter().cloned());
        self.changed.extend(changed);
    }
}

/// An object says of itself what its key says of it.
fn service_name(key: &Key, service: &Service) -> Result<(), String> {
    let Key::Service { namespace, name } = key else { return Err("not the key of a Service".to_owned()) };
    let metadata = &service.metadata;
    match (&metadata.namespace, &metadata.name) == (namespace, name) {
        true => Ok(()),
        false => {
            Err(format!("metadata: {}/{} does not agree with the key", metadata.namespace, metadata.name))
        }
    }
}

/// A port that none of a service's backends has refuses every connection: seldom what somebody meant.
fn unserved(name: &ServiceName, entry: &ServiceEntry) -> Vec<BadValue> {
    let ports = entry.ports.iter().filter(|port| !entry.backends.is_empty() && entry.choose(port).is_empty());
    ports
        .map(|port| BadValue {
            key: format!("Service {name}"),
            reason: format!(
                "port {}/{}: none of the {} backends is ready on it; a targetPort given by name needs pods that declare it, \
                 by a label such as port.weft.dev/http=8080",
                port.port,
                port.protocol,
                entry.backends.len()
            ),
        })
        .collect()
}

/// Claims, by what is claimed.
#[derive(Debug)]
struct Claims<K, T> {
    known: Prefix<T>,
    by: ChunkMap<K, T>,
}

impl<K, T> Default for Claims<K, T> {
    fn default() -> Self {
        Self { known: Prefix::default(), by: ChunkMap::default() }
    }
}

impl<K: Ord + Clone, T: DeserializeOwned> Claims<K, T> {
    fn follow(
        &mut self,
        state: &MirrorState,
        prefix: &str,
        keys: &Keys,
        claimed: impl Fn(&Key) -> Option<K>,
    ) {
        for step in self.known.follow(state, prefix, keys, |_, _| Ok(())) {
            let (Step::Set(key, _) | Step::Bad(key) | Step::Gone(key)) = &step;
            let Some(what) = keys.parse(key).as_ref().and_then(&claimed) else { continue };
            match step {
                Step::Set(_, record) => drop(self.by.insert(what, record)),
                Step::Bad(_) => {}
                Step::Gone(_) => drop(self.by.remove(&what)),
            }
        }
    }
}

/// All keys of one prefix, parsed.
#[derive(Debug)]
struct Prefix<T> {
    /// The store as it was taken in last.
    seen: Items,
    /// Why values do not parse.
    bad: BTreeMap<String, String>,
    parsed: PhantomData<T>,
}

enum Step<T> {
    Set(String, Arc<T>),
    /// It does not parse.
    Bad(String),
    Gone(String),
}

impl<T> Default for Prefix<T> {
    fn default() -> Self {
        Self { seen: Items::default(), bad: BTreeMap::new(), parsed: PhantomData }
    }
}

impl<T: DeserializeOwned> Prefix<T> {
    /// What differs from the last time; of thousands of keys that are the same nothing is looked at.
    fn follow(
        &mut self,
        state: &MirrorState,
        prefix: &str,
        keys: &Keys,
        check: impl Fn(&Key, &T) -> Result<(), String>,
    ) -> Vec<Step<T>> {
        let before = std::mem::replace(&mut self.seen, state.items.clone());
        let (mut gone, mut news) = (Vec::new(), Vec::new());
        for difference in state.items.differences(&before, prefix, |key| key.starts_with(prefix)) {
            let Some(item) = difference.now else {
                let key = String::clone(difference.key);
                self.bad.remove(&key);
                gone.push(Step::Gone(key));
                continue;
            };
            if difference.before.is_some_and(|before| is_same(&before.value, &item.value)) {
                continue;
            }
            self.bad.remove(&item.key);
            // Newer versions have more kinds of keys: they are not ours to judge.
            let Some(key) = keys.parse(&item.key) else { continue };
            let parsed = decode::<T>(&item.key, &item.value).map_err(|error| error.reason);
            match parsed.and_then(|value| check(&key, &value).map(|()| Arc::new(value))) {
                Ok(value) => news.push(Step::Set(item.key.clone(), value)),
                Err(reason) => {
                    self.bad.insert(item.key.clone(), reason);
                    news.push(Step::Bad(item.key.clone()));
                }
            }
        }
        // What one gives up another may have got.
        gone.append(&mut news);
        gone
    }

    fn bad(&self) -> impl Iterator<Item = BadValue> {
        self.bad.iter().map(|(key, reason)| BadValue { key: key.clone(), reason: reason.clone() })
    }
}

/// By value, not by revision: a restored store counts anew. What nobody wrote is the same memory.
fn is_same(a: &bytes::Bytes, b: &bytes::Bytes) -> bool {
    (a.as_ptr(), a.len()) == (b.as_ptr(), b.len()) || a == b
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use netd_store::{KeyValue, Mirror};

    fn state(items: &[(&str, &str)]) -> MirrorState {
        let mut mirror = Mirror::new();
        let item = |(key, value): &(&str, &str)| {
            let key = format!("/weft/v1/weft/{key}");
            let value = Bytes::copy_from_slice(value.as_bytes());
            let item = KeyValue { key: key.clone(), value, create_revision: 1, mod_revision: 1 };
            (key, Arc::new(item))
        };
        mirror.items = items.iter().map(item).collect();
        MirrorState { mirror, ..MirrorState::default() }
    }

    fn service(name: &str, ip: &str) -> String {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"default"}},
               "spec":{{"clusterIP":"{ip}","clusterIPs":["{ip}"],"ports":[{{"port":80}}]}}}}"#
        )
    }

    fn names(changed: Changed) -> Vec<String> {
        changed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_changed_is_taken_in() {
        let keys = Keys::new("weft").unwrap();
        let mut objects = Objects::default();
        let (a, b, c) = (service("a", "10.96.0.1"), service("b", "10.96.0.2"), service("c", "10.96.0.3"));
        let first =
            [("nodes/x", "{"), ("services/default/a", a.as_str()), ("services/default/c", c.as_str())];
        assert_eq!(objects.update(&state(&first), &keys), []);
        assert_eq!(objects.table(1, &[]).0.services.len(), 2);
        assert_eq!(names(objects.take_changed()), ["default/a", "default/c"]);
        objects.update(&state(&first), &keys);
        assert_eq!(names(objects.take_changed()), Vec::<String>::new());

        let second = [("services/default/b", b.as_str()), ("services/default/c", c.as_str())];
        objects.update(&state(&second), &keys);
        assert_eq!(names(objects.take_changed()), ["default/a", "default/b"]);
        let (table, _) = objects.table(2, &[]);
        assert!(table.find("default", "a").is_none() && table.find("default", "b").is_some());
    }

    #[test]
    fn the_last_good_value_of_a_service_stays() {
        let keys = Keys::new("weft").unwrap();
        let mut objects = Objects::default();
        let a = service("a", "10.96.0.1");
        objects.update(&state(&[("services/default/a", &a)]), &keys);
        for bad in ["{", &service("other", "10.96.0.9")] {
            let wrong = objects.update(&state(&[("services/default/a", bad)]), &keys);
            assert_eq!(wrong[0].key, "/weft/v1/weft/services/default/a");
            assert!(objects.table(2, &[]).0.find("default", "a").is_some(), "{bad}");
        }
        objects.update(&state(&[]), &keys);
        assert!(objects.table(3, &[]).0.find("default", "a").is_none());
    }

    #[test]
    fn what_is_not_known_of_a_service_is_told_with_what_is_claimed_for_it() {
        let keys = Keys::new("weft").unwrap();
        let mut objects = Objects::default();
        let typo = service("b", "10.96.0.2").replace(r#""ports""#, r#""trafficDistribution":"Typo","ports""#);
        let claim = |name: &str| format!(r#"{{"schema":1,"namespace":"default","name":"{name}"}}"#);
        let (of_a, of_b, of_c) = (claim("a"), claim("b"), claim("c"));
        let all = [
            ("endpoints/default/c/x", "{"),
            ("ipam/nodeports/30001", of_a.as_str()),
            ("ipam/nodeports/30002", of_b.as_str()),
            ("ipam/services/10.96.0.1", of_a.as_str()),
            ("ipam/services/10.96.0.2", of_b.as_str()),
            ("ipam/services/10.96.0.3", of_c.as_str()),
            ("services/default/a", "{"),
            ("services/default/b", typo.as_str()),
            ("services/default/c", &service("c", "10.96.0.3")),
        ];
        let range: IpNet = "10.96.0.0/16".parse().unwrap();
        let name = |name: &str| ServiceName::new("default", name);
        objects.update(&state(&all), &keys);
        let wished = Unread {
            services: [name("a"), name("b")].into(),
            endpoints: [name("c")].into(),
            cluster_ranges: vec![range],
            cluster_ips: ["10.96.0.1".parse().unwrap(), "10.96.0.2".parse().unwrap()].into(),
            node_ports: [30_001, 30_002].into(),
        };
        assert_eq!(*objects.table(1, &[range]).0.unread, wished);
        assert_eq!(objects.services().keys().collect::<Vec<_>>(), ["/weft/v1/weft/services/default/c"]);

        let good = [
            ("services/default/a", service("a", "10.96.0.1")),
            ("services/default/b", service("b", "10.96.0.2")),
        ];
        let good = good.each_ref().map(|(key, value)| (*key, value.as_str()));
        objects.update(&state(&good), &keys);
        assert_eq!(*objects.table(2, &[range]).0.unread, Unread::default());
        // One that was good stays in force, and is in doubt all the same.
        objects.update(&state(&[good[0], ("services/default/b", &typo)]), &keys);
        assert_eq!(*objects.table(3, &[range]).0.unread, Unread::default());
        assert_eq!((objects.doubted(), objects.services().len()), ([name("b")].into(), 2));
        assert!(objects.services().values().all(|service| service.spec.traffic_distribution.is_empty()));
    }

    #[test]
    fn claims_are_copied_only_when_one_of_them_changes() {
        let keys = Keys::new("weft").unwrap();
        let mut objects = Objects::default();
        let a = service("a", "10.96.0.1");
        let claim = r#"{"schema":1,"namespace":"default","name":"a"}"#;
        let all =
            [("ipam/nodeports/30080", claim), ("ipam/services/10.96.0.1", claim), ("services/default/a", &a)];
        assert!(objects.update(&state(&all), &keys).is_empty());
        let (addresses, ports) = (objects.service_ips(), objects.node_ports());
        assert_eq!((addresses.len(), ports.get(&30080).unwrap().name.as_str()), (1, "a"));
        objects.update(&state(&all[..2]), &keys);
        assert!(addresses.is_copy_of(&objects.service_ips()), "a service is no claim");
        let wrong = objects.update(&state(&[("ipam/services/10.96.0.1", "{")]), &keys);
        assert_eq!(wrong[0].key, "/weft/v1/weft/ipam/services/10.96.0.1");
        assert_eq!((objects.service_ips().len(), objects.node_ports().len()), (1, 0));
        assert_eq!((addresses.len(), ports.len()), (1, 1), "what somebody holds stays");
    }
}
