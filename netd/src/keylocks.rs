// SPDX-License-Identifier: Apache-2.0
//! One operation at a time for each attachment: an ADD and a DEL of one key that overlap would each undo half of the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ipam::AttachmentKey;
use tokio::sync::OwnedMutexGuard;

use crate::node::lock;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// The keys that are being worked on.
#[derive(Debug, Default)]
pub(crate) struct KeyLocks {
    gates: Mutex<BTreeMap<AttachmentKey, Gate>>,
}

impl KeyLocks {
    /// Waits for the key's turn; the guard ends it.
    pub(crate) async fn hold(&self, key: &AttachmentKey) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = lock(&self.gates);
            // Gates that nobody holds or waits for are only ours: the map stays as small as what goes on.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            gates.entry(key.clone()).or_default().clone()
        };
        gate.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> AttachmentKey {
        AttachmentKey::new("weft", id, "eth0")
    }

    #[tokio::test]
    async fn one_key_waits_and_others_do_not() {
        let locks = KeyLocks::default();
        let first = locks.hold(&key("a")).await;
        let _other = locks.hold(&key("b")).await;
        let blocked = tokio::time::timeout(std::time::Duration::from_millis(20), locks.hold(&key("a"))).await;
        assert!(blocked.is_err());
        drop(first);
        drop(locks.hold(&key("a")).await);
        let _last = locks.hold(&key("c")).await;
        assert_eq!(lock(&locks.gates).len(), 2);
    }
}
