// SPDX-License-Identifier: Apache-2.0
//! Phase one of ADD: addresses and a record, before any link exists.

use std::net::IpAddr;
use std::sync::Arc;

use ipam::{AddressRange, AttachmentKey};
use ipnet::IpNet;
use netd_api::{AllocateReply, AllocateRequest, ApiError, Code, IpRange};
use netd_plan::Mac;

use super::{gateways, key_of, listeners, pod_dns, ports};
use crate::addressing::{GiveError, Wish};
use crate::attachments::{Attachment, Phase};
use crate::desired;
use crate::labels;
use crate::names::with_names;
use crate::node::{Node, lock, now_ms};

/// Namespace of a container that does not say one.
const DEFAULT_NAMESPACE: &str = "default";

/// `POST /v1/attachments/allocate`.
pub(crate) async fn allocate(node: &Arc<Node>, request: AllocateRequest) -> Result<AllocateReply, ApiError> {
    if !node.progress.load().programmed_once {
        return Err(ApiError::retry("netd is starting: the node's network is not programmed yet; try again"));
    }
    let key = key_of(&request.id());
    let wish = wish(&request)?;
    if let Some(wanted) = &request.bandwidth {
        desired::bandwidth(wanted).map_err(|error| ApiError::invalid(error.to_string()))?;
        if request.adopted.is_some() {
            return Err(ApiError::invalid(
                "bandwidth: another plugin made this link, and limits belong to who makes it; declare the capability for the \
                 bandwidth plugin instead",
            ));
        }
    }
    let wrong = request.labels.iter().find_map(|(key, value)| labels::objection(key, Some(value)));
    if let Some(wrong) = wrong {
        return Err(ApiError::invalid(wrong));
    }
    let _turn = node.key_locks.hold(&key).await;
    if let Some(known) = lock(&node.attachments).get(&key) {
        // Also while it is pending: of two ADDs at once the second must not undo the first.
        let ips = &known.ips;
        return Err(ApiError::conflict(format!(
            "attachment {key} exists already with {ips:?}; DEL it first"
        )));
    }
    ports::refuse_taken(&lock(&node.attachments), &request.port_mappings)?;
    let tunnels = crate::overlay::ports(&node.overlay.load(), &node.view.load().config);
    tokio::task::block_in_place(|| {
        listeners::refuse_listening(&node.config, &tunnels, &request.port_mappings)
    })?;
    let (ips, sticky, _given) = match &request.adopted {
        Some(adopted) => (adopted.addresses.iter().map(IpNet::addr).collect(), None, None),
        None => {
            let given = node.addressing.give(&key, &wish).await.map_err(|error| refusal(node, error))?;
            (given.ips.clone(), given.sticky.clone(), Some(given))
        }
    };
    let attachment = pending(node, &key, request, ips, sticky);
    let reply = reply(node, &attachment);
    let stored = tokio::task::block_in_place(|| -> Result<(), ApiError> {
        let mut attachments = lock(&node.attachments);
        // Another ADD may have taken a port while this one waited for its addresses.
        ports::refuse_taken(&attachments, &attachment.port_mappings)?;
        attachments
            .put(attachment)
            .map_err(|error| ApiError::fatal(format!("cannot record the attachment: {error}")))
    });
    if let Err(error) = stored {
        let _ = tokio::task::block_in_place(|| node.addressing.take_back(&key));
        node.settle_wake.notify_one();
        return Err(error);
    }
    node.claim_wake.notify_one();
    node.counters.adds.inc();
    node.publish_wake.notify_one();
    Ok(reply)
}

fn wish(request: &AllocateRequest) -> Result<Wish, ApiError> {
    let of_family = |v4: bool| request.requested_ips.iter().filter(move |ip| ip.is_ipv4() == v4).count();
    if of_family(true) > 1 || of_family(false) > 1 {
        let ips = &request.requested_ips;
        return Err(ApiError::invalid(format!(
            "requested {ips:?}: an attachment has one address of a family"
        )));
    }
    let set = |ranges: &Vec<IpRange>| ranges.iter().map(range).collect::<Result<Vec<_>, _>>();
    Ok(Wish {
        requested: request.requested_ips.clone(),
        ranges: request.ip_ranges.iter().map(set).collect::<Result<_, _>>()?,
        sticky: request.sticky.clone(),
    })
}

fn range(range: &IpRange) -> Result<AddressRange, ApiError> {
    let subnet = range.subnet.trunc();
    let inside = |ip: IpAddr| {
        if subnet.contains(&ip) {
            return Ok(ip);
        }
        Err(ApiError::invalid(format!("ipRanges: {ip} lies outside of its subnet {subnet}")))
    };
    let (first, last) = (
        inside(range.first.unwrap_or_else(|| subnet.network()))?,
        inside(range.last.unwrap_or_else(|| subnet.broadcast()))?,
    );
    if first > last {
        return Err(ApiError::invalid(format!("ipRanges: {first} to {last} is empty")));
    }
    Ok(AddressRange { first, last })
}

pub(crate) fn refusal(node: &Node, error: GiveError) -> ApiError {
    let text = error.to_string();
    match error {
        GiveError::Invalid(_) => ApiError::invalid(text),
        GiveError::Taken(_) => ApiError::conflict(with_names(node, &text)).with_code(Code::TAKEN),
        GiveError::Exhausted(_) => {
            node.counters.exhausted.inc();
            ApiError::exhausted(format!("{text}; `weft ipam show` has the usage"))
        }
        GiveError::Later(_) => ApiError::retry(with_names(node, &text)),
        GiveError::Claim(_) | GiveError::StoreAway { .. } | GiveError::Unconfigured | GiveError::Removed => {
            ApiError::retry(text)
        }
        GiveError::Journal(_) => ApiError::fatal(text),
    }
}

fn pending(
    node: &Node,
    key: &AttachmentKey,
    request: AllocateRequest,
    ips: Vec<IpAddr>,
    sticky: Option<String>,
) -> Attachment {
    let adopted = request.adopted.is_some();
    let (namespace, name, uid) = match request.pod {
        Some(pod) => (pod.namespace, pod.name, pod.uid.unwrap_or_default()),
        None => (DEFAULT_NAMESPACE.to_owned(), key.container_id.clone(), String::new()),
    };
    Attachment {
        key: key.clone(),
        phase: Phase::Pending,
        namespace,
        name,
        uid,
        labels: request.labels,
        ips,
        sticky,
        aliases: request.aliases,
        port_mappings: request.port_mappings,
        bandwidth: request.bandwidth,
        cgroup_path: request.cgroup_path,
        slow_path: !request.fast_path,
        adopted,
        host_ifname: if adopted {
            String::new()
        } else {
            netd_plan::host_veth_name(&key.network, &key.container_id, &key.ifname)
        },
        host_index: 0,
        host_mac: Mac::default(),
        container_mac: Mac::default(),
        netns: String::new(),
        mtu: node.overlay.load().mtu,
        allocated_at_ms: now_ms(),
    }
}

fn reply(node: &Node, attachment: &Attachment) -> AllocateReply {
    AllocateReply {
        addresses: attachment.ips.iter().map(|ip| IpNet::from(*ip)).collect(),
        gateways: gateways(attachment),
        mtu: attachment.mtu,
        gso_max_segs: node.overlay.load().gso_max_segs(),
        host_ifname: attachment.host_ifname.clone(),
        dns: pod_dns(node, attachment),
    }
}
