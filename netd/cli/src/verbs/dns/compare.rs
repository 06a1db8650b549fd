// SPDX-License-Identifier: Apache-2.0
//! `weft dns compare`: where this node's DNS and another server say something else about the cluster's names.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use netd_api::{Client, DnsQuestion, DnsQuestionsRequest};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use super::super::explain;
use super::ask::{Said, Server};
use crate::args::DnsCompareArgs;
use crate::output::{self, Shown};

/// After so many questions in a row without an answer the server is not there, and nobody waits for the rest.
const SILENT_MAX: u32 = 5;
/// How often to say how far it is, in questions.
const PROGRESS_EVERY: usize = 10_000;
/// Differences that are kept and shown; more are counted.
const SHOWN_MAX: usize = 1_000;

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Compared {
    asked: usize,
    same: usize,
    different: usize,
    differences: Vec<Difference>,
}

#[derive(Debug, Serialize)]
struct Difference {
    name: String,
    #[serde(rename = "type")]
    record_type: String,
    /// The code, and the records that only this one has.
    ours: Vec<String>,
    theirs: Vec<String>,
}

pub(super) async fn compare(client: &Client, args: &DnsCompareArgs) -> anyhow::Result<Shown> {
    let (mut compared, mut skip) = (Compared::default(), 0);
    let mut theirs =
        Server::connect(args.server).await.with_context(|| format!("cannot ask {}", args.server))?;
    let mut ours = None;
    let mut tick = interval(Duration::from_secs(1) / args.rate.get());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut silent_here, mut silent_there) = (0, 0);
    loop {
        let part = client.dns_questions(&DnsQuestionsRequest { skip }).await.map_err(explain)?;
        let ours = match &mut ours {
            Some(ours) => ours,
            None => {
                let address = *part.servers.first().context("this node's netd has no DNS address")?;
                let server = Server::connect(address).await;
                ours.insert((address, server.with_context(|| format!("cannot ask {address}"))?))
            }
        };
        for question in &part.questions {
            tick.tick().await;
            let said = tokio::join!(ours.1.ask(question), theirs.ask(question));
            for (server, said, silent) in
                [(ours.0, &said.0, &mut silent_here), (args.server, &said.1, &mut silent_there)]
            {
                *silent = if matches!(said, Said::Nothing(_)) { *silent + 1 } else { 0 };
                if let (SILENT_MAX.., Said::Nothing(why)) = (*silent, said) {
                    bail!("{server} does not answer ({why}) after {} questions", compared.asked);
                }
            }
            compared.note(question, &said.0, &said.1);
            if compared.asked.is_multiple_of(PROGRESS_EVERY) {
                output::progress(&format!(
                    "{} names asked for, {} differ",
                    compared.asked, compared.different
                ));
            }
        }
        skip += part.questions.len();
        if !part.more || part.questions.is_empty() {
            break;
        }
    }
    Ok(Shown { ok: compared.different == 0, ..Shown::new(text(&compared), &compared)? })
}

impl Compared {
    fn note(&mut self, question: &DnsQuestion, ours: &Said, theirs: &Said) {
        self.asked += 1;
        if ours == theirs {
            self.same += 1;
            return;
        }
        self.different += 1;
        if self.differences.len() < SHOWN_MAX {
            self.differences.push(Difference {
                name: question.name.clone(),
                record_type: question.record_type.clone(),
                ours: only(ours, theirs),
                theirs: only(theirs, ours),
            });
        }
    }
}

/// What the first one says and the second does not.
fn only(one: &Said, other: &Said) -> Vec<String> {
    match (one, other) {
        (Said::Nothing(why), _) => vec![why.clone()],
        (Said::Answer { rcode, records }, Said::Answer { rcode: other_rcode, records: others }) => {
            let code = (rcode != other_rcode || records.is_empty()).then(|| match records.is_empty() {
                true if rcode == "No Error" => "no records".to_owned(),
                _ => rcode.clone(),
            });
            code.into_iter().chain(records.difference(others).cloned()).collect()
        }
        (Said::Answer { rcode, records }, Said::Nothing(_)) => {
            std::iter::once(rcode.clone()).chain(records.iter().cloned()).collect()
        }
    }
}

// Writing to a String cannot fail.
fn text(compared: &Compared) -> String {
    let mut text = String::new();
    for difference in &compared.differences {
        let _ = writeln!(text, "{} {}", difference.name, difference.record_type);
        for (who, lines) in [("here", &difference.ours), ("there", &difference.theirs)] {
            for line in lines {
                let _ = writeln!(text, "  {who:<7}{line}");
            }
        }
    }
    let more = compared.different - compared.differences.len();
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
    let _ = writeln!(
        text,
        "{} names asked for: {} the same, {} different.",
        compared.asked, compared.same, compared.different
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(rcode: &str, records: &[&str]) -> Said {
        Said::Answer {
            rcode: rcode.to_owned(),
            records: records.iter().map(|record| (*record).to_owned()).collect(),
        }
    }

    #[test]
    fn only_what_differs_is_shown() {
        let mut compared = Compared::default();
        let question = |name: &str| DnsQuestion { name: name.to_owned(), record_type: "A".to_owned() };
        let two = answer("No Error", &["A 10.0.0.1", "A 10.0.0.2"]);
        compared.note(&question("same."), &two, &two.clone());
        compared.note(&question("fewer."), &two, &answer("No Error", &["A 10.0.0.1"]));
        compared.note(&question("none."), &two, &answer("Non-Existent Domain", &[]));
        compared.note(&question("empty."), &answer("No Error", &[]), &Said::Nothing("no answer".into()));
        assert_eq!(
            text(&compared),
            "fewer. A\n  here   A 10.0.0.2\n\
             none. A\n  here   No Error\n  here   A 10.0.0.1\n  here   A 10.0.0.2\n  there  Non-Existent Domain\n\
             empty. A\n  here   No Error\n  there  no answer\n\
             4 names asked for: 1 the same, 3 different.\n"
        );
    }
}
