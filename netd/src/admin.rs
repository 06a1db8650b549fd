// SPDX-License-Identifier: Apache-2.0
//! Pools and sticky names, changed by an operator while everything runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipam::{BlockRecord, Family, Owner, Pool, PoolState, validate_pools};
use netd_api::{ApiError, PoolAddRequest, PoolReply, PoolRequest, StickyRequest};
use netd_store::claim::{StickyError, remove_sticky};
use netd_store::records::{ClusterConfig, NodeRecord, decode, encode};
use netd_store::{KeyValue, StoreError, Transaction};
use uuid::Uuid;

use crate::names::with_names;
use crate::node::Node;

/// A write is answered once this node has seen it.
const SEEN_WAIT: Duration = Duration::from_secs(1);
/// Somebody else may change the pools at the same time; more often than this is a fight.
const TRIES: usize = 5;

/// `POST /v1/ipam/pools/add`.
pub(crate) async fn add_pool(node: &Node, request: &PoolAddRequest) -> Result<PoolReply, ApiError> {
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
        Some(known) if *known == pool => return Ok(PoolReply::default()),
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
    let before = families(view.pools.values());
    let mut notes: Vec<String> = added_note(&pool, &before).into_iter().collect();
    if pool.family() == Family::V6 && !node.config.dns_addresses.iter().any(std::net::IpAddr::is_ipv6) {
        notes.push(
            "Pods with IPv6 alone would have no DNS server on their node: start netd with an IPv6 --dns-address for such".into(),
        );
    }
    write(node, &pool, 0).await?;
    Ok(PoolReply { notes })
}

/// `POST /v1/ipam/pools/drain` and `undrain`.
pub(crate) async fn set_pool_state(
    node: &Node,
    request: &PoolRequest,
    state: PoolState,
) -> Result<PoolReply, ApiError> {
    let key = node.keys.pool(&request.name);
    for _ in 0..TRIES {
        let (pool, seen): (Pool, u64) = match node.store.get(&key).await.map_err(store_error)? {
            Some(item) => (decode(&key, &item.value).map_err(bad)?, item.mod_revision),
            // One of the cluster's configuration gets a key of its own with its first change.
            None => (configured(node, &request.name)?, 0),
        };
        if pool.state == state {
            return Ok(PoolReply::default());
        }
        let changed = Pool { state, ..pool };
        if write(node, &changed, seen).await.is_ok() {
            let view = node.view.load();
            let others = families(view.pools.values().filter(|other| other.name != changed.name));
            let note = match state {
                PoolState::Active => added_note(&changed, &others),
                PoolState::Draining => drained_note(&changed, &others),
            };
            return Ok(PoolReply { notes: note.into_iter().collect() });
        }
    }
    Err(ApiError::retry(format!("pool {} is being changed by somebody else; try again", request.name)))
}

/// The families that pods get an address of.
fn families<'p>(pools: impl Iterator<Item = &'p Pool>) -> BTreeSet<Family> {
    pools.filter(|pool| pool.state.is_active()).map(Pool::family).collect()
}

/// What a pool in use changes for everybody; `before` are the families of the others.
fn added_note(pool: &Pool, before: &BTreeSet<Family>) -> Option<String> {
    let family = pool.family();
    let other = before.iter().find(|other| **other != family)?;
    (!before.contains(&family)).then(|| {
        format!(
            "The cluster is dual-stack from now on: every new pod gets an {family} address beside its {other} one; pods that \
             run keep what they have. `weft ipam pool drain {}` is the way back",
            pool.name
        )
    })
}

/// What is missing once a pool drains; `others` are the families of the others.
fn drained_note(pool: &Pool, others: &BTreeSet<Family>) -> Option<String> {
    let (family, name) = (pool.family(), &pool.name);
    if others.is_empty() {
        return Some(format!(
            "No pool gives addresses any more, so no pod can be made: `weft ipam pool add` another, or `weft ipam pool undrain {name}`"
        ));
    }
    (!others.contains(&family))
        .then(|| format!("It is the last {family} pool: new pods get no {family} address"))
}

/// `POST /v1/ipam/pools/remove`: refused while a node owns one of its blocks. The transaction compares nothing about blocks,
/// so a claim may come at the same moment; a block without its pool gives nothing new, and is shown.
pub(crate) async fn remove_pool(node: &Node, request: &PoolRequest) -> Result<PoolReply, ApiError> {
    let pool = known(node, &request.name)?;
    if pool.state != PoolState::Draining {
        return Err(ApiError::invalid(format!(
            "pool {0} is active: nodes may claim blocks from it at any time; `weft ipam pool drain {0}` first",
            pool.name
        )));
    }
    let listing = node.store.list(&node.keys.blocks()).await.map_err(store_error)?;
    let owned = listing.items.iter().filter(|item| block_lies_in(node, item, &pool));
    let owned: Vec<BlockRecord> =
        owned.map(|item| decode(&item.key, &item.value).map_err(bad)).collect::<Result<_, _>>()?;
    if !owned.is_empty() {
        let view = node.view.load();
        let others: Vec<&Pool> = view.pools.values().filter(|other| other.name != pool.name).collect();
        let nodes: BTreeMap<Uuid, &NodeRecord> =
            view.nodes.iter().map(|(uuid, node)| (*uuid, node)).collect();
        return Err(ApiError::conflict(owned_text(&pool, &owned, &others, &nodes)));
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
            return Ok(PoolReply::default());
        }
    }
    Err(ApiError::retry(format!("pool {} is being changed by somebody else; try again", pool.name)))
}

/// What the blocks of a pool hold, and what makes them go.
fn owned_text(
    pool: &Pool,
    blocks: &[BlockRecord],
    others: &[&Pool],
    nodes: &BTreeMap<Uuid, &NodeRecord>,
) -> String {
    let owners = || blocks.iter().flat_map(|block| block.allocations.values());
    let count = |is: fn(&Owner) -> bool| owners().filter(|owner| is(owner)).count();
    let held = [
        (count(|owner| matches!(owner, Owner::Attachment(_))), "addresses of pods", "delete these pods"),
        (
            count(|owner| matches!(owner, Owner::Sticky(_))),
            "addresses of sticky names",
            "`weft ipam sticky rm` those names",
        ),
        (
            count(|owner| matches!(owner, Owner::Reserved(_))),
            "addresses lent to other nodes or set aside",
            "delete the pods that have these, `weft member rm` members",
        ),
    ];
    let held: Vec<_> = held.into_iter().filter(|(count, ..)| *count > 0).collect();
    let head = format!(
        "nodes own {} block{} of pool {}",
        blocks.len(),
        if blocks.len() == 1 { "" } else { "s" },
        pool.name
    );
    if !held.is_empty() {
        let what: Vec<String> = held.iter().map(|(count, what, _)| format!("{count} {what}")).collect();
        let how: Vec<&str> = held.iter().map(|(.., how)| *how).collect();
        return format!("{head}, with {}: {} (`weft ipam show` lists them)", what.join(", "), how.join(", "));
    }
    let head = format!("{head}, with the nodes' own addresses only");
    let active: Vec<&&Pool> = others.iter().filter(|other| other.state.is_active()).collect();
    if active.is_empty() {
        return format!(
            "{head}: it is the last pool of the cluster; `weft ipam pool add` another, then it can go"
        );
    }
    let family = pool.family();
    let of_family: Vec<&&&Pool> = active.iter().filter(|other| other.family() == family).collect();
    let left_out: BTreeSet<&str> = blocks
        .iter()
        .filter_map(|block| nodes.get(&block.owner))
        .filter(|node| !of_family.is_empty() && !of_family.iter().any(|other| other.admits(&node.labels)))
        .map(|node| node.name.as_str())
        .collect();
    if left_out.is_empty() {
        return format!(
            "{head}: these go within seconds where netd runs and no pod of the cluster has an {family} address from a pool that \
             drains; try again"
        );
    }
    let left_out: Vec<&str> = left_out.into_iter().collect();
    format!(
        "{head}: no other {family} pool admits {} (by its node selector); `weft ipam pool add` one that does",
        left_out.join(", ")
    )
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
            Err(ApiError::conflict(with_names(node, &picture.explain(&error))))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, cidr: &str) -> Pool {
        Pool::new(name, cidr.parse().unwrap(), None)
    }

    fn block(pool: &Pool, owners: &[Owner]) -> BlockRecord {
        let first = pool.cidr.to_string().replace("/64", "/122").replace("/16", "/26");
        let mut block = BlockRecord::claimed(pool, first.parse().unwrap(), Uuid::from_u128(1));
        block.allocations = (0..).zip(owners.iter().cloned()).collect();
        block
    }

    fn told(pool: &Pool, owners: &[Owner], others: &[&Pool]) -> String {
        let node: NodeRecord = serde_json::from_value(serde_json::json!({
            "schema": 1, "uuid": Uuid::from_u128(1), "name": "n1", "underlay": "192.0.2.1", "vtep_mac": "02:00:00:00:00:01",
            "labels": {"zone": "a"},
        }))
        .unwrap();
        owned_text(pool, &[block(pool, owners)], others, &BTreeMap::from([(node.uuid, &node)]))
    }

    #[test]
    fn a_pool_that_cannot_go_yet_says_what_is_in_it_and_what_helps() {
        let (four, six) = (pool("default", "10.244.0.0/16"), pool("six", "fd00:1::/64"));
        let own = Owner::Node(Uuid::from_u128(1));
        let of_pod = Owner::Attachment(ipam::AttachmentKey::new("weft", "c1", "eth0"));
        let text = told(&six, &[own.clone(), of_pod, Owner::Sticky("db".into())], &[&four]);
        assert!(
            text.contains("1 block of pool six, with 1 addresses of pods, 1 addresses of sticky names"),
            "{text}"
        );
        assert!(text.contains("weft ipam sticky rm"), "{text}");
        let text = told(&six, std::slice::from_ref(&own), &[&four]);
        assert!(text.contains("own addresses only") && text.contains("within seconds"), "{text}");
        let text = told(&four, std::slice::from_ref(&own), &[]);
        assert!(text.contains("the last pool of the cluster"), "{text}");
        let mut edge = pool("edge", "10.245.0.0/16");
        edge.node_selector = BTreeMap::from([("zone".into(), "b".into())]);
        let text = told(&four, &[own], &[&edge]);
        assert!(text.contains("no other IPv4 pool admits n1"), "{text}");
    }

    #[test]
    fn a_second_family_and_a_last_pool_are_told() {
        let (four, six) = (pool("default", "10.244.0.0/16"), pool("six", "fd00:1::/64"));
        let only = |family| BTreeSet::from([family]);
        assert!(added_note(&six, &only(Family::V4)).is_some_and(|note| note.contains("dual-stack")));
        assert_eq!(added_note(&four, &only(Family::V4)), None);
        assert_eq!(added_note(&four, &BTreeSet::new()), None, "the first pool of all");
        assert_eq!(added_note(&six, &BTreeSet::from([Family::V4, Family::V6])), None);
        assert!(drained_note(&six, &only(Family::V4)).is_some_and(|note| note.contains("no IPv6 address")));
        assert!(drained_note(&four, &BTreeSet::new()).is_some_and(|note| note.contains("undrain default")));
        assert_eq!(drained_note(&four, &only(Family::V4)), None);
    }
}
