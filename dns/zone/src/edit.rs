// SPDX-License-Identifier: Apache-2.0
//! From one zone to the next: a change of a service touches its own names and no others.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::custom::{Own, OwnRecord};
use crate::entry::{Entry, label};
use crate::ordered::key;
use crate::rules::Rules;
use crate::tree::hash;
use crate::zone::{Alias, Namespace, Owners, Pointer, ip_hash};
use crate::{Client, Folded, Name, NameError, Zone, ZoneService, compile};

/// The next zone in the making. Whatever order changes come in, the zone is the one that would be built from what they leave.
#[derive(Debug)]
pub struct ZoneEdit {
    zone: Zone,
}

impl ZoneEdit {
    pub(crate) fn new(zone: Zone) -> Self {
        Self { zone }
    }

    /// Takes a service in, or what it is now. A namespace or name that is not in lower case is a problem, and no name: it would be
    /// that of another service.
    pub fn set_service(&mut self, service: &ZoneService) {
        let mut problems = Vec::new();
        let mut report = |reason: String| problems.push(reason);
        let entry = match self.service_name(&service.namespace, &service.name) {
            Ok(name) => {
                let known = self.zone.service(name.as_wire()).map(|entry| entry.name.clone());
                compile::entry(service, known.unwrap_or_else(|| Arc::new(name)), &mut report)
            }
            Err(error) => {
                report(format!("has no name: {error}"));
                None
            }
        };
        match entry {
            Some(entry) => self.put(entry),
            None => self.take(&service.namespace, &service.name),
        }
        self.set_problems(&service.namespace, &service.name, problems);
    }

    /// Takes a service in, if there is none of its name yet.
    pub(crate) fn add_service(&mut self, service: &ZoneService) {
        let name = self.service_name(&service.namespace, &service.name);
        if !name.is_ok_and(|name| self.zone.service(name.as_wire()).is_some()) {
            return self.set_service(service);
        }
        let reason = "given twice: the first one is used".to_owned();
        let key = display(&service.namespace, &service.name);
        let known = self.zone.problems.find(key.as_bytes()).into_iter().flat_map(|known| known.iter());
        let all = known.cloned().chain([reason]).collect();
        self.zone.problems.replace(key.as_bytes(), Some(all));
    }

    /// Forgets a service.
    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        self.take(namespace, name);
        self.set_problems(namespace, name, Vec::new());
    }

    /// Says which pod has an address; `None`: no one has it.
    pub fn set_client(&mut self, address: IpAddr, client: Option<Arc<Client>>) {
        let address = address.to_canonical();
        let namespace = client.as_ref().map(|client| client.namespace.clone());
        let new = client.map(|client| (address, client));
        let old = self.zone.clients.replace(ip_hash(address), |(ip, _)| *ip == address, new);
        let old = old.map(|(_, client)| client.namespace.clone());
        if namespace != old {
            for (namespace, change) in [(old, -1), (namespace, 1)] {
                if let Some(namespace) = namespace {
                    self.count(&namespace.to_ascii_lowercase().into_bytes(), 0, change);
                }
            }
        }
    }

    /// Says which records of one's own `source` (a key in the store, a place in the configuration) gives; none: it is gone.
    pub fn set_records(&mut self, source: &str, records: Vec<OwnRecord>) {
        let source_of: Arc<str> = source.into();
        let mut new: BTreeMap<Box<[u8]>, Vec<Own>> = BTreeMap::new();
        for record in records {
            let mut buffer = [0; 255];
            let len = key(&Folded::from(&record.name), &mut buffer);
            let own = Own { source: source_of.clone(), record: Arc::new(record) };
            new.entry(buffer[..len].into()).or_default().push(own);
        }
        let old = self.zone.sources.find(source.as_bytes()).cloned().unwrap_or_default();
        for key in old.iter().filter(|key| !new.contains_key(*key)) {
            self.put_records(key, source, Vec::new());
        }
        let keys: BTreeSet<Box<[u8]>> = new.keys().cloned().collect();
        for (key, all) in new {
            self.put_records(&key, source, all);
        }
        self.zone.sources.replace(source.as_bytes(), (!keys.is_empty()).then(|| Arc::new(keys)));
    }

    /// The records of one source at one name. They stand in order of their sources, those of one as they were given; nothing but
    /// the first change of a name copies what others have there.
    fn put_records(&mut self, key: &[u8], source: &str, records: Vec<Own>) {
        let mut all = self.zone.own.replace(key, None).unwrap_or_default();
        let known = Arc::make_mut(&mut all);
        let begin = known.partition_point(|own| *own.source < *source);
        let end = known.partition_point(|own| *own.source <= *source);
        known.splice(begin..end, records);
        if !known.is_empty() {
            self.zone.own.replace(key, Some(all));
        }
    }

    /// The sources of records that there are now, in order.
    #[must_use]
    pub fn sources(&self) -> Vec<String> {
        self.zone.sources.iter().map(|(source, _)| String::from_utf8_lossy(source).into_owned()).collect()
    }

    /// Links and rewrites.
    pub fn set_rules(&mut self, rules: Rules) {
        if *self.zone.rules != rules {
            self.zone.rules = Arc::new(rules);
        }
    }

    /// The addresses of `ns.dns.<origin>`.
    pub fn set_nameservers(&mut self, addresses: &[IpAddr]) {
        let servers: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        self.zone.servers = servers.into_iter().collect();
    }

    /// The zone as of `revision` of the table that the changes came from.
    #[must_use]
    pub fn finish(mut self, revision: u64) -> Zone {
        self.zone.revision = revision;
        self.zone
    }

    fn service_name(&self, namespace: &str, name: &str) -> Result<Name, String> {
        if let Some(text) = [namespace, name].into_iter().find(|text| text.contains(is_upper)) {
            return Err(format!("{text:?} is not in lower case"));
        }
        let made = || self.zone.fixed.services.child(label(namespace)?)?.child(label(name)?);
        made().map_err(|error: NameError| error.to_string())
    }

    fn put(&mut self, entry: Entry) {
        let entry = Arc::new(entry);
        let name = entry.name.clone();
        let is_it = |known: &Arc<Entry>| known.name == name;
        if self.zone.services.find(hash(name.as_wire()), is_it).is_some_and(|known| *known == entry) {
            return;
        }
        let old = self.zone.services.replace(hash(name.as_wire()), is_it, Some(entry.clone()));
        self.replaced(&name, old.as_deref(), Some(&entry));
    }

    fn take(&mut self, namespace: &str, name: &str) {
        let Ok(name) = self.service_name(namespace, name) else { return };
        let old = self.zone.services.replace(hash(name.as_wire()), |known| *known.name == name, None);
        if let Some(old) = old {
            self.replaced(&old.name.clone(), Some(&old), None);
        }
    }

    /// Everything that follows from an entry.
    fn replaced(&mut self, name: &Arc<Name>, old: Option<&Entry>, new: Option<&Entry>) {
        if let (true, Some(namespace)) = (old.is_some() != new.is_some(), name.labels().nth(1)) {
            let change = if new.is_some() { 1 } else { -1 };
            self.count(namespace, change, 0);
        }
        let ips = |entry: Option<&Entry>| entry.map(Entry::named_ips).unwrap_or_default();
        for (ip, to_it) in differences(&ips(old), &ips(new)) {
            if self.zone.fixed.settings.reverse_cidrs.iter().any(|cidr| cidr.contains(&ip)) {
                self.point(ip, name, to_it);
            }
        }
        let aliases = |entry: Option<&Entry>| entry.map(|entry| entry.aliases.to_vec()).unwrap_or_default();
        for (alias, to_it) in differences(&aliases(old), &aliases(new)) {
            self.alias(&alias, name, to_it);
        }
        if old.is_some() != new.is_some() {
            self.contest(name);
        }
    }

    fn point(&mut self, ip: IpAddr, name: &Arc<Name>, to_it: bool) {
        let is_it = |pointer: &Pointer| pointer.ip == ip;
        let known = self.zone.pointers.find(ip_hash(ip), is_it);
        let mut owners: Vec<Arc<Name>> = known
            .into_iter()
            .flat_map(|pointer| pointer.owners.iter())
            .filter(|owner| *owner != name)
            .cloned()
            .collect();
        if to_it {
            owners.push(name.clone());
            owners.sort();
        }
        let owners = match owners.as_slice() {
            [] => None,
            [one] => Some(Owners::One(one.clone())),
            many => Some(Owners::Many(many.into())),
        };
        self.zone.pointers.replace(ip_hash(ip), is_it, owners.map(|owners| Pointer { ip, owners }));
    }

    fn alias(&mut self, alias: &Name, name: &Arc<Name>, to_it: bool) {
        let (at, is_it) = (hash(alias.as_wire()), |known: &Alias| known.name == *alias);
        let known = self.zone.aliases.find(at, is_it);
        let was_there = known.is_some();
        let known = known.into_iter().flat_map(|known| known.owners.iter());
        let mut owners: Vec<Arc<Name>> = known.filter(|owner| *owner != name).cloned().collect();
        if to_it {
            owners.push(name.clone());
            owners.sort_by_cached_key(|owner| Alias::rank(alias, owner));
        }
        let is_there = !owners.is_empty();
        let new = Alias { name: alias.clone(), owners: owners.into() };
        self.zone.aliases.replace(at, is_it, is_there.then_some(new));
        // What lies above a name exists.
        if let (true, Some(namespace)) = (was_there != is_there, alias.labels().nth(1)) {
            self.count(namespace, if is_there { 1 } else { -1 }, 0);
        }
        self.contest(alias);
    }

    /// Notes whether more than one claims a name.
    fn contest(&mut self, name: &Name) {
        let wire = name.as_wire();
        let alias = self.zone.aliases.find(hash(wire), |alias| alias.name == *name);
        let owners = alias.map_or(0, |alias| alias.owners.len());
        let is_contested = owners > 1 || owners == 1 && self.zone.service(wire).is_some();
        self.zone.contested.replace(wire, is_contested.then_some(()));
    }

    fn count(&mut self, namespace: &[u8], services: i32, pods: i32) {
        let (at, is_it) = (hash(namespace), |known: &Namespace| *known.name == *namespace);
        let known = self.zone.namespaces.find(at, is_it).cloned();
        let mut new = known.unwrap_or_else(|| Namespace { name: namespace.into(), services: 0, pods: 0 });
        new.services = new.services.saturating_add_signed(services);
        new.pods = new.pods.saturating_add_signed(pods);
        let exists = new.services > 0 || new.pods > 0;
        self.zone.namespaces.replace(at, is_it, exists.then_some(new));
    }

    fn set_problems(&mut self, namespace: &str, name: &str, problems: Vec<String>) {
        let problems = (!problems.is_empty()).then(|| problems.into());
        self.zone.problems.replace(display(namespace, name).as_bytes(), problems);
    }
}

fn display(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn is_upper(letter: char) -> bool {
    letter.is_ascii_uppercase()
}

/// What is in one of two sorted lists only, and whether it is the second.
fn differences<T: Ord + Clone>(before: &[T], after: &[T]) -> Vec<(T, bool)> {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let mut found = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(b),
        };
        let (gone, come) = (old.next_if(|_| order.is_le()), new.next_if(|_| order.is_ge()));
        match (gone, come) {
            (Some(gone), None) => found.push((gone.clone(), false)),
            (None, Some(come)) => found.push((come.clone(), true)),
            _ => {}
        }
    }
}
