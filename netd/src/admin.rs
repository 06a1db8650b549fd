// SPDX-License-Identifier: Apache-2.0
//! Pools and sticky names, changed by an operator while everything runs.

use std::time::Duration;

use ipam::{Family, Pool, PoolState, validate_pools};
use netd_api::{ApiError, PoolAddRequest, PoolRequest, StickyRequest};
use netd_store::claim::{StickyError, remove_sticky};
use netd_store::records::{ClusterConfig, decode, encode};
use netd_store::{KeyValue, StoreError, Transaction};

use crate::node::Node;

/// A write is answered once this node has seen it.
const SEEN_WAIT: Duration = Duration::from_secs(1);
/// Somebody else may change the pools at the same time; more often than this is a fight.
const TRIES: usize = 5;

/// `POST /v1/ipam/pools/add`.
pub(crate) async fn add_pool(node: &Node, request: &PoolAddRequest) -> Result<(), ApiError> {
    let default = ipam::default_block_prefix(&request.cidr);
    let pool = Pool {
        name: request.name.clone(),
        cidr: request.cidr,
        block_prefix: request.block_prefix.unwrap_or(default),
        node_selector: request.node_selector.clone(),
        state: PoolState::Active,
    };
    let view = node.view.load_full();
    match view.pools.get(&pool.name) {
        Some(known) if *known == pool => return Ok(()),
        Some(known) => {
            return Err(ApiError::conflict(format!(
                "pool {} exists with {} and blocks of /{}; a pool's prefix does not change: add another",
                known.name, known.cidr, known.block_prefix
            )));
        }
        None => {}
    }
    let all: Vec<Pool> = view.pools.values().cloned().chain([pool.clone()]).collect();
    validate_pools(&all).map_err(|error| ApiError::invalid(error.to_string()))?;
    if let Some(reason) = view.objection(&pool) {
        return Err(ApiError::invalid(format!("pool {} ({}): {reason}", pool.name, pool.cidr)));
    }
    if Family::of_net(&pool.cidr) == Family::V6
        && !node.config.dns_addresses.iter().any(std::net::IpAddr::is_ipv6)
    {
        tracing::warn!(
            "the first IPv6 pool: restart netd with an IPv6 --dns-address so that IPv6-only pods have a DNS server"
        );
    }
    write(node, &pool, 0).await
}

/// `POST /v1/ipam/pools/drain` and `undrain`.
pub(crate) async fn set_pool_state(
    node: &Node,
    request: &PoolRequest,
    state: PoolState,
) -> Result<(), ApiError> {
    let key = node.keys.pool(&request.name);
    for _ in 0..TRIES {
        let (pool, seen): (Pool, u64) = match node.store.get(&key).await.map_err(store_error)? {
            Some(item) => (decode(&key, &item.value).map_err(bad)?, item.mod_revision),
            // One of the cluster's configuration gets a key of its own with its first change.
            None => (configured(node, &request.name)?, 0),
        };
        if pool.state == state {
            return Ok(());
        }
        if write(node, &Pool { state, ..pool }, seen).await.is_ok() {
            return Ok(());
        }
    }
    Err(ApiError::retry(format!("pool {} is being changed by somebody else; try again", request.name)))
}

/// `POST /v1/ipam/pools/remove`: refused while a node owns one of its blocks. The transaction compares nothing about blocks,
/// so a claim may come at the same moment; a block without its pool gives nothing new, and is shown.
pub(crate) async fn remove_pool(node: &Node, request: &PoolRequest) -> Result<(), ApiError> {
    let pool = known(node, &request.name)?;
    if pool.state != PoolState::Draining {
        return Err(ApiError::invalid(format!(
            "pool {0} is active: nodes may claim blocks from it at any time; `weft ipam pool drain {0}` first",
            pool.name
        )));
    }
    let listing = node.store.list(&node.keys.blocks()).await.map_err(store_error)?;
    let owned = listing.items.iter().filter(|item| block_lies_in(node, item, &pool)).count();
    if owned > 0 {
        return Err(ApiError::conflict(format!(
            "nodes own {owned} blocks of pool {}; they go when their last pod does (`weft ipam show`)",
            pool.name
        )));
    }
    for _ in 0..TRIES {
        let key = node.keys.pool(&pool.name);
        let stored = node.store.get(&key).await.map_err(store_error)?.map_or(0, |item| item.mod_revision);
        let mut change = Transaction::new().unchanged(&key, stored).delete(&key);
        // A pool from the start stands in the cluster's configuration, too.
        let config_key = node.keys.config();
        if let Some(item) = node.store.get(&config_key).await.map_err(store_error)? {
            let mut config: ClusterConfig = decode(&config_key, &item.value).map_err(bad)?;
            config.pools.retain(|other| other.name != pool.name);
            change = change.unchanged(&config_key, item.mod_revision);
            change = change.put(&config_key, encode(&config_key, &config).map_err(bad)?);
        }
        let done = node.store.transact(change).await.map_err(store_error)?;
        if done.succeeded {
            node.wait_seen(done.revision, SEEN_WAIT).await;
            return Ok(());
        }
    }
    Err(ApiError::retry(format!("pool {} is being changed by somebody else; try again", pool.name)))
}

/// `POST /v1/ipam/sticky/remove`.
pub(crate) async fn remove_sticky_name(node: &Node, request: &StickyRequest) -> Result<(), ApiError> {
    match remove_sticky(node.store.as_ref(), &node.keys, &request.name).await {
        Ok(record) => {
            tracing::info!(name = record.name, ips = ?record.ips, "sticky name removed");
            Ok(())
        }
        Err(error @ StickyError::HeldBy { .. }) => {
            let picture = node.view.load().picture(node.uuid, Default::default(), None);
            Err(ApiError::conflict(picture.explain(&error)))
        }
        Err(error @ StickyError::Unknown(_)) => Err(ApiError::not_found(error.to_string())),
        Err(error) => Err(ApiError::retry(error.to_string())),
    }
}

fn block_lies_in(node: &Node, item: &KeyValue, pool: &Pool) -> bool {
    matches!(node.keys.parse(&item.key), Some(netd_store::Key::Block(cidr)) if pool.cidr.contains(&cidr))
}

fn known(node: &Node, name: &str) -> Result<Pool, ApiError> {
    let pool = node.view.load().pools.get(name).cloned();
    pool.ok_or_else(|| unknown(name))
}

/// A pool that stands in the cluster's configuration.
fn configured(node: &Node, name: &str) -> Result<Pool, ApiError> {
    let view = node.view.load();
    let pool = view.config.pools.iter().find(|pool| pool.name == name).cloned();
    pool.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!("no pool {name}; `weft ipam show` lists them"))
}

async fn write(node: &Node, pool: &Pool, seen: u64) -> Result<(), ApiError> {
    let key = node.keys.pool(&pool.name);
    let change = Transaction::new().unchanged(&key, seen).put(&key, encode(&key, pool).map_err(bad)?);
    let done = node.store.transact(change).await.map_err(store_error)?;
    if !done.succeeded {
        return Err(ApiError::retry(format!(
            "pool {} is being changed by somebody else; try again",
            pool.name
        )));
    }
    node.wait_seen(done.revision, SEEN_WAIT).await;
    Ok(())
}

fn store_error(error: StoreError) -> ApiError {
    ApiError::retry(format!("the store: {error}"))
}

fn bad(error: netd_store::records::BadRecord) -> ApiError {
    ApiError::fatal(error.to_string())
}
