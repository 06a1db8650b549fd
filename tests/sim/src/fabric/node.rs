// SPDX-License-Identifier: Apache-2.0
//! A node of the overlay's simulation: netd's memory, its disk, and what stands in its kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netd_plan::{BackendKind, Generations, Overlay, Path, Paths};
use netd_store::MirrorState;
use netd_store::records::{NodeRecord, OverlayBackend};
use tokio::sync::watch;
use uuid::Uuid;

/// One node.
pub struct FabricNode {
    /// Cut off from the store: nothing is read, nothing written.
    pub away: bool,
    pub(super) uuid: Uuid,
    pub(super) name: String,
    /// netd's memory, while it runs.
    pub(super) netd: Option<Netd>,
    pub(super) worked_ms: u64,
    pub(super) mirror: watch::Receiver<Arc<MirrorState>>,
    /// What netd knows of the store, which it keeps on disk, too.
    pub(super) seen: Arc<MirrorState>,
    pub(super) rotate: bool,
    /// On disk: generation, public key, when it was made.
    pub(super) own: BTreeMap<u64, (String, u64)>,
    pub(super) devices: [Option<Device>; 2],
    pub(super) up: BTreeSet<BackendKind>,
    pub(super) routes: BTreeMap<Uuid, Path>,
    /// A path waits for a handshake with these.
    pub(super) awaited: BTreeSet<Uuid>,
    pub(super) offers: BTreeSet<BackendKind>,
    pub(super) sends: Option<OverlayBackend>,
    pub(super) sends_generation: Option<u64>,
}

pub(super) struct Netd {
    pub(super) generations: Generations,
    pub(super) paths: Paths,
    /// Since when its record has had a generation.
    pub(super) told: BTreeMap<u64, u64>,
}

pub(super) struct Device {
    pub(super) generation: u64,
    pub(super) key: String,
    pub(super) peers: BTreeMap<Uuid, DevicePeer>,
}

pub(super) struct DevicePeer {
    pub(super) key: String,
    pub(super) keepalive: bool,
    pub(super) handshake_ms: Option<u64>,
}

impl FabricNode {
    /// The peer with this key in the device of that generation.
    pub(super) fn peer(&self, uuid: Uuid, generation: u64, key: &str) -> Option<&DevicePeer> {
        let device =
            self.devices[slot(generation)].as_ref().filter(|device| device.generation == generation)?;
        device.peers.get(&uuid).filter(|peer| peer.key == key)
    }

    /// Whether it sends to the peer over that generation, packets or keepalives.
    pub(super) fn speaks(&self, uuid: Uuid, generation: u64) -> bool {
        let device = self.devices[slot(generation)].as_ref();
        device.and_then(|device| device.peers.get(&uuid)).is_some_and(|peer| peer.keepalive)
            || self.routes.get(&uuid) == Some(&Path::Wireguard { generation })
    }

    pub(super) fn picture(&self) -> String {
        let devices: Vec<_> = self
            .devices
            .iter()
            .flatten()
            .map(|device| (device.generation, device.peers.keys().collect::<Vec<_>>()))
            .collect();
        format!(
            "{}: away {} keys {:?} devices {devices:?} up {:?} offers {:?} routes {:?} sends {:?} {:?}",
            self.name,
            self.away,
            self.own.keys().collect::<Vec<_>>(),
            self.up,
            self.offers,
            self.routes,
            self.sends,
            self.sends_generation
        )
    }
}

impl Netd {
    pub(super) fn new(now_ms: u64) -> Self {
        Self { generations: Generations::default(), paths: Paths::new(now_ms), told: BTreeMap::new() }
    }

    pub(super) fn note_told(&mut self, own: Option<&NodeRecord>, now_ms: u64) {
        let keys = own.and_then(|own| own.wireguard.as_ref()).map(|tunnel| tunnel.keys.as_slice());
        let generations: Vec<u64> = keys.unwrap_or_default().iter().map(|key| key.generation).collect();
        self.told.retain(|generation, _| generations.contains(generation));
        for generation in generations {
            self.told.entry(generation).or_insert(now_ms);
        }
    }
}

/// On which device a generation lives.
pub(super) fn slot(generation: u64) -> usize {
    usize::from(generation % 2 == 1)
}

pub(super) fn overlay(backend: OverlayBackend) -> Overlay {
    match backend {
        OverlayBackend::Auto => Overlay::Auto,
        OverlayBackend::Native => Overlay::Native,
        OverlayBackend::Vxlan => Overlay::Vxlan,
        OverlayBackend::Wireguard => Overlay::Wireguard,
    }
}

pub(super) fn kind(backend: OverlayBackend) -> Option<BackendKind> {
    match backend {
        OverlayBackend::Auto => None,
        OverlayBackend::Native => Some(BackendKind::Native),
        OverlayBackend::Vxlan => Some(BackendKind::Vxlan),
        OverlayBackend::Wireguard => Some(BackendKind::Wireguard),
    }
}

pub(super) fn backend(kind: BackendKind) -> OverlayBackend {
    match kind {
        BackendKind::Native => OverlayBackend::Native,
        BackendKind::Vxlan => OverlayBackend::Vxlan,
        BackendKind::Wireguard => OverlayBackend::Wireguard,
    }
}
