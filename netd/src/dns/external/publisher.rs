// SPDX-License-Identifier: Apache-2.0
//! One pass after the other: what is wished, what is there, the difference. What the zone has is read once in a while, and
//! remembered meanwhile: the conditions of each update see to it that nothing is done to a zone that is otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use dns_zone::external::{Change, Contested, Domain, Found, HostName, Mark, Update, Wish, choose, plan};
use dns_zone::{Name, RecordData, RecordType};
use netd_api::{BadValue, PendingItem};
use netd_plan::Backoff;
use uuid::Uuid;

use super::Shown;
use super::client::{Client, Outcome};
use super::error::ServerError;
use super::owner::cluster_id;
use super::presence::Presence;
use super::wishes::{Wishes, wishes};
use crate::config::{ExternalOptions, owner_of};
use crate::leader::{self, EXTERNAL_DNS, Seat};
use crate::node::{Node, monotonic_ms};
use crate::view::View;

/// What somebody did to our records is mended within this.
const REREAD_MS: u64 = 300_000;
/// After a failure of the server, or of one name.
const AGAIN_MS_MIN: u64 = 1_000;
/// An operator who repairs something should see it heal within half a minute.
const AGAIN_MS_MAX: u64 = 30_000;

/// Where the server does what we ask of it not even once for so long, another node may try: it may have a way to it, or the
/// right key.
const HAND_OVER_MS: u64 = 20_000;
/// Time for others to take over; then it is tried here again.
const REST_MS: u64 = 5_000;

/// Publishes while this node is the leader.
pub(super) struct Publisher {
    options: ExternalOptions,
    leads: bool,
    presence: Presence,
    /// What the wishes were made from.
    seen: Option<(Arc<View>, BTreeSet<Uuid>)>,
    wishes: Wishes,
    /// What the zone has; `None` before it was read.
    found: Option<BTreeMap<HostName, Found>>,
    read_ms: u64,
    /// Names of ours there, and their records, as they were read last.
    counts: (usize, usize),
    /// Names that the server refused to change, and the server itself (`None`).
    again: Backoff<Option<HostName>>,
    /// Since when the server fails.
    failing_ms: Option<u64>,
    /// Until then another node may take over.
    rest_until_ms: u64,
    /// What was said about them, once.
    said: BTreeMap<Option<HostName>, String>,
    contested: Vec<Contested>,
    taken: Vec<(HostName, Mark)>,
    is_done: bool,
}

impl Publisher {
    pub(super) fn new(options: ExternalOptions) -> Self {
        Self {
            options,
            leads: false,
            presence: Presence::default(),
            seen: None,
            wishes: Wishes::default(),
            found: None,
            read_ms: 0,
            counts: (0, 0),
            again: Backoff::new(AGAIN_MS_MIN, AGAIN_MS_MAX),
            failing_ms: None,
            rest_until_ms: 0,
            said: BTreeMap::new(),
            contested: Vec::new(),
            taken: Vec::new(),
            is_done: false,
        }
    }

    /// Looks, and does what is to be done and may be tried.
    pub(super) async fn pass(&mut self, node: &Node) {
        let now = monotonic_ms();
        if now < self.rest_until_ms {
            return;
        }
        match leader::look(node, EXTERNAL_DNS).await {
            Ok(Seat::Ours) => {}
            Ok(Seat::NotOurs) => {
                if self.leads || !self.said.is_empty() {
                    tracing::info!("this node does not publish names in {}", self.domain());
                    *self = Self::new(self.options.clone());
                    node.external.show(self.shown());
                }
                return;
            }
            Ok(Seat::Unknown) => return,
            Err(error) => {
                tracing::debug!(%error, "who publishes names is not settled");
                return;
            }
        }
        if let Err(error) = self.own(node).await {
            tracing::debug!("names are not published yet: {error:#}");
            return;
        }
        if !self.leads {
            self.leads = true;
            tracing::info!(
                "this node publishes names of services in {} (zone {})",
                self.domain(),
                self.domain().zone()
            );
            node.external.show(self.shown());
        }
        let view = node.view.load_full();
        if !view.in_sync || !view.configured {
            return;
        }
        self.wish(node, view, now);
        if !self.again.ready(&None, now) {
            return;
        }
        match self.reconcile(node, now).await {
            Ok(()) => {
                self.again.succeeded(&None);
                self.failing_ms = None;
                if self.said.remove(&None).is_some() {
                    tracing::info!("names in {} are published again", self.domain());
                }
            }
            Err(error) => {
                self.failed(node, None, &error, now);
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

    /// What keeps us from publishing stays to be seen, until another node publishes.
    async fn hand_over(&mut self, node: &Node, now: u64) {
        leader::hand_over(node, EXTERNAL_DNS).await;
        (self.leads, self.found, self.failing_ms) = (false, None, None);
        self.rest_until_ms = now + REST_MS;
    }

    /// Makes the wishes anew where something changed that they follow from.
    fn wish(&mut self, node: &Node, view: Arc<View>, now: u64) {
        let present = self.presence.look(&view, now);
        let is_known =
            |(seen, before): &(Arc<View>, BTreeSet<Uuid>)| Arc::ptr_eq(seen, &view) && *before == present;
        if self.seen.as_ref().is_some_and(is_known) {
            return;
        }
        let external_ips = node.config.services.external_ips;
        self.wishes = wishes(self.domain(), &view, &node.keys, external_ips, &present);
        self.seen = Some((view, present));
        self.is_done = false;
    }

    async fn reconcile(&mut self, node: &Node, now: u64) -> Result<(), ServerError> {
        let is_known = self.found.is_some() && now.saturating_sub(self.read_ms) < REREAD_MS;
        if self.is_done && is_known {
            return Ok(());
        }
        let mut client = None;
        self.read(&mut client, now).await?;
        let Some(mut found) = self.found.take() else { return Ok(()) };
        let (chosen, contested) = choose(self.domain(), self.wishes.candidates.clone(), &found);
        let planned = plan(self.domain(), &chosen, &found, &self.wishes.unread);
        (self.contested, self.taken) = (contested, planned.taken);
        // What nobody wishes any more is no longer to be told.
        let concerned: BTreeSet<&HostName> = planned.updates.iter().map(|update| &update.host).collect();
        let is_concerned = |key: &Option<HostName>| key.as_ref().is_none_or(|host| concerned.contains(host));
        self.again.retain(is_concerned);
        self.said.retain(|key, _| is_concerned(key));

        let (mut left, mut in_doubt) = (0, false);
        let mut outcome = Ok(());
        for update in &planned.updates {
            let key = Some(update.host.clone());
            left += 1;
            if !self.again.ready(&key, now) || outcome.is_err() {
                continue;
            }
            // A leader whose lease has run out meanwhile is none.
            if !node.lease.load_full().is_some_and(|lease| lease.stands()) {
                break;
            }
            let done = match self.client(&mut client).await {
                Ok(client) => client.update(update).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(Outcome::Done) => {
                    left -= 1;
                    tell(self.domain(), update, chosen.get(&update.host));
                    node.external.updated(update.change);
                    settle(self.domain(), &mut found, update, chosen.get(&update.host));
                    self.again.succeeded(&key);
                    self.said.remove(&key);
                }
                Ok(Outcome::Conflict(rcode)) => {
                    // Next time it is looked at first: alone where it is wished, else with all that stands in the index.
                    found.remove(&update.host);
                    in_doubt |= !chosen.contains_key(&update.host);
                    self.conflicted(node, update, rcode, now);
                }
                Err(error) if error.concerns_one_name() => self.failed(node, key, &error, now),
                // What became of it is not known.
                Err(error) => (in_doubt, outcome) = (true, Err(error)),
            }
        }
        self.is_done = left == 0 && self.taken.is_empty();
        self.found = (!in_doubt).then_some(found);
        outcome
    }

    /// Reads everything of ours once in a while, and names that are wished for the first time at once.
    async fn read(&mut self, client: &mut Option<Client>, now: u64) -> Result<(), ServerError> {
        let mut found = match self.found.take() {
            Some(found) if now.saturating_sub(self.read_ms) < REREAD_MS => found,
            _ => {
                let parts: Vec<(Name, RecordType)> =
                    self.domain().index().iter().map(|name| (name.clone(), RecordType::TXT)).collect();
                let records = self.client(client).await?.ask(&parts).await?;
                let texts = records.iter().flatten().filter_map(|record| text(&record.data));
                let hosts = texts.filter_map(|text| self.domain().host(text).ok());
                let indexed = hosts.map(|host| (host, Found { indexed: true, ..Found::default() }));
                let indexed: BTreeMap<HostName, Found> = indexed.collect();
                self.read_ms = now;
                self.look(client, indexed).await?
            }
        };
        let wished = self.wishes.candidates.iter().map(|(host, _)| host);
        let new: BTreeMap<HostName, Found> = wished
            .filter(|host| !found.contains_key(*host) && self.again.ready(&Some((*host).clone()), now))
            .map(|host| (host.clone(), Found::default()))
            .collect();
        // Where this fails all is read anew: nothing is lost by it.
        found.extend(self.look(client, new).await?);
        self.found = Some(found);
        Ok(())
    }

    /// Marks of these names, and the records of those that are ours.
    async fn look(
        &self,
        client: &mut Option<Client>,
        mut hosts: BTreeMap<HostName, Found>,
    ) -> Result<BTreeMap<HostName, Found>, ServerError> {
        if hosts.is_empty() {
            return Ok(hosts);
        }
        let marks: Vec<(Name, RecordType)> =
            hosts.keys().map(|host| (host.mark().clone(), RecordType::TXT)).collect();
        let texts = self.client(client).await?.ask(&marks).await?;
        for (found, records) in hosts.values_mut().zip(texts) {
            found.mark = match records.as_slice() {
                [record] => text(&record.data).and_then(Mark::parse),
                _ => None,
            };
        }
        let types = [RecordType::A, RecordType::AAAA, RecordType::CNAME];
        let domain = self.options.domain.clone();
        let mut ours: Vec<&mut Found> = Vec::new();
        let mut questions: Vec<(Name, RecordType)> = Vec::new();
        for (host, found) in &mut hosts {
            if found.service(&domain).is_some() {
                questions.extend(types.map(|of| (host.name().clone(), of)));
                ours.push(found);
            }
        }
        let records = self.client(client).await?.ask(&questions).await?;
        for (found, records) in ours.into_iter().zip(records.chunks(types.len())) {
            found.records =
                records.iter().flatten().map(|record| (record.data.clone(), record.ttl_secs)).collect();
        }
        Ok(hosts)
    }

    /// Of this pass; connected when it is needed.
    async fn client<'a>(&self, client: &'a mut Option<Client>) -> Result<&'a mut Client, ServerError> {
        let connected = match client.take() {
            Some(connected) => connected,
            None => Client::connect(&self.options).await?,
        };
        Ok(client.insert(connected))
    }

    fn conflicted(&mut self, node: &Node, update: &Update, rcode: &'static str, now: u64) {
        let host = &update.host;
        let text = match update.change {
            Change::Claim => format!(
                "{host} has records that are not Weft's, or a mark ({}) that is not understood ({rcode}): they stay; remove them to have \
                 it published",
                host.mark().to_string().trim_end_matches('.')
            ),
            _ => format!("{host} was changed by somebody else meanwhile ({rcode}): it is looked at again"),
        };
        node.external.failed("conflict");
        self.say(Some(host.clone()), text, now, node);
    }

    fn failed(&mut self, node: &Node, key: Option<HostName>, error: &ServerError, now: u64) {
        node.external.failed(error.reason());
        self.say(key, error.to_string(), now, node);
    }

    /// Says it once, and waits before the next try.
    fn say(&mut self, key: Option<HostName>, text: String, now: u64, node: &Node) {
        if self.said.get(&key) != Some(&text) {
            tracing::warn!("names in {} are not published: {text}", self.options.domain);
        }
        let seed = u64::from(std::process::id()) ^ node.uuid.as_u64_pair().0;
        self.again.failed(key.clone(), text.clone(), now, seed);
        self.said.insert(key, text);
        self.is_done = false;
    }

    fn shown(&mut self) -> Shown {
        if let Some(found) = &self.found {
            let ours = found.values().filter(|found| found.service(self.domain()).is_some());
            self.counts = (ours.clone().count(), ours.map(|found| found.records.len()).sum());
        }
        let domain = self.domain();
        let waiting = self.again.waiting().map(|(key, waiting)| PendingItem {
            object: match key {
                Some(host) => format!("name {host}"),
                None => format!("names in {domain}"),
            },
            error: waiting.error.clone(),
            retries: waiting.failures,
        });
        let refused = self.contested.iter().map(|contested| BadValue {
            key: format!("Service {}", contested.refused),
            reason: format!("{} is that of Service {}", contested.host, contested.holder),
        });
        let taken = self.taken.iter().map(|(host, mark)| BadValue {
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
            is_done: self.is_done,
            pending: waiting.collect(),
            problems: self.wishes.problems.iter().cloned().chain(refused).chain(taken).collect(),
        }
    }

    fn domain(&self) -> &Domain {
        &self.options.domain
    }
}

/// What the zone has of a name after an update.
fn settle(domain: &Domain, found: &mut BTreeMap<HostName, Found>, update: &Update, wish: Option<&Wish>) {
    match (update.change, wish) {
        (Change::Claim | Change::Correct, Some(wish)) => {
            found.insert(update.host.clone(), Found::fulfilled(domain, wish));
        }
        _ => drop(found.remove(&update.host)),
    }
}

fn tell(domain: &Domain, update: &Update, wish: Option<&Wish>) {
    let host = &update.host;
    match (update.change, wish) {
        (Change::Claim | Change::Correct, Some(wish)) => {
            let records: Vec<String> =
                wish.records().iter().map(|data| format!("{} {data}", data.record_type())).collect();
            tracing::info!(
                "{host} is published for Service {}: {} (zone {})",
                wish.service(),
                records.join(", "),
                domain.zone()
            );
        }
        (Change::Forget, _) => {
            tracing::info!("{host} is no longer ours: its mark is gone or another's; its records stay")
        }
        _ => tracing::info!("{host} is no longer published (zone {})", domain.zone()),
    }
}

fn text(data: &RecordData) -> Option<&str> {
    match data {
        RecordData::Txt(text) => Some(text),
        _ => None,
    }
}
