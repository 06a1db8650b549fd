// SPDX-License-Identifier: Apache-2.0
//! What the rest of netd knows of this node's WireGuard devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use netd_plan::GenerationPlan;
use netd_wireguard::{DeviceKind, PublicKey};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::speech::Speech;
use crate::node::{lock, monotonic_ms};

/// Shared between the task that configures the devices and those who read what came of it.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// Where the devices run; settled at start.
    pub kind: DeviceKind,
    pub state: ArcSwap<TunnelState>,
    /// Wakes the task.
    pub wake: Notify,
    /// Rounds that it has done.
    pub rounds: watch::Sender<u64>,
    rotate: AtomicBool,
    speech: Mutex<Speech>,
    /// Why the last wish for a new key was refused.
    pub(super) refused: ArcSwapOption<String>,
}

/// As of the last round.
#[derive(Clone, Debug, Default)]
pub(crate) struct TunnelState {
    /// A round has looked at the devices.
    pub looked: bool,
    /// Generations that this node has keys for.
    pub generations: BTreeSet<u64>,
    /// Those of them whose device has the key and listens: these are published.
    pub keys: Vec<ListeningKey>,
    /// The device of one of this node's keys answered in the last round, at the least.
    pub answers: bool,
    /// Why a key in the device of even and in that of odd generations would not come into use.
    pub dead: [Option<String>; 2],
    pub plan: GenerationPlan,
    /// By peer, the older generation first.
    pub peers: BTreeMap<Uuid, Vec<PeerLink>>,
    /// Members that stand in a device, by name.
    pub members: BTreeMap<String, MemberLink>,
    /// Why a device is not as it should be.
    pub errors: Vec<String>,
}

/// A key in a device that listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ListeningKey {
    pub generation: u64,
    pub public: PublicKey,
    pub port: u16,
}

/// A peer in a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PeerLink {
    pub generation: u64,
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds since the Unix epoch.
    pub handshake_ms: Option<u64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_bits_per_sec: u64,
    pub tx_bits_per_sec: u64,
}

/// A member in this node's devices.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MemberLink {
    /// The generation of keys over which it is reached.
    pub generation: u64,
    /// Each device that has it, the older generation first.
    pub links: Vec<PeerLink>,
}

impl Tunnel {
    pub(crate) fn new(kind: DeviceKind) -> Self {
        Self {
            kind,
            state: ArcSwap::default(),
            wake: Notify::new(),
            rounds: watch::Sender::new(0),
            rotate: AtomicBool::new(false),
            speech: Mutex::default(),
            refused: ArcSwapOption::default(),
        }
    }

    /// Asks for a new key at the next round.
    pub(super) fn ask_to_rotate(&self) {
        self.refused.store(None);
        self.rotate.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// This node has another address: peers learn it from the next packet, so each gets one now, and again.
    pub(crate) fn ask_to_speak(&self) {
        lock(&self.speech).begin(monotonic_ms());
        self.wake.notify_one();
    }

    /// Whether peers are still to be spoken to.
    pub(super) fn is_to_speak(&self) -> bool {
        lock(&self.speech).is_left(monotonic_ms())
    }

    /// Whether they are to be spoken to now; it counts as tried then.
    pub(super) fn take_speech(&self) -> bool {
        lock(&self.speech).take_turn(monotonic_ms())
    }

    /// A device did it once more.
    pub(super) fn spoke(&self) {
        lock(&self.speech).said();
    }

    /// Nobody is to be spoken to: WireGuard is not used.
    pub(super) fn end_speech(&self) {
        lock(&self.speech).end();
    }

    pub(super) fn take_rotate(&self) -> bool {
        self.rotate.swap(false, Ordering::SeqCst)
    }
}

impl TunnelState {
    /// This node can be reached over WireGuard.
    pub(crate) fn is_up(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Why a key of this generation would not come into use.
    pub(super) fn dead(&self, generation: u64) -> Option<&str> {
        self.dead[(generation % 2) as usize].as_deref()
    }

    /// Where each member is reached: routes follow when this changes.
    pub(crate) fn member_generations(&self) -> Vec<(&str, u64)> {
        self.members.iter().map(|(name, link)| (name.as_str(), link.generation)).collect()
    }
}
