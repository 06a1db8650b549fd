// SPDX-License-Identifier: Apache-2.0
//! What the tasks of this node share. Locks are held for short, synchronous stretches only, never across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use dns_server::DnsStats;
use dns_zone::Zone;
use ebpf_loader::Datapath;
use ipnet::IpNet;
use netd_host::Underlay;
use netd_plan::NodeFacts;
use netd_store::records::ClusterConfig;
use netd_store::{Keys, MirrorState, Store};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::addressing::Addressing;
use crate::args::VxlanChecksumKind;
use crate::attach::Chains;
use crate::attachments::Attachments;
use crate::config::Config;
use crate::dns::External;
use crate::keylocks::KeyLocks;
use crate::leader::Candidate;
use crate::lease::Confirmed;
use crate::metrics::Counters;
use crate::mtu::ProbedPath;
use crate::overlay::{OverlayNow, Routed};
use crate::services::{Netnses, ServiceSync};
use crate::status::Progress;
use crate::tunnel::Tunnel;
use crate::usage::Usage;
use crate::view::View;

/// Everything that more than one task needs.
pub(crate) struct Node {
    pub config: Config,
    pub uuid: Uuid,
    pub keys: Keys,
    pub store: Arc<dyn Store>,
    /// The store's content as of now, or the last-known-good snapshot (then not in sync).
    pub mirror: watch::Receiver<Arc<MirrorState>>,
    /// SkyDNS records, where they are read.
    pub skydns: Option<watch::Receiver<Arc<MirrorState>>>,
    /// What the store really holds of them while that is not believed.
    pub skydns_held: Arc<ArcSwapOption<MirrorState>>,
    /// Where peers reach this node; another one once its address is gone.
    pub underlay: ArcSwap<Underlay>,
    /// Why the underlay is not where it is said to be.
    pub underlay_error: ArcSwapOption<String>,
    /// The store's address as of the start, for the choice of another underlay.
    pub store_address: Option<IpAddr>,
    pub addressing: Arc<Addressing>,
    pub attachments: Mutex<Attachments>,
    /// Services as they are in the maps; held before `datapath` where both are.
    pub services: Mutex<ServiceSync>,
    pub datapath: Mutex<Datapath>,
    /// Network namespaces of pods, by the kernel's cookie.
    pub netnses: Mutex<Netnses>,
    /// The cookie of this node's own.
    pub netns_cookie: u64,
    /// This host's addresses, as they were read last.
    pub local_addresses: ArcSwap<BTreeSet<IpAddr>>,
    /// What the agent did last; status, metrics and readiness read it.
    pub progress: ArcSwap<Progress>,
    /// The parsed store content that the agent works from.
    pub view: ArcSwap<View>,
    /// How the other nodes are reached; empty before the agent's first pass.
    pub overlay: ArcSwap<OverlayNow>,
    /// What of it the kernel's routes have.
    pub routed: ArcSwap<Routed>,
    /// This node's WireGuard devices.
    pub tunnel: Tunnel,
    /// What fits through to each peer, as probes say.
    pub probed: ArcSwap<BTreeMap<Uuid, ProbedPath>>,
    /// Checksums inside VXLAN were found to be spoilt: the kernel computes them.
    pub vxlan_checksum_off: AtomicBool,
    pub zone: Arc<ArcSwapOption<Zone>>,
    /// There is a zone.
    pub zoned: watch::Sender<bool>,
    /// Where other nodes' pods may ask this node's DNS, and where they can.
    pub dns_wanted: watch::Sender<Vec<SocketAddr>>,
    pub dns_bound: watch::Sender<Vec<SocketAddr>>,
    /// The store's revision that the zone was made from: names answer as of that one. SkyDNS' records come by a watch of their own.
    pub named_revision: AtomicU64,
    pub dns_stats: Arc<DnsStats>,
    /// Names in a zone of others.
    pub external: External,
    /// This node's lease as the store confirmed it last.
    pub lease: ArcSwapOption<Confirmed>,
    pub candidate: Candidate,
    pub counters: Counters,
    /// One ADD or DEL at a time for each attachment.
    pub key_locks: KeyLocks,
    /// What follows weft-cni in each network.
    pub chains: Chains,
    /// Host veths with a qdisc or filter of somebody else's, and what it is.
    pub foreign_tc: Mutex<BTreeMap<String, String>>,
    /// Blocks claimed over time, for the forecast of each pool.
    pub usage: Mutex<Usage>,
    /// Why this node could not claim a block or settle the configuration, while it needs to.
    pub claim_error: ArcSwapOption<String>,
    /// Why this node's records are not in the store, while it answers.
    pub publish_error: ArcSwapOption<String>,
    /// What the store really holds while its listing is held back (hold.rs); the mirror then shows what was before.
    pub held: Arc<ArcSwapOption<MirrorState>>,
    /// What this node makes the cluster's configuration when there is none: the last one it knew, else its flags.
    pub initial: ClusterConfig,
    /// Who may ask this node's DNS.
    pub dns_clients: Arc<ArcSwap<Vec<IpNet>>>,
    /// Wakes the agent after a local change.
    pub agent_wake: Notify,
    /// Wakes who probes: all peers are asked at once.
    pub probe_wake: Notify,
    /// Wakes who claims blocks: addresses may be running short.
    pub claim_wake: Notify,
    /// Wakes who answers for lent and sticky addresses and for removed nodes.
    pub settle_wake: Notify,
    /// Wakes the publisher after a local change.
    pub publish_wake: Notify,
    /// Wakes who answers load balancers after the services changed.
    pub health_check_wake: Notify,
    /// Local changes so far; the publisher says which of them the store has.
    changes: AtomicU64,
    pub published: watch::Sender<Published>,
    /// Local changes up to this one are in the kernel.
    pub programmed: watch::Sender<u64>,
    pub started: Instant,
}

/// How far the publisher is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Published {
    /// Local changes up to this one are in the store.
    pub change: u64,
    /// Everything this node owes the store at this revision is there.
    pub revision: u64,
}

/// Parts of a [`Node`] that have no default.
pub(crate) struct Parts {
    pub config: Config,
    pub uuid: Uuid,
    pub keys: Keys,
    pub store: Arc<dyn Store>,
    pub mirror: watch::Receiver<Arc<MirrorState>>,
    pub skydns: Option<watch::Receiver<Arc<MirrorState>>>,
    pub skydns_held: Arc<ArcSwapOption<MirrorState>>,
    pub held: Arc<ArcSwapOption<MirrorState>>,
    pub initial: ClusterConfig,
    pub underlay: Underlay,
    pub store_address: Option<IpAddr>,
    pub addressing: Addressing,
    pub attachments: Attachments,
    pub datapath: Datapath,
    pub netns_cookie: u64,
    pub tunnel: Tunnel,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            config,
            uuid,
            keys,
            store,
            mirror,
            skydns,
            skydns_held,
            held,
            initial,
            underlay,
            store_address,
            addressing,
            attachments,
            datapath,
            netns_cookie,
            tunnel,
        } = parts;
        let checksum_off = config.vxlan_tx_checksum == VxlanChecksumKind::Off;
        Self {
            config,
            uuid,
            keys,
            store,
            mirror,
            skydns,
            skydns_held,
            underlay: ArcSwap::from_pointee(underlay),
            underlay_error: ArcSwapOption::default(),
            store_address,
            addressing: Arc::new(addressing),
            attachments: Mutex::new(attachments),
            services: Mutex::new(ServiceSync::new(datapath.options().sizes)),
            datapath: Mutex::new(datapath),
            netnses: Mutex::default(),
            netns_cookie,
            local_addresses: ArcSwap::default(),
            progress: ArcSwap::default(),
            view: ArcSwap::default(),
            overlay: ArcSwap::default(),
            routed: ArcSwap::default(),
            tunnel,
            probed: ArcSwap::default(),
            vxlan_checksum_off: AtomicBool::new(checksum_off),
            zone: Arc::default(),
            zoned: watch::Sender::new(false),
            dns_wanted: watch::Sender::default(),
            dns_bound: watch::Sender::default(),
            named_revision: AtomicU64::new(0),
            dns_stats: Arc::default(),
            external: External::default(),
            lease: ArcSwapOption::default(),
            candidate: Candidate::default(),
            counters: Counters::default(),
            key_locks: KeyLocks::default(),
            chains: Chains::default(),
            foreign_tc: Mutex::default(),
            usage: Mutex::default(),
            claim_error: ArcSwapOption::default(),
            publish_error: ArcSwapOption::default(),
            held,
            initial,
            dns_clients: Arc::default(),
            probe_wake: Notify::new(),
            claim_wake: Notify::new(),
            settle_wake: Notify::new(),
            agent_wake: Notify::new(),
            publish_wake: Notify::new(),
            health_check_wake: Notify::new(),
            changes: AtomicU64::new(1),
            published: watch::Sender::new(Published::default()),
            programmed: watch::Sender::new(0),
            started: Instant::now(),
        }
    }

    /// Notes a local change and wakes who acts on it; returns the change's number for [`Self::wait_published`].
    pub(crate) fn changed(&self) -> u64 {
        let change = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        self.agent_wake.notify_one();
        self.publish_wake.notify_one();
        change
    }

    /// The newest local change.
    pub(crate) fn change(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Waits until the store has `change`, at most `limit`. False when the time ran out.
    pub(crate) async fn wait_published(&self, change: u64, limit: Duration) -> bool {
        let mut published = self.published.subscribe();
        let reached = published.wait_for(|p| p.change >= change);
        tokio::time::timeout(limit, reached).await.is_ok_and(|r| r.is_ok())
    }

    /// Waits until the kernel has `change`, at most `limit`. False when the time ran out.
    pub(crate) async fn wait_programmed(&self, change: u64, limit: Duration) -> bool {
        let mut programmed = self.programmed.subscribe();
        let reached = programmed.wait_for(|at| *at >= change);
        tokio::time::timeout(limit, reached).await.is_ok_and(|r| r.is_ok())
    }

    /// Waits until this node works from a view that has `revision`, at most `limit`: who wrote something finds it.
    pub(crate) async fn wait_seen(&self, revision: u64, limit: Duration) {
        let seen = async {
            while self.view.load().revision < revision {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // With the store's watch away the write stands all the same; the view follows.
        let _ = tokio::time::timeout(limit, seen).await;
    }

    /// This node as its peers see it.
    pub(crate) fn facts(&self) -> NodeFacts {
        let addresses = self.addressing.addresses();
        NodeFacts {
            uuid: self.uuid,
            name: self.config.node_name.clone(),
            underlay: self.underlay.load().address,
            overlays: addresses.node_addresses(),
            vtep_mac: netd_plan::vtep_mac(self.uuid),
            blocks: addresses.blocks(),
        }
    }

    /// Where this node's maps, programs and links are pinned.
    pub(crate) fn pin_dir(config: &Config, uuid: Uuid) -> PathBuf {
        config.bpf_dir.join(&config.cluster).join(uuid.to_string()).join(ebpf_abi::ABI_VERSION.to_string())
    }
}

/// Locks; a panic elsewhere while holding the lock does not spread.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds that never go back, for grace periods and back-off.
pub(crate) fn monotonic_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the epoch, for the pure crates' `now`.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
