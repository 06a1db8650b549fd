// SPDX-License-Identifier: Apache-2.0
//! From one zone to the next: a change of a service touches its own names and no others.

use std::collections::BTreeSet;
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

    /// Takes a service in, or what it is now.
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
        let problems = Arc::make_mut(&mut self.zone.problems);
        problems.entry(display(&service.namespace, &service.name)).or_default().push(reason);
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

    /// All pods' addresses at once: what is not among them has no pod.
    pub fn set_clients(&mut self, clients: impl IntoIterator<Item = (IpAddr, Arc<Client>)>) {
        let mut gone: BTreeSet<IpAddr> = self.zone.clients.iter().map(|(ip, _)| *ip).collect();
        for (address, client) in clients {
            gone.remove(&address.to_canonical());
            if self.zone.client(address) != Some(&client) {
                self.set_client(address, Some(client));
            }
        }
        gone.into_iter().for_each(|address| self.set_client(address, None));
    }

    /// Says which records of one's own `source` (a key in the store, a place in the configuration) gives; none: it is gone.
    pub fn set_records(&mut self, source: &str, records: Vec<OwnRecord>) {
        let mut keys = BTreeSet::new();
        let source_of: Arc<str> = source.into();
        let old = self.zone.sources.find(source.as_bytes()).cloned().unwrap_or_default();
        for key in old.iter() {
            let rest = self.zone.own.find(key).into_iter().flat_map(|known| known.iter());
            let rest: Arc<[Own]> = rest.filter(|known| *known.source != *source).cloned().collect();
            self.zone.own.replace(key, (!rest.is_empty()).then_some(rest));
        }
        for record in records {
            let mut buffer = [0; 255];
            let len = key(&Folded::from(&record.name), &mut buffer);
            let key = &buffer[..len];
            let mut known: Vec<Own> = self.zone.own.find(key).map(|known| known.to_vec()).unwrap_or_default();
            known.push(Own { source: source_of.clone(), record: Arc::new(record) });
            // Stable: the records of one source stay as they were given.
            known.sort_by(|a, b| a.source.cmp(&b.source));
            self.zone.own.replace(key, Some(known.into()));
            keys.insert(key.into());
        }
        self.zone.sources.replace(source.as_bytes(), (!keys.is_empty()).then(|| Arc::new(keys)));
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
        self.zone.servers = Arc::new(addresses.iter().copied().collect());
    }

    /// The zone as of `revision` of the table that the changes came from.
    #[must_use]
    pub fn finish(mut self, revision: u64) -> Zone {
        self.zone.revision = revision;
        self.zone
    }

    fn service_name(&self, namespace: &str, name: &str) -> Result<Name, NameError> {
        let namespace = self.zone.fixed.services.child(label(namespace)?)?;
        Ok(namespace.child(label(name)?)?.to_lower())
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
        let cidrs = self.zone.fixed.settings.reverse_cidrs.clone();
        let ips = |entry: Option<&Entry>| -> BTreeSet<IpAddr> {
            let mut ips = entry.map(Entry::named_ips).unwrap_or_default();
            ips.retain(|ip| cidrs.iter().any(|cidr| cidr.contains(ip)));
            ips
        };
        let (before, after) = (ips(old), ips(new));
        before.difference(&after).for_each(|ip| self.point(*ip, name, false));
        after.difference(&before).for_each(|ip| self.point(*ip, name, true));

        let aliases = |entry: Option<&Entry>| -> BTreeSet<Name> {
            entry.map(|entry| entry.aliases.iter().cloned().collect()).unwrap_or_default()
        };
        let (before, after) = (aliases(old), aliases(new));
        before.difference(&after).for_each(|alias| self.alias(alias, name, false));
        after.difference(&before).for_each(|alias| self.alias(alias, name, true));
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

    fn alias(&mut self, alias: &Name, name: &Name, to_it: bool) {
        let (at, is_it) = (hash(alias.as_wire()), |known: &Alias| known.name == *alias);
        let known = self.zone.aliases.find(at, is_it);
        let mut owners = known.map(|known| (*known.owners).clone()).unwrap_or_default();
        if to_it {
            owners.insert(name.clone())
        } else {
            owners.remove(name)
        };
        let new = Alias { name: alias.clone(), owners: Arc::new(owners) };
        self.zone.aliases.replace(at, is_it, (!new.owners.is_empty()).then_some(new));
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
        let service = display(namespace, name);
        if problems.is_empty() && !self.zone.problems.contains_key(&service) {
            return;
        }
        let all = Arc::make_mut(&mut self.zone.problems);
        if problems.is_empty() {
            all.remove(&service)
        } else {
            all.insert(service, problems)
        };
    }
}

fn display(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}
