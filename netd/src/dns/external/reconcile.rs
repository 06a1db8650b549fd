// SPDX-License-Identifier: Apache-2.0
//! What is wished, what is there, the difference. What the zone has is read once in a while, and remembered meanwhile: the
//! conditions of each update see to it that nothing is done to a zone that is otherwise. What the server says no to is one
//! name's trouble wherever it can be: others go on.

use std::collections::{BTreeMap, BTreeSet};

use dns_zone::external::{
    Change, Contested, Domain, Found, HostName, Mark, Plan, Update, Wish, choose, plan,
};
use dns_zone::{Name, RecordData, RecordType};

use super::External;
use super::client::{Outcome, ZoneServer};
use super::error::ServerError;
use super::troubles::Troubles;
use super::wishes::Wishes;

/// What somebody did to our records is mended within this.
pub(super) const REREAD_MS: u64 = 300_000;
/// What the leader before had sent may be done after we read: a lease's time, and what an answer may take, later it is not.
pub(super) const SETTLED_MS: u64 = 20_000;
/// Changes of one kind that the server fails at, one after the other, in one pass.
const FAILURES_MAX: usize = 8;
/// Types that names of ours may have.
const TYPES: [RecordType; 3] = [RecordType::A, RecordType::AAAA, RecordType::CNAME];

/// What is known of the zone, by who leads.
#[derive(Debug)]
pub(super) struct Reconciler {
    pub troubles: Troubles,
    /// What the zone has; `None` before it was read.
    found: Option<BTreeMap<HostName, Found>>,
    /// Names that the server does not tell of, with whether they stand in the index. Nothing is done about them before it does.
    unknown: BTreeMap<HostName, bool>,
    /// Names that the server fails at by themselves: that it does so again says nothing about the server.
    single: BTreeSet<HostName>,
    /// Names whose changes were tried while it failed at all: others come first.
    tried: BTreeSet<HostName>,
    /// When everything was read for the first time.
    began_ms: Option<u64>,
    /// When it is to be read again.
    reread_ms: u64,
    pub contested: Vec<Contested>,
    pub taken: Vec<(HostName, Mark)>,
    /// Nothing is left to be done.
    pub is_done: bool,
}

/// What a pass goes by.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub domain: &'a Domain,
    pub wishes: &'a Wishes,
    pub said: &'a External,
    /// Monotonic milliseconds.
    pub now: u64,
}

/// The updates of one pass that the server failed at.
#[derive(Default)]
struct Failures {
    of: Vec<(HostName, ServerError)>,
    /// In a row, of what is new, what changes and what is to go: where there is no room for more, the others may go through.
    in_a_row: [usize; 3],
    any_done: bool,
}

impl Reconciler {
    pub(super) fn new(troubles: Troubles) -> Self {
        Self {
            troubles,
            found: None,
            unknown: BTreeMap::new(),
            single: BTreeSet::new(),
            tried: BTreeSet::new(),
            began_ms: None,
            reread_ms: 0,
            contested: Vec::new(),
            taken: Vec::new(),
            is_done: false,
        }
    }

    /// Somebody else may have changed the zone; what is told stays told.
    pub(super) fn forget(&mut self) {
        (self.found, self.began_ms, self.is_done) = (None, None, false);
        self.unknown.clear();
    }

    /// Names of ours in the zone, and their records; `None` where that is not known.
    pub(super) fn counts(&self, domain: &Domain) -> Option<(usize, usize)> {
        let ours = self.found.as_ref()?.values().filter(|found| found.service(domain).is_some());
        Some((ours.clone().count(), ours.map(|found| found.records.len()).sum()))
    }

    /// Does what is to be done and may be tried, as long as this node `leads`.
    ///
    /// # Errors
    /// The server does not do anything for us.
    pub(super) async fn pass(
        &mut self,
        pass: Pass<'_>,
        server: &mut impl ZoneServer,
        leads: impl Fn() -> bool,
    ) -> Result<(), ServerError> {
        let Pass { domain, wishes, said, now } = pass;
        if self.is_done && self.found.is_some() && now < self.reread_ms {
            return Ok(());
        }
        self.is_done = false;
        let mut found = self.read(pass, server).await?;
        let candidates = wishes.candidates.iter();
        let wished =
            candidates.filter_map(|one| Some((one.host.clone(), one.wish(domain, found.get(&one.host))?)));
        let (mut chosen, contested) = choose(domain, wished.collect(), &found);
        // Of what is not known nothing follows.
        chosen.retain(|host, _| found.contains_key(host));
        let Plan { mut updates, taken, held } = plan(domain, &chosen, &found, &wishes.unread);
        (self.contested, self.taken) = (contested.into_iter().chain(held).collect(), taken);
        if updates.iter().all(|update| self.tried.contains(&update.host)) {
            self.tried.clear();
        }
        updates.sort_by_key(|update| self.tried.contains(&update.host));
        let not_known =
            wishes.candidates.iter().map(|one| &one.host).filter(|host| !found.contains_key(*host));
        let not_known: BTreeSet<&HostName> = not_known.chain(self.unknown.keys()).collect();
        let mut left = not_known.len();
        let concerned: BTreeSet<&HostName> =
            not_known.into_iter().chain(updates.iter().map(|update| &update.host)).collect();
        self.troubles.keep(&concerned);
        self.single.retain(|host| concerned.contains(host));

        let (mut failures, mut outcome) = (Failures::default(), Ok(()));
        for update in &updates {
            let key = Some(update.host.clone());
            left += 1;
            if outcome.is_err() || !self.troubles.ready(&key, now) || !failures.may_try(update.change) {
                continue;
            }
            // A leader whose lease has run out meanwhile is none.
            if !leads() {
                break;
            }
            match server.update(update).await {
                Ok(Outcome::Done) => {
                    left -= 1;
                    self.single.remove(&update.host);
                    failures.done(update.change);
                    tell(domain, update, chosen.get(&update.host));
                    said.updated(update.change);
                    settle(domain, &mut found, update, chosen.get(&update.host));
                    self.troubles.over(&key);
                }
                Ok(Outcome::Conflict(rcode)) => {
                    self.doubt(&mut found, &update.host);
                    said.failed("conflict");
                    self.troubles.say(domain, key, conflict(update, rcode), now);
                }
                Err(error) if error.concerns_one_name() => {
                    said.failed(error.reason());
                    self.troubles.say(domain, key, error.to_string(), now);
                }
                Err(error) if error.may_concern_all() => {
                    self.doubt(&mut found, &update.host);
                    failures.failed(update, error);
                }
                Err(error) => outcome = Err(error),
            }
        }
        self.is_done = left == 0 && self.taken.is_empty();
        // What became of the last one is not known where the server fell silent.
        self.found = outcome.is_ok().then_some(found);
        outcome?;
        if failures.are_the_servers(&self.single) {
            self.tried.extend(failures.of.iter().map(|(host, _)| host.clone()));
            return failures.of.pop().map_or(Ok(()), |(_, error)| Err(error));
        }
        self.tried.clear();
        for (host, error) in failures.of {
            said.failed(error.reason());
            self.troubles.say(domain, Some(host.clone()), error.to_string(), now);
            self.single.insert(host);
        }
        Ok(())
    }

    /// It is looked at alone before anything else is done about it.
    fn doubt(&mut self, found: &mut BTreeMap<HostName, Found>, host: &HostName) {
        let indexed = found.remove(host).is_some_and(|found| found.indexed);
        self.unknown.insert(host.clone(), indexed);
    }

    /// Reads everything of ours once in a while, and names that are wished for the first time, or are in doubt, at once. Where this
    /// fails all is read anew: nothing is lost by it.
    async fn read(
        &mut self,
        pass: Pass<'_>,
        server: &mut impl ZoneServer,
    ) -> Result<BTreeMap<HostName, Found>, ServerError> {
        let Pass { domain, wishes, now, .. } = pass;
        let (mut found, mut new) = match self.found.take() {
            Some(found) if now < self.reread_ms => (found, BTreeMap::new()),
            _ => {
                let indexed = index(domain, server).await?;
                self.unknown.clear();
                let settled = *self.began_ms.get_or_insert(now) + SETTLED_MS;
                self.reread_ms = if now < settled { settled } else { now + REREAD_MS };
                (BTreeMap::new(), indexed)
            }
        };
        let in_doubt = self.unknown.iter().map(|(host, indexed)| (host, *indexed));
        let wished = wishes.candidates.iter().map(|one| (&one.host, false));
        for (host, indexed) in in_doubt.chain(wished) {
            if !found.contains_key(host) && self.troubles.ready(&Some(host.clone()), now) {
                new.entry(host.clone()).or_insert(Found { indexed, ..Found::default() });
            }
        }
        found.extend(self.look(pass, server, new).await?);
        Ok(found)
    }

    /// Marks of these names, and the records of those that are ours. Less those that the server does not tell of.
    async fn look(
        &mut self,
        pass: Pass<'_>,
        server: &mut impl ZoneServer,
        hosts: BTreeMap<HostName, Found>,
    ) -> Result<BTreeMap<HostName, Found>, ServerError> {
        let Pass { domain, said, now, .. } = pass;
        if hosts.is_empty() {
            return Ok(hosts);
        }
        let marks: Vec<(Name, RecordType)> =
            hosts.keys().map(|host| (host.mark().clone(), RecordType::TXT)).collect();
        let asked = hosts.len();
        let (mut known, mut failed) = (BTreeMap::new(), Vec::new());
        for ((host, mut found), answer) in hosts.into_iter().zip(server.ask(&marks).await?) {
            match answer {
                Ok(records) => {
                    found.mark = match records.as_slice() {
                        [record] => text(&record.data).and_then(Mark::parse),
                        _ => None,
                    };
                    known.insert(host, found);
                }
                Err(error) => failed.push((host, found.indexed, error)),
            }
        }
        let ours: Vec<HostName> = known
            .iter()
            .filter(|(_, found)| found.service(domain).is_some())
            .map(|(host, _)| host.clone())
            .collect();
        let questions: Vec<(Name, RecordType)> =
            ours.iter().flat_map(|host| TYPES.map(|of| (host.name().clone(), of))).collect();
        let mut answers = server.ask(&questions).await?.into_iter();
        for host in ours {
            let records: Result<Vec<_>, ServerError> = answers.by_ref().take(TYPES.len()).collect();
            match (records, known.get_mut(&host)) {
                (Ok(records), Some(found)) => {
                    let records = records.into_iter().flatten();
                    found.records = records.map(|record| (record.data, record.ttl_secs)).collect();
                }
                (Err(error), Some(found)) => {
                    failed.push((host.clone(), found.indexed, error));
                    known.remove(&host);
                }
                (_, None) => {}
            }
        }
        let all_fail = failed.len() == asked
            && failed.iter().filter(|(host, ..)| !self.single.contains(host)).count() > 1;
        if all_fail && failed.iter().all(|(.., error)| error.may_concern_all()) {
            // One for all.
            return failed.pop().map_or(Ok(known), |(.., error)| Err(error));
        }
        self.unknown.retain(|host, _| !known.contains_key(host));
        for (host, indexed, error) in failed {
            said.failed(error.reason());
            self.troubles.say(domain, Some(host.clone()), error.to_string(), now);
            self.single.insert(host.clone());
            self.unknown.insert(host, indexed);
        }
        Ok(known)
    }
}

impl Failures {
    fn row(&mut self, change: Change) -> &mut usize {
        let [claims, corrections, removals] = &mut self.in_a_row;
        match change {
            Change::Claim => claims,
            Change::Correct => corrections,
            Change::Forget | Change::Release => removals,
        }
    }

    fn may_try(&mut self, change: Change) -> bool {
        *self.row(change) < FAILURES_MAX
    }

    fn done(&mut self, change: Change) {
        *self.row(change) = 0;
        self.any_done = true;
    }

    fn failed(&mut self, update: &Update, error: ServerError) {
        *self.row(update.change) += 1;
        self.of.push((update.host.clone(), error));
    }

    /// None went through, and it is not only names that it fails at by themselves, nor a single one.
    fn are_the_servers(&self, single: &BTreeSet<HostName>) -> bool {
        !self.any_done && self.of.iter().filter(|(host, _)| !single.contains(host)).count() > 1
    }
}

/// All names of ours.
async fn index(
    domain: &Domain,
    server: &mut impl ZoneServer,
) -> Result<BTreeMap<HostName, Found>, ServerError> {
    let parts: Vec<(Name, RecordType)> =
        domain.index().iter().map(|name| (name.clone(), RecordType::TXT)).collect();
    let mut indexed = BTreeMap::new();
    for answer in server.ask(&parts).await? {
        let records = answer.map_err(ServerError::of_the_zone)?;
        let texts = records.iter().filter_map(|record| text(&record.data));
        let hosts = texts.filter_map(|text| domain.host(text).ok());
        indexed.extend(hosts.map(|host| (host, Found { indexed: true, ..Found::default() })));
    }
    Ok(indexed)
}

fn conflict(update: &Update, rcode: &str) -> String {
    let host = &update.host;
    match update.change {
        Change::Claim => format!(
            "{host} has records that are not Weft's, or a mark ({}) that is not understood ({rcode}): they stay; remove them to have \
             it published",
            host.mark().to_string().trim_end_matches('.')
        ),
        Change::Correct if rcode == "YXRRSET" => format!(
            "{host} has other records (MX, TXT, …), and an alias suffers none beside it ({rcode}): its addresses stay"
        ),
        _ => format!("{host} was changed by somebody else meanwhile ({rcode}): it is looked at again"),
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
