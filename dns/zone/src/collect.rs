// SPDX-License-Identifier: Apache-2.0
//! Answers as values, for people and tests.

use std::net::IpAddr;

use crate::own_answer::RECORDS_MAX;
use crate::resolve::Verdict;
use crate::sink::{self, Data, NameRef, Note, Owner, Sink};
use crate::{Name, Record};

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There are such records.
    Answer {
        /// For the answer section: CNAMEs in front in their order, the rest shuffled.
        records: Vec<Record>,
        /// For the additional section: addresses of the names in `records`.
        additional: Vec<Record>,
    },
    /// Not our name, or an alias for one that is not: ask upstream.
    Forward(Forward),
    /// The name exists, without records of this type; or its aliases lead in a circle.
    NoData {
        /// CNAMEs that lead to it.
        records: Vec<Record>,
        /// For the authority section.
        soa: Record,
    },
    /// There is no such name, nor any below it.
    NxDomain {
        /// CNAMEs that lead to it.
        records: Vec<Record>,
        /// For the authority section.
        soa: Record,
    },
}

/// What to ask upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// CNAMEs that go in front of what upstream says.
    pub prefix: Vec<Record>,
    /// The name to ask for; `None`: that of the question.
    pub name: Option<Name>,
    /// Instead of one name, several: the first one that is not NXDOMAIN is meant, and a CNAME from the question's name to it goes
    /// in front of what upstream says. Empty: only one name.
    pub candidates: Vec<Name>,
    /// With candidates: the SOA for our NXDOMAIN where there is none of them.
    pub otherwise: Option<Record>,
}

/// Keeps the records that it is given.
pub(crate) struct Collect<'q> {
    question: &'q Name,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
    notes: Vec<String>,
}

impl<'q> Collect<'q> {
    pub(crate) fn new(question: &'q Name) -> Self {
        let (answers, authorities, additionals, notes) = Default::default();
        Self { question, answers, authorities, additionals, notes }
    }

    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    pub(crate) fn take_answers(self) -> Vec<Record> {
        self.answers
    }

    /// `forward` makes one of the CNAMEs in front.
    pub(crate) fn outcome(
        mut self,
        verdict: Verdict,
        forward: impl FnOnce(Vec<Record>) -> Forward,
    ) -> Outcome {
        let (records, soa) = (self.answers, self.authorities.pop());
        match (verdict, soa) {
            (Verdict::Candidates | Verdict::Forward, _) => Outcome::Forward(forward(records)),
            (Verdict::NoData, Some(soa)) => Outcome::NoData { records, soa },
            (Verdict::NxDomain, Some(soa)) => Outcome::NxDomain { records, soa },
            (Verdict::Answer | Verdict::NoData | Verdict::NxDomain, _) => {
                Outcome::Answer { records, additional: self.additionals }
            }
        }
    }
}

impl Sink for Collect<'_> {
    fn answer(&mut self, owner: Owner<'_>, ttl_secs: u32, data: Data<'_>) -> bool {
        let owner = match owner {
            Owner::Name(name) => name,
            Owner::Question => self.question.into(),
        };
        self.answers.push(sink::record(owner, ttl_secs, data));
        true
    }

    fn authority(&mut self, owner: NameRef<'_>, ttl_secs: u32, data: Data<'_>) {
        let mut record = sink::record(owner, ttl_secs, data);
        // On the wire it is a pointer into the question, so it has its case.
        if self.question.is_at_or_below(&record.name) {
            let skip = self.question.labels().count() - record.name.labels().count();
            record.name = Name::from_labels(self.question.labels().skip(skip)).unwrap_or(record.name);
        }
        self.authorities.push(record);
    }

    fn additional(
        &mut self,
        owner: NameRef<'_>,
        ttl_secs: u32,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> bool {
        self.additionals.extend(addresses.map(|ip| sink::record(owner, ttl_secs, ip.into())));
        true
    }

    fn note(&mut self, note: Note<'_>) {
        let note = match note {
            Note::Alias { target } => format!("the name is an alias of {}", target.to_name()),
            Note::Autopath { target } => format!("the search path leads to {}", target.to_name()),
            Note::Circle { most } => {
                format!("the aliases lead in a circle, or are more than {most}: nothing is at their end")
            }
            Note::Cut => {
                format!(
                    "more than {RECORDS_MAX} records lie below the name: only the first ones are looked at"
                )
            }
            Note::Hidden { service } => {
                format!("Service {service} has the name, and its views do not admit this client")
            }
            Note::LeftOut { address, reason } => format!("endpoint {address} is left out: {reason}"),
            Note::Redirected { target } => format!("a link or rewrite leads to {}", target.to_name()),
            Note::Service { service } => format!("Service {service}"),
        };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}
