// SPDX-License-Identifier: Apache-2.0
//! From what is wished and what is there to what is to be done.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Change, Condition, Contested, Domain, HostName, Mark, Update, Wish};
use crate::{Record, RecordData, RecordType};

/// Types that belong to who has the mark.
const TYPES: [RecordType; 3] = [RecordType::A, RecordType::AAAA, RecordType::CNAME];

/// Types of others that an alias suffers nothing of beside it. There is no condition for "nothing but ours"; these are what
/// people put beside addresses. DNSSEC's own are no matter.
const BESIDE: [RecordType; 16] = [
    RecordType::MX,
    RecordType::NS,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::TXT,
    // HINFO, LOC, NAPTR, DNAME, SSHFP, TLSA, SVCB, HTTPS, URI, CAA
    RecordType(13),
    RecordType(29),
    RecordType(35),
    RecordType(39),
    RecordType(44),
    RecordType(52),
    RecordType(64),
    RecordType(65),
    RecordType(256),
    RecordType(257),
];

/// What the zone has of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its mark, where there is one that is understood.
    pub mark: Option<Mark>,
    /// It stands in the index.
    pub indexed: bool,
    /// Addresses and alias, with their TTL in seconds. Not looked at unless the mark is ours.
    pub records: BTreeMap<RecordData, u32>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be sent in this order: what comes before what goes.
    pub updates: Vec<Update>,
    /// Names that are wished and have the mark of another cluster: nothing is done about them.
    pub taken: Vec<(HostName, Mark)>,
    /// Names that are wished and are those of a Service of which it is not known what it wants: that one keeps them meanwhile.
    pub held: Vec<Contested>,
}

impl Found {
    /// As it is once a wish was fulfilled.
    #[must_use]
    pub fn fulfilled(domain: &Domain, wish: &Wish) -> Self {
        let records = wish.records().iter().map(|data| (data.clone(), domain.ttl_secs()));
        Self { mark: Some(mark(domain, wish)), indexed: true, records: records.collect() }
    }

    /// `NAMESPACE/NAME` of the Service that it is published for, if it is ours.
    #[must_use]
    pub fn service(&self, domain: &Domain) -> Option<&str> {
        let ours = self.mark.as_ref().filter(|mark| mark.owner == domain.owner())?;
        Some(&ours.service)
    }
}

/// Compares. Every name that is wished or stands in the index is to be in `found`. Names of services in `unread` (`NAMESPACE/NAME`)
/// stay as they are, also where others wish for them: what these want is not known.
#[must_use]
pub fn plan(
    domain: &Domain,
    wishes: &BTreeMap<HostName, Wish>,
    found: &BTreeMap<HostName, Found>,
    unread: &BTreeSet<String>,
) -> Plan {
    let (mut plan, none) = (Plan::default(), Found::default());
    for (host, wish) in wishes {
        let found = found.get(host).unwrap_or(&none);
        match &found.mark {
            None => plan.updates.push(claim(domain, host, wish)),
            Some(mark)
                if mark.owner == domain.owner()
                    && mark.service != wish.service()
                    && unread.contains(&mark.service) =>
            {
                let (refused, holder) = (wish.service().to_owned(), mark.service.clone());
                plan.held.push(Contested { host: host.clone(), refused, holder });
            }
            Some(mark) if mark.owner == domain.owner() => {
                plan.updates.extend(correct(domain, host, wish, found, mark));
            }
            Some(other) => plan.taken.push((host.clone(), other.clone())),
        }
    }
    for (host, found) in found.iter().filter(|(host, _)| !wishes.contains_key(*host)) {
        match (&found.mark, found.service(domain)) {
            (Some(_), Some(service)) if unread.contains(service) => {}
            (Some(mark), Some(_)) => plan.updates.push(release(domain, host, mark)),
            (mark, _) if found.indexed => plan.updates.push(forget(domain, host, mark.as_ref())),
            _ => {}
        }
    }
    plan
}

/// Nobody may have an address or an alias there. Other types are no matter, save beside an alias, which suffers nothing else.
fn claim(domain: &Domain, host: &HostName, wish: &Wish) -> Update {
    let name = host.name();
    let mut conditions = match wish.is_alias() {
        true => vec![Condition::Free(name.clone())],
        false => TYPES.map(|of| Condition::Absent(name.clone(), of)).into(),
    };
    // Beside an alias of somebody's the mark or the place in the index would be passed over without a word.
    conditions.push(Condition::Free(host.mark().clone()));
    conditions.push(Condition::Absent(domain.index_of(host).clone(), RecordType::CNAME));
    let marks = [mark_record(domain, host, wish), index_record(domain, host)];
    let actions = marks.into_iter().chain(records(domain, host, wish)).map(Action::Add);
    Update { host: host.clone(), change: Change::Claim, conditions, actions: actions.collect() }
}

/// What differs; nothing where nothing does.
fn correct(domain: &Domain, host: &HostName, wish: &Wish, found: &Found, mark: &Mark) -> Option<Update> {
    let mut actions = Vec::new();
    if mark.service != wish.service() {
        actions.push(Action::RemoveAll(host.mark().clone(), RecordType::TXT));
        actions.push(Action::Add(mark_record(domain, host, wish)));
    }
    if !found.indexed {
        actions.push(Action::Add(index_record(domain, host)));
    }
    // What goes comes first: beside an alias nothing can be.
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    for of in TYPES {
        let wanted: BTreeMap<&RecordData, u32> = wish
            .records()
            .iter()
            .filter(|data| data.record_type() == of)
            .map(|data| (data, domain.ttl_secs()))
            .collect();
        let there: BTreeMap<&RecordData, u32> = found
            .records
            .iter()
            .filter(|(data, _)| data.record_type() == of)
            .map(|(data, ttl)| (data, *ttl))
            .collect();
        if wanted != there {
            gone.push(Action::RemoveAll(host.name().clone(), of));
            new.extend(records(domain, host, wish).filter(|record| record.data.record_type() == of));
        }
    }
    actions.extend(gone);
    actions.extend(new.into_iter().map(Action::Add));
    let mut conditions = vec![Condition::Exactly(host.mark().clone(), RecordData::Txt(mark.to_string()))];
    // Servers pass over an alias beside other records without a word, and the addresses would be gone all the same.
    if wish.is_alias() && !found.records.keys().any(|data| matches!(data, RecordData::Cname(_))) {
        conditions.extend(BESIDE.map(|of| Condition::Absent(host.name().clone(), of)));
    }
    (!actions.is_empty()).then(|| Update { host: host.clone(), change: Change::Correct, conditions, actions })
}

fn release(domain: &Domain, host: &HostName, mark: &Mark) -> Update {
    let types = TYPES.map(|of| Action::RemoveAll(host.name().clone(), of));
    let mark_goes = Action::RemoveAll(host.mark().clone(), RecordType::TXT);
    Update {
        host: host.clone(),
        change: Change::Release,
        conditions: vec![Condition::Exactly(host.mark().clone(), RecordData::Txt(mark.to_string()))],
        actions: types.into_iter().chain([mark_goes, leave_index(domain, host)]).collect(),
    }
}

/// Somebody removed the mark, or put in another one: the name is theirs now.
fn forget(domain: &Domain, host: &HostName, mark: Option<&Mark>) -> Update {
    let is_there =
        |mark: &Mark| vec![Condition::Exactly(host.mark().clone(), RecordData::Txt(mark.to_string()))];
    Update {
        host: host.clone(),
        change: Change::Forget,
        // Without a mark there may be a text of somebody's that is none of ours.
        conditions: mark.map(is_there).unwrap_or_default(),
        actions: vec![leave_index(domain, host)],
    }
}

fn mark(domain: &Domain, wish: &Wish) -> Mark {
    Mark { owner: domain.owner().to_owned(), service: wish.service().to_owned() }
}

fn mark_record(domain: &Domain, host: &HostName, wish: &Wish) -> Record {
    let data = RecordData::Txt(mark(domain, wish).to_string());
    Record { name: host.mark().clone(), ttl_secs: domain.ttl_secs(), data }
}

fn index_record(domain: &Domain, host: &HostName) -> Record {
    let data = RecordData::Txt(host.to_string());
    Record { name: domain.index_of(host).clone(), ttl_secs: domain.ttl_secs(), data }
}

fn leave_index(domain: &Domain, host: &HostName) -> Action {
    Action::Remove(domain.index_of(host).clone(), RecordData::Txt(host.to_string()))
}

fn records(domain: &Domain, host: &HostName, wish: &Wish) -> impl Iterator<Item = Record> {
    let (name, ttl_secs) = (host.name().clone(), domain.ttl_secs());
    wish.records().iter().map(move |data| Record { name: name.clone(), ttl_secs, data: data.clone() })
}
