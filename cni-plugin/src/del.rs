// SPDX-License-Identifier: Apache-2.0
//! DEL: netd gives the attachment up, then the link goes. What is gone already is a success, and so is a netd that
//! cannot be asked: the release waits in its queue.

use std::path::PathBuf;

use cni_types::{CniError, DelTarget, NetworkConfig, Salvage, is_network_name, is_socket_path};
use netd_api::{AttachmentId, Client, DEFAULT_SOCKET};
use netd_plan::host_veth_name;

use crate::{netd, wiring};

/// Gives an attachment up. Neither the netns nor prevResult is needed: the link's name follows from the attachment's.
pub(crate) async fn del(config: &NetworkConfig, target: &DelTarget, client: &Client) -> Result<(), CniError> {
    remove(client, &id(&config.name, target)).await
}

/// DEL with a config that cannot be used. With its network's name all goes as usual; without, netd knows which network
/// the container's link belongs to, for container ID and ifname are unique over all of them (CNI specification, section
/// 3). Errors: `damage`, where neither leads to anything.
pub(crate) async fn del_damaged(
    damage: CniError,
    salvage: Salvage,
    target: &DelTarget,
) -> Result<(), CniError> {
    let socket = salvage.socket.filter(|path| is_socket_path(path)).map(PathBuf::from);
    let client = Client::new(socket.unwrap_or_else(|| DEFAULT_SOCKET.into()), netd::REQUEST_TIMEOUT);
    let attachments: Vec<AttachmentId> = match salvage.name.filter(|name| is_network_name(name)) {
        Some(name) => vec![id(&name, target)],
        None => {
            let pods = client.pods().await.unwrap_or_default();
            let is_it = |pod: &netd_api::PodInfo| {
                pod.local && pod.container_id == target.container_id && pod.ifname == target.ifname
            };
            pods.iter().filter(|pod| is_it(pod)).map(netd_api::PodInfo::id).collect()
        }
    };
    if attachments.is_empty() {
        return Err(damage);
    }
    for attachment in &attachments {
        tracing::warn!(%damage, %attachment, "the network config is damaged; giving up what it must have meant");
        remove(&client, attachment).await?;
    }
    Ok(())
}

/// Gives an attachment up, going on after an error; the first one is reported.
pub(crate) async fn remove(client: &Client, id: &AttachmentId) -> Result<(), CniError> {
    // netd first: it withdraws the endpoint and detaches before the link goes.
    let released = netd::release(client, id).await;
    let deleted = wiring::delete(&host_veth_name(&id.network, &id.container_id, &id.ifname)).await;
    if let (Err(_), Err(error)) = (&released, &deleted) {
        tracing::warn!(%error, "the host link could not be removed either");
    }
    released.and(deleted)
}

fn id(network: &str, target: &DelTarget) -> AttachmentId {
    AttachmentId {
        network: network.to_owned(),
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    }
}
