// SPDX-License-Identifier: Apache-2.0
//! The names of others that one question is about: itself, where an alias of ours leads, or those of a search path, of which
//! the first that exists counts.

use std::sync::Arc;

use dns_zone::{Forward, Query, Rcode, Record, RecordData};

use crate::cache::Entry;
use crate::forward::Forwarded;
use crate::wire::Key;

/// One question's names.
pub(crate) struct Search<'q> {
    pub(crate) query: &'q Query<'q>,
    asked: Key,
    forward: Forward,
    /// TTL of the alias that leads to a name of a search path, as our own records have it.
    ttl_secs: u32,
}

/// What goes to the client.
pub(crate) enum Outcome {
    /// What the upstreams said, behind our aliases.
    Answer {
        aliases: Vec<Record>,
        entry: Arc<Entry>,
    },
    /// Our aliases alone: they are true, and the client may know whom to ask where they lead.
    Aliases(Vec<Record>),
    /// None of the names exist.
    Nothing {
        aliases: Vec<Record>,
        soa: Option<Record>,
    },
    Code(Rcode),
}

impl<'q> Search<'q> {
    pub(crate) fn new(query: &'q Query<'q>, forward: Forward, ttl_secs: u32) -> Self {
        Search { query, asked: Key::of(query), forward, ttl_secs }
    }

    /// What is to be asked, in this order. Without aliases and search path nothing is allocated.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        let names = match &self.forward.candidates[..] {
            [] => self.forward.name.as_slice(),
            candidates => candidates,
        };
        let itself = names.is_empty().then_some(self.asked);
        itself.into_iter().chain(names.iter().map(|name| self.asked.of_name(name.as_wire())))
    }

    /// Whether what was found for a name is the end of the search.
    pub(crate) fn is_decided_by(&self, found: &Forwarded) -> bool {
        match found {
            Forwarded::Answer { entry, .. } => !self.is_path() || entry.code() != Rcode::NXDOMAIN.0,
            _ => true,
        }
    }

    /// `decisive`: what decided, and for which of the names; `None`: nothing did. Takes the aliases: to be called once.
    pub(crate) fn finish(&mut self, decisive: Option<(usize, Forwarded)>) -> Outcome {
        let mut aliases = std::mem::take(&mut self.forward.prefix);
        match decisive {
            Some((index, Forwarded::Answer { entry, .. })) => {
                if let Some(to) = self.forward.candidates.get(index) {
                    // From what was asked, or from where our own aliases end, to what was found.
                    let end = aliases.last().and_then(|alias| match &alias.data {
                        RecordData::Cname(target) => Some(target.clone()),
                        _ => None,
                    });
                    let name = end.unwrap_or_else(|| self.query.name_as_asked());
                    let data = RecordData::Cname(to.clone());
                    aliases.push(Record { name, ttl_secs: self.ttl_secs, data });
                }
                Outcome::Answer { aliases, entry }
            }
            // The name itself is ours and is not there, whatever the upstreams do: the client goes on by itself.
            _ if self.is_path() => Outcome::Nothing { aliases, soa: self.forward.otherwise.take() },
            Some((_, Forwarded::Unconfigured)) if !aliases.is_empty() => Outcome::Aliases(aliases),
            Some((_, Forwarded::Unconfigured | Forwarded::Busy)) => Outcome::Code(Rcode::REFUSED),
            Some((_, Forwarded::Failed)) | None => Outcome::Code(Rcode::SERVFAIL),
        }
    }

    fn is_path(&self) -> bool {
        !self.forward.candidates.is_empty()
    }
}
