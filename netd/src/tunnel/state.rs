// SPDX-License-Identifier: Apache-2.0
//! What the rest of netd knows of this node's WireGuard devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use netd_plan::GenerationPlan;
use netd_wireguard::{DeviceKind, PublicKey};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// Routes may come a little after an address, and a packet may be lost.
const SPEAK_TIMES: u8 = 3;

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
    /// So many times a packet is still to go to each peer.
    speak: AtomicU8,
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
            speak: AtomicU8::new(0),
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
        self.speak.store(SPEAK_TIMES, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Whether peers are still to be spoken to.
    pub(super) fn is_to_speak(&self) -> bool {
        self.speak.load(Ordering::SeqCst) > 0
    }

    /// It is done once more.
    pub(super) fn spoke(&self) {
        // Nothing left to count: done.
        let _ = self.speak.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1));
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

    /// Where each member is reached: routes follow when this changes.
    pub(crate) fn member_generations(&self) -> Vec<(&str, u64)> {
        self.members.iter().map(|(name, link)| (name.as_str(), link.generation)).collect()
    }
}
