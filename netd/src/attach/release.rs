// SPDX-License-Identifier: Apache-2.0
//! DEL: withdraw, remove the link and with it its program, then its map entries, free the address, give back the sticky
//! name; in that order, each part fine when it is gone already.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ebpf_loader::Expedited;
use netd_api::{ApiError, AttachmentId, PortProtocol};

use super::{detach, key_of};
use crate::args::ExpediteKind;
use crate::attachments::{Attachment, Phase};
use crate::node::{Node, lock};

/// DEL waits this long for the store to have lost the endpoint; with the store down it goes on, and the address rests
/// through its cool-down anyway.
const WITHDRAW_WAIT: Duration = Duration::from_secs(1);
/// DEL waits this long for the rules of its mapped ports to go; the agent removes them later otherwise.
const UNMAP_WAIT: Duration = Duration::from_secs(2);

/// Between two looks whether a link is gone; a look costs some microseconds.
const GONE_POLL: Duration = Duration::from_millis(1);

/// `POST /v1/attachments/release`.
pub(crate) async fn release(node: &Arc<Node>, id: AttachmentId) -> Result<(), ApiError> {
    release_when(node, id, |_| true).await
}

/// As [`release`], if `still` holds when it is the key's turn.
pub(crate) async fn release_when(
    node: &Arc<Node>,
    id: AttachmentId,
    still: impl FnOnce(Option<&Attachment>) -> bool,
) -> Result<(), ApiError> {
    let key = key_of(&id);
    let _turn = node.key_locks.hold(&key).await;
    let known = lock(&node.attachments).get(&key).cloned();
    if !still(known.as_ref()) {
        return Ok(());
    }
    if let Some(attachment) = &known {
        withdraw(node, attachment).await?;
    }
    if !known.as_ref().is_some_and(|attachment| attachment.adopted) {
        let host_ifname = netd_plan::host_veth_name(&key.network, &key.container_id, &key.ifname);
        delete_link(&host_ifname, node.config.datapath_expedite == ExpediteKind::Auto)
            .await
            .map_err(|e| ApiError::fatal(format!("cannot delete the link {host_ifname}: {e}")))?;
    }
    if let Some(attachment) = &known {
        // After the link, and the program with it: a link without its program could send from any address.
        tokio::task::block_in_place(|| detach(node, attachment))?;
    }
    tokio::task::block_in_place(|| {
        let freed = node
            .addressing
            .take_back(&key)
            .map_err(|e| ApiError::fatal(format!("cannot record the release: {e:#}")))?;
        lock(&node.attachments)
            .remove(&key)
            .map_err(|e| ApiError::fatal(format!("cannot remove the attachment's record: {e}")))?;
        if known.is_some() || !freed.is_empty() {
            tracing::info!(attachment = %key, ?freed, "released");
        }
        Ok(())
    })?;
    // Last: nobody else has the name's addresses while they work here.
    if let Some(name) = known.as_ref().and_then(|attachment| attachment.sticky.as_deref())
        && !node.addressing.leave_name(name, &key).await
    {
        tracing::warn!(attachment = %key, name, "the store has not taken the sticky name back yet; it follows");
    }
    node.counters.dels.inc();
    node.changed();
    node.settle_wake.notify_one();
    Ok(())
}

/// Deletes the link; done once nobody can see or use it. The kernel takes such a device apart for some more grace periods
/// before it answers, and a DEL need not wait for that; `expedite` makes them short, for the next ADD or DEL waits for the lock
/// that is held meanwhile.
async fn delete_link(host_ifname: &str, expedite: bool) -> Result<(), netd_host::HostError> {
    if netd_host::interface_index(host_ifname).is_none() {
        return Ok(());
    }
    let name = host_ifname.to_owned();
    let mut deletion = tokio::spawn(async move {
        netd_host::veth::delete_host_link_during(&name, move || Expedited::begin(expedite)).await
    });
    loop {
        tokio::select! {
            outcome = &mut deletion => {
                // A panic is a bug of ours; the link is looked for again by who asks next.
                return outcome.unwrap_or(Ok(()));
            }
            () = tokio::time::sleep(GONE_POLL) => {
                if netd_host::interface_index(host_ifname).is_none() {
                    return Ok(());
                }
            }
        }
    }
}

/// Takes the attachment out of its services and of the host's ports before anything of it stops working.
async fn withdraw(node: &Arc<Node>, attachment: &Attachment) -> Result<(), ApiError> {
    let mut releasing = attachment.clone();
    releasing.phase = Phase::Releasing;
    tokio::task::block_in_place(|| lock(&node.attachments).put(releasing))
        .map_err(|e| ApiError::fatal(format!("cannot record the release: {e}")))?;
    let change = node.changed();
    let published = attachment.ips.iter().any(|ip| is_backend(node, *ip));
    if published && !node.wait_published(change, WITHDRAW_WAIT).await {
        tracing::warn!(attachment = %attachment.key, "the store has not taken the endpoint's withdrawal yet; it follows");
    }
    if !attachment.port_mappings.is_empty() {
        if !node.wait_programmed(change, UNMAP_WAIT).await {
            tracing::warn!(attachment = %attachment.key, "its mapped ports are still in the nft table; they go with the next pass");
        }
        forget_flows(attachment).await;
    }
    Ok(())
}

/// Datagrams of a flow that conntrack knows go where they went before, whatever the rules say now: those flows are forgotten
/// when a mapping comes or goes.
pub(super) async fn forget_flows(attachment: &Attachment) {
    for mapping in attachment.port_mappings.iter().filter(|mapping| mapping.protocol == PortProtocol::Udp) {
        if let Err(error) = netd_host::conntrack::forget_udp(mapping.host_ip, mapping.host_port).await {
            tracing::warn!(port = mapping.host_port, %error, "conntrack entries of a mapped UDP port were not removed");
        }
    }
}

fn is_backend(node: &Node, ip: IpAddr) -> bool {
    let view = node.view.load();
    view.table.services.values().flat_map(|entry| &entry.backends).any(|backend| backend.address == ip)
}
