// SPDX-License-Identifier: Apache-2.0
//! Running pods follow the MTU of what their packets travel through: it changes with the underlay and with the backend.

use std::sync::Arc;

use ipam::AttachmentKey;
use netd_host::Netns;

use crate::attachments::{Attachment, Phase};
use crate::node::{Node, lock};

/// Gives every pod of this node the MTU, in bytes, where it has another. A pod whose netns cannot be entered
/// keeps what it has: its larger packets are answered with "packet too big", and the next pass tries again.
pub(crate) async fn follow_mtu(node: &Arc<Node>, mtu: u32) {
    let behind: Vec<AttachmentKey> =
        lock(&node.attachments).iter().filter(|a| is_behind(a, mtu)).map(|a| a.key.clone()).collect();
    for key in behind {
        let _turn = node.key_locks.hold(&key).await;
        let Some(attachment) = lock(&node.attachments).get(&key).filter(|a| is_behind(a, mtu)).cloned()
        else {
            continue;
        };
        let changed = async {
            let netns = Netns::open(attachment.netns.as_ref())?;
            let (from, host_ifname) = (attachment.mtu, &attachment.host_ifname);
            netd_host::change_pod_mtu(&netns, &key.ifname, host_ifname, from, mtu).await
        };
        match changed.await {
            Ok(_) => {
                tracing::info!(attachment = %key, from = attachment.mtu, to = mtu, "the pod's link has another MTU now")
            }
            Err(error) => {
                tracing::debug!(attachment = %key, %error, "the pod's link keeps its MTU for now");
                continue;
            }
        }
        let recorded =
            tokio::task::block_in_place(|| lock(&node.attachments).put(Attachment { mtu, ..attachment }));
        if let Err(error) = recorded {
            tracing::warn!(attachment = %key, %error, "the pod's new MTU was not recorded");
        }
    }
}

fn is_behind(attachment: &Attachment, mtu: u32) -> bool {
    attachment.phase == Phase::Committed && !attachment.adopted && attachment.mtu != mtu
}
