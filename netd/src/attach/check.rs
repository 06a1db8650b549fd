// SPDX-License-Identifier: Apache-2.0
//! CHECK, netd's part: what it has on record, and what of it is not as it should be.

use std::net::IpAddr;
use std::sync::Arc;

use ipam::Owner;
use ipnet::IpNet;
use netd_api::{ApiError, AttachmentId, CheckReply};

use super::{follow_mac, gateways, key_of};
use crate::attachments::{Attachment, Phase};
use crate::node::{Node, lock};

/// `POST /v1/attachments/check`.
pub(crate) async fn check(node: &Arc<Node>, id: &AttachmentId) -> Result<CheckReply, ApiError> {
    let key = key_of(id);
    // A plugin behind us may have changed the link's address where nobody told us of the chain.
    follow_mac(node, &key).await;
    let attachment = lock(&node.attachments)
        .get(&key)
        .cloned()
        .ok_or_else(|| ApiError::not_found(format!("netd knows no attachment {key}")))?;
    let attached = attachment.adopted || is_attached(node, &attachment)?;
    Ok(CheckReply {
        addresses: attachment.ips.iter().map(|ip| IpNet::from(*ip)).collect(),
        gateways: gateways(&attachment),
        host_ifname: attachment.host_ifname.clone(),
        container_mac: (!attachment.adopted).then(|| attachment.container_mac.to_string()),
        mtu: attachment.mtu,
        attached: attached && attachment.phase == Phase::Committed,
        adopted: attachment.adopted,
        differences: differences(node, &attachment),
    })
}

fn is_attached(node: &Node, attachment: &Attachment) -> Result<bool, ApiError> {
    let pods = tokio::task::block_in_place(|| lock(&node.datapath).pods())
        .map_err(|e| ApiError::fatal(format!("cannot read the pod map: {e}")))?;
    Ok(pods
        .get(&attachment.host_index)
        .is_some_and(|pod| attachment.ips.iter().all(|ip| pod.addresses.contains(ip))))
}

/// What only netd can see: the address record, and what the last pass could not program.
fn differences(node: &Node, attachment: &Attachment) -> Vec<String> {
    let mut found = Vec::new();
    if attachment.phase != Phase::Committed {
        found.push(format!("the attachment is {:?}, not live", attachment.phase).to_lowercase());
    }
    if attachment.adopted {
        return found;
    }
    let own = {
        let addresses = node.addressing.addresses();
        let owner = match &attachment.sticky {
            Some(name) => Owner::Sticky(name.clone()),
            None => Owner::Attachment(attachment.key.clone()),
        };
        let blocks = addresses.blocks();
        let held = addresses.addresses_of(&owner);
        // A borrower that inherited the lender's block holds the address as a loan.
        let lent = |ip: &IpAddr| !addresses.addresses_of(&Owner::granted(*ip)).is_empty();
        let own = |ip: &&IpAddr| blocks.iter().any(|block| block.contains(*ip));
        attachment
            .ips
            .iter()
            .filter(own)
            .filter(|ip| !held.contains(ip) && !lent(ip))
            .copied()
            .collect::<Vec<_>>()
    };
    found.extend(own.into_iter().map(|ip| format!("{ip} is not recorded as this attachment's address")));
    if !attachment.port_mappings.is_empty() || attachment.bandwidth.is_some() {
        found.extend(node.progress.load().kernel_errors.iter().cloned());
    }
    found
}
