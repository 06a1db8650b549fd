// SPDX-License-Identifier: Apache-2.0
//! A service is written, and deleted, together with what it holds: ClusterIPs, node ports, the port of its health check.
//!
//! Invariant: `ipam/services/<ip>` and `ipam/nodeports/<n>` name a service exactly while that service has the address or
//! the port.

mod claims;
mod delete;
mod fields;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::net::IpAddr;

use bytes::Bytes;
use ipam::service::{self, ServiceAllocateError};
use ipam::{NodePortError, ServiceIpError, ServiceRanges};
use lb::{Protocol, Service};

pub use claims::ServiceClaims;
pub use delete::delete_service;

use crate::records::{BadRecord, Extra, NodePortRecord, SCHEMA, ServiceIpRecord, encode};
use crate::{Class, Keys, MAX_TRANSACTION_OPERATIONS, Store, StoreError, Transaction};

/// Each round that fails means that another service took the address first; picks start far apart, so few are needed.
const ROUNDS: usize = 16;

/// A service as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredService {
    /// With everything that it was given.
    pub service: Service,
    /// The revision of the write.
    pub revision: u64,
}

/// Why a service was not written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ServiceClaimError {
    /// What it asks for cannot be had.
    #[error(transparent)]
    Allocate(#[from] ServiceAllocateError),
    /// The record cannot be written.
    #[error(transparent)]
    BadRecord(#[from] BadRecord),
    /// Others kept taking what was picked.
    #[error("other services took the ClusterIP or node port first, {0} times: try again")]
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
        use ServiceAllocateError as E;
        match self {
            Self::Allocate(E::Address(ServiceIpError::Exhausted(_))) | Self::Contended(_) => Class::Retry,
            Self::Allocate(E::HealthPort(error) | E::NodePort { error, .. }) => match error {
                NodePortError::Exhausted(_) => Class::Retry,
                NodePortError::Taken(_) => Class::Conflict,
                NodePortError::Outside { .. } => Class::Invalid,
            },
            Self::Allocate(E::Address(ServiceIpError::Taken(_))) | Self::ServiceChanged { .. } => {
                Class::Conflict
            }
            Self::Allocate(_) | Self::BadRecord(_) => Class::Invalid,
            Self::Store(error) => error.class(),
        }
    }
}

/// The service as it is going to be where nothing has to be allocated: what `before` was given stays where `wanted` says
/// nothing of it. `None` where something has to be.
pub fn carried_over(wanted: &Service, before: &Service) -> Option<Service> {
    let mut wish = fields::read(wanted);
    service::carry_over(&mut wish, &fields::read(before));
    let mut service = wanted.clone();
    fields::write(&mut service, &wish, "").ok()?;
    service::is_complete(&wish).then_some(service)
}

/// Whether a service has all that its kind is given. One that was written by something else than [`claim_service`] may not.
pub fn is_complete(service: &Service) -> bool {
    service::is_complete(&fields::read(service))
}

/// Port, protocol and node port of each port of the service that has one; and the port of its health check.
pub fn node_ports(service: &Service) -> (Vec<(u16, Protocol, u16)>, Option<u16>) {
    let wish = fields::read(service);
    let ports = service.spec.ports.iter().zip(&wish.ports).filter(|(_, wish)| wish.node_port != 0);
    let ports = ports.map(|(port, wish)| (port.port, port.protocol, wish.node_port)).collect();
    (ports, Some(wish.health_port).filter(|port| *port != 0))
}

/// The node ports that a service's object names, its health check's among them.
pub fn node_ports_of(service: &Service) -> BTreeSet<u16> {
    service::ports_of(&fields::read(service))
}

/// Writes a service with all that it holds in one transaction: what it asks for, else what it held, else what is free. What it
/// holds and no longer has (another type, or fewer ports) is given back in the same transaction, or right after it where both
/// do not fit into one (more than 60 node ports change their numbers). Where the second one fails, the service is written all the
/// same: claims that no service names are nobody's, and netd on one of the nodes, which looks for such, gives them back.
///
/// `before` is the service as the caller saw it, with its last write; `None` when it must not exist yet.
///
/// # Errors
/// It asks for what is not to be had, somebody was faster, or the store fails.
pub async fn claim_service(
    store: &dyn Store,
    keys: &Keys,
    ranges: &ServiceRanges,
    service: Service,
    before: Option<(&Service, u64)>,
) -> Result<StoredService, ServiceClaimError> {
    let mut claims = ServiceClaims::read(store, keys).await?;
    claim_service_among(store, keys, ranges, &mut claims, service, before).await
}

/// As [`claim_service`], for many services in a row: `claims` are read once and kept in step with what is written here;
/// they are read again when they turn out to be old.
///
/// # Errors
/// As [`claim_service`].
pub async fn claim_service_among(
    store: &dyn Store,
    keys: &Keys,
    ranges: &ServiceRanges,
    claims: &mut ServiceClaims,
    mut service: Service,
    before: Option<(&Service, u64)>,
) -> Result<StoredService, ServiceClaimError> {
    let (namespace, name) = (service.metadata.namespace.clone(), service.metadata.name.clone());
    let key = keys.service(&namespace, &name);
    let mod_revision = before.map_or(0, |(_, revision)| revision);
    let before = before.map(|(before, _)| fields::read(before));
    let mut wish = fields::read(&service);
    if let Some(before) = &before {
        service::carry_over(&mut wish, before);
    }
    for _ in 0..ROUNDS {
        let own = claims.of(&namespace, &name);
        let held = claims.holdings(&own);
        let given = service::allocate(wish.clone(), before.as_ref(), &held, ranges, &namespace, &name)?;
        fields::write(&mut service, &given, &key)?;
        let addresses: BTreeSet<IpAddr> = given.addresses.iter().copied().collect();
        let ports = service::ports_of(&given);
        let value = encode(&key, &service)?;
        let write = Transaction::new().unchanged(&key, mod_revision).put(&key, value.clone());
        let mut exchange = Exchange { write, release: Transaction::new() };
        exchange.claims(&own.addresses, &addresses, |ip| {
            let key = keys.service_ip(*ip);
            let (namespace, name) = (namespace.clone(), name.clone());
            let record = ServiceIpRecord { schema: SCHEMA, namespace, name, extra: Extra::new() };
            encode(&key, &record).map(|value| (key, value))
        })?;
        exchange.claims(&own.ports, &ports, |port| {
            let key = keys.node_port(*port);
            let (namespace, name) = (namespace.clone(), name.clone());
            let record = NodePortRecord { schema: SCHEMA, namespace, name, extra: Extra::new() };
            encode(&key, &record).map(|value| (key, value))
        })?;
        let (write, release) = exchange.split();
        match store.transact(write).await {
            Ok(done) if done.succeeded => {
                claims.wrote(&namespace, &name, &addresses, &ports, done.revision);
                if let Some(release) = release {
                    // The service is written, whatever becomes of this. What is not given back here is found as drift, claims
                    // that no service names; whoever picks it before finds `claims` to be old and reads them again.
                    let _ = store.transact(release).await;
                }
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
                    Some(item) => {
                        claims.wrote(&namespace, &name, &addresses, &ports, item.mod_revision);
                        Ok(StoredService { service, revision: item.mod_revision })
                    }
                    None => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ServiceClaimError::Contended(ROUNDS))
}

/// How what a service holds becomes what it is given.
struct Exchange {
    /// The service, with the claims of what is wanted and not held yet; those that are held must not have changed.
    write: Transaction,
    /// What is held and not wanted any more.
    release: Transaction,
}

impl Exchange {
    fn claims<T: Ord>(
        &mut self,
        own: &BTreeMap<T, u64>,
        wanted: &BTreeSet<T>,
        record: impl Fn(&T) -> Result<(String, Bytes), BadRecord>,
    ) -> Result<(), BadRecord> {
        for what in wanted.iter().filter(|what| !own.contains_key(*what)) {
            let (key, value) = record(what)?;
            self.write = take(&mut self.write).absent(&key).put(&key, value);
        }
        for (what, revision) in own {
            let (key, _) = record(what)?;
            if wanted.contains(what) {
                self.write = take(&mut self.write).unchanged(&key, *revision);
            } else {
                self.release = take(&mut self.release).unchanged(&key, *revision).delete(key);
            }
        }
        Ok(())
    }

    /// One transaction, or two where one would be too large.
    fn split(self) -> (Transaction, Option<Transaction>) {
        let Self { mut write, mut release } = self;
        let compares = write.compares.len() + release.compares.len();
        let changes = write.puts.len() + release.deletes.len();
        if compares.max(changes) > MAX_TRANSACTION_OPERATIONS {
            return (write, Some(release));
        }
        write.compares.append(&mut release.compares);
        write.deletes.append(&mut release.deletes);
        (write, None)
    }
}
