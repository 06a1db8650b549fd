// SPDX-License-Identifier: Apache-2.0
//! `leader/<task>`: what one node does for the whole cluster. The key hangs on the node's lease, so another node takes over
//! once the one that had it is gone; who cannot be sure that the lease stands does nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use netd_store::records::{Extra, SCHEMA, decode};
use netd_store::{KeyValue, LeaseId, Store, StoreError, Transaction};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::node::Node;
use crate::status;

/// Publishing names in a zone of others.
pub(crate) const EXTERNAL_DNS: &str = "dns-external";
/// Everything that one node does for all.
const TASKS: [&str; 1] = [EXTERNAL_DNS];

/// This node's part in it.
#[derive(Debug, Default)]
pub(crate) struct Candidate {
    /// This netd ends: it takes nothing any more.
    withdrawn: AtomicBool,
    /// It took something, or meant to.
    took: AtomicBool,
}

/// The value of the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LeaderRecord {
    schema: u32,
    node: Uuid,
    /// A netd that was killed may find its old key, which ends with the old lease.
    lease: i64,
    #[serde(flatten)]
    extra: Extra,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// This node.
    Ours,
    /// Another one, or nobody that we could tell.
    NotOurs,
    /// As before; the store is away for a moment, and nothing can be done.
    Unknown,
}

/// Whether this node does `task` now. Takes it where nobody does.
pub(crate) async fn look(node: &Node, task: &str) -> Result<Seat, StoreError> {
    let Some(lease) = node.lease.load_full().filter(|lease| lease.stands()) else { return Ok(Seat::NotOurs) };
    if node.candidate.withdrawn.load(Ordering::SeqCst) || status::is_removed(node) {
        return Ok(Seat::NotOurs);
    }
    node.candidate.took.store(true, Ordering::SeqCst);
    let key = node.keys.leader(task);
    let seen = {
        let state = node.mirror.borrow();
        if !state.in_sync || !state.connected {
            return Ok(Seat::Unknown);
        }
        state.items.get(&key).cloned()
    };
    take(node.store.as_ref(), &key, seen.as_deref(), node.uuid, lease.id).await
}

/// Takes what nobody has, as `seen` has it.
async fn take(
    store: &dyn Store,
    key: &str,
    seen: Option<&KeyValue>,
    own: Uuid,
    lease: LeaseId,
) -> Result<Seat, StoreError> {
    let revision = match held(seen, own, lease.0) {
        Held::Ours => return Ok(Seat::Ours),
        Held::Others => return Ok(Seat::NotOurs),
        Held::Nobody(revision) => revision,
    };
    let record = LeaderRecord { schema: SCHEMA, node: own, lease: lease.0, extra: Extra::default() };
    let value = serde_json::to_vec(&record).unwrap_or_default();
    let take = Transaction::new().unchanged(key, revision).put_leased(key, value, Some(lease));
    let taken = store.transact(take).await?.succeeded;
    // Somebody was faster, or our view of the store is behind: it will say who.
    Ok(if taken { Seat::Ours } else { Seat::Unknown })
}

/// Lets go of `task`, so that another node may do it.
pub(crate) async fn hand_over(node: &Node, task: &str) {
    let Some(lease) = node.lease.load_full() else { return };
    let key = node.keys.leader(task);
    if let Err(error) = let_go(node.store.as_ref(), &key, node.uuid, lease.id).await {
        tracing::debug!(%error, task, "not handed over; it ends with the lease");
    }
}

async fn let_go(store: &dyn Store, key: &str, own: Uuid, lease: LeaseId) -> Result<(), StoreError> {
    let seen = store.get(key).await?;
    match (held(seen.as_ref(), own, lease.0), seen) {
        (Held::Ours, Some(item)) => {
            let delete = Transaction::new().unchanged(key, item.mod_revision).delete(key);
            store.transact(delete).await.map(drop)
        }
        _ => Ok(()),
    }
}

/// Lets go of everything at once instead of after the lease's time; nothing is taken afterwards.
pub(crate) async fn withdraw(node: &Node) {
    node.candidate.withdrawn.store(true, Ordering::SeqCst);
    if !node.candidate.took.load(Ordering::SeqCst) {
        return;
    }
    for task in TASKS {
        hand_over(node, task).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Held {
    Ours,
    Others,
    /// To be taken while the key is of this revision (0: absent).
    Nobody(u64),
}

/// A value that does not read is no leader's.
fn held(item: Option<&KeyValue>, own: Uuid, lease: i64) -> Held {
    let Some(item) = item else { return Held::Nobody(0) };
    match decode::<LeaderRecord>(&item.key, &item.value) {
        Ok(record) if record.node != own => Held::Others,
        Ok(record) if record.lease == lease => Held::Ours,
        _ => Held::Nobody(item.mod_revision),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netd_store::Memory;

    use super::*;

    #[tokio::test]
    async fn of_two_one_does_it_and_the_other_once_that_one_is_gone() {
        let (store, key) = (Memory::new(), "/weft/v1/weft/leader/dns-external");
        let [one, two] = [1, 2].map(Uuid::from_u128);
        let lease = async || store.lease_grant(Duration::from_secs(15)).await.unwrap().id;
        let (first, second) = (lease().await, lease().await);
        let now = async || store.get(key).await.unwrap();
        let look = async |seen: Option<KeyValue>, own, lease| {
            take(&store, key, seen.as_ref(), own, lease).await.unwrap()
        };
        assert_eq!(look(None, one, first).await, Seat::Ours);
        assert_eq!(look(None, two, second).await, Seat::Unknown, "who has not seen it does not take it");
        assert_eq!(look(now().await, two, second).await, Seat::NotOurs);
        assert_eq!(look(now().await, one, first).await, Seat::Ours);
        // What is not one's own is not given away.
        let_go(&store, key, two, second).await.unwrap();
        assert!(now().await.is_some());
        let_go(&store, key, one, first).await.unwrap();
        assert!(now().await.is_none());
        assert_eq!(look(None, two, second).await, Seat::Ours);
        store.lease_revoke(second).await.unwrap();
        assert!(now().await.is_none(), "it ends with the lease");
        assert_eq!(look(now().await, one, first).await, Seat::Ours);
        // Started anew, with a lease of its own: the old one's key is taken over.
        let third = lease().await;
        assert_eq!(look(now().await, one, third).await, Seat::Ours);
        assert_eq!(look(now().await, two, lease().await).await, Seat::NotOurs);
    }

    #[test]
    fn who_has_it() {
        let own = Uuid::from_u128(1);
        let item = |value: &str| KeyValue {
            key: "k".into(),
            value: value.to_owned().into(),
            create_revision: 3,
            mod_revision: 7,
        };
        let written = |node: Uuid, lease: i64| {
            let record = LeaderRecord { schema: SCHEMA, node, lease, extra: Extra::default() };
            item(&serde_json::to_string(&record).unwrap())
        };
        assert_eq!(held(None, own, 9), Held::Nobody(0));
        assert_eq!(held(Some(&written(own, 9)), own, 9), Held::Ours);
        assert_eq!(held(Some(&written(Uuid::from_u128(2), 9)), own, 9), Held::Others);
        assert_eq!(
            held(Some(&written(own, 8)), own, 9),
            Held::Nobody(7),
            "of an earlier life, on a lease that ends"
        );
        assert_eq!(held(Some(&item("?")), own, 9), Held::Nobody(7));
    }
}
