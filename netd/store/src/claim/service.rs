// SPDX-License-Identifier: Apache-2.0
//! A service and its ClusterIP are written, and deleted, together.
//!
//! Invariant: `ipam/services/<ip>` names a service exactly while that service holds the address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam::{ServiceIpError, service_ip};
use ipnet::IpNet;
use lb::Service;

use crate::records::{BadRecord, Extra, SCHEMA, ServiceIpRecord, decode, encode};
use crate::{Class, Key, Keys, Store, StoreError, Transaction};

/// Each round that fails means that another service took the address first; picks start far apart, so few are needed.
const ROUNDS: usize = 16;

/// Where ClusterIPs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRange {
    /// The service CIDR.
    pub cidr: IpNet,
    /// Addresses that no service gets, such as the DNS VIP.
    pub reserved: Vec<IpAddr>,
}

/// A service as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredService {
    /// With its ClusterIP, where it has one.
    pub service: Service,
    /// The revision of the write.
    pub revision: u64,
}

/// Why a service was not written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ServiceClaimError {
    /// The address cannot be had.
    #[error(transparent)]
    Address(#[from] ServiceIpError),
    /// The record cannot be written.
    #[error(transparent)]
    BadRecord(#[from] BadRecord),
    /// Others kept taking the addresses that were picked.
    #[error("other services took the ClusterIP first, {0} times: try again")]
    Contended(usize),
    /// Somebody else wrote or deleted the service meanwhile.
    #[error("Service {namespace}/{name} was changed by somebody else: read it again")]
    ServiceChanged {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ServiceClaimError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Address(ServiceIpError::Exhausted(_)) | Self::Contended(_) => Class::Retry,
            Self::Address(ServiceIpError::Taken(_)) | Self::ServiceChanged { .. } => Class::Conflict,
            Self::Address(_) | Self::BadRecord(_) => Class::Invalid,
            Self::Store(error) => error.class(),
        }
    }
}

/// Writes a service with its ClusterIP in one transaction: the one it asks for, else the one it holds, else a free one.
/// Addresses that it holds and no longer has (headless now, or another asked for) are given back in the same transaction.
///
/// `mod_revision` is the service's last write that the caller saw; 0 when it must not exist yet.
pub async fn claim_service_ip(
    store: &dyn Store,
    keys: &Keys,
    range: &ServiceRange,
    service: Service,
    mod_revision: u64,
) -> Result<StoredService, ServiceClaimError> {
    let mut claims = ServiceClaims::read(store, keys).await?;
    claim_service_ip_among(store, keys, range, &mut claims, service, mod_revision).await
}

/// As [`claim_service_ip`], for many services in a row: `claims` are read once and kept in step with what is written here;
/// they are read again when they turn out to be old.
pub async fn claim_service_ip_among(
    store: &dyn Store,
    keys: &Keys,
    range: &ServiceRange,
    claims: &mut ServiceClaims,
    mut service: Service,
    mod_revision: u64,
) -> Result<StoredService, ServiceClaimError> {
    let (namespace, name) = (service.metadata.namespace.clone(), service.metadata.name.clone());
    let key = keys.service(&namespace, &name);
    let wants_any = service.needs_cluster_ip();
    for _ in 0..ROUNDS {
        let own = claims.of(&namespace, &name);
        if wants_any {
            let held = own.keys().find(|ip| range.cidr.contains(*ip)).copied();
            let pick = || service_ip::pick(&range.cidr, &claims.taken, &range.reserved, &namespace, &name);
            service.set_cluster_ip(held.map_or_else(pick, Ok)?);
        }
        let wanted = wanted(&service);
        for ip in wanted.iter().filter(|ip| !own.contains_key(*ip)) {
            service_ip::check_requested(&range.cidr, &claims.taken, &range.reserved, *ip)?;
        }
        let value = encode(&key, &service)?;
        let mut write = Transaction::new().unchanged(&key, mod_revision).put(&key, value.clone());
        for ip in wanted.iter().filter(|ip| !own.contains_key(*ip)) {
            let ip_key = keys.service_ip(*ip);
            let record = ServiceIpRecord {
                schema: SCHEMA,
                namespace: namespace.clone(),
                name: name.clone(),
                extra: Extra::new(),
            };
            write = write.absent(&ip_key).put(&ip_key, encode(&ip_key, &record)?);
        }
        for (ip, ip_revision) in &own {
            let ip_key = keys.service_ip(*ip);
            write = write.unchanged(&ip_key, *ip_revision);
            if !wanted.contains(ip) {
                write = write.delete(ip_key);
            }
        }
        match store.transact(write).await {
            Ok(done) if done.succeeded => {
                claims.wrote(&namespace, &name, &wanted, done.revision);
                return Ok(StoredService { service, revision: done.revision });
            }
            Ok(_) => {
                *claims = ServiceClaims::read(store, keys).await?;
                let now = store.get(&key).await?.map_or(0, |item| item.mod_revision);
                if now != mod_revision {
                    return Err(ServiceClaimError::ServiceChanged { namespace, name });
                }
            }
            Err(error) if error.is_ambiguous() => {
                // Written, if what is there is ours and newer than what we saw.
                let found = store.get(&key).await?;
                return match found.filter(|item| item.value == value && item.mod_revision > mod_revision) {
                    Some(item) => Ok(StoredService { service, revision: item.mod_revision }),
                    None => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ServiceClaimError::Contended(ROUNDS))
}

/// Deletes a service and its ClusterIPs in one transaction; returns the revision, `None` when it was
/// not there.
pub async fn delete_service(
    store: &dyn Store,
    keys: &Keys,
    namespace: &str,
    name: &str,
) -> Result<Option<u64>, ServiceClaimError> {
    let key = keys.service(namespace, name);
    for _ in 0..ROUNDS {
        let own = ServiceClaims::read(store, keys).await?.of(namespace, name);
        let Some(service) = store.get(&key).await? else { return Ok(None) };
        let mut delete = Transaction::new().unchanged(&key, service.mod_revision).delete(&key);
        for (ip, revision) in &own {
            let ip_key = keys.service_ip(*ip);
            delete = delete.unchanged(&ip_key, *revision).delete(ip_key);
        }
        let done = store.transact(delete).await?;
        if done.succeeded {
            return Ok(Some(done.revision));
        }
    }
    Err(ServiceClaimError::Contended(ROUNDS))
}

/// The addresses that the service shall hold.
fn wanted(service: &Service) -> BTreeSet<IpAddr> {
    if service.is_headless() || service.is_external_name() {
        return BTreeSet::new();
    }
    service.cluster_ips().into_iter().collect()
}

/// All claimed ClusterIPs, as they were read and written since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceClaims {
    /// Every address that is claimed, by whomever.
    taken: BTreeSet<IpAddr>,
    /// By (namespace, name): addresses with the revision of the claim.
    by_service: BTreeMap<(String, String), BTreeMap<IpAddr, u64>>,
}

impl ServiceClaims {
    /// Reads them from the store.
    pub async fn read(store: &dyn Store, keys: &Keys) -> Result<Self, StoreError> {
        let mut claims = Self::default();
        for item in store.list(&keys.service_ips()).await?.items {
            let Some(Key::ServiceIp(ip)) = keys.parse(&item.key) else { continue };
            // A claim whose value is bad is somebody's.
            claims.taken.insert(ip);
            if let Ok(record) = decode::<ServiceIpRecord>(&item.key, &item.value) {
                let own = claims.by_service.entry((record.namespace, record.name)).or_default();
                own.insert(ip, item.mod_revision);
            }
        }
        Ok(claims)
    }

    fn of(&self, namespace: &str, name: &str) -> BTreeMap<IpAddr, u64> {
        self.by_service.get(&(namespace.to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    /// What a transaction of ours changed: new claims were written at `revision`, kept ones not.
    fn wrote(&mut self, namespace: &str, name: &str, wanted: &BTreeSet<IpAddr>, revision: u64) {
        let own = self.by_service.entry((namespace.to_owned(), name.to_owned())).or_default();
        for ip in own.keys().filter(|ip| !wanted.contains(*ip)) {
            self.taken.remove(ip);
        }
        own.retain(|ip, _| wanted.contains(ip));
        for ip in wanted {
            self.taken.insert(*ip);
            own.entry(*ip).or_insert(revision);
        }
    }
}
