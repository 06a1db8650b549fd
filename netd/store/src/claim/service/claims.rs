// SPDX-License-Identifier: Apache-2.0
//! What services hold, as the store has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::ServiceHoldings;

use crate::records::{NodePortRecord, ServiceIpRecord, decode};
use crate::{Key, Keys, Store, StoreError};

/// All claimed ClusterIPs and node ports, as they were read and written since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceClaims {
    addresses: Claimed<IpAddr>,
    ports: Claimed<u16>,
}

/// Namespace and name.
type Name = (String, String);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Claimed<T> {
    /// Everything that is claimed, by whomever.
    taken: BTreeSet<T>,
    /// What a service holds, with the revision of the claim.
    by_service: BTreeMap<Name, BTreeMap<T, u64>>,
}

/// What one service holds, with the revisions of the claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub addresses: BTreeMap<IpAddr, u64>,
    pub ports: BTreeMap<u16, u64>,
}

impl ServiceClaims {
    /// Reads them from the store.
    ///
    /// # Errors
    /// The store fails.
    pub async fn read(store: &dyn Store, keys: &Keys) -> Result<Self, StoreError> {
        let mut claims = Self::default();
        for item in store.list(&keys.service_ips()).await?.items {
            let Some(Key::ServiceIp(ip)) = keys.parse(&item.key) else { continue };
            let record = decode::<ServiceIpRecord>(&item.key, &item.value).ok();
            claims.addresses.found(ip, record.map(|r| (r.namespace, r.name)), item.mod_revision);
        }
        for item in store.list(&keys.node_ports()).await?.items {
            let Some(Key::NodePort(port)) = keys.parse(&item.key) else { continue };
            let record = decode::<NodePortRecord>(&item.key, &item.value).ok();
            claims.ports.found(port, record.map(|r| (r.namespace, r.name)), item.mod_revision);
        }
        Ok(claims)
    }

    pub(super) fn of(&self, namespace: &str, name: &str) -> Own {
        let name = (namespace.to_owned(), name.to_owned());
        Own { addresses: self.addresses.of(&name), ports: self.ports.of(&name) }
    }

    /// For the decision about a service that holds `own`.
    pub(super) fn holdings(&self, own: &Own) -> ServiceHoldings {
        ServiceHoldings {
            addresses: self.addresses.taken.clone(),
            ports: self.ports.taken.clone(),
            own_addresses: own.addresses.keys().copied().collect(),
            own_ports: own.ports.keys().copied().collect(),
        }
    }

    /// What a transaction of ours changed: new claims were written at `revision`, kept ones not.
    pub(super) fn wrote(
        &mut self,
        namespace: &str,
        name: &str,
        addresses: &BTreeSet<IpAddr>,
        ports: &BTreeSet<u16>,
        revision: u64,
    ) {
        let name = (namespace.to_owned(), name.to_owned());
        self.addresses.wrote(&name, addresses, revision);
        self.ports.wrote(&name, ports, revision);
    }
}

impl<T: Copy + Ord> Claimed<T> {
    /// A claim whose value is bad is somebody's.
    fn found(&mut self, what: T, of: Option<Name>, revision: u64) {
        self.taken.insert(what);
        if let Some(of) = of {
            self.by_service.entry(of).or_default().insert(what, revision);
        }
    }

    fn of(&self, name: &Name) -> BTreeMap<T, u64> {
        self.by_service.get(name).cloned().unwrap_or_default()
    }

    fn wrote(&mut self, name: &Name, wanted: &BTreeSet<T>, revision: u64) {
        let own = self.by_service.entry(name.clone()).or_default();
        for what in own.keys().filter(|what| !wanted.contains(*what)) {
            self.taken.remove(what);
        }
        own.retain(|what, _| wanted.contains(what));
        for what in wanted {
            self.taken.insert(*what);
            own.entry(*what).or_insert(revision);
        }
        if own.is_empty() {
            self.by_service.remove(name);
        }
    }
}

impl<T> Default for Claimed<T> {
    fn default() -> Self {
        Self { taken: BTreeSet::new(), by_service: BTreeMap::new() }
    }
}
