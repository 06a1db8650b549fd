// SPDX-License-Identifier: Apache-2.0
//! A node leaves for good. The order is the fence: the tombstone, then every other node drops its routes to the removed one
//! and says so, and it acknowledges itself (or the operator states that it is off); only then are its blocks free.
//!
//! Every step may be cut off and taken again, by any node.

use std::collections::{BTreeMap, BTreeSet};

use ipam::{BlockRecord, BlockState, Owner};
use uuid::Uuid;

use super::block::item_around;
use super::cas::{Change, ChangeError, change};
use crate::records::{AddressRecord, Extra, SCHEMA, StickyRecord, Tombstone, decode, decode_all};
use crate::{Key, Keys, MAX_TRANSACTION_OPERATIONS, Store, Transaction};

/// How far a removal has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Its blocks are free, its records are gone. The tombstone stays.
    Done,
    /// Nothing was freed.
    Waiting {
        /// The node itself must say that it stopped, or the operator that it is off.
        acknowledgement: bool,
        /// Nodes that have not confirmed that they dropped their routes to it.
        fences: Vec<Uuid>,
    },
    /// The node has no tombstone.
    Unknown,
}

/// Removes a node: from now on it claims nothing, and nobody asks it for an address. Doing it again can only add `forced`.
/// Returns the revision of the tombstone.
pub async fn remove_node(
    store: &dyn Store,
    keys: &Keys,
    node: Uuid,
    name: &str,
    forced: bool,
    now_ms: u64,
) -> Result<u64, ChangeError> {
    let key = keys.tombstone(node);
    change(store, &key, |found: Option<Tombstone>| {
        let record = match found {
            Some(found) if found.forced || !forced => return Ok::<_, ChangeError>((Change::Nothing, ())),
            Some(found) => Tombstone { forced, ..found },
            None => Tombstone {
                schema: SCHEMA,
                uuid: node,
                name: name.to_owned(),
                at_ms: now_ms,
                forced,
                acknowledged_ms: None,
                fenced: BTreeMap::new(),
                finished_ms: None,
                extra: Extra::new(),
            },
        };
        Ok((Change::Put(record), ()))
    })
    .await?;
    Ok(store.get(&key).await?.map_or(0, |item| item.mod_revision))
}

/// The removed node itself says that it stopped: it gives no address any more. False where it has no tombstone.
pub async fn acknowledge_removal(
    store: &dyn Store,
    keys: &Keys,
    node: Uuid,
    now_ms: u64,
) -> Result<bool, ChangeError> {
    note(store, keys, node, |tombstone| {
        tombstone.acknowledged_ms.get_or_insert(now_ms);
    })
    .await
}

/// Node `by` says that its peer, FDB entries and routes of the removed node are gone. False where that has no tombstone.
pub async fn confirm_fence(
    store: &dyn Store,
    keys: &Keys,
    node: Uuid,
    by: Uuid,
    now_ms: u64,
) -> Result<bool, ChangeError> {
    note(store, keys, node, |tombstone| {
        tombstone.fenced.entry(by).or_insert(now_ms);
    })
    .await
}

async fn note(
    store: &dyn Store,
    keys: &Keys,
    node: Uuid,
    edit: impl Fn(&mut Tombstone),
) -> Result<bool, ChangeError> {
    change(store, &keys.tombstone(node), |found: Option<Tombstone>| {
        let Some(found) = found else { return Ok((Change::Nothing, false)) };
        let mut edited = found.clone();
        edit(&mut edited);
        Ok((if edited == found { Change::Nothing } else { Change::Put(edited) }, true))
    })
    .await
}

/// Ends a removal once the node has acknowledged (or it is forced) and every node in `live`, itself left out, has confirmed:
/// frees its blocks, and deletes its pods, endpoints, borrowed addresses and its record.
///
/// A block that holds addresses which others still have (a sticky name's, or one lent to a live node) goes to a live node
/// together with them instead of becoming free; without a live node the sticky name goes too.
pub async fn finish_removal(
    store: &dyn Store,
    keys: &Keys,
    node: Uuid,
    live: &BTreeSet<Uuid>,
    now_ms: u64,
) -> Result<Progress, ChangeError> {
    let key = keys.tombstone(node);
    let Some(item) = store.get(&key).await? else { return Ok(Progress::Unknown) };
    let tombstone: Tombstone = decode(&key, &item.value)?;
    if tombstone.finished_ms.is_some() {
        return Ok(Progress::Done);
    }
    let acknowledgement = !tombstone.forced && tombstone.acknowledged_ms.is_none();
    let missing = live.iter().filter(|other| **other != node && !tombstone.fenced.contains_key(other));
    let fences: Vec<Uuid> = missing.copied().collect();
    if acknowledgement || !fences.is_empty() {
        return Ok(Progress::Waiting { acknowledgement, fences });
    }
    free_holds(store, keys, node).await?;
    free_blocks(store, keys, node, live).await?;
    settle_loans(store, keys, node).await?;
    delete_all(store, keys, node).await?;
    note(store, keys, node, |tombstone| {
        tombstone.finished_ms.get_or_insert(now_ms);
    })
    .await?;
    Ok(Progress::Done)
}

/// What the node used of others: borrowed addresses go, sticky names are in use nowhere.
async fn free_holds(store: &dyn Store, keys: &Keys, node: Uuid) -> Result<(), ChangeError> {
    let listing = store.list(&keys.addresses()).await?;
    for (item, _) in decode_all::<AddressRecord>(&listing.items).0 {
        change(store, &item.key, |found: Option<AddressRecord>| {
            let used = found.is_some_and(|record| record.node == Some(node));
            Ok::<_, ChangeError>((if used { Change::Delete } else { Change::Nothing }, ()))
        })
        .await?;
    }
    let listing = store.list(&keys.stickies()).await?;
    for (item, _) in decode_all::<StickyRecord>(&listing.items).0 {
        change(store, &item.key, |found: Option<StickyRecord>| {
            let held = found.filter(|record| record.node == Some(node));
            let free =
                held.map(|record| Change::Put(StickyRecord { node: None, attachment: None, ..record }));
            Ok::<_, ChangeError>((free.unwrap_or(Change::Nothing), ()))
        })
        .await?;
    }
    Ok(())
}

/// Each block is deleted, or goes to a live node with what others have of it. Nobody adds to it meanwhile: its owner is
/// fenced, and nobody asks a removed node for an address.
async fn free_blocks(
    store: &dyn Store,
    keys: &Keys,
    node: Uuid,
    live: &BTreeSet<Uuid>,
) -> Result<(), ChangeError> {
    let blocks = store.list(&keys.blocks()).await?;
    let (lent, sticky) = (store.list(&keys.addresses()).await?, store.list(&keys.stickies()).await?);
    let (lent, sticky) =
        (decode_all::<AddressRecord>(&lent.items).0, decode_all::<StickyRecord>(&sticky.items).0);
    for (item, block) in decode_all::<BlockRecord>(&blocks.items).0 {
        if block.owner != node {
            continue;
        }
        let (mut kept, mut users) = (BTreeMap::new(), BTreeSet::new());
        for (_, record) in lent.iter().filter(|(_, record)| record.granted) {
            if let Some(ordinal) = block.ordinal(&record.ip) {
                kept.insert(ordinal, Owner::granted(record.ip));
                users.extend(record.node);
            }
        }
        for (_, record) in &sticky {
            for ordinal in record.ips.iter().filter_map(|ip| block.ordinal(ip)) {
                kept.insert(ordinal, Owner::Sticky(record.name.clone()));
                users.extend(record.node);
            }
        }
        let others = || live.iter().filter(|other| **other != node);
        // Whoever uses an address of it has the shortest way to it.
        let heir = others().find(|other| users.contains(other)).or_else(|| others().next());
        match heir.filter(|_| !kept.is_empty()) {
            Some(heir) => {
                let inherited = BlockRecord {
                    owner: *heir,
                    epoch: blocks.revision,
                    state: BlockState::Active,
                    allocations: kept,
                    ..block
                };
                hand_over(store, &item.key, node, Some(inherited)).await?;
            }
            None => hand_over(store, &item.key, node, None).await?,
        }
    }
    if live.iter().all(|other| *other == node) {
        let blocks = store.list(&keys.blocks()).await?;
        for (item, record) in sticky {
            if record.ips.iter().any(|ip| item_around(keys, &blocks, *ip).is_none()) {
                store.delete(&item.key).await?;
            }
        }
    }
    Ok(())
}

async fn hand_over(
    store: &dyn Store,
    key: &str,
    from: Uuid,
    to: Option<BlockRecord>,
) -> Result<(), ChangeError> {
    change(store, key, |found: Option<BlockRecord>| {
        let ours = found.is_some_and(|block| block.owner == from);
        Ok(match &to {
            _ if !ours => (Change::Nothing, ()),
            Some(record) => (Change::Put(record.clone()), ()),
            None => (Change::Delete, ()),
        })
    })
    .await
}

/// Records of addresses that the removed node lent name the block's new owner; what it had not granted goes.
async fn settle_loans(store: &dyn Store, keys: &Keys, node: Uuid) -> Result<(), ChangeError> {
    let listing = store.list(&keys.addresses()).await?;
    let blocks = store.list(&keys.blocks()).await?;
    for (item, record) in decode_all::<AddressRecord>(&listing.items).0 {
        let around = item_around(keys, &blocks, record.ip);
        let around = around.map(|block| decode::<BlockRecord>(&block.key, &block.value)).transpose();
        let heir = around?.map(|block| block.owner);
        change(store, &item.key, |found: Option<AddressRecord>| {
            let stale = found.filter(|record| record.block_owner == node);
            Ok::<_, ChangeError>(match (stale, heir) {
                (None, _) => (Change::Nothing, ()),
                (Some(record), Some(heir)) if record.granted => {
                    (Change::Put(AddressRecord { block_owner: heir, ..record }), ())
                }
                (Some(_), _) => (Change::Delete, ()),
            })
        })
        .await?;
    }
    Ok(())
}

/// Its pods and endpoints, its sign of life and its record; the record last, so that a run that was cut off is seen.
async fn delete_all(store: &dyn Store, keys: &Keys, node: Uuid) -> Result<(), ChangeError> {
    let mut doomed: Vec<String> =
        store.list(&keys.node_pods(node)).await?.items.into_iter().map(|item| item.key).collect();
    doomed.extend(store.list(&keys.endpoints()).await?.items.into_iter().map(|item| item.key).filter(
        |key| matches!(keys.parse(key), Some(Key::Endpoint { source, .. }) if Keys::node_of_source(&source) == Some(node)),
    ));
    doomed.extend([keys.alive(node), keys.node(node)]);
    for keys in doomed.chunks(MAX_TRANSACTION_OPERATIONS) {
        let deletes = keys.iter().fold(Transaction::new(), |write, key| write.delete(key));
        store.transact(deletes).await?;
    }
    Ok(())
}
