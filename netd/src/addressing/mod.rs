// SPDX-License-Identifier: Apache-2.0
//! This node's side of IPAM: who gets which address, with the journal on disk and the store behind it.
//!
//! | File | What |
//! | --- | --- |
//! | addresses.rs, journal.rs | the pure allocator and its durable journal, moved together |
//! | picture.rs | what the store says about pools, blocks, borrowed and sticky addresses |
//! | give.rs | an attachment gets addresses: from own blocks, from a fresh one, borrowed, or by a sticky name |
//! | claim.rs | blocks of this node: taken over, claimed on demand and ahead, given up |
//! | settle.rs | what this node owes others: grants, reservations and records that nobody needs any more |
//! | members.rs | a machine outside the cluster gets addresses |
//! | leave.rs | blocks of drained pools go back |
//! | turns.rs | giving and settling never meet at one owner |
//!
//! An address inside an own block is given without the store; everything else is a transaction, and says that it needs one.
//! Nothing here touches the kernel or reads the clock: the simulation runs many of these against one store in memory.

mod addresses;
mod claim;
mod give;
mod journal;
mod leave;
mod members;
mod picture;
mod settle;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use ipam::{AddressRange, AttachmentKey, Owner, Timestamp};
use ipnet::IpNet;
use netd_store::{Keys, Store};
use uuid::Uuid;

pub(crate) use addresses::Addresses;
pub use give::{GiveError, Given};
pub use members::MemberAddError;
pub use picture::Picture;
use turns::Turns;

use crate::node::lock;

/// The time, for cool-downs and records.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What an attachment asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wish {
    /// Addresses of the caller's choice, one of a family at most.
    pub requested: Vec<IpAddr>,
    /// Each set stands for one address of its family, from any range in it.
    pub ranges: Vec<Vec<AddressRange>>,
    /// The name whose addresses follow it from node to node.
    pub sticky: Option<String>,
}

/// The addresses of one node.
pub struct Addressing {
    node: Uuid,
    keys: Keys,
    store: Arc<dyn Store>,
    clock: Clock,
    addresses: Mutex<Addresses>,
    picture: ArcSwap<Picture>,
    /// One claim of a block at a time: those who waited look again first.
    claiming: tokio::sync::Mutex<()>,
    /// Attachments and sticky names that are being given addresses: what belongs to them is nobody's to settle.
    turns: Arc<Turns>,
    /// One sticky name is given or freed at a time: two requests for a new one would both reserve addresses for it.
    sticky_turn: tokio::sync::Mutex<()>,
    /// Epochs of blocks that were given back: an older picture still says that they are ours.
    given_back: Mutex<BTreeMap<IpNet, u64>>,
    /// Every pool was full when last asked: said once, until an address is given again.
    exhausted: AtomicBool,
}

impl Addressing {
    /// Reads the journal in `state_dir`. Nothing is given before the first [`Addressing::observe`] brings a block, unless the
    /// journal has one.
    ///
    /// # Errors
    /// A damaged journal, with its line.
    pub fn open(
        state_dir: &Path,
        node: Uuid,
        cool_down: Duration,
        keys: Keys,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Result<Self> {
        Ok(Self {
            node,
            keys,
            store,
            clock,
            addresses: Mutex::new(Addresses::open(state_dir, node, cool_down)?),
            picture: ArcSwap::default(),
            claiming: tokio::sync::Mutex::default(),
            turns: Arc::default(),
            sticky_turn: tokio::sync::Mutex::default(),
            given_back: Mutex::default(),
            exhausted: AtomicBool::new(false),
        })
    }

    /// The attachment's addresses are in use now, durable on return; fine if they were already.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn commit(&self, key: &AttachmentKey) -> Result<()> {
        lock(&self.addresses).commit(&Owner::Attachment(key.clone()), self.now())
    }

    /// Takes the attachment's own addresses back, durable on return. Sticky and borrowed ones are records in the store, which
    /// [`Addressing::settle`] puts right once the attachment is no more (sticky ones before, [`Addressing::leave_name`]).
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn take_back(&self, key: &AttachmentKey) -> Result<Vec<IpAddr>> {
        lock(&self.addresses).release(&Owner::Attachment(key.clone()), self.now())
    }

    /// Every address given by this node from its own blocks, with its owner.
    pub fn allocations(&self) -> Vec<(IpAddr, Owner)> {
        lock(&self.addresses).allocations().map(|a| (a.ip, a.owner)).collect()
    }

    /// The allocator and its journal, for who only looks.
    pub(crate) fn addresses(&self) -> std::sync::MutexGuard<'_, Addresses> {
        lock(&self.addresses)
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Who is being given addresses right now.
    pub(crate) fn in_flight(&self) -> BTreeSet<Owner> {
        self.turns.in_flight()
    }
}
