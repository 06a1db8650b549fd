// SPDX-License-Identifier: Apache-2.0
//! Claims of blocks and ClusterIPs on the memory twin, with every fault it knows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ipam::{
    BlockRecord, Family, NodePortRange, Pool, ServiceAllocateError, ServiceIpError, ServiceRange,
    ServiceRanges,
};
use ipnet::IpNet;
use netd_store::claim::{
    self, ClaimError, ServiceClaimError, ServiceClaims, claim_service, claim_service_among, delete_service,
    ensure_config, node_ports_of, release_block,
};
use netd_store::records::{ClusterConfig, NodePortRecord, ServiceIpRecord, decode, decode_all};
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

fn ranges() -> ServiceRanges {
    let range = |cidr: &str, dns: &str| ServiceRange {
        cidr: cidr.parse().unwrap(),
        reserved: vec![dns.parse().unwrap()],
    };
    ServiceRanges {
        cidrs: vec![range("10.96.0.0/24", "10.96.0.10"), range("fd00:10:96::/112", "fd00:10:96::a")],
        node_ports: NodePortRange::default(),
    }
}

fn service(name: &str, ip: &str) -> lb::Service {
    let mut service = lb::Service::default();
    service.metadata.namespace = "default".into();
    service.metadata.name = name.into();
    service.spec.cluster_ip = ip.into();
    service
}

/// Who holds which address and node port, from the claims, after checking them against the services.
async fn holders(memory: &Memory) -> BTreeMap<String, String> {
    let (keys, mut held, mut wished) = (keys(), BTreeMap::new(), BTreeMap::new());
    for item in memory.list(&keys.service_ips()).await.unwrap().items {
        let Some(netd_store::Key::ServiceIp(ip)) = keys.parse(&item.key) else { panic!("{item:?}") };
        held.insert(ip.to_string(), decode::<ServiceIpRecord>(&item.key, &item.value).unwrap().name);
    }
    for item in memory.list(&keys.node_ports()).await.unwrap().items {
        let Some(netd_store::Key::NodePort(port)) = keys.parse(&item.key) else { panic!("{item:?}") };
        held.insert(port.to_string(), decode::<NodePortRecord>(&item.key, &item.value).unwrap().name);
    }
    for item in memory.list(&keys.services()).await.unwrap().items {
        let service: lb::Service = decode(&item.key, &item.value).unwrap();
        let ports = node_ports_of(&service).into_iter().map(|port| port.to_string());
        let all = service.cluster_ips().into_iter().map(|ip| ip.to_string()).chain(ports);
        wished.extend(all.map(|what| (what, service.metadata.name.clone())));
    }
    assert_eq!(held, wished, "claims and services agree");
    held
}

#[tokio::test]
async fn a_service_keeps_its_address_until_it_is_deleted() {
    let (memory, keys, ranges) = (Memory::new(), keys(), ranges());
    let claim = |service, before| claim_service(&memory, &keys, &ranges, service, before);

    let first = claim(service("web", ""), None).await.unwrap();
    let ip = first.service.cluster_ips()[0];
    assert!(ranges.cidrs[0].cidr.contains(&ip));
    assert_eq!(holders(&memory).await, BTreeMap::from([(ip.to_string(), "web".into())]));

    // The manifest says nothing of the address, and is applied again.
    let second = claim(service("web", ""), Some((&first.service, first.revision))).await.unwrap();
    assert_eq!(second.service.cluster_ips(), [ip]);

    let error = claim(service("web", ""), Some((&first.service, first.revision))).await.unwrap_err();
    assert!(matches!(error, ServiceClaimError::ServiceChanged { .. }), "{error}");
    assert_eq!(error.class(), Class::Conflict);

    let error = claim(service("other", &ip.to_string()), None).await.unwrap_err();
    assert_eq!(error, ServiceAllocateError::from(ServiceIpError::Taken(ip)).into());
    for bad in ["10.97.0.1", "10.96.0.0", "10.96.0.10"] {
        assert_eq!(claim(service("other", bad), None).await.unwrap_err().class(), Class::Invalid, "{bad}");
    }
    for other in ["10.96.0.7", "None"] {
        let before = Some((&second.service, second.revision));
        let error = claim(service("web", other), before).await.unwrap_err();
        assert!(
            matches!(error, ServiceClaimError::Allocate(ServiceAllocateError::AddressChanged { .. })),
            "{error}"
        );
    }
    assert_eq!(holders(&memory).await.len(), 1);

    assert!(delete_service(&memory, &keys, "default", "web").await.unwrap().is_some());
    assert_eq!(delete_service(&memory, &keys, "default", "web").await.unwrap(), None);
    assert_eq!(holders(&memory).await, BTreeMap::new());
}

/// An object with this `spec`.
fn object(name: &str, spec: serde_json::Value) -> lb::Service {
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    });
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn node_ports_and_families_come_and_go_with_their_service() {
    let (memory, keys, ranges) = (Memory::new(), keys(), ranges());
    let claim = |service, before| claim_service(&memory, &keys, &ranges, service, before);
    let ports = serde_json::json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30_001}]);
    let balanced = object(
        "web",
        serde_json::json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "PreferDualStack", "ports": ports,
        }),
    );
    let first = claim(balanced.clone(), None).await.unwrap();
    assert_eq!(holders(&memory).await.len(), 5, "two addresses, two node ports, one for the health check");
    let again = claim(balanced, Some((&first.service, first.revision))).await.unwrap();
    assert_eq!(again.service, first.service);

    let taken =
        object("other", serde_json::json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_001}]}));
    let error = claim(taken.clone(), None).await.unwrap_err();
    assert_eq!(error.class(), Class::Conflict, "{error}");
    assert!(error.to_string().contains("nodePort: node port 30001 belongs to another service"), "{error}");

    let plain = object(
        "web",
        serde_json::json!({"ipFamilyPolicy": "SingleStack", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}),
    );
    let plain = claim(plain, Some((&again.service, again.revision))).await.unwrap();
    assert_eq!(plain.service.cluster_ips(), first.service.cluster_ips()[..1]);
    assert_eq!(holders(&memory).await.len(), 1);
    claim(taken, None).await.unwrap();
    delete_service(&memory, &keys, "default", "other").await.unwrap();
    assert_eq!(holders(&memory).await.len(), 1);
}

/// The service `web` with a hundred node ports.
fn many_ports(first: u16) -> lb::Service {
    let port = |n: u16| serde_json::json!({"name": format!("p{n}"), "port": 1000 + n, "nodePort": first + n});
    let ports: Vec<serde_json::Value> = (0..100).map(port).collect();
    object("web", serde_json::json!({"type": "NodePort", "ports": ports}))
}

#[tokio::test]
async fn all_of_very_many_node_ports_change_at_once() {
    let (memory, keys, ranges) = (Memory::new(), keys(), ranges());
    let claim = |service, before| claim_service(&memory, &keys, &ranges, service, before);
    let first = claim(many_ports(30_000), None).await.unwrap();
    assert_eq!(holders(&memory).await.len(), 101);
    let second = claim(many_ports(31_000), Some((&first.service, first.revision))).await.unwrap();
    assert_eq!(holders(&memory).await.len(), 101, "none of the old ones is left");
    claim(many_ports(30_050), Some((&second.service, second.revision))).await.unwrap();
    assert_eq!(holders(&memory).await.len(), 101);
}

#[tokio::test]
async fn a_service_that_was_written_is_not_told_to_have_failed() {
    /// Nothing is answered after the first write.
    struct FailsBehindAWrite(Memory);
    #[async_trait::async_trait]
    impl Store for FailsBehindAWrite {
        async fn get(&self, key: &str) -> Result<Option<netd_store::KeyValue>, netd_store::StoreError> {
            self.0.get(key).await
        }
        async fn list(&self, prefix: &str) -> Result<netd_store::Listing, netd_store::StoreError> {
            self.0.list(prefix).await
        }
        async fn watch(&self, prefix: &str, from: u64) -> Result<netd_store::Watch, netd_store::StoreError> {
            self.0.watch(prefix, from).await
        }
        async fn transact(
            &self,
            transaction: netd_store::Transaction,
        ) -> Result<netd_store::Transacted, netd_store::StoreError> {
            let done = self.0.transact(transaction).await;
            self.0.faults().outage(true);
            done
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
    let (memory, keys, ranges) = (Memory::new(), keys(), ranges());
    let first = claim_service(&memory, &keys, &ranges, many_ports(30_000), None).await.unwrap();
    let before = Some((&first.service, first.revision));
    let mut claims = ServiceClaims::read(&memory, &keys).await.unwrap();
    let failing = FailsBehindAWrite(memory.clone());
    let second = claim_service_among(&failing, &keys, &ranges, &mut claims, many_ports(31_000), before).await;
    memory.faults().outage(false);
    let second = second.unwrap();
    let left = memory.list(&keys.node_ports()).await.unwrap().items.len();
    assert_eq!(left, 200, "the old ones are not given back yet");
    // What is not given back is nobody's for these claims, and somebody's for the store, which is asked again.
    let other =
        object("api", serde_json::json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_001}]}));
    let taken = claim_service_among(&memory, &keys, &ranges, &mut claims, other, None).await.unwrap_err();
    assert_eq!(taken.class(), Class::Conflict, "{taken}");
    let before = Some((&second.service, second.revision));
    claim_service(&memory, &keys, &ranges, many_ports(31_000), before).await.unwrap();
    assert_eq!(holders(&memory).await.len(), 101);
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
