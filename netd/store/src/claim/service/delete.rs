// SPDX-License-Identifier: Apache-2.0
//! A service goes with what it holds.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipam::service;
use lb::Service;

use super::claims::Own;
use super::{ROUNDS, ServiceClaimError, ServiceClaims, fields};
use crate::records::{NodePortRecord, ServiceIpRecord, decode};
use crate::{Keys, Store, StoreError, Transaction};

/// Deletes a service and all that it holds in one transaction; returns the revision, `None` when it was not there.
///
/// # Errors
/// Somebody kept changing it, or the store fails.
pub async fn delete_service(
    store: &dyn Store,
    keys: &Keys,
    namespace: &str,
    name: &str,
) -> Result<Option<u64>, ServiceClaimError> {
    let key = keys.service(namespace, name);
    for _ in 0..ROUNDS {
        let Some(item) = store.get(&key).await? else { return Ok(None) };
        let delete = Transaction::new().unchanged(&key, item.mod_revision).delete(&key);
        let delete = match decode::<Service>(&key, &item.value) {
            Ok(service) => give_back_named(store, keys, delete, &service, (namespace, name)).await?,
            // It does not say what it has: whatever is claimed for it.
            Err(_) => {
                let own = ServiceClaims::read(store, keys).await?.of(namespace, name);
                give_back(delete, keys, &own)
            }
        };
        let done = store.transact(delete).await?;
        if done.succeeded {
            return Ok(Some(done.revision));
        }
    }
    Err(ServiceClaimError::Contended(ROUNDS))
}

/// Gives back what a service names and holds. By the invariant that is all it holds: the claims of thousands of others need not
/// be read for it.
async fn give_back_named(
    store: &dyn Store,
    keys: &Keys,
    mut delete: Transaction,
    service: &Service,
    (namespace, name): (&str, &str),
) -> Result<Transaction, StoreError> {
    let wish = fields::read(service);
    let mut own = Own::default();
    for ip in wish.addresses.iter().copied().collect::<BTreeSet<IpAddr>>() {
        let key = keys.service_ip(ip);
        let Some(item) = store.get(&key).await? else {
            // It stays so: else somebody might claim it for a service that is gone by then.
            delete = delete.absent(&key);
            continue;
        };
        let record = decode::<ServiceIpRecord>(&key, &item.value);
        if record.is_ok_and(|record| record.namespace == namespace && record.name == name) {
            own.addresses.insert(ip, item.mod_revision);
        }
    }
    for port in service::ports_of(&wish) {
        let key = keys.node_port(port);
        let Some(item) = store.get(&key).await? else {
            delete = delete.absent(&key);
            continue;
        };
        let record = decode::<NodePortRecord>(&key, &item.value);
        if record.is_ok_and(|record| record.namespace == namespace && record.name == name) {
            own.ports.insert(port, item.mod_revision);
        }
    }
    Ok(give_back(delete, keys, &own))
}

fn give_back(mut delete: Transaction, keys: &Keys, own: &Own) -> Transaction {
    let addresses = own.addresses.iter().map(|(ip, revision)| (keys.service_ip(*ip), revision));
    let ports = own.ports.iter().map(|(port, revision)| (keys.node_port(*port), revision));
    for (key, revision) in addresses.chain(ports) {
        delete = delete.unchanged(&key, *revision).delete(key);
    }
    delete
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use ipam::{NodePortRange, ServiceRange, ServiceRanges};

    use super::super::claim_service;
    use super::*;
    use crate::records::{Extra, SCHEMA, encode};
    use crate::{KeyValue, Lease, LeaseId, Listing, Memory, Transacted, Watch};

    /// A store in which nothing can be listed.
    struct Unlisted(Memory);

    #[async_trait]
    impl Store for Unlisted {
        async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
            self.0.get(key).await
        }
        async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
            panic!("{prefix} is listed")
        }
        async fn watch(&self, prefix: &str, from_revision: u64) -> Result<Watch, StoreError> {
            self.0.watch(prefix, from_revision).await
        }
        async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
            self.0.transact(transaction).await
        }
        async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
            self.0.lease_grant(ttl).await
        }
        async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
            self.0.lease_keep_alive(id).await
        }
        async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
            self.0.lease_revoke(id).await
        }
    }

    async fn left(store: &Memory, keys: &Keys) -> Vec<String> {
        let mut left = Vec::new();
        for prefix in [keys.services(), keys.service_ips(), keys.node_ports()] {
            left.extend(store.list(&prefix).await.unwrap().items.into_iter().map(|item| item.key));
        }
        left
    }

    /// A service with two addresses and two node ports.
    async fn claimed(store: &Memory, keys: &Keys, name: &str) -> Service {
        let range = |cidr: &str| ServiceRange { cidr: cidr.parse().unwrap(), reserved: Vec::new() };
        let cidrs = vec![range("10.96.0.0/24"), range("fd00:10:96::/112")];
        let ranges = ServiceRanges { cidrs, node_ports: NodePortRange::default() };
        let service = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "type": "NodePort", "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
            },
        });
        let service = serde_json::from_value(service).unwrap();
        claim_service(store, keys, &ranges, service, None).await.unwrap().service
    }

    #[tokio::test]
    async fn what_a_service_holds_goes_and_nobody_else_s_is_read() {
        let (memory, keys) = (Memory::new(), Keys::new("weft").unwrap());
        claimed(&memory, &keys, "other").await;
        let others = left(&memory, &keys).await;
        let service = claimed(&memory, &keys, "web").await;
        assert_eq!(left(&memory, &keys).await.len(), 10);
        // One of its claims has gone, and another is somebody else's by now.
        let ports: Vec<u16> = service::ports_of(&fields::read(&service)).into_iter().collect();
        let gone = Transaction::new().delete(keys.node_port(ports[0]));
        memory.transact(gone).await.unwrap();
        let stolen = keys.node_port(ports[1]);
        let (namespace, name) = ("default".to_owned(), "other".to_owned());
        let record = NodePortRecord { schema: SCHEMA, namespace, name, extra: Extra::new() };
        memory.put(&stolen, encode(&stolen, &record).unwrap(), None).await.unwrap();

        let store = Unlisted(memory.clone());
        assert!(delete_service(&store, &keys, "default", "web").await.unwrap().is_some());
        assert_eq!(delete_service(&store, &keys, "default", "web").await.unwrap(), None);
        let mut expected = others;
        expected.push(stolen);
        expected.sort();
        let mut found = left(&memory, &keys).await;
        found.sort();
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn of_a_service_that_does_not_read_goes_what_is_claimed_for_it() {
        let (memory, keys) = (Memory::new(), Keys::new("weft").unwrap());
        claimed(&memory, &keys, "web").await;
        memory.put(&keys.service("default", "web"), Bytes::from_static(b"{"), None).await.unwrap();
        assert!(delete_service(&memory, &keys, "default", "web").await.unwrap().is_some());
        assert_eq!(left(&memory, &keys).await, Vec::<String>::new());
    }
}
