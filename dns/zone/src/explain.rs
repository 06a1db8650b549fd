// SPDX-License-Identifier: Apache-2.0
//! Why an answer is as it is, for `weft dns query`.

use std::fmt;
use std::net::IpAddr;

use crate::collect::Collect;
use crate::resolve::Ask;
use crate::{Folded, Name, Outcome, Record, RecordType, Zone};

/// An answer with its reasons. Displays as lines for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was asked.
    pub question: Name,
    /// For what.
    pub record_type: RecordType,
    /// `namespace/name` of the pod that asks; `None`: its address is no pod's.
    pub client: Option<String>,
    /// Of the service table.
    pub revision: u64,
    /// Steps on the way, endpoints left out and why, names that the client may not see: a sentence each.
    pub reasons: Vec<String>,
    /// The answer.
    pub outcome: Outcome,
}

impl Zone {
    /// Answers as [`Zone::ask`] does, and says why.
    #[must_use]
    pub fn explain(&self, question: &Name, record_type: RecordType, client: Option<IpAddr>) -> Explanation {
        let mut collect = Collect::new(question);
        let client = client.and_then(|client| self.client(client));
        let ask = Ask { record_type, client, seed: 0 };
        let folded = Folded::from(question);
        let verdict = self.resolve(&ask, &folded, &mut collect);
        let reasons = collect.take_notes();
        Explanation {
            question: question.clone(),
            record_type,
            client: client.map(ToString::to_string),
            revision: self.revision,
            reasons,
            outcome: collect
                .outcome(verdict, |prefix| self.forward(&ask, question, &folded, verdict, prefix)),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client =
            self.client.as_deref().map_or("nobody known".to_owned(), |client| format!("pod {client}"));
        writeln!(
            f,
            "{} {}, asked by {client}, at revision {}",
            self.question, self.record_type, self.revision
        )?;
        self.reasons.iter().try_for_each(|reason| writeln!(f, "  {reason}"))?;
        write!(f, "{}", self.outcome)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut show = |title: &str, records: &[Record]| {
            records.iter().try_for_each(|record| writeln!(f, "  {title} {record}"))
        };
        match self {
            Self::Answer { records, additional } => {
                show("answer", records)?;
                show("additional", additional)
            }
            Self::Forward(forward) => {
                show("answer", &forward.prefix)?;
                match &forward.name {
                    _ if !forward.candidates.is_empty() => {
                        forward.candidates.iter().try_for_each(|name| writeln!(f, "  forward perhaps {name}"))
                    }
                    None => writeln!(f, "  forward"),
                    Some(name) => writeln!(f, "  forward {name}"),
                }
            }
            Self::NoData { records, soa } => {
                show("answer", records)?;
                show("NODATA", std::slice::from_ref(soa))
            }
            Self::NxDomain { records, soa } => {
                show("answer", records)?;
                show("NXDOMAIN", std::slice::from_ref(soa))
            }
        }
    }
}
