// SPDX-License-Identifier: Apache-2.0
//! GC: gives up every attachment of this network on this node that the runtime does not list.

use std::collections::BTreeSet;

use cni_types::{CniError, Code, NetworkConfig, ValidAttachment};
use netd_api::PodInfo;

use crate::{del, netd};

/// Goes on after an error and reports all of them at the end.
pub(crate) async fn gc(config: &NetworkConfig) -> Result<(), CniError> {
    let valid: BTreeSet<ValidAttachment> = config.valid_attachments()?.into_iter().collect();
    let client = netd::client(config, netd::REQUEST_TIMEOUT);
    let pods = client.pods().await.map_err(netd::cni_error)?;
    let is_stale = |pod: &PodInfo| {
        let attachment =
            ValidAttachment { container_id: pod.container_id.clone(), ifname: pod.ifname.clone() };
        pod.local && pod.network == config.name && !valid.contains(&attachment)
    };
    let mut failures = Vec::new();
    for pod in pods.into_iter().filter(is_stale) {
        let id = pod.id();
        tracing::info!(attachment = %id, "giving up what the runtime does not know");
        if let Err(error) = del::remove(&client, &id).await {
            failures.push(format!("{id}: {error}"));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let msg =
        format!("{} stale attachments of network {} could not be given up", failures.len(), config.name);
    Err(CniError::new(Code::IO, msg).with_details(failures.join("; ")))
}
