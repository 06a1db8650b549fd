// SPDX-License-Identifier: Apache-2.0
//! Claims of blocks and ClusterIPs on the memory twin, with every fault it knows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use ipam::{BlockRecord, Family, Pool, ServiceIpError};
use ipnet::IpNet;
use netd_store::claim::{
    self, ClaimError, ServiceClaimError, ServiceRange, claim_service_ip, delete_service, ensure_config,
    release_block,
};
use netd_store::records::{ClusterConfig, ServiceIpRecord, decode, decode_all};
use netd_store::{Class, Keys, Memory, Store};
use proptest::prelude::*;
use uuid::Uuid;

use crate::bench::text;

fn keys() -> Keys {
    Keys::new("weft").unwrap()
}

/// Eight blocks.
fn pools() -> Vec<Pool> {
    vec![Pool::new("small", "10.244.0.0/23".parse().unwrap(), None)]
}

/// A node without labels claims an IPv4 block.
async fn claim_block(
    store: &dyn Store,
    keys: &Keys,
    pools: &[Pool],
    node: Uuid,
) -> Result<BlockRecord, ClaimError> {
    claim::claim_block(store, keys, pools, node, &BTreeMap::new(), Family::V4).await
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_not_made_twice() {
    let memory = Memory::new();
    memory.put("/first", text(""), None).await.unwrap();
    let node = Uuid::from_u128(1);
    // The listing and the creation are served, their answers lost: the listing fails the claim, then only the creation.
    memory.faults().lose_replies(1);
    let error = claim_block(&memory, &keys(), &pools(), node).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry);

    struct LosesTheFirstWrite(Memory);
    #[async_trait::async_trait]
    impl Store for LosesTheFirstWrite {
        async fn get(&self, key: &str) -> Result<Option<netd_store::KeyValue>, netd_store::StoreError> {
            self.0.get(key).await
        }
        async fn list(&self, prefix: &str) -> Result<netd_store::Listing, netd_store::StoreError> {
            let listing = self.0.list(prefix).await;
            self.0.faults().lose_replies(1);
            listing
        }
        async fn watch(&self, prefix: &str, from: u64) -> Result<netd_store::Watch, netd_store::StoreError> {
            self.0.watch(prefix, from).await
        }
        async fn transact(
            &self,
            transaction: netd_store::Transaction,
        ) -> Result<netd_store::Transacted, netd_store::StoreError> {
            self.0.transact(transaction).await
        }
        async fn lease_grant(
            &self,
            ttl: std::time::Duration,
        ) -> Result<netd_store::Lease, netd_store::StoreError> {
            self.0.lease_grant(ttl).await
        }
        async fn lease_keep_alive(&self, id: netd_store::LeaseId) -> Result<(), netd_store::StoreError> {
            self.0.lease_keep_alive(id).await
        }
        async fn lease_revoke(&self, id: netd_store::LeaseId) -> Result<(), netd_store::StoreError> {
            self.0.lease_revoke(id).await
        }
    }
    let block = claim_block(&LosesTheFirstWrite(memory.clone()), &keys(), &pools(), node).await.unwrap();
    assert_eq!(memory.list(&keys().blocks()).await.unwrap().items.len(), 1);
    assert_eq!(block.owner, node);
}

#[tokio::test]
async fn a_block_with_a_bad_value_is_nobodys_to_claim() {
    let memory = Memory::new();
    let (keys, pools) = (keys(), pools());
    let spoiled: IpNet = "10.244.0.64/26".parse().unwrap();
    memory.put(&keys.block(spoiled), text("{"), None).await.unwrap();
    let mut claimed = vec![];
    let error = loop {
        match claim_block(&memory, &keys, &pools, Uuid::from_u128(1)).await {
            Ok(block) => claimed.push(block.cidr),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("pool small (10.244.0.0/23)"), "{error}");
    assert_eq!(claimed.len(), 7);
    assert!(!claimed.contains(&spoiled));
}

#[tokio::test]
async fn pools_that_are_wrong_are_refused() {
    let mut pools = pools();
    pools[0].block_prefix = 33;
    let error = claim_block(&Memory::new(), &keys(), &pools, Uuid::nil()).await.unwrap_err();
    assert_eq!(error.class(), Class::Invalid, "{error}");
}

#[tokio::test]
async fn the_first_config_stays() {
    let memory = Memory::new();
    let ours = ClusterConfig { vni: 7, ..ClusterConfig::default() };
    assert_eq!(ensure_config(&memory, &keys(), &ours).await.unwrap().vni, 7);
    assert_eq!(ensure_config(&memory, &keys(), &ClusterConfig::default()).await.unwrap().vni, 7);
    memory.put(&keys().config(), text("["), None).await.unwrap();
    let error = ensure_config(&memory, &keys(), &ours).await.unwrap_err();
    assert!(error.to_string().contains("/weft/v1/weft/config"), "{error}");
}

fn range() -> ServiceRange {
    ServiceRange { cidr: "10.96.0.0/24".parse().unwrap(), reserved: vec!["10.96.0.10".parse().unwrap()] }
}

fn service(name: &str, ip: &str) -> lb::Service {
    let mut service = lb::Service::default();
    service.metadata.namespace = "default".into();
    service.metadata.name = name.into();
    service.spec.cluster_ip = ip.into();
    service
}

/// Who holds which ClusterIP, from the claims, after checking them against the services.
async fn holders(memory: &Memory) -> BTreeMap<IpAddr, String> {
    let (keys, mut held, mut wished) = (keys(), BTreeMap::new(), BTreeMap::new());
    for item in memory.list(&keys.service_ips()).await.unwrap().items {
        let Some(netd_store::Key::ServiceIp(ip)) = keys.parse(&item.key) else { panic!("{item:?}") };
        held.insert(ip, decode::<ServiceIpRecord>(&item.key, &item.value).unwrap().name);
    }
    for item in memory.list(&keys.services()).await.unwrap().items {
        let service: lb::Service = decode(&item.key, &item.value).unwrap();
        wished.extend(service.cluster_ips().into_iter().map(|ip| (ip, service.metadata.name.clone())));
    }
    assert_eq!(held, wished, "claims and services agree");
    held
}

#[tokio::test]
async fn a_service_keeps_its_address_until_it_gives_it_up() {
    let (memory, keys, range) = (Memory::new(), keys(), range());
    let claim = |service, revision| claim_service_ip(&memory, &keys, &range, service, revision);

    let first = claim(service("web", ""), 0).await.unwrap();
    let ip = first.service.cluster_ips()[0];
    assert!(range.cidr.contains(&ip));
    assert_eq!(holders(&memory).await, BTreeMap::from([(ip, "web".into())]));

    // The manifest says nothing of the address, and is applied again.
    let second = claim(service("web", ""), first.revision).await.unwrap();
    assert_eq!(second.service.cluster_ips(), [ip]);

    let error = claim(service("web", ""), first.revision).await.unwrap_err();
    assert!(matches!(error, ServiceClaimError::ServiceChanged { .. }), "{error}");
    assert_eq!(error.class(), Class::Conflict);

    let error = claim(service("other", &ip.to_string()), 0).await.unwrap_err();
    assert_eq!(error, ServiceClaimError::Address(ServiceIpError::Taken(ip)));
    for bad in ["10.97.0.1", "10.96.0.0", "10.96.0.10"] {
        assert_eq!(claim(service("other", bad), 0).await.unwrap_err().class(), Class::Invalid, "{bad}");
    }

    let third = claim(service("web", "10.96.0.7"), second.revision).await.unwrap();
    assert_eq!(holders(&memory).await, BTreeMap::from([("10.96.0.7".parse().unwrap(), "web".into())]));
    let fourth = claim(service("web", "None"), third.revision).await.unwrap();
    assert_eq!(holders(&memory).await, BTreeMap::new());
    claim(service("web", "10.96.0.7"), fourth.revision).await.unwrap();

    assert!(delete_service(&memory, &keys, "default", "web").await.unwrap().is_some());
    assert_eq!(delete_service(&memory, &keys, "default", "web").await.unwrap(), None);
    assert_eq!(holders(&memory).await, BTreeMap::new());
}

/// What the nodes believe to own; a block that two believe in is the end of the test.
#[derive(Default)]
struct Ledger {
    owners: BTreeMap<IpNet, Uuid>,
    epochs: BTreeMap<(IpNet, Uuid), u64>,
}

impl Ledger {
    fn takes(&mut self, block: &BlockRecord) {
        let before = self.owners.insert(block.cidr, block.owner);
        assert_eq!(before, None, "{} has two owners: {} too", block.cidr, block.owner);
        let before = self.epochs.insert((block.cidr, block.owner), block.epoch);
        assert!(before < Some(block.epoch), "{} has the epoch {before:?} again", block.cidr);
    }
}

/// A node that claims and releases in the order of `wishes`, as often as errors let it.
async fn node_life(store: Memory, node: Uuid, wishes: Vec<bool>, ledger: Rc<RefCell<Ledger>>) {
    let (keys, pools) = (keys(), pools());
    let mut held = vec![];
    for claims in wishes {
        if claims {
            match claim_block(&store, &keys, &pools, node).await {
                Ok(block) => {
                    ledger.borrow_mut().takes(&block);
                    held.push(block.cidr);
                }
                Err(ClaimError::Exhausted { .. }) => {}
                Err(error) => assert_eq!(error.class(), Class::Retry, "{error}"),
            }
        } else if let Some(cidr) = held.pop() {
            // A node lets go before it tells the store.
            ledger.borrow_mut().owners.remove(&cidr);
            match release_block(&store, &keys, cidr, node).await {
                Ok(_) => {}
                Err(error) => assert_eq!(error.class(), Class::Retry, "{error}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_block_has_two_owners(
        seed: u64,
        percent in 0u64..40,
        lives in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.7), 1..12), 2..7),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let memory = Memory::new();
            memory.faults().at_random(seed, percent);
            let ledger = Rc::new(RefCell::new(Ledger::default()));
            let mut tasks = vec![];
            for (number, wishes) in (1..).zip(lives) {
                let node = Uuid::from_u128(number);
                tasks.push(tokio::task::spawn_local(node_life(memory.clone(), node, wishes, ledger.clone())));
            }
            for task in tasks {
                task.await.unwrap();
            }
            memory.faults().calm();
            // What a node believes to own is its own in the store too. The store may know more: answers were lost.
            let items = memory.list(&keys().blocks()).await.unwrap().items;
            let (records, bad) = decode_all::<BlockRecord>(&items);
            assert_eq!(bad, []);
            let stored: BTreeMap<_, _> = records.iter().map(|(_, record)| (record.cidr, record.owner)).collect();
            for (cidr, owner) in &ledger.borrow().owners {
                assert_eq!(stored.get(cidr), Some(owner), "{cidr}");
            }
        });
    }
}
