// SPDX-License-Identifier: Apache-2.0
//! Many nodes claim at once, on a real etcd.

use std::collections::{BTreeMap, BTreeSet};

use ipam::{AttachmentKey, BlockRecord, Family, NodePortRange, Owner, Pool, ServiceRange, ServiceRanges};
use netd_store::claim::{
    AddressClaimError, ClaimError, Progress, ServiceClaimError, StickyError, StickyHolder, claim_block,
    claim_service, confirm_fence, finish_removal, give_back_sticky, grant_address, release_address,
    remove_node, request_address, take_sticky,
};
use netd_store::records::decode_all;
use netd_store::{Keys, Store};
use uuid::Uuid;

use crate::etcd_server::EtcdServer;

const WRITERS: u128 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_nodes_empty_a_small_pool_and_no_block_has_two_owners() {
    let server = EtcdServer::plain();
    let keys = Keys::new("race").unwrap();
    let pools = vec![Pool::new("small", "10.244.0.0/21".parse().unwrap(), None)];
    let tasks: Vec<_> = (1..=WRITERS)
        .map(|number| {
            let (config, keys, pools) = (server.config(), keys.clone(), pools.clone());
            tokio::spawn(async move {
                let (etcd, node) = (crate::etcd_server::serving(config).await, Uuid::from_u128(number));
                let mut claimed = vec![];
                loop {
                    match claim_block(&etcd, &keys, &pools, node, &BTreeMap::new(), Family::V4).await {
                        Ok(block) => claimed.push(block),
                        Err(error) => return (claimed, error),
                    }
                }
            })
        })
        .collect();
    let mut owners = BTreeMap::new();
    for task in tasks {
        let (claimed, error) = task.await.unwrap();
        assert!(matches!(error, ClaimError::Exhausted { .. }), "{error}");
        assert!(
            error.to_string().contains("all IPv4 blocks of pool small (10.244.0.0/21) are claimed"),
            "{error}"
        );
        for block in claimed {
            assert_eq!(owners.insert(block.cidr, block.owner), None, "{} was claimed twice", block.cidr);
        }
    }
    assert_eq!(owners.len(), 32, "every block was claimed");

    let items = server.client().await.list(&keys.blocks()).await.unwrap().items;
    let (records, bad) = decode_all::<BlockRecord>(&items);
    assert_eq!(bad, []);
    let stored: BTreeMap<_, _> = records.into_iter().map(|(_, record)| (record.cidr, record.owner)).collect();
    assert_eq!(stored, owners, "the store and the nodes agree");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_created_at_once_get_different_addresses_until_none_is_left() {
    let server = EtcdServer::plain();
    let keys = Keys::new("race").unwrap();
    let range =
        ServiceRange { cidr: "10.96.0.0/28".parse().unwrap(), reserved: vec!["10.96.0.10".parse().unwrap()] };
    let ranges = ServiceRanges { cidrs: vec![range], node_ports: NodePortRange::default() };
    let tasks: Vec<_> = (1..=WRITERS)
        .map(|number| {
            let (config, keys, ranges) = (server.config(), keys.clone(), ranges.clone());
            tokio::spawn(async move {
                let etcd = crate::etcd_server::serving(config).await;
                let mut ips = vec![];
                for round in 0.. {
                    let mut service = lb::Service::default();
                    service.metadata.namespace = "default".into();
                    service.metadata.name = format!("web-{number}-{round}");
                    match claim_service(&etcd, &keys, &ranges, service, None).await {
                        Ok(stored) => ips.extend(stored.service.cluster_ips()),
                        Err(ServiceClaimError::Allocate(error)) => {
                            assert!(error.to_string().contains("10.96.0.0/28"), "{error}");
                            break;
                        }
                        Err(ServiceClaimError::Contended(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                ips
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    for task in tasks {
        for ip in task.await.unwrap() {
            assert!(all.insert(ip), "{ip} twice");
        }
    }
    assert_eq!(all.len(), 13, "16 less network, broadcast and DNS");
}

/// Who uses a name or an address at this moment, by the word of the store's answers.
#[derive(Default)]
struct InUse(std::sync::Mutex<BTreeMap<String, Uuid>>);

impl InUse {
    fn begin(&self, what: &str, node: Uuid) {
        let before = self.0.lock().unwrap().insert(what.to_owned(), node);
        assert_eq!(before, None, "{what} is used by {node} too");
    }

    fn end(&self, what: &str) {
        self.0.lock().unwrap().remove(what);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_borrowed_addresses_have_one_user_at_a_time() {
    let server = EtcdServer::plain();
    let keys = Keys::new("race").unwrap();
    let (lender, ip) = (Uuid::from_u128(99), "10.244.0.7".parse().unwrap());
    let pools = [Pool::new("small", "10.244.0.0/26".parse().unwrap(), None)];
    let client = server.client().await;
    claim_block(&client, &keys, &pools, lender, &BTreeMap::new(), Family::V4).await.unwrap();
    let in_use = std::sync::Arc::new(InUse::default());
    let tasks: Vec<_> = (1..=WRITERS)
        .map(|number| {
            let (config, keys, in_use) = (server.config(), keys.clone(), in_use.clone());
            tokio::spawn(async move {
                let (etcd, node) = (crate::etcd_server::serving(config).await, Uuid::from_u128(number));
                let attachment = AttachmentKey::new("weft", format!("c{number}"), "eth0");
                let holder = StickyHolder { node, attachment: attachment.clone() };
                let owner = Owner::from(attachment);
                let (mut taken, mut borrowed) = (0, 0);
                while taken < 5 || borrowed < 5 {
                    match take_sticky(&etcd, &keys, "db-0", &holder, &[ip], 1).await {
                        Ok(_) => {
                            in_use.begin("db-0", node);
                            taken += 1;
                            tokio::task::yield_now().await;
                            in_use.end("db-0");
                            assert!(give_back_sticky(&etcd, &keys, "db-0", &holder, 2).await.unwrap());
                        }
                        Err(StickyError::HeldBy { .. }) => {}
                        Err(error) => assert_eq!(error.class(), netd_store::Class::Retry, "{error}"),
                    }
                    match request_address(&etcd, &keys, ip, &owner, node).await {
                        Ok(_) => {
                            assert!(grant_address(&etcd, &keys, ip, lender).await.unwrap());
                            in_use.begin("address", node);
                            borrowed += 1;
                            tokio::task::yield_now().await;
                            in_use.end("address");
                            assert!(release_address(&etcd, &keys, ip, &owner, node).await.unwrap());
                        }
                        Err(AddressClaimError::InUse { .. }) => {}
                        Err(error) => assert_eq!(error.class(), netd_store::Class::Retry, "{error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(client.list(&keys.addresses()).await.unwrap().items, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_removed_while_it_claims_ends_with_nothing() {
    let server = EtcdServer::plain();
    let keys = Keys::new("race").unwrap();
    let pools = [
        Pool::new("four", "10.244.0.0/18".parse().unwrap(), None),
        Pool::new("six", "fd00::/100".parse().unwrap(), None),
    ];
    let (removed, stays) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let claimer = {
        let (config, keys, pools) = (server.config(), keys.clone(), pools.clone());
        tokio::spawn(async move {
            let etcd = crate::etcd_server::serving(config).await;
            let mut claimed = 0;
            for family in [Family::V4, Family::V6].into_iter().cycle() {
                match claim_block(&etcd, &keys, &pools, removed, &BTreeMap::new(), family).await {
                    Ok(_) => claimed += 1,
                    Err(ClaimError::Removed(node)) => {
                        assert_eq!(node, removed);
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            claimed
        })
    };
    let client = server.client().await;
    let owned = async || {
        let items = client.list(&keys.blocks()).await.unwrap().items;
        decode_all::<BlockRecord>(&items).0.iter().filter(|(_, block)| block.owner == removed).count()
    };
    crate::bench::eventually("a few blocks", async || owned().await >= 4).await;
    remove_node(&client, &keys, removed, "n1", true, 10).await.unwrap();
    let live = BTreeSet::from([removed, stays]);
    let waiting = finish_removal(&client, &keys, removed, &live, 11).await.unwrap();
    assert_eq!(waiting, Progress::Waiting { acknowledgement: false, fences: vec![stays] });
    assert!(confirm_fence(&client, &keys, removed, stays, 12).await.unwrap());
    assert_eq!(finish_removal(&client, &keys, removed, &live, 13).await.unwrap(), Progress::Done);
    assert!(claimer.await.unwrap() >= 4);
    assert_eq!(owned().await, 0);
}
