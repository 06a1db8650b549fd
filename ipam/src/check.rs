// SPDX-License-Identifier: Apache-2.0
//! Witnesses of who has which address, held against each other.
//!
//! The allocator, the attachments on record, the kernel's routes to pods and the store's records should tell one story. Where
//! they do not, a [`Finding`] says who says what. Rule: repair only what is proven. A repair frees an address only when no
//! witness knows a user, the pod's link and the runtime's cache among them; it puts an address on record only when the kernel or a record shows it in use and nobody else has it.
//! Two who claim one address are never judged: an operator is told.
//!
//! Take the witnesses under the locks that keep them still, or leave out ([`Witnesses::in_flight`]) what is being made;
//! without the store in sync nothing is said about its records.

mod books;
mod records;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use uuid::Uuid;

use crate::allocator::{Allocation, Allocator};
use crate::block::BlockRecord;
use crate::owner::{AttachmentKey, Owner};
use crate::reconcile::Sight;
use crate::time::Timestamp;

/// Everything that is heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witnesses {
    /// This node.
    pub node: Uuid,
    /// When the witnesses were heard.
    pub now: Timestamp,
    /// How long an attachment without a link and without another witness is waited for ([`crate::reconcile`]).
    pub lost_after: Duration,
    /// The allocator's addresses.
    pub allocations: Vec<Allocation>,
    /// The allocator's blocks, as their records should be.
    pub own_blocks: Vec<BlockRecord>,
    /// The attachments on record on this node.
    pub attachments: Vec<AttachmentWitness>,
    /// What is seen of attachments that have an address, by the allocator or the store, and are not on record: the record may
    /// be what is lost, and the pod runs.
    pub unrecorded: BTreeMap<AttachmentKey, Sight>,
    /// Addresses that the kernel leads to a pod of ours, with the link's host end.
    pub observed: Vec<(IpAddr, String)>,
    /// Owners that are being given addresses, or whose addresses are being taken back, right now.
    pub in_flight: BTreeSet<Owner>,
    /// The store was read in full: the fields below are complete.
    pub in_sync: bool,
    /// Nodes that have a record.
    pub nodes: BTreeSet<Uuid>,
    /// Block records.
    pub blocks: Vec<BlockRecord>,
    /// Records of addresses outside their node's blocks.
    pub addresses: Vec<AddressWitness>,
    /// Sticky names.
    pub sticky: Vec<StickyWitness>,
    /// Pods of the whole cluster: node, attachment, addresses.
    pub pods: Vec<(Uuid, AttachmentKey, Vec<IpAddr>)>,
    /// Claimed ClusterIPs with their service, `namespace/name`.
    pub service_claims: BTreeMap<IpAddr, String>,
    /// Services, `namespace/name`, with their ClusterIPs.
    pub services: BTreeMap<String, Vec<IpAddr>>,
    /// Claimed node ports with their service.
    pub port_claims: BTreeMap<u16, String>,
    /// Node ports of services, by `namespace/name`.
    pub service_ports: BTreeMap<String, BTreeSet<u16>>,
}

/// An attachment on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentWitness {
    /// Which one.
    pub key: AttachmentKey,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its veth's host end.
    pub host_ifname: String,
    /// The sticky name that its addresses follow.
    pub sticky: Option<String>,
    /// Its ADD has ended and no DEL has begun.
    pub settled: bool,
    /// Another plugin made its link and gave its addresses: they are none of ours.
    pub adopted: bool,
    /// What is seen of it.
    pub sight: Sight,
}

/// A record of an address outside its node's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressWitness {
    /// The address.
    pub ip: IpAddr,
    /// Who has it.
    pub owner: Owner,
    /// Where it is in use.
    pub node: Option<Uuid>,
    /// Whether the block's owner keeps it aside.
    pub granted: bool,
    /// The block's owner by the record.
    pub block_owner: Uuid,
}

/// A sticky name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickyWitness {
    /// The name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The node where they are in use.
    pub node: Option<Uuid>,
    /// The attachment that uses them.
    pub attachment: Option<AttachmentKey>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// Two have one address.
    Double,
    /// An address or a block is used that belongs to another node.
    ForeignBlock,
    /// An address is kept for nobody.
    Leak,
    /// An address or a block is used without a record of it.
    MissingRecord,
    /// Something whose owner is not there.
    Orphan,
    /// The store's copy of a block is not what the node has.
    StaleMirror,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FindingKind::Double => "double",
            FindingKind::ForeignBlock => "foreign-block",
            FindingKind::Leak => "leak",
            FindingKind::MissingRecord => "missing-record",
            FindingKind::Orphan => "orphan",
            FindingKind::StaleMirror => "stale-mirror",
        })
    }
}

/// What a repair does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Create the block's record from the allocator, if it is still absent.
    CreateBlockRecord(IpNet),
    /// Delete the address's record, if it is unchanged.
    DeleteAddressRecord(IpAddr),
    /// Delete the node port's claim, if it is unchanged.
    DeletePortClaim(u16),
    /// Delete the ClusterIP's claim, if it is unchanged.
    DeleteServiceClaim(IpAddr),
    /// Forget the block, which is empty.
    DropBlock(IpNet),
    /// Give the sticky name back, so that another attachment may take it.
    GiveBackSticky(String),
    /// Nothing is proven: this is what an operator can do.
    Operator(String),
    /// Write the block's record from the allocator.
    PublishMirror(IpNet),
    /// Take all addresses of the owner back ([`Allocator::release`]).
    Release(Owner),
    /// Put the address on record for the owner ([`Allocator::restore`]).
    Restore {
        /// The address.
        ip: IpAddr,
        /// Its owner.
        owner: Owner,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::CreateBlockRecord(cidr) => write!(f, "write the record of block {cidr} again"),
            Action::DeleteAddressRecord(ip) => write!(f, "delete the record of {ip}"),
            Action::DeletePortClaim(port) => write!(f, "free node port {port}"),
            Action::DeleteServiceClaim(ip) => write!(f, "free ClusterIP {ip}"),
            Action::DropBlock(cidr) => write!(f, "forget block {cidr}, which is empty"),
            Action::GiveBackSticky(name) => write!(f, "give sticky name {name} back"),
            Action::Operator(text) => f.write_str(text),
            Action::PublishMirror(cidr) => write!(f, "write the record of block {cidr} from the journal"),
            Action::Release(owner) => write!(f, "free the addresses of {owner}"),
            Action::Restore { ip, owner } => write!(f, "put {ip} on record for {owner}"),
        }
    }
}

/// Witnesses that do not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// What it is about: an owner, a block, a link.
    pub subject: String,
    /// The address, where it is one.
    pub address: Option<IpAddr>,
    /// Who says what.
    pub explanation: String,
    /// Whether it is proven, so that `action` may be done without asking.
    pub repairable: bool,
    /// What to do about it.
    pub action: Action,
}

/// Holds the witnesses against each other. The findings are in a fixed order: by address, then by subject.
pub fn check(witnesses: &Witnesses) -> Vec<Finding> {
    let mut findings = books::check(witnesses);
    if witnesses.in_sync {
        findings.extend(records::check(witnesses));
        findings.extend(services::check(witnesses));
    }
    findings.sort_by(|a, b| (a.address, &a.subject, a.kind).cmp(&(b.address, &b.subject, b.kind)));
    findings
}

impl Witnesses {
    /// With the allocator heard and all else empty.
    pub fn of_allocator(allocator: &Allocator, now: Timestamp) -> Witnesses {
        Witnesses {
            node: allocator.node(),
            now,
            allocations: allocator.allocations().collect(),
            own_blocks: allocator.blocks().filter_map(|(cidr, _)| allocator.mirror(&cidr)).collect(),
            ..Witnesses::default()
        }
    }

    /// What was compared, a line each with a count.
    pub fn compared(&self) -> Vec<String> {
        let local = [
            (self.allocations.len(), "addresses in the journal"),
            (self.own_blocks.len(), "blocks in the journal"),
            (self.attachments.len(), "attachments on record"),
            (self.observed.len(), "addresses of pods in the kernel"),
        ];
        let store = [
            (self.blocks.len(), "block records"),
            (self.addresses.len(), "records of borrowed addresses"),
            (self.sticky.len(), "sticky names"),
            (self.pods.len(), "pod records"),
            (self.service_claims.len(), "ClusterIP claims"),
            (self.port_claims.len(), "node port claims"),
            (self.services.len(), "services"),
        ];
        let heard = if self.in_sync { store.as_slice() } else { &[] };
        let mut lines: Vec<String> =
            local.iter().chain(heard).map(|(count, what)| format!("{count} {what}")).collect();
        if !self.in_sync {
            lines.push("nothing of the store: it is not in sync".to_owned());
        }
        lines
    }

    /// The links that the kernel leads an address to.
    fn links_of(&self, ip: &IpAddr) -> BTreeSet<&str> {
        self.observed.iter().filter(|(seen, _)| seen == ip).map(|(_, link)| link.as_str()).collect()
    }

    /// Attachments of ours that have an address.
    fn users_of(&self, ip: &IpAddr) -> Vec<&AttachmentWitness> {
        self.attachments
            .iter()
            .filter(|attachment| !attachment.adopted && attachment.ips.contains(ip))
            .collect()
    }

    fn allocation_of(&self, ip: &IpAddr) -> Option<&Allocation> {
        self.allocations.iter().find(|allocation| allocation.ip == *ip)
    }

    fn knows(&self, key: &AttachmentKey) -> bool {
        self.attachments.iter().any(|attachment| attachment.key == *key)
    }

    /// Who still knows an attachment that is not on record, in words; none where nobody does.
    fn known_elsewhere(&self, key: &AttachmentKey) -> Option<&'static str> {
        match self.unrecorded.get(key).copied().unwrap_or_default() {
            Sight { link: true, listed: true, .. } => Some("its link is there, and the runtime lists it"),
            Sight { link: true, .. } => Some("its link is there"),
            Sight { listed: true, .. } => Some("the runtime lists it"),
            Sight { .. } => None,
        }
    }

    fn is_own(&self, ip: &IpAddr) -> bool {
        self.own_blocks.iter().any(|block| block.cidr.contains(ip))
    }

    fn is_in_flight(&self, owner: &Owner) -> bool {
        self.in_flight.contains(owner)
    }
}

impl Finding {
    fn of_address(
        kind: FindingKind,
        subject: impl ToString,
        ip: IpAddr,
        text: String,
        action: Action,
    ) -> Finding {
        Finding { address: Some(ip), ..Finding::of(kind, subject, text, action) }
    }

    fn of(kind: FindingKind, subject: impl ToString, explanation: String, action: Action) -> Finding {
        let repairable = !matches!(action, Action::Operator(_));
        Finding { kind, subject: subject.to_string(), address: None, explanation, repairable, action }
    }
}

fn operator(text: impl Into<String>) -> Action {
    Action::Operator(text.into())
}
