// SPDX-License-Identifier: Apache-2.0
//! GC: gives up every attachment of this network on this node that the runtime does not list.

use std::collections::BTreeSet;

use cni_types::{CniError, Code, NetworkConfig, ValidAttachment};
use netd_api::{AttachmentId, Client, PodInfo};
use tokio::task::JoinSet;

use crate::{del, netd};

/// How many are given up at once: each may wait for the store to take its endpoint back, and a node may have hundreds.
const PARALLEL: usize = 8;

/// Goes on after an error and reports all of them at the end.
pub(crate) async fn gc(config: &NetworkConfig, client: &Client) -> Result<(), CniError> {
    let valid: BTreeSet<ValidAttachment> = config.valid_attachments()?.into_iter().collect();
    let pods = client.pods().await.map_err(netd::cni_error)?;
    let is_stale = |pod: &PodInfo| {
        let attachment =
            ValidAttachment { container_id: pod.container_id.clone(), ifname: pod.ifname.clone() };
        pod.local && pod.network == config.name && !valid.contains(&attachment)
    };
    let stale: Vec<AttachmentId> = pods.iter().filter(|pod| is_stale(pod)).map(PodInfo::id).collect();
    let mut failures = Vec::new();
    for some in stale.chunks(PARALLEL) {
        let mut removals = JoinSet::new();
        for id in some {
            let (client, id) = (client.clone(), id.clone());
            tracing::info!(attachment = %id, "giving up what the runtime does not know");
            removals.spawn(async move {
                del::remove(&client, &id).await.map_err(|error| format!("{id}: {error}"))
            });
        }
        while let Some(outcome) = removals.join_next().await {
            failures.extend(outcome.unwrap_or_else(|error| Err(error.to_string())).err());
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    failures.sort();
    let msg =
        format!("{} stale attachments of network {} could not be given up", failures.len(), config.name);
    Err(CniError::new(Code::IO, msg).with_details(failures.join("; ")))
}
