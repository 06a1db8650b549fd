// SPDX-License-Identifier: Apache-2.0
//! What weft-cni asks for: allocate, commit, release, check. Each is idempotent or says clearly why not; an ADD that died
//! half-way leaves a pending attachment, which DEL removes, and the sweep where no DEL comes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipam::{AllocateError, AttachmentKey, Owner};
use ipnet::IpNet;
use netd_api::{
    AllocateReply, AllocateRequest, ApiError, AttachmentId, CheckReply, Code, CommitRequest, DnsReply,
};
use netd_plan::Mac;
use netd_store::claim::ClaimError;

use crate::addresses::{AddressError, Addresses};
use crate::attachments::{Attachment, Phase};
use crate::desired;
use crate::node::{Node, lock, now_ms};

/// The pods' gateway: no address of any host, only a neighbour entry that leads to the host veth.
const POD_GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
/// Namespace of a container that does not say one.
const DEFAULT_NAMESPACE: &str = "default";
/// DEL waits this long for the store to have lost the endpoint; with the store down it goes on, and the address rests
/// through its cool-down anyway.
const WITHDRAW_WAIT: Duration = Duration::from_secs(1);

/// `POST /v1/attachments/allocate`.
pub(crate) async fn allocate(node: &Arc<Node>, request: AllocateRequest) -> Result<AllocateReply, ApiError> {
    if !node.progress.load().programmed_once {
        return Err(ApiError::retry("netd is starting: the node's network is not programmed yet; try again"));
    }
    let key = key_of(&request.id());
    let requested = requested_ip(&request)?;
    let owner = Owner::Attachment(key.clone());
    let _turn = node.key_locks.hold(&key).await;
    if let Some(known) = lock(&node.attachments).get(&key) {
        // Also while it is pending: of two ADDs at once the second must not undo the first.
        let ips = &known.ips;
        return Err(ApiError::conflict(format!(
            "attachment {key} exists already with {ips:?}; DEL it first"
        )));
    }
    let ip = address_for(node, &owner, requested).await?;
    let attachment = pending(node, &key, &request, ip);
    let reply = reply(node, &attachment);
    let stored = tokio::task::block_in_place(|| lock(&node.attachments).put(attachment));
    if let Err(error) = stored {
        let _ = tokio::task::block_in_place(|| lock(&node.addresses).release(&owner));
        return Err(ApiError::fatal(format!("cannot record the attachment: {error}")));
    }
    node.claim_wake.notify_one();
    node.counters.adds.inc();
    node.publish_wake.notify_one();
    Ok(reply)
}

/// From an owned block; from a freshly claimed one when all are full.
async fn address_for(node: &Arc<Node>, owner: &Owner, requested: Option<IpAddr>) -> Result<IpAddr, ApiError> {
    let first = tokio::task::block_in_place(|| lock(&node.addresses).allocate(owner, requested));
    match first {
        Ok(ip) => return Ok(ip),
        Err(AddressError::Allocate(AllocateError::AlreadyAllocated(ip))) => return Ok(ip),
        Err(AddressError::Allocate(AllocateError::Exhausted { .. })) => {}
        Err(error) => return Err(address_error(node, &error)),
    }
    let mut given = None;
    claim_block(node, |addresses| {
        given = addresses.allocate(owner, requested).ok();
        given.is_some()
    })
    .await?;
    match given {
        Some(ip) => Ok(ip),
        None => tokio::task::block_in_place(|| lock(&node.addresses).allocate(owner, requested))
            .map_err(|error| address_error(node, &error)),
    }
}

/// Claims one more block for this node, by transaction, unless `enough` says after the wait for other claims that there is
/// no need any more: a burst of ADDs on a full node claims one block, not one each.
pub(crate) async fn claim_block(
    node: &Arc<Node>,
    mut enough: impl FnMut(&mut Addresses) -> bool,
) -> Result<(), ApiError> {
    let _turn = node.claiming.lock().await;
    if tokio::task::block_in_place(|| enough(&mut lock(&node.addresses))) {
        return Ok(());
    }
    let view = node.view.load_full();
    if !view.configured {
        return Err(ApiError::retry("the cluster has no configuration yet; try again"));
    }
    let mirror = node.mirror.borrow().clone();
    if !mirror.connected {
        // Also while a listing is held: the store then does not know which blocks are taken.
        let why = mirror.last_error.clone().unwrap_or_default();
        return Err(ApiError::retry(format!(
            "this node's blocks are full, and none can be claimed while the store is not followed: {why}"
        )));
    }
    let pools: Vec<ipam::Pool> = view.pools.values().cloned().collect();
    let claimed = netd_store::claim::claim_block(node.store.as_ref(), &node.keys, &pools, node.uuid).await;
    let record = claimed.map_err(|error| match &error {
        ClaimError::Exhausted { .. } => {
            node.counters.exhausted.inc();
            ApiError::exhausted(format!("{error}; add a pool, or remove nodes that are gone"))
        }
        _ => ApiError::retry(format!(
            "no free address in this node's blocks, and claiming another failed: {error}"
        )),
    })?;
    tracing::info!(block = %record.cidr, pool = %record.pool, "block claimed");
    tokio::task::block_in_place(|| lock(&node.addresses).add_block(record))
        .map_err(|error| ApiError::fatal(format!("the claimed block cannot be recorded: {error:#}")))?;
    node.changed();
    Ok(())
}

fn address_error(node: &Node, error: &AddressError) -> ApiError {
    match error {
        AddressError::Allocate(AllocateError::Exhausted { .. }) => {
            node.counters.exhausted.inc();
            ApiError::exhausted(error.to_string())
        }
        AddressError::Allocate(AllocateError::CoolingDown { .. }) => ApiError::retry(error.to_string()),
        AddressError::Allocate(AllocateError::InUse { .. }) => {
            ApiError::conflict(error.to_string()).with_code(Code::TAKEN)
        }
        AddressError::Allocate(_) => ApiError::invalid(error.to_string()),
        AddressError::Journal(_) => ApiError::fatal(error.to_string()),
    }
}

fn pending(node: &Node, key: &AttachmentKey, request: &AllocateRequest, ip: IpAddr) -> Attachment {
    let pod = request.pod.as_ref();
    Attachment {
        key: key.clone(),
        phase: Phase::Pending,
        namespace: pod.map_or_else(|| DEFAULT_NAMESPACE.to_owned(), |p| p.namespace.clone()),
        name: pod.map_or_else(|| key.container_id.clone(), |p| p.name.clone()),
        uid: pod.and_then(|p| p.uid.clone()).unwrap_or_default(),
        labels: request.labels.clone(),
        ips: vec![ip],
        host_ifname: netd_plan::host_veth_name(&key.network, &key.container_id, &key.ifname),
        host_index: 0,
        host_mac: Mac::default(),
        container_mac: Mac::default(),
        netns: String::new(),
        mtu: desired::pod_mtu(&node.underlay, node.view.load().config.overlay),
        allocated_at_ms: now_ms(),
    }
}

fn reply(node: &Node, attachment: &Attachment) -> AllocateReply {
    AllocateReply {
        addresses: attachment.ips.iter().map(|ip| IpNet::from(*ip)).collect(),
        gateway: POD_GATEWAY,
        mtu: attachment.mtu,
        host_ifname: attachment.host_ifname.clone(),
        dns: pod_dns(node, &attachment.namespace),
    }
}

/// The node's own server first, the cluster's VIP second; the search path and `ndots` of Kubernetes' ClusterFirst.
fn pod_dns(node: &Node, namespace: &str) -> DnsReply {
    let view = node.view.load();
    let zone = &view.config.dns_zone;
    DnsReply {
        nameservers: vec![node.config.dns_address, view.config.dns_vip],
        domain: Some(zone.clone()),
        search: vec![format!("{namespace}.svc.{zone}"), format!("svc.{zone}"), zone.clone()],
        options: vec!["ndots:5".to_owned()],
    }
}

/// `POST /v1/attachments/commit`: the link is there; attach, then publish.
pub(crate) async fn commit(node: &Arc<Node>, request: CommitRequest) -> Result<(), ApiError> {
    let key = key_of(&request.id());
    let mac = |what: &str, text: &str| {
        text.parse::<Mac>()
            .map_err(|e| ApiError::invalid(format!("{what}: {text:?} is not a MAC address: {e}")))
    };
    let (host_mac, container_mac) =
        (mac("host_mac", &request.host_mac)?, mac("container_mac", &request.container_mac)?);
    let _turn = node.key_locks.hold(&key).await;
    let owner = Owner::Attachment(key.clone());
    let attachment = tokio::task::block_in_place(|| -> Result<Attachment, ApiError> {
        // Held to the end: the agent's pass sees the pod either not at all or complete.
        let mut attachments = lock(&node.attachments);
        let mut attachment = attachments
            .get(&key)
            .filter(|a| a.phase == Phase::Pending && lock(&node.addresses).address_of(&owner).is_some())
            .cloned()
            .ok_or_else(|| ApiError::not_found(format!("attachment {key} is not being added (any more)")))?;
        attachment.phase = Phase::Committed;
        attachment.host_index = request.host_index;
        attachment.host_mac = host_mac;
        attachment.container_mac = container_mac;
        attachment.netns = request.netns;
        attach(node, &attachment).map_err(|e| {
            ApiError::fatal(format!("cannot attach the programs to {}: {e}", attachment.host_ifname))
        })?;
        let recorded = lock(&node.addresses)
            .commit(&owner)
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
    node.changed();
    Ok(())
}

/// Programs and map entries of one attachment.
pub(crate) fn attach(node: &Node, attachment: &Attachment) -> Result<(), ebpf_loader::AttachError> {
    for ip in &attachment.ips {
        let IpAddr::V4(ip) = ip else { continue };
        lock(&node.datapath).attach_pod(&ebpf_loader::PodAttachment {
            host_ifname: attachment.host_ifname.clone(),
            host_index: attachment.host_index,
            ip: *ip,
            mac: attachment.container_mac.0,
            host_mac: attachment.host_mac.0,
            redirect: true,
        })?;
    }
    Ok(())
}

/// `POST /v1/attachments/release`: withdraw, detach, remove the link, free the address; in that order, each part fine when
/// it is gone already.
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
        tokio::task::block_in_place(|| detach(node, attachment))?;
    }
    let host_ifname = netd_plan::host_veth_name(&key.network, &key.container_id, &key.ifname);
    netd_host::veth::delete_host_link(&host_ifname)
        .await
        .map_err(|e| ApiError::fatal(format!("cannot delete the link {host_ifname}: {e}")))?;
    tokio::task::block_in_place(|| {
        let freed = lock(&node.addresses)
            .release(&Owner::Attachment(key.clone()))
            .map_err(|e| ApiError::fatal(format!("cannot record the release: {e:#}")))?;
        lock(&node.attachments)
            .remove(&key)
            .map_err(|e| ApiError::fatal(format!("cannot remove the attachment's record: {e}")))?;
        if let Some(ip) = freed {
            tracing::info!(attachment = %key, %ip, "released");
        }
        Ok(())
    })?;
    node.counters.dels.inc();
    node.changed();
    Ok(())
}

/// Takes the attachment out of its services before anything of it stops working.
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
    Ok(())
}

fn is_backend(node: &Node, ip: IpAddr) -> bool {
    let view = node.view.load();
    view.table.services.values().flat_map(|entry| &entry.backends).any(|backend| backend.address == ip)
}

fn detach(node: &Node, attachment: &Attachment) -> Result<(), ApiError> {
    for ip in &attachment.ips {
        let IpAddr::V4(ip) = ip else { continue };
        lock(&node.datapath)
            .detach_pod(attachment.host_index, *ip)
            .map_err(|e| ApiError::fatal(format!("cannot detach {}: {e}", attachment.host_ifname)))?;
    }
    Ok(())
}

/// `POST /v1/attachments/check`.
pub(crate) fn check(node: &Arc<Node>, id: &AttachmentId) -> Result<CheckReply, ApiError> {
    let key = key_of(id);
    let attachment = lock(&node.attachments)
        .get(&key)
        .cloned()
        .ok_or_else(|| ApiError::not_found(format!("netd knows no attachment {key}")))?;
    let attached = tokio::task::block_in_place(|| lock(&node.datapath).pods())
        .map_err(|e| ApiError::fatal(format!("cannot read the pod map: {e}")))?
        .get(&attachment.host_index)
        .is_some_and(|pod| attachment.ips.contains(&IpAddr::V4(pod.ip)));
    Ok(CheckReply {
        addresses: attachment.ips.iter().map(|ip| IpNet::from(*ip)).collect(),
        gateway: POD_GATEWAY,
        host_ifname: attachment.host_ifname.clone(),
        container_mac: Some(attachment.container_mac.to_string()),
        mtu: attachment.mtu,
        attached: attached && attachment.phase == Phase::Committed,
    })
}

fn requested_ip(request: &AllocateRequest) -> Result<Option<IpAddr>, ApiError> {
    match request.requested_ips.as_slice() {
        [] => Ok(None),
        [ip] if ip.is_ipv4() => Ok(Some(*ip)),
        many => {
            Err(ApiError::invalid(format!("requested {many:?}: one IPv4 address at most in this version")))
        }
    }
}

fn key_of(id: &AttachmentId) -> AttachmentKey {
    AttachmentKey::new(&id.network, &id.container_id, &id.ifname)
}
