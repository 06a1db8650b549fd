// SPDX-License-Identifier: Apache-2.0
//! The first node of a cluster settles its configuration.

use super::ClaimError;
use crate::records::{ClusterConfig, decode, encode};
use crate::{Keys, Store, StoreError, Transaction};

/// The cluster's configuration; `initial` becomes it when there is none yet. All nodes get the same answer.
pub async fn ensure_config(
    store: &dyn Store,
    keys: &Keys,
    initial: &ClusterConfig,
) -> Result<ClusterConfig, ClaimError> {
    let key = keys.config();
    if store.get(&key).await?.is_none() {
        let create = Transaction::new().absent(&key).put(&key, encode(&key, initial)?);
        match store.transact(create).await {
            Ok(_) => {}
            // Reading back tells.
            Err(error) if error.is_ambiguous() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let gone = || StoreError::Disconnected { reason: format!("{key} is gone again") };
    let item = store.get(&key).await?.ok_or_else(gone)?;
    Ok(decode(&key, &item.value)?)
}
