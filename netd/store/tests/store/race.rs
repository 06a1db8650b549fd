// SPDX-License-Identifier: Apache-2.0
//! Many nodes claim at once, on a real etcd.

use std::collections::{BTreeMap, BTreeSet};

use ipam::Pool;
use netd_store::claim::{ClaimError, ServiceClaimError, ServiceRange, claim_block, claim_service_ip};
use netd_store::records::decode_all;
use netd_store::{Keys, Store};
use uuid::Uuid;

use crate::etcd_server::EtcdServer;

const WRITERS: u128 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_nodes_empty_a_small_pool_and_no_block_has_two_owners() {
    let server = EtcdServer::plain();
    let keys = Keys::new("race").unwrap();
    let pools = vec![Pool { name: "small".into(), cidr: "10.244.0.0/21".parse().unwrap(), block_prefix: 26 }];
    let tasks: Vec<_> = (1..=WRITERS)
        .map(|number| {
            let (config, keys, pools) = (server.config(), keys.clone(), pools.clone());
            tokio::spawn(async move {
                let (etcd, node) = (crate::etcd_server::serving(config).await, Uuid::from_u128(number));
                let mut claimed = vec![];
                loop {
                    match claim_block(&etcd, &keys, &pools, node).await {
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
        assert!(error.to_string().contains("no free block in pool small (10.244.0.0/21)"), "{error}");
        for block in claimed {
            assert_eq!(owners.insert(block.cidr, block.owner), None, "{} was claimed twice", block.cidr);
        }
    }
    assert_eq!(owners.len(), 32, "every block was claimed");

    let items = server.client().await.list(&keys.blocks()).await.unwrap().items;
    let (records, bad) = decode_all::<ipam::BlockRecord>(&items);
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
    let tasks: Vec<_> = (1..=WRITERS)
        .map(|number| {
            let (config, keys, range) = (server.config(), keys.clone(), range.clone());
            tokio::spawn(async move {
                let etcd = crate::etcd_server::serving(config).await;
                let mut ips = vec![];
                for round in 0.. {
                    let mut service = lb::Service::default();
                    service.metadata.namespace = "default".into();
                    service.metadata.name = format!("web-{number}-{round}");
                    match claim_service_ip(&etcd, &keys, &range, service, 0).await {
                        Ok(stored) => ips.extend(stored.service.cluster_ips()),
                        Err(ServiceClaimError::Address(error)) => {
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
