// SPDX-License-Identifier: Apache-2.0
//! `leader/<task>`: what one node does for the whole cluster. The key hangs on the node's lease, so another node takes over
//! once the one that had it is gone; who cannot be sure that the lease stands does nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use netd_store::records::{Extra, SCHEMA, decode};
use netd_store::{KeyValue, StoreError, Transaction};
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

/// Whether this node does `task` now. Takes it where nobody does.
pub(crate) async fn is_ours(node: &Node, task: &str) -> Result<bool, StoreError> {
    let Some(lease) = node.lease.load_full().filter(|lease| lease.stands()) else { return Ok(false) };
    if node.candidate.withdrawn.load(Ordering::SeqCst) || status::is_removed(node) {
        return Ok(false);
    }
    let key = node.keys.leader(task);
    let seen = {
        let state = node.mirror.borrow();
        if !state.in_sync || !state.connected {
            return Ok(false);
        }
        state.items.get(&key).cloned()
    };
    let revision = match held(seen.as_ref(), node.uuid, lease.id.0) {
        Held::Ours => return Ok(true),
        Held::Others => return Ok(false),
        Held::Nobody(revision) => revision,
    };
    let record = LeaderRecord { schema: SCHEMA, node: node.uuid, lease: lease.id.0, extra: Extra::default() };
    let value = serde_json::to_vec(&record).unwrap_or_default();
    let take = Transaction::new().unchanged(&key, revision).put_leased(&key, value, Some(lease.id));
    Ok(node.store.transact(take).await?.succeeded)
}

/// Lets go of everything at once instead of after the lease's time; nothing is taken afterwards.
pub(crate) async fn withdraw(node: &Node) {
    node.candidate.withdrawn.store(true, Ordering::SeqCst);
    let Some(lease) = node.lease.load_full() else { return };
    for task in TASKS {
        let key = node.keys.leader(task);
        let outcome = async {
            let seen = node.store.get(&key).await?;
            match (held(seen.as_ref(), node.uuid, lease.id.0), seen) {
                (Held::Ours, Some(item)) => {
                    let delete = Transaction::new().unchanged(&key, item.mod_revision).delete(&key);
                    node.store.transact(delete).await.map(drop)
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = outcome.await {
            tracing::debug!(%error, task, "not handed over; it ends with the lease");
        }
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
    use super::*;

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
