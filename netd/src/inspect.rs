// SPDX-License-Identifier: Apache-2.0
//! `weft ipam check` and `weft ipam repair`: the witnesses are heard here and judged in `ipam::check`; a repair does what is
//! proven, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ipam::check::{AddressWitness, AttachmentWitness, StickyWitness};
use ipam::{Action, AttachmentKey, BlockRecord, Finding, FindingKind, Owner, Witnesses};
use netd_api::{ApiError, IpamCheckReply, IpamFinding};
use netd_host::Host;
use netd_plan::links::LINK_PREFIX;
use netd_store::claim::{StickyHolder, give_back_sticky, node_ports_of};
use netd_store::{MirrorState, Transaction};

use crate::attachments::Phase;
use crate::names;
use crate::node::{Node, lock};
use crate::sweep::sight_by_name;
use crate::view::View;
use crate::witness::{runtime_cache, sight};

/// What is being published or made right now agrees within this; a start publishes all that it has.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The agent parses what the watch brings within a fraction of this.
const VIEW_LIMIT: Duration = Duration::from_secs(1);

/// `GET /v1/ipam/check`.
pub(crate) async fn check(node: &Arc<Node>) -> Result<IpamCheckReply, ApiError> {
    let (heard, findings) = examine(node).await.map_err(fatal)?;
    Ok(reply(node, &heard.witnesses, &findings, Vec::new()))
}

/// `POST /v1/ipam/repair`: what is proven is mended, then looked at again.
pub(crate) async fn repair(node: &Arc<Node>) -> Result<IpamCheckReply, ApiError> {
    let mut repaired = Vec::new();
    let (heard, findings) = examine(node).await.map_err(fatal)?;
    for finding in findings.into_iter().filter(|finding| finding.repairable) {
        let what = format!("{}: {}", finding.subject, finding.action);
        match act(node, &heard, &finding.action).await {
            Ok(true) => {
                let (subject, why) = (&finding.subject, &finding.explanation);
                tracing::warn!(subject, why, "repaired: {}", finding.action);
                repaired.push(what);
            }
            Ok(false) => repaired.push(format!("{what}: not any more")),
            Err(error) => repaired.push(format!("{what}: failed: {error:#}")),
        }
    }
    node.changed();
    let (heard, findings) = examine(node).await.map_err(fatal)?;
    Ok(reply(node, &heard.witnesses, &findings, repaired))
}

/// The witnesses, and the store's items that they were taken from.
struct Heard {
    witnesses: Witnesses,
    items: Arc<MirrorState>,
}

/// Two looks: what only one of them shows is work that goes on. Records of blocks get some more time to be published.
async fn examine(node: &Arc<Node>) -> Result<(Heard, Vec<Finding>)> {
    let mut heard = hear(node).await?;
    let mut findings = ipam::check(&heard.witnesses);
    let deadline = tokio::time::Instant::now() + SETTLE_LIMIT;
    let mut looks = 1;
    let published = |kind: FindingKind| matches!(kind, FindingKind::MissingRecord | FindingKind::StaleMirror);
    while !findings.is_empty()
        && (looks < 2 || findings.iter().any(|finding| published(finding.kind)))
        && tokio::time::Instant::now() < deadline
    {
        tokio::time::sleep(LOOK_AGAIN).await;
        heard = hear(node).await?;
        let id = |finding: &Finding| (finding.kind, finding.subject.clone(), finding.address);
        let before: BTreeSet<_> = findings.iter().map(id).collect();
        findings = ipam::check(&heard.witnesses);
        findings.retain(|finding| before.contains(&id(finding)));
        looks += 1;
    }
    Ok((heard, findings))
}

fn reply(node: &Node, witnesses: &Witnesses, findings: &[Finding], repaired: Vec<String>) -> IpamCheckReply {
    let finding = |finding: &Finding| IpamFinding {
        kind: finding.kind.to_string(),
        subject: finding.subject.clone(),
        pod: names::attachment(&finding.subject).and_then(|key| names::pod_of(node, &key)),
        address: finding.address,
        explanation: names::with_names(node, &finding.explanation),
        repairable: finding.repairable,
        remedy: names::with_names(node, &finding.action.to_string()),
    };
    IpamCheckReply {
        compared: witnesses.compared(),
        findings: findings.iter().map(finding).collect(),
        repaired,
    }
}

/// The books under their locks; the kernel and the store's mirror as of now.
async fn hear(node: &Arc<Node>) -> Result<Heard> {
    let observed = Host::open()?.observe().await.context("reading the kernel's routes")?;
    let to_pods = observed.routes.iter().filter_map(|(key, route)| {
        let device = route.device.as_ref().filter(|device| device.starts_with(LINK_PREFIX))?;
        // The overlay device leads to other nodes.
        let is_veth = !device.contains('.') && key.dst.prefix_len() == key.dst.max_prefix_len();
        is_veth.then(|| (key.dst.addr(), device.clone()))
    });
    let observed = to_pods.collect();
    let (view, items) = of_one_revision(node).await;
    let cache = runtime_cache(&node.config.cni_cache_dir);
    let in_flight = node.addressing.in_flight();
    let attachments = lock(&node.attachments);
    let addresses = node.addressing.addresses();
    let by_allocator = addresses.allocations().map(|allocation| allocation.owner);
    let by_store = view.borrowed.values().filter(|record| record.node == Some(node.uuid));
    let by_owner =
        by_allocator.chain(by_store.map(|record| record.owner.clone())).filter_map(|owner| match owner {
            Owner::Attachment(key) => Some(key),
            Owner::Node(_) | Owner::Reserved(_) | Owner::Sticky(_) => None,
        });
    let by_name = view.sticky.values().filter(|record| record.node == Some(node.uuid));
    let unrecorded = by_owner
        .chain(by_name.filter_map(|record| record.attachment.clone()))
        .filter(|key| attachments.get(key).is_none())
        .map(|key| (key.clone(), sight_by_name(&key, cache.as_ref())))
        .collect();
    let witnesses = Witnesses {
        lost_after: node.config.lost_after,
        unrecorded,
        observed,
        in_flight,
        attachments: attachments
            .iter()
            .map(|a| AttachmentWitness {
                key: a.key.clone(),
                ips: a.ips.clone(),
                host_ifname: a.host_ifname.clone(),
                sticky: a.sticky.clone(),
                settled: a.phase == Phase::Committed,
                adopted: a.adopted,
                sight: sight(a, cache.as_ref()),
            })
            .collect(),
        in_sync: view.in_sync && items.connected && view.revision == items.revision,
        nodes: view.nodes.keys().copied().collect(),
        blocks: view.blocks.values().cloned().collect(),
        addresses: view
            .borrowed
            .values()
            .map(|record| AddressWitness {
                ip: record.ip,
                owner: record.owner.clone(),
                node: record.node,
                granted: record.granted,
                block_owner: record.block_owner,
            })
            .collect(),
        sticky: view
            .sticky
            .values()
            .map(|record| StickyWitness {
                name: record.name.clone(),
                ips: record.ips.clone(),
                node: record.node,
                attachment: record.attachment.clone(),
            })
            .collect(),
        pods: view.pods.iter().map(|(uuid, pod)| (*uuid, pod.attachment.clone(), pod.ips.clone())).collect(),
        service_claims: view
            .service_ips
            .iter()
            .map(|(ip, claim)| (*ip, format!("{}/{}", claim.namespace, claim.name)))
            .collect(),
        services: view
            .services
            .values()
            .map(|service| {
                let name = format!("{}/{}", service.metadata.namespace, service.metadata.name);
                (name, service.cluster_ips())
            })
            .collect(),
        port_claims: view
            .node_ports
            .iter()
            .map(|(port, claim)| (*port, format!("{}/{}", claim.namespace, claim.name)))
            .collect(),
        service_ports: view
            .services
            .values()
            .map(|service| (lb::ServiceName::of(service).to_string(), node_ports_of(service)))
            .collect(),
        ..Witnesses::of_allocator(addresses.allocator(), node.addressing.now())
    };
    Ok(Heard { witnesses, items })
}

/// The view, and the items that it was parsed from: the watch may be a moment ahead.
async fn of_one_revision(node: &Node) -> (Arc<View>, Arc<MirrorState>) {
    let deadline = tokio::time::Instant::now() + VIEW_LIMIT;
    loop {
        let (view, items) = (node.view.load_full(), node.mirror.borrow().clone());
        if view.revision == items.revision || tokio::time::Instant::now() >= deadline {
            return (view, items);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One repair of what was `heard`; false where it has changed meanwhile, or somebody else mends it.
async fn act(node: &Arc<Node>, heard: &Heard, action: &Action) -> Result<bool> {
    match action {
        Action::Operator(_) => Ok(false),
        Action::Release(Owner::Attachment(key)) => {
            let Some(_turn) = turn_without_user(node, key).await else { return Ok(false) };
            let owner = Owner::Attachment(key.clone());
            let now = node.addressing.now();
            tokio::task::block_in_place(|| node.addressing.addresses().release(&owner, now))
                .map(|ips| !ips.is_empty())
        }
        // Who keeps these asks the store itself before it lets go.
        Action::Release(owner) => {
            node.settle_wake.notify_one();
            Ok(is_freed(node, owner).await)
        }
        Action::Restore { ip, owner } => {
            let _turn = match owner {
                Owner::Attachment(key) => {
                    let turn = node.key_locks.hold(key).await;
                    if !lock(&node.attachments).get(key).is_some_and(|a| a.ips.contains(ip)) {
                        return Ok(false);
                    }
                    Some(turn)
                }
                Owner::Node(_) | Owner::Reserved(_) | Owner::Sticky(_) => None,
            };
            let now = node.addressing.now();
            tokio::task::block_in_place(|| node.addressing.addresses().restore(*ip, owner, now))
        }
        Action::DropBlock(cidr) => {
            let known = heard.witnesses.own_blocks.iter().find(|block| block.cidr == *cidr);
            let ours = |record: &BlockRecord| {
                record.owner == node.uuid && known.is_some_and(|block| block.epoch == record.epoch)
            };
            if node.view.load().blocks.get(cidr).is_some_and(ours) {
                return Ok(false);
            }
            tokio::task::block_in_place(|| node.addressing.addresses().give_up_block(cidr))
        }
        // The publisher writes them from the allocator as soon as it looks.
        Action::CreateBlockRecord(_) | Action::PublishMirror(_) => {
            node.changed();
            Ok(true)
        }
        Action::GiveBackSticky(name) => {
            let known = heard.witnesses.sticky.iter().find(|record| record.name == *name);
            let held = known.filter(|record| record.node == Some(node.uuid));
            let Some(attachment) = held.and_then(|record| record.attachment.clone()) else {
                return Ok(false);
            };
            let Some(_turn) = turn_without_user(node, &attachment).await else { return Ok(false) };
            let holder = StickyHolder { node: node.uuid, attachment };
            let now = node.addressing.now().0;
            Ok(give_back_sticky(node.store.as_ref(), &node.keys, name, &holder, now).await?)
        }
        Action::DeleteAddressRecord(ip) => {
            let known = heard.witnesses.addresses.iter().find(|record| record.ip == *ip);
            let _turn = match known.map(|record| &record.owner) {
                Some(Owner::Attachment(key)) => match turn_without_user(node, key).await {
                    Some(turn) => Some(turn),
                    None => return Ok(false),
                },
                _ => None,
            };
            delete_as_heard(node, heard, &node.keys.address(*ip)).await
        }
        Action::DeletePortClaim(port) => delete_as_heard(node, heard, &node.keys.node_port(*port)).await,
        Action::DeleteServiceClaim(ip) => delete_as_heard(node, heard, &node.keys.service_ip(*ip)).await,
    }
}

/// The key's turn, unless its ADD has come meanwhile: then it has a user again.
async fn turn_without_user<'n>(node: &'n Node, key: &AttachmentKey) -> Option<impl Sized + use<'n>> {
    let turn = node.key_locks.hold(key).await;
    lock(&node.attachments).get(key).is_none().then_some(turn)
}

async fn is_freed(node: &Node, owner: &Owner) -> bool {
    let deadline = tokio::time::Instant::now() + SETTLE_LIMIT;
    while tokio::time::Instant::now() < deadline {
        if node.addressing.addresses().addresses_of(owner).is_empty() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Deletes a key that is still as it was when the witnesses were heard.
async fn delete_as_heard(node: &Node, heard: &Heard, key: &str) -> Result<bool> {
    let Some(item) = heard.items.items.get(key) else { return Ok(false) };
    let change = Transaction::new().unchanged(key, item.mod_revision).delete(key);
    Ok(node.store.transact(change).await?.succeeded)
}

fn fatal(error: anyhow::Error) -> ApiError {
    ApiError::fatal(format!("the witnesses could not be heard: {error:#}"))
}
