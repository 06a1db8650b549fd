// SPDX-License-Identifier: Apache-2.0
//! Phase two of ADD: the link is there; attach, program what belongs to the pod, publish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use netd_api::{ApiError, CommitRequest, PodLabelReply, PodLabelRequest};
use netd_plan::Mac;

use super::release::forget_flows;
use super::{attach, detach, follow, key_of};
use crate::attachments::{Attachment, Phase};
use crate::labels;
use crate::node::{Node, lock};

/// Mapped ports and limits are in force when ADD is answered; a pass that takes longer fails the ADD.
const PROGRAM_WAIT: Duration = Duration::from_secs(5);

/// `POST /v1/attachments/commit`.
pub(crate) async fn commit(node: &Arc<Node>, request: CommitRequest) -> Result<(), ApiError> {
    let key = key_of(&request.id());
    let mac = |what: &str, text: &str| {
        text.parse::<Mac>()
            .map_err(|e| ApiError::invalid(format!("{what}: {text:?} is not a MAC address: {e}")))
    };
    let _turn = node.key_locks.hold(&key).await;
    let attachment = tokio::task::block_in_place(|| -> Result<Attachment, ApiError> {
        // Held to the end: the agent's pass sees the pod either not at all or complete.
        let mut attachments = lock(&node.attachments);
        let mut attachment =
            attachments.get(&key).filter(|a| a.phase == Phase::Pending).cloned().ok_or_else(|| {
                ApiError::not_found(format!("attachment {key} is not being added (any more)"))
            })?;
        attachment.phase = Phase::Committed;
        attachment.netns.clone_from(&request.netns);
        if !attachment.adopted {
            attachment.host_index = request.host_index;
            attachment.host_mac = mac("host_mac", &request.host_mac)?;
            attachment.container_mac = mac("container_mac", &request.container_mac)?;
        }
        attach(node, &attachment).map_err(|e| {
            ApiError::fatal(format!("cannot attach the programs to {}: {e}", attachment.host_ifname))
        })?;
        let recorded = node
            .addressing
            .commit(&key)
            .map_err(|e| ApiError::fatal(format!("cannot record the address: {e:#}")))
            .and_then(|()| {
                attachments
                    .put(attachment.clone())
                    .map_err(|e| ApiError::fatal(format!("cannot record the attachment: {e}")))
            });
        if let Err(error) = recorded {
            // The record still says pending and knows no link: the release that follows would not find these.
            let _ = detach(node, &attachment);
            return Err(error);
        }
        Ok(attachment)
    })?;
    tracing::info!(attachment = %key, pod = %format!("{}/{}", attachment.namespace, attachment.name), ips = ?attachment.ips, "attached");
    let change = node.changed();
    follow::watch(node, &attachment);
    if !attachment.port_mappings.is_empty() || attachment.bandwidth.is_some() {
        in_force(node, &attachment, change).await?;
        forget_flows(&attachment).await;
    }
    Ok(())
}

/// Waits for the pass that programs this change, and looks whether it did.
async fn in_force(node: &Node, attachment: &Attachment, change: u64) -> Result<(), ApiError> {
    let refused = |why: String| {
        ApiError::retry(format!("the mapped ports or limits of {} are not in force: {why}", attachment.key))
    };
    if !node.wait_programmed(change, PROGRAM_WAIT).await {
        let errors = node.progress.load().kernel_errors.join("; ");
        return Err(refused(format!("no pass of netd's succeeded within {PROGRAM_WAIT:?}: {errors}")));
    }
    if attachment.adopted {
        return Ok(());
    }
    let progress = node.progress.load();
    let links = [attachment.host_ifname.clone(), netd_plan::ifb_name(&attachment.host_ifname)];
    match progress.pending.iter().find(|item| links.iter().any(|link| item.object.contains(link.as_str()))) {
        Some(item) => Err(refused(format!("{}: {}", item.object, item.error))),
        None => Ok(()),
    }
}

/// `POST /v1/pods/label`: of a pod of this node, on all its interfaces.
pub(crate) fn label(node: &Arc<Node>, request: &PodLabelRequest) -> Result<PodLabelReply, ApiError> {
    let wrong = request.labels.iter().find_map(|(key, value)| labels::objection(key, value.as_deref()));
    if let Some(wrong) = wrong {
        return Err(ApiError::invalid(wrong));
    }
    let mut attachments = lock(&node.attachments);
    let of_pod: Vec<Attachment> = attachments
        .iter()
        .filter(|a| a.namespace == request.namespace && a.name == request.name)
        .cloned()
        .collect();
    let mut labels = BTreeMap::new();
    if of_pod.is_empty() {
        return Err(ApiError::not_found(format!(
            "no pod {}/{} on this node; `weft pod ls` shows where it runs",
            request.namespace, request.name
        )));
    }
    for mut attachment in of_pod {
        for (key, value) in &request.labels {
            match value {
                Some(value) => drop(attachment.labels.insert(key.clone(), value.clone())),
                None => drop(attachment.labels.remove(key)),
            }
        }
        labels = attachment.effective_labels();
        tokio::task::block_in_place(|| attachments.put(attachment))
            .map_err(|e| ApiError::fatal(format!("cannot record the labels: {e}")))?;
    }
    drop(attachments);
    node.changed();
    Ok(PodLabelReply { labels })
}
