// SPDX-License-Identifier: Apache-2.0
//! The Ethernet address of a pod's link may change after us: the tuning plugin does that. The host side has to follow, or
//! the pod is cut off: its packets come from an address that is not its, and those to it go to one that it no longer has.
//!
//! Nothing outside the pod tells of such a change, so it is looked for: some seconds after ADD and at every full pass where
//! tuning follows weft-cni in the network, and at every CHECK.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam::AttachmentKey;
use netd_host::Netns;

use super::fast_path::may_change_mac;
use super::gateways;
use crate::attachments::{Attachment, Phase};
use crate::node::{Node, lock};

/// The rest of the chain runs right after us.
const LOOKS: u32 = 40;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After ADD: looks for a while, where a change may come.
pub(super) fn watch(node: &Arc<Node>, attachment: &Attachment) {
    if attachment.adopted || !may_change_mac(node, attachment) {
        return;
    }
    let (node, key) = (node.clone(), attachment.key.clone());
    // Ends by itself after seconds; a netd that ends meanwhile looks anew when it is back.
    tokio::spawn(async move {
        for _ in 0..LOOKS {
            tokio::time::sleep(LOOK_EVERY).await;
            follow_mac(&node, &key).await;
        }
    });
}

/// Every pod of a network in which tuning follows us.
pub(crate) async fn follow_all(node: &Arc<Node>) {
    let keys: Vec<AttachmentKey> = lock(&node.attachments)
        .iter()
        .filter(|a| a.phase == Phase::Committed && !a.adopted && may_change_mac(node, a))
        .map(|a| a.key.clone())
        .collect();
    for key in keys {
        follow_mac(node, &key).await;
    }
}

/// Reads the link's address in the pod, and takes it over where it has changed. A pod whose netns cannot be entered keeps
/// what is on record: CHECK and the sweep say what is wrong with it.
pub(crate) async fn follow_mac(node: &Arc<Node>, key: &AttachmentKey) {
    let Some(known) = live(node, key) else { return };
    let gateways: Vec<IpAddr> = gateways(&known);
    let Ok(netns) = Netns::open(known.netns.as_ref()) else { return };
    let (mac, host_mac) = (known.container_mac, known.host_mac);
    let seen = netd_host::follow_container_mac(&netns, &key.ifname, mac, &gateways, host_mac).await;
    let Ok(Some(mac)) = seen else { return };
    let _turn = node.key_locks.hold(key).await;
    let Some(mut attachment) = live(node, key).filter(|now| now.host_index == known.host_index) else {
        return;
    };
    tracing::info!(attachment = %key, from = %attachment.container_mac, to = %mac, "the pod's link has another address now");
    attachment.container_mac = mac;
    let outcome = tokio::task::block_in_place(|| -> Result<(), String> {
        let mut attachments = lock(&node.attachments);
        super::attach(node, &attachment).map_err(|error| error.to_string())?;
        attachments.put(attachment).map_err(|error| error.to_string())
    });
    if let Err(error) = outcome {
        tracing::warn!(attachment = %key, error, "the pod's new address was not taken over; will be tried again");
    }
    node.changed();
}

fn live(node: &Node, key: &AttachmentKey) -> Option<Attachment> {
    lock(&node.attachments).get(key).filter(|a| a.phase == Phase::Committed && !a.adopted).cloned()
}
