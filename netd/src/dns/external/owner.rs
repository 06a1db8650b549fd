// SPDX-License-Identifier: Apache-2.0
//! Whose names these are. Clusters may have the same name, and neither may take the other's names for stale ones of its own:
//! what tells them apart is made up once, and lies in the store.

use anyhow::{Context, Result};
use netd_store::records::{Extra, SCHEMA, decode};
use netd_store::{Keys, Store, Transaction};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `id`.
#[derive(Debug, Serialize, Deserialize)]
struct ClusterId {
    schema: u32,
    id: Uuid,
    #[serde(flatten)]
    extra: Extra,
}

/// The cluster's; made where there is none.
///
/// # Errors
/// The store does not answer, or what is there does not read.
pub(super) async fn cluster_id(store: &dyn Store, keys: &Keys) -> Result<Uuid> {
    let key = keys.cluster_id();
    if store.get(&key).await?.is_none() {
        let record = ClusterId { schema: SCHEMA, id: Uuid::new_v4(), extra: Extra::default() };
        let make = Transaction::new().absent(&key).put(&key, serde_json::to_vec(&record)?);
        // Where another node was faster, that one's counts.
        store.transact(make).await?;
    }
    let item = store.get(&key).await?.context("the cluster's id is gone again")?;
    Ok(decode::<ClusterId>(&item.key, &item.value)?.id)
}

#[cfg(test)]
mod tests {
    use netd_store::Memory;

    use super::*;

    #[tokio::test]
    async fn it_is_made_once() {
        let (store, keys) = (Memory::new(), Keys::new("weft").unwrap());
        let id = cluster_id(&store, &keys).await.unwrap();
        assert_eq!(cluster_id(&store, &keys).await.unwrap(), id);
        let other = Keys::new("other").unwrap();
        assert_ne!(cluster_id(&store, &other).await.unwrap(), id);
        store.put(&keys.cluster_id(), "?".into(), None).await.unwrap();
        assert!(cluster_id(&store, &keys).await.unwrap_err().to_string().contains(&keys.cluster_id()));
    }
}
