// SPDX-License-Identifier: Apache-2.0
//! The zone: names with their records, and how a question is answered from them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::build::Builder;
use crate::{Name, Record, RecordData, RecordType, Soa, ZoneProblem, ZoneService, order, reverse};

/// Version of the specification, as `dns-version` answers it.
pub const DNS_SCHEMA_VERSION: &str = "1.1.0";

/// Aliases followed inside the zone: more than anyone means to chain.
const MAX_ALIASES: usize = 8;

/// Everything that DNS says about services at one revision.
#[derive(Clone, Debug)]
pub struct Zone {
    origin: Name,
    ttl_secs: u32,
    revision: u64,
    /// Every existing name, also those that only have others below them.
    names: BTreeMap<Name, Vec<RecordData>>,
    reverse_cidrs: Vec<IpNet>,
    problems: Vec<ZoneProblem>,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There are such records. Where the last one is a CNAME to a name that this zone does not own
    /// ([`Zone::owns`]), its target is to be asked for upstream.
    Answer {
        /// For the answer section: CNAMEs in front in their order, the rest shuffled.
        records: Vec<Record>,
        /// For the additional section: addresses of the names in `records`.
        additional: Vec<Record>,
    },
    /// The name exists, without records of this type.
    NoData {
        /// For the authority section.
        soa: Record,
    },
    /// There is no such name, nor any below it.
    NxDomain {
        /// For the authority section.
        soa: Record,
    },
    /// Not our name: ask upstream.
    Forward,
}

/// The zone cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("zone {origin:?} is not a usable domain: {reason}; use a name such as cluster.local")]
pub struct ZoneError {
    origin: String,
    reason: String,
}

impl Zone {
    /// Builds the zone `origin` (such as `cluster.local`) from services in any order.
    ///
    /// `ttl_secs`: for every record and for negative answers. `revision`: of the table the services came from.
    /// `reverse_cidrs`: networks whose reverse names are answered here and nowhere else.
    /// Names that cannot be made are left out and listed in [`problems`](Self::problems).
    ///
    /// # Errors
    /// `origin` is not a domain name, or so long that no service name fits in front.
    pub fn build(
        origin: &str,
        ttl_secs: u32,
        revision: u64,
        services: impl IntoIterator<Item = ZoneService>,
        reverse_cidrs: &[IpNet],
    ) -> Result<Self, ZoneError> {
        let error = |reason: String| ZoneError { origin: origin.to_owned(), reason };
        let apex = Name::parse(origin).map_err(|e| error(e.to_string()))?;
        if apex == Name::root() {
            return Err(error("it is the root".to_owned()));
        }
        let mut builder = Builder::new(apex.clone(), reverse_cidrs).map_err(|e| error(e.to_string()))?;
        services.into_iter().for_each(|service| builder.add(&service));
        let (names, mut problems) = builder.finish();
        problems.sort();
        Ok(Self { origin: apex, ttl_secs, revision, names, reverse_cidrs: reverse_cidrs.to_vec(), problems })
    }

    /// With the addresses that this DNS answers on: those of `ns.dns.<origin>`.
    #[must_use]
    pub fn with_nameservers(mut self, addresses: &[IpAddr]) -> Self {
        let server = self.name_server();
        let unique: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        self.names.insert(server, unique.into_iter().map(RecordData::from).collect());
        self
    }

    /// The name that all others lie below.
    #[must_use]
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    /// Of the table that this was built from.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Names that could not be made, sorted.
    #[must_use]
    pub fn problems(&self) -> &[ZoneProblem] {
        &self.problems
    }

    /// Number of names that have records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.values().filter(|records| !records.is_empty()).count()
    }

    /// Whether no name has records; never so in a built zone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether questions about `name` are answered here and nowhere else.
    #[must_use]
    pub fn owns(&self, name: &Name) -> bool {
        self.apex_of(name).is_some()
    }

    /// Answers a question of class IN. `seed`: decides the order of the records; take another one each time.
    ///
    /// [`RecordType::ANY`] gets the records of one type (RFC 8482). The owner of the records is `question` in the
    /// case it was asked in.
    #[must_use]
    pub fn answer(&self, question: &Name, record_type: RecordType, seed: u64) -> Outcome {
        let Some(apex) = self.apex_of(question) else { return Outcome::Forward };
        let soa = || self.record(&apex, self.soa());
        if *question == apex {
            return self.answer_apex(question, record_type);
        }
        let Some(found) = self.names.get(question) else { return Outcome::NxDomain { soa: soa() } };

        let (mut records, mut owner, mut found) = (Vec::new(), question.clone(), found);
        while let Some(alias) = found.iter().find(|data| matches!(data, RecordData::Cname(_))) {
            records.push(self.record(&owner, alias.clone()));
            let RecordData::Cname(target) = alias else { break };
            let in_a_loop =
                records.len() == MAX_ALIASES || records.iter().any(|record| record.name == *target);
            let next = self.names.get(target).filter(|_| !in_a_loop);
            match next {
                Some(next) if record_type != RecordType::CNAME => (owner, found) = (target.clone(), next),
                _ => return Outcome::Answer { records, additional: Vec::new() },
            }
        }
        let wanted = match (record_type, found.first()) {
            (RecordType::ANY, Some(first)) => first.record_type(),
            _ => record_type,
        };
        let matching = found.iter().filter(|data| data.record_type() == wanted);
        let mut matching: Vec<Record> = matching.map(|data| self.record(&owner, data.clone())).collect();
        order::shuffle(&mut matching, seed);
        records.append(&mut matching);
        if records.is_empty() {
            return Outcome::NoData { soa: soa() };
        }
        let additional = self.additional(&records);
        Outcome::Answer { records, additional }
    }

    fn answer_apex(&self, question: &Name, record_type: RecordType) -> Outcome {
        let data = match record_type {
            RecordType::NS => RecordData::Ns(self.name_server()),
            RecordType::ANY | RecordType::SOA => self.soa(),
            _ => return Outcome::NoData { soa: self.record(question, self.soa()) },
        };
        let records = vec![self.record(question, data)];
        let additional = self.additional(&records);
        Outcome::Answer { records, additional }
    }

    /// Addresses of the names that SRV and NS records lead to, each once.
    fn additional(&self, records: &[Record]) -> Vec<Record> {
        let targets = records.iter().filter_map(|record| match &record.data {
            RecordData::Ns(target) => Some(target),
            RecordData::Srv(srv) => Some(&srv.target),
            _ => None,
        });
        let targets: BTreeSet<&Name> = targets.collect();
        let found = targets.into_iter().filter_map(|target| Some((target, self.names.get(target)?)));
        let found = found.flat_map(|(target, records)| records.iter().map(move |data| (target, data)));
        let addresses = found.filter(|(_, data)| matches!(data, RecordData::A(_) | RecordData::Aaaa(_)));
        addresses.map(|(target, data)| self.record(target, data.clone())).collect()
    }

    fn apex_of(&self, name: &Name) -> Option<Name> {
        if name.is_at_or_below(&self.origin) {
            return Some(self.origin.clone());
        }
        reverse::apex(name, &self.reverse_cidrs)
    }

    fn record(&self, name: &Name, data: RecordData) -> Record {
        Record { name: name.clone(), ttl_secs: self.ttl_secs, data }
    }

    fn soa(&self) -> RecordData {
        RecordData::Soa(Soa {
            mname: self.name_server(),
            rname: self.origin.child("hostmaster").unwrap_or_else(|_| self.origin.clone()),
            serial: self.revision as u32,
            // As CoreDNS has them: there are no secondaries to read them.
            refresh_secs: 7_200,
            retry_secs: 1_800,
            expire_secs: 86_400,
            minimum_secs: self.ttl_secs,
        })
    }

    /// `ns.dns.<origin>`; `build` has made sure that it fits.
    fn name_server(&self) -> Name {
        self.origin.child("dns").and_then(|dns| dns.child("ns")).unwrap_or_else(|_| self.origin.clone())
    }
}
