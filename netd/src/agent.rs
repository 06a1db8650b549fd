// SPDX-License-Identifier: Apache-2.0
//! The loop: whatever happened (the store changed, a pod came or went, somebody touched a link or route of ours, time
//! passed), the same pass runs: desired from pure functions, the kernel read back where it may differ, the difference
//! applied. Start, change, drift and a compacted store take this one path.
//!
//! One task, no channels: wake-ups are level-triggered and coalesce. Cancel-safe between passes.

mod aside;
mod laps;
mod maps;
mod names;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use netd_host::{Events, Host};
use netd_plan::{BackendKind, NodeFacts};
use netd_store::records::OverlayBackend;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::agent::aside::Ending;
use crate::agent::laps::Laps;
use crate::attach;
use crate::attachments::Phase;
use crate::desired;
use crate::dns;
use crate::hostsync::{Applied, HostSync};
use crate::node::{Node, lock, monotonic_ms, now_ms};
use crate::overlay::{self, OverlayPaths, Routed};
use crate::pace::Pace;
use crate::relay;
use crate::services::{self, Around};
use crate::settings::Settings;
use crate::status::Progress;
use crate::sweep::gone_links;
use crate::underlay::Follower;
use crate::usage;
use crate::view::{Known, View};
use crate::zone::ZoneKeeper;

/// Drift that no event tells of (nft, BPF maps) is found at least this often.
const FULL_PASS_EVERY: Duration = Duration::from_secs(30);
/// Changes that come in a burst are handled together.
const COALESCE: Duration = Duration::from_millis(5);
/// Events come with every pod of ours, too; reading all links and routes for each would make ADD slower with every pod that
/// is there. An event after a quiet time is acted upon at once.
const OBSERVE_EVERY: Duration = Duration::from_millis(250);
/// And after so many times what such a pass took: the kernel reads out all links under the lock that every ADD and DEL needs.
const OBSERVE_REST: u32 = 30;
/// Drift that events tell of is found within this all the same.
const OBSERVE_REST_MAX: Duration = Duration::from_secs(2);
/// After a failure, or while something waits for retired slots.
const RETRY_AFTER: Duration = Duration::from_millis(1_100);

/// Owns what programs the kernel.
pub(crate) struct Agent {
    node: Arc<Node>,
    host: HostSync,
    settings: Settings,
    around: Around,
    ending: Ending,
    /// How long this pass waited for work beside it.
    waited: Duration,
    /// When services or their connections are due again by themselves (monotonic milliseconds).
    services_due: Option<u64>,
    /// What an earlier ABI's pins held was taken over and is gone.
    migrated: bool,
    paths: OverlayPaths,
    underlay: Follower,
    /// Why it could not be read, as it was logged last.
    underlay_said: Option<String>,
    /// What the routes stand for once this pass has made them.
    routes: Routed,
    /// What the tunnel was last woken for, with its peers.
    seen: Option<(Arc<View>, Vec<NodeFacts>)>,
    /// Gives pods another MTU.
    following: Option<JoinHandle<()>>,
    /// When the choice of paths is due again by itself.
    choose_at: Option<Instant>,
    known: Known,
    /// Overlay device (interface index) that the programs were told of; `None` before the first time.
    overlay: Option<Option<u32>>,
    /// Host ends that were missing when the kernel was last read.
    gone: BTreeSet<String>,
    /// The view that the DNS zone was made from.
    zoned: Option<Arc<View>>,
    zone: ZoneKeeper,
    /// The view and the state of the store that addressing was told of.
    observed: Option<(Arc<View>, Option<String>)>,
    /// Pods whose programs this netd has attached or updated, by host link, with whether they take the fast path.
    attached: BTreeMap<u32, (Vec<std::net::IpAddr>, bool)>,
}

impl Agent {
    pub(crate) fn new(node: Arc<Node>, host: Host, settings: Settings) -> Self {
        let underlay_mtu = node.underlay.load().mtu;
        let zone = ZoneKeeper::new(&node.config.dns.zone);
        Self {
            node,
            host: HostSync::new(host),
            settings,
            around: Around::default(),
            ending: Ending::default(),
            waited: Duration::ZERO,
            services_due: None,
            migrated: false,
            paths: OverlayPaths::new(underlay_mtu),
            underlay: Follower::default(),
            underlay_said: None,
            routes: Routed::default(),
            seen: None,
            following: None,
            choose_at: None,
            known: Known::default(),
            overlay: None,
            gone: BTreeSet::new(),
            zoned: None,
            zone,
            observed: None,
            attached: BTreeMap::new(),
        }
    }

    /// Runs until aborted.
    pub(crate) async fn run(mut self, host: Host) -> Result<()> {
        let mut events = host.events().await?;
        let mut mirror = self.node.mirror.clone();
        let mut skydns = self.node.skydns.clone();
        let mut timer = interval(FULL_PASS_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = false;
        let mut doubt = Doubt::ALL;
        let mut pace = Pace::new(COALESCE);
        // When to read the kernel because of events, and from when on that may be done.
        let (mut look_at, mut rested) = (None::<Instant>, Instant::now());
        loop {
            let node = self.node.clone();
            tokio::select! {
                // The store's task has ended: so does netd.
                changed = mirror.changed() => if changed.is_err() { return Ok(()) },
                () = relay::changed(&mut skydns) => {}
                () = node.agent_wake.notified() => {}
                event = events.next() => {
                    if event.is_none() {
                        events = resubscribe(&host).await;
                    }
                    look_at.get_or_insert(rested.max(Instant::now()));
                    continue;
                }
                () = tokio::time::sleep_until(look_at.unwrap_or_else(Instant::now).into()), if look_at.is_some() => {
                    doubt.host = true;
                }
                () = tokio::time::sleep_until(self.choose_at.unwrap_or_else(Instant::now).into()), if self.choose_at.is_some() => {}
                () = tokio::time::sleep(until(self.services_due)), if self.services_due.is_some() => {}
                () = self.ending.work.finished() => {}
                _ = timer.tick() => doubt = Doubt::ALL,
                () = tokio::time::sleep(RETRY_AFTER), if retry => doubt.host = true,
            }
            pace.wait().await;
            let state = mirror.borrow_and_update().clone();
            let (start, mut laps) = (Instant::now(), Laps::begin());
            if state.revision == 0 || !self.tunnel_is_known(&state) {
                // What was seen is still to be looked at, with the first pass: the tunnel's task wakes us for it.
                look_at = None;
                continue;
            }
            laps.end_of("view");
            if doubt.host {
                look_at = None;
            }
            retry = self.pass(&state, doubt, laps).await;
            let took = start.elapsed();
            // Who waits leaves the CPU to others.
            let worked = took.saturating_sub(std::mem::take(&mut self.waited));
            if doubt.host {
                rested = start + (worked * OBSERVE_REST).clamp(OBSERVE_EVERY, OBSERVE_REST_MAX);
            }
            look_at = look_at.into_iter().chain(self.underlay.due()).min();
            doubt = Doubt::default();
            pace.ran(worked);
            self.node.counters.passed(took);
        }
    }

    /// One pass; true when another is wanted soon.
    async fn pass(&mut self, state: &netd_store::MirrorState, doubt: Doubt, mut laps: Laps) -> bool {
        // Before anything is looked at: a change that comes meanwhile is the next pass's.
        let change = self.node.change();
        let view = self.refresh_view(state);
        if doubt.host {
            self.host.suspect();
            let attachments = lock(&self.node.attachments).all();
            self.gone = tokio::task::block_in_place(|| gone_links(&attachments));
            match netd_host::local_addresses() {
                Ok(addresses) => self.node.local_addresses.store(Arc::new(addresses)),
                Err(error) => tracing::warn!(%error, "node ports stay at the addresses that were known"),
            }
        }
        if doubt.programs {
            lock(&self.node.services).suspect();
            self.around.suspect();
            self.overlay = None;
        }
        let (mut errors, mut kernel) = (Vec::new(), Vec::new());
        self.choose_paths(&view, doubt.host).await;
        laps.end_of("paths");
        self.observe_addresses(&view, doubt.programs, &mut errors);
        laps.end_of("addresses");
        if doubt.programs {
            self.find_foreign_tc().await;
            attach::follow_all(&self.node).await;
        }
        // Before the nft table, which lets nothing out of a pod that the program has not marked: programs of a netd that did
        // not know the mark are replaced first, so that an upgrade costs running pods nothing. One whose program cannot be
        // replaced is cut off then, and shown as pending.
        let mut pending = self.keep_pods(&view, doubt.programs, &mut kernel);
        let pods_attached = pending.is_empty();
        laps.end_of("pods");
        if doubt.programs
            && view.in_sync
            && let Err(error) = tokio::task::block_in_place(|| services::sweep_netns(&self.node))
        {
            kernel.push(format!("network namespaces of pods: {error}"));
        }
        if let Err(error) = self.keep_settings(&view, doubt.programs).await {
            kernel.push(format!("host settings: {error:#}"));
        }
        laps.end_of("settings");
        let mut retry = match self.keep_host(&view).await {
            Ok(applied) => applied.more,
            Err(error) => {
                kernel.push(format!("reading links and routes: {error:#}"));
                true
            }
        };
        // More to do, or something that failed and waits: the kernel is not at this revision yet.
        let behind = retry || self.host.is_waiting();
        if !behind && kernel.is_empty() && self.say_routed(self.routes) {
            self.node.publish_wake.notify_one();
        }
        if let Err(error) = self.keep_overlay() {
            kernel.push(format!("overlay program: {error}"));
        }
        if let Err(error) = self.keep_checksums() {
            kernel.push(format!("checksums of {}: {error}", desired::VXLAN_DEVICE));
        }
        laps.end_of("links and routes");
        let last = self.node.progress.load_full();
        let mut problems = match self.keep_services(&view) {
            Ok(synced) => {
                self.services_due = synced.due_ms;
                synced.problems
            }
            Err(error) => {
                // Tried again like everything that fails.
                self.services_due = None;
                kernel.push(format!("services: {error:#}"));
                last.problems.clone()
            }
        };
        // After the maps: what comes by these devices finds services complete.
        if let Err(error) = self.keep_devices(&view) {
            kernel.push(format!("services: {error:#}"));
        }
        laps.end_of("services");
        self.end_connections(&mut errors).await;
        self.services_due = [self.services_due, self.ending.due_ms()].into_iter().flatten().min();
        laps.end_of("connections");
        self.keep_dns(&view, state, &mut errors);
        laps.end_of("names");
        // Where services could not be looked at, what was known of them stands, and with it what was known of names.
        let names = self.zone.problems();
        told::add(&mut problems, names);

        let as_wished = kernel.is_empty();
        errors.extend(kernel.iter().cloned());
        for error in errors.iter().filter(|error| !last.errors.contains(error)) {
            tracing::warn!("{error}");
        }
        told::tell(&problems, &last.problems, "not served as it was written");
        // What concerns single pods or routes is pending and shown; it does not stop the node from serving the others.
        let programmed = as_wished && !behind;
        retry |= !errors.is_empty() || !pending.is_empty() || behind;
        pending.extend(self.host.pending());
        self.node.progress.store(Arc::new(Progress {
            programmed_revision: if programmed { view.revision } else { last.programmed_revision },
            programmed_once: last.programmed_once || as_wished,
            attached: lock(&self.node.services).attached(),
            pending,
            errors,
            kernel_errors: kernel,
            problems,
        }));
        if as_wished {
            self.node.programmed.send_replace(change);
            self.finish_migration(view.in_sync && pods_attached);
        }
        if view.in_sync && lock(&self.node.usage).is_due(self.node.addressing.now()) {
            let claimed = usage::claimed(&self.node);
            lock(&self.node.usage).note(self.node.addressing.now(), &claimed);
        }
        self.node.settle_wake.notify_one();
        laps.end_of("the rest");
        laps.say();
        retry
    }

    /// A netd that starts must not take away routes over a tunnel that it has not looked at yet.
    fn tunnel_is_known(&mut self, state: &netd_store::MirrorState) -> bool {
        let view = self.refresh_view(state);
        let wanted = matches!(view.config.overlay, OverlayBackend::Auto | OverlayBackend::Wireguard)
            || overlay::offered_before(&self.node, &view, BackendKind::Wireguard);
        let known = !wanted || self.node.tunnel.state.load().looked;
        if !known {
            self.node.tunnel.wake.notify_one();
        }
        known
    }

    /// How each peer is reached from now on.
    async fn choose_paths(&mut self, view: &Arc<View>, doubt: bool) {
        if doubt {
            match self.underlay.follow(&self.node, &self.host).await {
                Ok(Some(now)) => {
                    (self.paths.subnets, self.paths.underlay_mtu) = (now.subnets, now.mtu);
                    self.underlay_said = None;
                }
                Ok(None) => self.underlay_said = None,
                Err(error) => {
                    let text = format!("the underlay's device could not be read: {error}");
                    if self.underlay_said.as_ref() != Some(&text) {
                        tracing::warn!("{text}");
                        self.underlay_said = Some(text);
                    }
                }
            }
        }
        // What is routed to a peer must be allowed to it, too, and at once.
        if !self.seen.as_ref().is_some_and(|(seen, _)| Arc::ptr_eq(seen, view)) {
            let peers = view.peers(self.node.uuid);
            let is_same = |(seen, before): &(Arc<View>, Vec<NodeFacts>)| {
                *before == peers
                    && seen.nodes == view.nodes
                    && seen.alive == view.alive
                    && seen.config == view.config
            };
            if !self.seen.as_ref().is_some_and(is_same) {
                self.node.tunnel.wake.notify_one();
            }
            self.seen = Some((view.clone(), peers));
        }
        let now = self.paths.choose(&self.node, view);
        let last = self.node.overlay.load_full();
        for (uuid, choice) in &now.plan.peers {
            let before = last.plan.peers.get(uuid);
            if before.map(|before| before.path) != Some(choice.path) {
                let name = view.nodes.get(uuid).map_or("", |record| record.name.as_str());
                match (&choice.path, &choice.problem) {
                    (Some(path), _) => tracing::info!(peer = name, ?path, "reached by"),
                    (None, Some(problem)) => tracing::warn!(peer = name, %problem, "not reached"),
                    (None, None) => {}
                }
            }
        }
        self.choose_at =
            now.plan.next_ms.map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(now_ms())));
        // When to look again is told by a clock that runs a little otherwise.
        let timeless = netd_plan::PathsPlan { next_ms: last.plan.next_ms, ..now.plan.clone() };
        let (moved, offered) = (timeless != last.plan, now.plan.up != last.plan.up);
        self.routes = Routed { sends: now.plan.sends, generation: self.node.tunnel.state.load().plan.sends };
        // Taken back before the routes change, said once they stand.
        let widened = now.underlay_mtu != last.underlay_mtu;
        let published = self.say_routed(self.node.routed.load().until(self.routes)) || offered || widened;
        let mtu = now.mtu;
        self.node.overlay.store(Arc::new(now));
        // Not waited for: an ADD that holds a pod's turn may wait for this pass.
        if self.following.as_ref().is_none_or(JoinHandle::is_finished) {
            let node = self.node.clone();
            self.following = Some(tokio::spawn(async move { attach::follow_mtu(&node, mtu).await }));
        }
        let has = self.node.tunnel.state.load();
        if moved || !has.members.keys().eq(view.members.keys()) {
            self.node.tunnel.wake.notify_one();
        }
        if published {
            self.node.publish_wake.notify_one();
        }
    }

    /// What the record says of this node's routes; true when that is news.
    fn say_routed(&self, routed: Routed) -> bool {
        let news = **self.node.routed.load() != routed;
        if news {
            self.node.routed.store(Arc::new(routed));
        }
        news
    }

    async fn keep_settings(&mut self, view: &View, doubt: bool) -> Result<()> {
        let attachments = lock(&self.node.attachments).all();
        let rules = desired::nft_rules(&self.node, view, &attachments);
        self.settings.pass(&rules, &view.pod_cidrs(), &self.node.underlay.load().device, doubt).await?;
        // After the table, which keeps pods from what listens on the loopback addresses.
        for attachment in attachments
            .iter()
            .filter(|a| a.phase == Phase::Committed && !a.adopted && !self.gone.contains(&a.host_ifname))
        {
            if !attachment.port_mappings.is_empty() && attachment.ips.iter().any(std::net::IpAddr::is_ipv4) {
                netd_host::veth::open_for_loopback(&attachment.host_ifname)?;
            }
        }
        Ok(())
    }

    async fn keep_host(&mut self, view: &View) -> Result<Applied> {
        let node = self.node.clone();
        let gone = &self.gone;
        let wishes = || {
            let attachments = lock(&node.attachments).all();
            let objects = desired::host_objects(&node, view, &attachments, gone);
            (objects, desired::busy_devices(&attachments))
        };
        self.host.pass(wishes, view.in_sync, monotonic_ms()).await
    }

    fn refresh_view(&mut self, state: &netd_store::MirrorState) -> Arc<View> {
        let last = self.node.view.load_full();
        if (last.revision, last.in_sync, last.listings) == (state.revision, state.in_sync, state.listings) {
            return last;
        }
        let servers = &self.node.config.dns_addresses;
        let own = |view: &View| {
            let others = dns::other_servers(view, self.node.uuid);
            Some(desired::dns_service(&view.config.dns_vips(), servers, &others))
        };
        let view = Arc::new(View::parse(state, &self.node.keys, &self.node.initial, own, &mut self.known));
        told::tell(&view.bad_values, &last.bad_values, "a value in the store is skipped");
        lock(&self.node.services).note(self.known.objects.take_changed());
        self.node.view.store(view.clone());
        self.node.publish_wake.notify_one();
        self.node.health_check_wake.notify_one();
        view
    }

    /// What the store says about addresses; what runs short is claimed elsewhere.
    fn observe_addresses(&mut self, view: &Arc<View>, doubt: bool, errors: &mut Vec<String>) {
        let node = self.node.clone();
        let mirror = node.mirror.borrow().clone();
        let away =
            (!mirror.connected).then(|| mirror.last_error.clone().unwrap_or_else(|| "not connected".into()));
        let told = self.observed.as_ref();
        if !doubt && told.is_some_and(|(of, then)| Arc::ptr_eq(of, view) && *then == away) {
            return;
        }
        let picture = view.picture(node.uuid, node.config.node_labels.clone(), away.clone());
        let seen = tokio::task::block_in_place(|| node.addressing.observe(picture));
        // What does not agree is looked at again in every pass.
        self.observed = seen.errors.is_empty().then(|| (view.clone(), away));
        errors.extend(seen.errors);
        let unsettled = !mirror.items.contains_key(&node.keys.config());
        if unsettled || node.held.load().is_some() || !seen.short.is_empty() {
            node.claim_wake.notify_one();
        }
    }

    /// What somebody else put on our pods' veths: those pods' packets take the host's stack.
    async fn find_foreign_tc(&self) {
        let found = match self.host.traffic_control().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "qdiscs could not be read: pods keep the path that they have");
                return;
            }
        };
        let mut known = lock(&self.node.foreign_tc);
        for (link, what) in found.iter().filter(|(link, _)| !known.contains_key(*link)) {
            tracing::info!(link, what, "not ours: this pod's packets take the host's stack");
        }
        *known = found;
    }
}

/// Until then; no time where it has passed, and where there is no such time.
fn until(due_ms: Option<u64>) -> Duration {
    Duration::from_millis(due_ms.unwrap_or(0).saturating_sub(monotonic_ms()))
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
