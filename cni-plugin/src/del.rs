// SPDX-License-Identifier: Apache-2.0
//! DEL: netd gives the attachment up, then the link goes. What is gone already is a success, and so is a netd that
//! cannot be asked: the release waits in its queue.

use cni_types::{CniError, DelTarget, NetworkConfig};
use netd_api::AttachmentId;
use netd_plan::host_veth_name;

use crate::{netd, wiring};

/// Gives an attachment up. Neither the netns nor prevResult is needed: the link's name follows from the attachment's.
pub(crate) async fn del(config: &NetworkConfig, target: &DelTarget) -> Result<(), CniError> {
    let id = AttachmentId {
        network: config.name.clone(),
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    };
    remove(&netd::client(config, netd::REQUEST_TIMEOUT), &id).await
}

/// Gives an attachment up, going on after an error; the first one is reported.
pub(crate) async fn remove(client: &netd_api::Client, id: &AttachmentId) -> Result<(), CniError> {
    // netd first: it withdraws the endpoint and detaches before the link goes.
    let released = netd::release(client, id).await;
    let deleted = wiring::delete(&host_veth_name(&id.network, &id.container_id, &id.ifname)).await;
    if let (Err(_), Err(error)) = (&released, &deleted) {
        tracing::warn!(%error, "the host link could not be removed either");
    }
    released.and(deleted)
}
