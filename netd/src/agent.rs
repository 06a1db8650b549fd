// SPDX-License-Identifier: Apache-2.0
//! The loop: whatever happened (the store changed, a pod came or went, somebody touched a link or route of ours, time
//! passed), the same pass runs: desired from pure functions, the kernel read back where it may differ, the difference
//! applied. Start, change, drift and a compacted store take this one path.
//!
//! One task, no channels: wake-ups are level-triggered and coalesce. Cancel-safe between passes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::IpNet;
use netd_api::PendingItem;
use netd_host::{Events, Host};
use netd_store::records::{ClusterConfig, OverlayBackend};
use tokio::time::{MissedTickBehavior, interval};

use crate::attachments::{Attachment, Phase};
use crate::attachments_api;
use crate::datapath::{ServiceSync, Synced};
use crate::desired;
use crate::hostsync::{Applied, HostSync};
use crate::node::{Node, lock, monotonic_ms};
use crate::settings::Settings;
use crate::status::Progress;
use crate::sweep::is_gone;
use crate::view::{Known, View};

/// Drift that no event tells of (nft, BPF maps) is found at least this often.
const FULL_PASS_EVERY: Duration = Duration::from_secs(30);
/// Changes that come in a burst are handled together.
const COALESCE: Duration = Duration::from_millis(5);
/// While changes keep coming, passes take at most half of the time: a pause is as long as the pass before, up to this.
const COALESCE_MAX: Duration = Duration::from_millis(500);
/// After a failure, or while something waits for retired slots.
const RETRY_AFTER: Duration = Duration::from_millis(1_100);

/// Owns what programs the kernel.
pub(crate) struct Agent {
    node: Arc<Node>,
    host: HostSync,
    settings: Settings,
    services: ServiceSync,
    known: Known,
    /// Overlay device (interface index) that the programs were told of; `None` before the first time.
    overlay: Option<Option<u32>>,
    /// Pods whose programs this netd has attached or updated.
    attached: BTreeSet<(u32, IpAddr)>,
}

impl Agent {
    pub(crate) fn new(node: Arc<Node>, host: Host, settings: Settings) -> Self {
        Self {
            node,
            host: HostSync::new(host),
            settings,
            services: ServiceSync::new(),
            known: Known::default(),
            overlay: None,
            attached: BTreeSet::new(),
        }
    }

    /// Runs until aborted.
    pub(crate) async fn run(mut self, host: Host) -> Result<()> {
        let mut events = host.events().await?;
        let mut mirror = self.node.mirror.clone();
        let mut timer = interval(FULL_PASS_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = false;
        let mut doubt = Doubt::ALL;
        let mut last_pass = Duration::ZERO;
        loop {
            let node = self.node.clone();
            tokio::select! {
                // The store's task has ended: so does netd.
                changed = mirror.changed() => if changed.is_err() { return Ok(()) },
                () = node.agent_wake.notified() => {}
                event = events.next() => {
                    doubt.host = true;
                    if event.is_none() {
                        events = resubscribe(&host).await;
                    }
                }
                _ = timer.tick() => doubt = Doubt::ALL,
                () = tokio::time::sleep(RETRY_AFTER), if retry => doubt.host = true,
            }
            tokio::time::sleep(last_pass.clamp(COALESCE, COALESCE_MAX)).await;
            let state = mirror.borrow_and_update().clone();
            if state.revision == 0 {
                continue;
            }
            let start = Instant::now();
            retry = self.pass(&state, doubt).await;
            doubt = Doubt::default();
            last_pass = start.elapsed();
            self.node.counters.passed(last_pass);
        }
    }

    /// One pass; true when another is wanted soon.
    async fn pass(&mut self, state: &netd_store::MirrorState, doubt: Doubt) -> bool {
        let view = self.refresh_view(state);
        if doubt.host {
            self.host.suspect();
        }
        if doubt.programs {
            self.services.suspect();
            self.overlay = None;
        }
        let mut errors = Vec::new();
        self.adopt_blocks(&view, &mut errors);
        if let Err(error) = self.keep_settings(&view, doubt.programs).await {
            errors.push(format!("host settings: {error:#}"));
        }
        let mut retry = match self.keep_host(&view).await {
            Ok(applied) => applied.more,
            Err(error) => {
                errors.push(format!("reading links and routes: {error:#}"));
                true
            }
        };
        if let Err(error) = self.keep_overlay(&view) {
            errors.push(format!("overlay program: {error}"));
        }
        let last = self.node.progress.load_full();
        let (image, problems) = match self.keep_services(&view) {
            Ok(synced) => {
                retry |= synced.retry;
                (synced.image, synced.problems)
            }
            Err(error) => {
                errors.push(format!("services: {error:#}"));
                (last.image.clone(), last.problems.clone())
            }
        };
        let mut pending = self.keep_pods(&view, doubt.programs, &mut errors);
        self.keep_dns(&view, &mut errors);

        for error in errors.iter().filter(|error| !last.errors.contains(error)) {
            tracing::warn!("{error}");
        }
        // What concerns single pods or routes is pending and shown; it does not stop the node from serving the others.
        let programmed = errors.is_empty() && !self.host.is_waiting();
        retry |= !errors.is_empty() || !pending.is_empty() || self.host.is_waiting();
        pending.extend(self.host.pending());
        self.node.progress.store(Arc::new(Progress {
            programmed_revision: if programmed { view.revision } else { last.programmed_revision },
            programmed_once: last.programmed_once || errors.is_empty(),
            attached: self.services.attached(),
            pending,
            errors,
            problems,
            image,
        }));
        retry
    }

    async fn keep_settings(&mut self, view: &View, doubt: bool) -> Result<()> {
        let rules = desired::nft_rules(&self.node, view);
        self.settings.pass(&rules, &view.pod_cidrs(), &self.node.underlay.device, doubt).await
    }

    async fn keep_host(&mut self, view: &View) -> Result<Applied> {
        let node = self.node.clone();
        let wishes = || {
            let attachments: Vec<Attachment> = lock(&node.attachments).iter().cloned().collect();
            let objects = desired::host_objects(&node, view, &attachments);
            (objects, desired::busy_devices(&attachments))
        };
        self.host.pass(wishes, view.in_sync, monotonic_ms()).await
    }

    fn keep_services(&mut self, view: &View) -> Result<Synced> {
        let mut datapath = lock(&self.node.datapath);
        tokio::task::block_in_place(|| {
            self.services.pass(&mut datapath, &view.table, view.in_sync, monotonic_ms())
        })
    }

    /// The zone, and who may ask: the cluster's pods and this node.
    fn keep_dns(&self, view: &View, errors: &mut Vec<String>) {
        match desired::zone(view) {
            Ok(zone) => self.node.zone.store(Some(Arc::new(zone))),
            Err(error) => {
                errors.push(format!("the DNS zone {:?} of the cluster: {error}", view.config.dns_zone))
            }
        }
        let clients = desired::dns_clients(&self.node, view);
        if **self.node.dns_clients.load() != clients {
            self.node.dns_clients.store(Arc::new(clients));
        }
    }

    fn refresh_view(&mut self, state: &netd_store::MirrorState) -> Arc<View> {
        let last = self.node.view.load_full();
        if (last.revision, last.in_sync, last.listings) == (state.revision, state.in_sync, state.listings) {
            return last;
        }
        let dns_address = self.node.config.dns_address;
        let own = |config: &ClusterConfig| desired::dns_service(config.dns_vip, dns_address);
        let view = Arc::new(View::parse(state, &self.node.keys, &self.node.initial, own, &mut self.known));
        for bad in view.bad_values.iter().filter(|bad| !last.bad_values.contains(bad)) {
            tracing::warn!(key = bad.key, reason = bad.reason, "a value in the store is skipped");
        }
        self.node.view.store(view.clone());
        self.node.publish_wake.notify_one();
        view
    }

    /// Blocks that the store says are ours become usable; the first one brings the node's overlay address. A block that the
    /// store gives to another, or to a later epoch of ours, is given up: the store's word about owners stands.
    fn adopt_blocks(&self, view: &View, errors: &mut Vec<String>) {
        let mut addresses = lock(&self.node.addresses);
        tokio::task::block_in_place(|| {
            let known: BTreeMap<IpNet, u64> =
                addresses.allocator().blocks().map(|(cidr, usage)| (cidr, usage.epoch)).collect();
            for record in view.blocks.values() {
                let own = record.owner == self.node.uuid;
                let outcome = match known.get(&record.cidr) {
                    None if !own => continue,
                    Some(epoch) if !own || *epoch != record.epoch => addresses
                        .give_up_block(&record.cidr)
                        .map(|gone| if gone { None } else { Some(foreign(record)) }),
                    None | Some(_) => addresses.add_block(record.clone()).map(|added| {
                        if added {
                            tracing::info!(block = %record.cidr, "block adopted");
                        }
                        None
                    }),
                };
                match outcome {
                    Ok(None) => {}
                    Ok(Some(error)) => errors.push(error),
                    Err(error) => errors.push(format!("block {}: {error:#}", record.cidr)),
                }
            }
            if !addresses.blocks().is_empty()
                && addresses.node_address().is_none()
                && let Err(error) = addresses.ensure_node_address()
            {
                errors.push(format!("node overlay address: {error}"));
            }
        });
        let unsettled = !self.node.mirror.borrow().items.contains_key(&self.node.keys.config());
        if unsettled || self.node.held.load().is_some() || addresses.needs_spare() {
            self.node.claim_wake.notify_one();
        }
    }

    /// The program on the overlay device: attached once by this netd, and again when the device was remade.
    fn keep_overlay(&mut self, view: &View) -> Result<(), ebpf_loader::AttachError> {
        let device = match view.config.overlay {
            OverlayBackend::Native => None,
            OverlayBackend::Vxlan => netd_host::interface_index(desired::VXLAN_DEVICE),
        };
        if self.overlay == Some(device) {
            return Ok(());
        }
        let mut datapath = lock(&self.node.datapath);
        tokio::task::block_in_place(|| match device {
            Some(_) => datapath.attach_overlay(desired::VXLAN_DEVICE).map(drop),
            None => datapath.detach_overlay(),
        })?;
        self.overlay = Some(device);
        Ok(())
    }

    /// Programs and map entries of all live pods: a netd that was just started replaces the programs behind the pinned
    /// links; in doubt it looks for what somebody removed. Returns the pods that could not be attached.
    fn keep_pods(&mut self, view: &View, doubt: bool, errors: &mut Vec<String>) -> Vec<PendingItem> {
        // Held throughout: a DEL either came before (then it is not live here) or waits until its pod is consistent.
        let attachments = lock(&self.node.attachments);
        if doubt {
            match tokio::task::block_in_place(|| self.observed_pods()) {
                Ok(present) => {
                    self.attached.retain(|pod| present.get(pod) == Some(&true));
                    if view.in_sync {
                        let known: BTreeSet<(u32, IpAddr)> = attachments.iter().flat_map(links).collect();
                        self.sweep_pods(present.keys().filter(|pod| !known.contains(pod)), errors);
                    }
                }
                Err(error) => errors.push(format!("reading the pod maps: {error}")),
            }
        }
        let mut pending = Vec::new();
        for attachment in attachments.iter().filter(|a| a.phase == Phase::Committed && !is_gone(a)) {
            if links(attachment).all(|link| self.attached.contains(&link)) {
                continue;
            }
            match tokio::task::block_in_place(|| attachments_api::attach(&self.node, attachment)) {
                Ok(()) => self.attached.extend(links(attachment)),
                Err(error) => pending.push(PendingItem {
                    object: format!("programs of pod {}/{}", attachment.namespace, attachment.name),
                    error: error.to_string(),
                    retries: 0,
                }),
            }
        }
        pending
    }

    /// Every pod in the maps; false where its program or its entry is missing, or (clsact keeps no record) may be: it is
    /// attached again then, which changes nothing where nothing was missing.
    fn observed_pods(&self) -> Result<BTreeMap<(u32, IpAddr), bool>, ebpf_loader::MapAccessError> {
        let pods = lock(&self.node.datapath).pods()?;
        let whole = |pod: &ebpf_loader::ObservedPod| pod.attached && pod.host_mac.is_some();
        Ok(pods.iter().map(|(index, pod)| ((*index, IpAddr::V4(pod.ip)), whole(pod))).collect())
    }

    /// Map entries of pods that are no more. One whose address is still given to somebody stays: its record may be damaged.
    fn sweep_pods<'a>(&self, strangers: impl Iterator<Item = &'a (u32, IpAddr)>, errors: &mut Vec<String>) {
        for (index, ip) in strangers {
            let IpAddr::V4(v4) = *ip else { continue };
            if lock(&self.node.addresses).allocator().lookup_address(ip).is_some() {
                continue;
            }
            if let Err(error) = lock(&self.node.datapath).detach_pod(*index, v4) {
                errors.push(format!("sweeping the map entry of {ip}: {error}"));
            }
        }
    }
}

fn links(attachment: &Attachment) -> impl Iterator<Item = (u32, IpAddr)> {
    attachment.ips.iter().map(|ip| (attachment.host_index, *ip))
}

fn foreign(record: &ipam::BlockRecord) -> String {
    format!(
        "block {} holds addresses of pods here, but the store gives it to node {} (epoch {}): nothing new comes from it; \
         delete its pods on this node (`weft ipam show` lists them)",
        record.cidr, record.owner, record.epoch
    )
}

/// A new subscription; while the kernel refuses one, the timer finds drift.
async fn resubscribe(host: &Host) -> Events {
    loop {
        match host.events().await {
            Ok(events) => return events,
            Err(error) => tracing::warn!(%error, "no netlink events; trying again"),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// What has to be read back from the kernel at the next pass.
#[derive(Clone, Copy, Debug, Default)]
struct Doubt {
    /// Links, addresses, routes, neighbours, FDB.
    host: bool,
    /// nft, sysctls, maps, programs.
    programs: bool,
}

impl Doubt {
    const ALL: Self = Self { host: true, programs: true };
}
