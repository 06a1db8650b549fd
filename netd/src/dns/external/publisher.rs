// SPDX-License-Identifier: Apache-2.0
//! Whether this node publishes, whose the names are, and what is wished; then what there is to do (`reconcile.rs`).

use std::sync::Arc;

use anyhow::Result;
use dns_zone::external::Domain;
use netd_api::BadValue;

use super::Shown;
use super::client::Session;
use super::owner::cluster_id;
use super::presence::{Presence, Present};
use super::reconcile::{Pass, Reconciler};
use super::troubles::Troubles;
use super::wishes::{Wishes, wishes};
use crate::config::{ExternalOptions, owner_of};
use crate::leader::{self, EXTERNAL_DNS, Seat};
use crate::node::{Node, monotonic_ms};
use crate::view::View;

/// Where the server does what we ask of it not even once for so long, another node may try: it may have a way to it, or the
/// right key.
const HAND_OVER_MS: u64 = 20_000;
/// Time for others to take over; then it is tried here again.
const REST_MS: u64 = 5_000;
/// A store that fails once is a blip.
const BLIPS_MAX: u32 = 1;

/// Publishes while this node is the leader.
pub(super) struct Publisher {
    options: ExternalOptions,
    seed: u64,
    leads: bool,
    /// It was said that it does.
    told: bool,
    /// The lease that it leads by: with another one somebody else may have led meanwhile.
    lease: Option<i64>,
    /// Followed by who does not lead, too: who takes over is to know.
    presence: Presence,
    /// What the wishes were made from.
    seen: Option<(Arc<View>, Present)>,
    wishes: Wishes,
    zone: Reconciler,
    /// Names of ours there, and their records, as they were read last.
    counts: (usize, usize),
    /// Since when the server fails.
    failing_ms: Option<u64>,
    /// How often in a row it could not be settled who publishes, and for whom.
    unsettled: u32,
    /// Until then another node may take over.
    rest_until_ms: u64,
}

impl Publisher {
    /// Nodes differ in `seed`.
    pub(super) fn new(options: ExternalOptions, seed: u64) -> Self {
        Self {
            options,
            seed,
            leads: false,
            told: false,
            lease: None,
            presence: Presence::default(),
            seen: None,
            wishes: Wishes::default(),
            zone: Reconciler::new(Troubles::new(seed)),
            counts: (0, 0),
            failing_ms: None,
            unsettled: 0,
            rest_until_ms: 0,
        }
    }

    /// Looks, and does what is to be done and may be tried.
    pub(super) async fn pass(&mut self, node: &Node) {
        let now = monotonic_ms();
        let view = node.view.load_full();
        let is_known = view.in_sync && view.configured;
        let present = is_known.then(|| self.presence.look(&view, now));
        if now < self.rest_until_ms {
            return;
        }
        match leader::look(node, EXTERNAL_DNS).await {
            Ok(Seat::Ours) => {}
            Ok(Seat::NotOurs) => return self.step_down(node),
            Ok(Seat::Unknown) => return,
            Err(error) => {
                let key = node.keys.leader(EXTERNAL_DNS);
                let text = format!("who does it cannot be settled at {key} in the store: {error}");
                return self.is_unsettled(node, text, now);
            }
        }
        if let Err(error) = self.own(node).await {
            return self.is_unsettled(node, format!("whose they are is not known: {error:#}"), now);
        }
        self.unsettled = 0;
        let lease = node.lease.load().as_ref().map(|lease| lease.id.0);
        if self.lease != lease {
            self.lease = lease;
            self.zone.forget();
        }
        if !self.leads {
            self.leads = true;
            if !std::mem::replace(&mut self.told, true) {
                let zone = self.domain().zone();
                tracing::info!("this node publishes names of services in {} (zone {zone})", self.domain());
            }
            node.external.show(self.shown());
        }
        let Some(present) = present else { return };
        self.wish(node, view, present);
        if !self.zone.troubles.ready(&None, now) {
            return;
        }
        // By this lease and no later one: between them another node may lead.
        let leads = || node.lease.load().as_ref().is_some_and(|now| now.stands() && Some(now.id.0) == lease);
        let mut server = Session::new(&self.options);
        let domain = &self.options.domain;
        let pass = Pass { domain, wishes: &self.wishes, said: &node.external, now };
        match self.zone.pass(pass, &mut server, leads).await {
            Ok(()) => {
                self.failing_ms = None;
                if self.zone.troubles.over(&None) {
                    tracing::info!("names in {} are published again", self.domain());
                }
            }
            Err(error) => {
                node.external.failed(error.reason());
                self.zone.troubles.say(domain, None, error.to_string(), now);
                if now.saturating_sub(*self.failing_ms.get_or_insert(now)) >= HAND_OVER_MS {
                    self.hand_over(node, now).await;
                }
            }
        }
        node.external.show(self.shown());
    }

    /// Learns whose names these are.
    async fn own(&mut self, node: &Node) -> Result<()> {
        if !self.options.owner_given {
            let id = cluster_id(node.store.as_ref(), &node.keys).await?;
            let owner = owner_of(&node.config.cluster, id);
            self.options.domain = self.options.domain.owned_by(&owner)?;
            self.options.owner_given = true;
        }
        Ok(())
    }

    /// Another node does it.
    fn step_down(&mut self, node: &Node) {
        self.unsettled = 0;
        if !self.leads && self.zone.troubles.is_empty() {
            return;
        }
        // Where the server fails, nodes take turns, and that is not told each time.
        if !self.zone.troubles.concern_all() && std::mem::take(&mut self.told) {
            tracing::info!("this node does not publish names in {}", self.domain());
        }
        let presence = std::mem::take(&mut self.presence);
        let (told, zone) = (self.told, Reconciler::new(self.zone.troubles.renewed()));
        *self = Self { presence, told, zone, ..Self::new(self.options.clone(), self.seed) };
        node.external.show(self.shown());
    }

    /// Nothing is done; where that lasts it is told.
    fn is_unsettled(&mut self, node: &Node, text: String, now: u64) {
        tracing::debug!("names are not published yet: {text}");
        self.unsettled = self.unsettled.saturating_add(1);
        if self.unsettled > BLIPS_MAX && self.zone.troubles.ready(&None, now) {
            self.zone.troubles.say(&self.options.domain, None, text, now);
            node.external.show(self.shown());
        }
    }

    /// What keeps us from publishing stays to be seen, until another node publishes.
    async fn hand_over(&mut self, node: &Node, now: u64) {
        leader::hand_over(node, EXTERNAL_DNS).await;
        self.zone.forget();
        (self.leads, self.failing_ms) = (false, None);
        self.rest_until_ms = now + REST_MS;
    }

    /// Makes the wishes anew where something changed that they follow from.
    fn wish(&mut self, node: &Node, view: Arc<View>, present: Present) {
        let is_known = |(seen, before): &(Arc<View>, Present)| Arc::ptr_eq(seen, &view) && *before == present;
        if self.seen.as_ref().is_some_and(is_known) {
            return;
        }
        let external_ips = node.config.services.external_ips;
        self.wishes = wishes(self.domain(), &view, external_ips, &present);
        self.seen = Some((view, present));
        self.zone.is_done = false;
    }

    fn shown(&mut self) -> Shown {
        self.counts = self.zone.counts(&self.options.domain).unwrap_or(self.counts);
        let refused = self.zone.contested.iter().map(|contested| BadValue {
            key: format!("Service {}", contested.refused),
            reason: format!("{} is that of Service {}", contested.host, contested.holder),
        });
        let taken = self.zone.taken.iter().map(|(host, mark)| BadValue {
            key: format!("name {host}"),
            reason: format!(
                "Service {} of cluster {} has it (see dns.external `owner`)",
                mark.service, mark.owner
            ),
        });
        Shown {
            leads: self.leads,
            names: self.counts.0,
            records: self.counts.1,
            is_done: self.zone.is_done,
            pending: self.zone.troubles.pending(self.domain()),
            problems: self.wishes.problems.iter().cloned().chain(refused).chain(taken).collect(),
        }
    }

    fn domain(&self) -> &Domain {
        &self.options.domain
    }
}
