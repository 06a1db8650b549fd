// SPDX-License-Identifier: Apache-2.0
//! The loop: whatever happened (the store changed, a pod came or went, somebody touched a link or route of ours, time
//! passed), the same pass runs: desired from pure functions, the kernel read back where it may differ, the difference
//! applied. Start, change, drift and a compacted store take this one path.
//!
//! One task, no channels: wake-ups are level-triggered and coalesce. Cancel-safe between passes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use netd_api::PendingItem;
use netd_host::Host;
use netd_store::records::{ClusterConfig, OverlayBackend};
use tokio::time::{MissedTickBehavior, interval};

use crate::attachments::{Attachment, Phase};
use crate::attachments_api;
use crate::datapath::ServiceSync;
use crate::desired;
use crate::hostsync::HostSync;
use crate::node::{Node, lock, monotonic_ms};
use crate::settings::Settings;
use crate::status::Progress;
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
    initial: ClusterConfig,
    known: Known,
    /// Overlay device (interface index) that the programs were told of; `None` before the first time.
    overlay: Option<Option<u32>>,
    /// Pods whose programs this netd has attached or updated.
    attached: BTreeSet<(u32, IpAddr)>,
}

impl Agent {
    pub(crate) fn new(node: Arc<Node>, host: Host, settings: Settings) -> Self {
        let initial = desired::initial_config(&node.config);
        Self {
            node,
            host: HostSync::new(host),
            settings,
            services: ServiceSync::new(),
            initial,
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
        let mut full = true;
        let mut last_pass = Duration::ZERO;
        loop {
            let node = self.node.clone();
            tokio::select! {
                changed = mirror.changed() => changed?,
                () = node.agent_wake.notified() => {}
                event = events.next() => {
                    full = true;
                    if event.is_none() {
                        events = host.events().await?;
                    }
                }
                _ = timer.tick() => full = true,
                () = tokio::time::sleep(RETRY_AFTER), if retry => full = true,
            }
            tokio::time::sleep(last_pass.clamp(COALESCE, COALESCE_MAX)).await;
            let state = mirror.borrow_and_update().clone();
            if state.revision == 0 {
                continue;
            }
            let start = Instant::now();
            retry = self.pass(&state, full).await;
            full = false;
            last_pass = start.elapsed();
            self.node.counters.passed(last_pass);
        }
    }

    /// One pass; true when another is wanted soon.
    async fn pass(&mut self, state: &netd_store::MirrorState, full: bool) -> bool {
        let view = self.refresh_view(state);
        if full {
            self.host.suspect();
            self.services.suspect();
            self.overlay = None;
        }
        let mut errors = Vec::new();
        let mut retry = false;

        if view.in_sync && !view.configured {
            // The first node settles it for all; the watch brings it back to us.
            let settled =
                netd_store::claim::ensure_config(self.node.store.as_ref(), &self.node.keys, &self.initial)
                    .await;
            if let Err(error) = settled {
                errors.push(format!("the cluster has no configuration yet, and writing one failed: {error}"));
            }
        }
        self.adopt_blocks(&view, &mut errors).await;

        let pod_cidrs = view.pod_cidrs();
        if full {
            let rules = desired::nft_rules(&self.node, &view);
            let uplink = self.node.underlay.device.clone();
            if let Err(error) = self.settings.pass(&rules, &pod_cidrs, &uplink).await {
                errors.push(format!("host settings: {error:#}"));
            }
        }

        let objects = desired::host_objects(&self.node, &view);
        let busy = desired::busy_devices(&self.node);
        match self.host.pass(&objects, &busy, view.in_sync, monotonic_ms()).await {
            Ok(applied) => retry |= applied.failed > 0 || applied.more,
            Err(error) => errors.push(format!("reading links and routes: {error:#}")),
        }

        if let Err(error) = self.keep_overlay(&view) {
            errors.push(format!("overlay program: {error}"));
        }
        let synced = {
            let mut datapath = lock(&self.node.datapath);
            tokio::task::block_in_place(|| {
                self.services.pass(&mut datapath, &view.table, view.in_sync, monotonic_ms())
            })
        };
        let (image, problems) = match synced {
            Ok(synced) => {
                retry |= synced.retry;
                (synced.image, synced.problems)
            }
            Err(error) => {
                errors.push(format!("services: {error:#}"));
                let last = self.node.progress.load();
                (last.image.clone(), last.problems.clone())
            }
        };
        self.keep_pods(full, &mut errors);

        match desired::zone(&view) {
            Ok(zone) => self.node.zone.store(Some(Arc::new(zone))),
            Err(error) => errors.push(format!(
                "the DNS zone {:?} of the cluster's configuration: {error}",
                view.config.dns_zone
            )),
        }
        retry |= !errors.is_empty();
        for error in &errors {
            tracing::warn!("{error}");
        }
        let last = self.node.progress.load();
        let programmed = errors.is_empty() && self.host.pending().is_empty();
        self.node.progress.store(Arc::new(Progress {
            programmed_revision: if programmed { view.revision } else { last.programmed_revision },
            programmed_once: last.programmed_once || programmed,
            attached: self.services.attached(),
            pending: self.pending(),
            errors,
            problems,
            image,
        }));
        retry
    }

    fn refresh_view(&mut self, state: &netd_store::MirrorState) -> Arc<View> {
        let last = self.node.view.load_full();
        if last.revision == state.revision && last.in_sync == state.in_sync {
            return last;
        }
        let dns_address = self.node.config.dns_address;
        let own = |config: &ClusterConfig| desired::dns_service(config.dns_vip, dns_address);
        let view = Arc::new(View::parse(state, &self.node.keys, &self.initial, own, &mut self.known));
        for bad in view.bad_values.iter().filter(|bad| !last.bad_values.contains(bad)) {
            tracing::warn!(key = bad.key, reason = bad.reason, "a value in the store is skipped");
        }
        self.node.view.store(view.clone());
        self.node.publish_wake.notify_one();
        view
    }

    /// Blocks that the store says are ours become usable; the first one brings the node's overlay address.
    async fn adopt_blocks(&self, view: &View, errors: &mut Vec<String>) {
        for record in view.blocks_of(self.node.uuid) {
            let added = tokio::task::block_in_place(|| lock(&self.node.addresses).add_block(record.clone()));
            match added {
                Ok(true) => tracing::info!(block = %record.cidr, "block adopted"),
                Ok(false) => {}
                Err(error) => errors.push(format!("block {}: {error:#}", record.cidr)),
            }
        }
        for record in view.blocks.values().filter(|record| record.owner != self.node.uuid) {
            if lock(&self.node.addresses).blocks().contains(&record.cidr) {
                errors.push(format!(
                    "block {} is in this node's journal, but the store gives it to node {}; stop the pods here, then remove {}",
                    record.cidr, record.owner, "the block with `netd clean`"
                ));
            }
        }
        let wanting = lock(&self.node.addresses).needs_spare();
        if wanting
            && view.in_sync
            && view.configured
            && let Err(error) = attachments_api::claim_block(&self.node).await
        {
            // With addresses left this is a forecast, not a failure.
            if lock(&self.node.addresses).free() == 0 {
                errors.push(error.to_string());
            }
        }
        let has_blocks = !lock(&self.node.addresses).blocks().is_empty();
        if has_blocks {
            let given = tokio::task::block_in_place(|| lock(&self.node.addresses).ensure_node_address());
            if let Err(error) = given {
                errors.push(format!("node overlay address: {error}"));
            }
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
    /// links; a full pass finds what somebody removed.
    fn keep_pods(&mut self, full: bool, errors: &mut Vec<String>) {
        // Held throughout: a DEL either came before (then it is not live here) or waits until its pod is consistent.
        let attachments = lock(&self.node.attachments);
        let live: Vec<&Attachment> = attachments.iter().filter(|a| a.phase == Phase::Committed).collect();
        let present: BTreeSet<(u32, IpAddr)> = if full {
            let observed = tokio::task::block_in_place(|| lock(&self.node.datapath).pods());
            observed.unwrap_or_default().iter().map(|(index, pod)| (*index, IpAddr::V4(pod.ip))).collect()
        } else {
            self.attached.clone()
        };
        self.attached.retain(|pod| present.contains(pod));
        if full {
            let known: BTreeSet<(u32, IpAddr)> =
                attachments.iter().flat_map(|a| a.ips.iter().map(|ip| (a.host_index, *ip))).collect();
            for (index, ip) in present.difference(&known) {
                let IpAddr::V4(ip) = *ip else { continue };
                if let Err(error) = lock(&self.node.datapath).detach_pod(*index, ip) {
                    errors.push(format!("sweeping the map entry of {ip}: {error}"));
                }
            }
        }
        for attachment in live {
            let pods = attachment.ips.iter().map(|ip| (attachment.host_index, *ip));
            if pods.clone().all(|pod| self.attached.contains(&pod)) {
                continue;
            }
            match tokio::task::block_in_place(|| attachments_api::attach(&self.node, attachment)) {
                Ok(()) => self.attached.extend(pods),
                Err(error) => {
                    errors.push(format!("pod {}/{}: {error}", attachment.namespace, attachment.name))
                }
            }
        }
    }

    fn pending(&self) -> Vec<PendingItem> {
        self.host.pending()
    }
}
