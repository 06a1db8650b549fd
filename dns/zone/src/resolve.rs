// SPDX-License-Identifier: Apache-2.0
//! How a question is answered: who else is meant, where the name lies, what is there, and what follows from an alias.

use crate::emit::There;
use crate::locate::{Located, Place, is_seen};
use crate::own_answer::OwnSeen;
use crate::rules::Target;
use crate::sink::{Data, NAME_MAX, NameRef, Note, Owner, Sink};
use crate::tree::hash;
use crate::{Client, Folded, RecordType, Zone};

/// Aliases followed inside the zone: more than anyone means to chain.
const MAX_ALIASES: usize = 8;

/// Who asks for what.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) record_type: RecordType,
    pub(crate) client: Option<&'a Client>,
    pub(crate) seed: u64,
}

/// What became of a question. Records, also the SOA of a negative answer, are in the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There are such records, or as many of them as fit.
    Answer,
    /// One of several names outside may be meant ([`Zone::candidates`]).
    Candidates,
    /// The name, or the last alias in the sink, lies outside.
    Forward,
    /// The name exists, without records of this type.
    NoData,
    /// There is no such name, nor any below it.
    NxDomain,
}

/// A name on the way to the answer.
#[derive(Clone, Copy)]
struct At<'a> {
    name: &'a Folded,
    /// Whose its records are.
    owner: Owner<'a>,
    trail: Trail,
}

/// The names seen on the way, by their hashes: an alias back to one of them ends the way.
#[derive(Clone, Copy)]
struct Trail {
    seen: [u64; MAX_ALIASES],
    len: usize,
}

impl Zone {
    pub(crate) fn resolve<S: Sink>(&self, ask: &Ask<'_>, name: &Folded, sink: &mut S) -> Verdict {
        let trail = Trail { seen: [0; MAX_ALIASES], len: 0 };
        self.follow(ask, At { name, owner: Owner::Question, trail }, sink)
    }

    fn follow<S: Sink>(&self, ask: &Ask<'_>, at: At<'_>, sink: &mut S) -> Verdict {
        let name = at.name;
        if let Some(target) = self.redirect(name, ask, at.trail.len == 0) {
            let target = match &target {
                Target::Below(folded) => NameRef::whole(folded.as_wire()),
                Target::Name(name) => (*name).into(),
            };
            sink.note(Note::Redirected { target });
            return self.alias(ask, at, (self.fixed.ttl_secs, target), sink);
        }
        let place = self.place(name);
        let located = self.locate(name, place, ask.client, sink);
        match &located {
            Located::Foreign => return Verdict::Forward,
            Located::Nothing => {
                if let Some(verdict) = self.autopath(ask, at, sink) {
                    return verdict;
                }
                self.deny(name, place, sink);
                return Verdict::NxDomain;
            }
            _ => {}
        }
        let own = match located {
            Located::AddressTop(_) | Located::Apex | Located::Own => self.own_seen(name, place, ask.client),
            _ => OwnSeen::default(),
        };
        if own.is_cut {
            sink.note(Note::Cut);
        }
        let there = There { located, own };
        if let Some(alias) = self.alias_of(&there, name, ask) {
            return self.alias(ask, at, alias, sink);
        }
        if self.emit(&there, name, ask, at.owner, sink) {
            return Verdict::Answer;
        }
        self.deny(name, place, sink);
        Verdict::NoData
    }

    /// What a link or a rewrite makes of a name. What a pod calls something counts where the pod itself asks for it, not where an
    /// alias leads. A link to the very name that is asked for changes nothing.
    fn redirect(&self, name: &Folded, ask: &Ask<'_>, asked: bool) -> Option<Target<'_>> {
        let link = self.rules.link(name, ask.client, &self.fixed.services_apex).filter(|_| asked);
        let link = link.filter(|target| !target.as_wire().eq_ignore_ascii_case(name.as_wire()));
        link.map(Target::Name).or_else(|| self.rules.rewrite(name, ask.client))
    }

    fn alias<S: Sink>(
        &self,
        ask: &Ask<'_>,
        at: At<'_>,
        (ttl_secs, target): (u32, NameRef<'_>),
        sink: &mut S,
    ) -> Verdict {
        let next = Folded::read(target.write(&mut [0; NAME_MAX]));
        let Some(next) = next.filter(|next| next.as_wire() != at.name.as_wire()) else {
            return self.nowhere(at.name, sink);
        };
        let fits = sink.answer(at.owner, ttl_secs, Data::Cname(target));
        if !fits || matches!(ask.record_type, RecordType::CNAME | RecordType::ANY) {
            return Verdict::Answer;
        }
        let mut trail = at.trail;
        if !trail.goes_on(at.name, &next) {
            return self.nowhere(at.name, sink);
        }
        self.follow(ask, At { name: &next, owner: Owner::Name(target), trail }, sink)
    }

    /// An alias for itself, at once or by way of others, or one of too many in a row: nothing is at its end. Who asks is not to
    /// go the same way again.
    fn nowhere<S: Sink>(&self, name: &Folded, sink: &mut S) -> Verdict {
        sink.note(Note::Circle { most: MAX_ALIASES });
        self.deny(name, self.place(name), sink);
        Verdict::NoData
    }

    /// The first question of a search path, answered with what one of the later ones would find (after CoreDNS' autopath).
    /// Names of ours are tried first, in the order of the path.
    fn autopath<S: Sink>(&self, ask: &Ask<'_>, at: At<'_>, sink: &mut S) -> Option<Verdict> {
        let name = at.name;
        let front = self.searched(ask, name).filter(|_| at.trail.len == 0)?;
        let mut outside = false;
        for candidate in self.search(name, front) {
            let found = match self.redirect(&candidate, ask, false) {
                Some(_) => Located::Empty,
                None => self.locate(&candidate, self.place(&candidate), ask.client, sink),
            };
            match found {
                Located::Foreign => outside = true,
                Located::Nothing => {}
                _ => {
                    let target = NameRef::whole(candidate.as_wire());
                    sink.note(Note::Autopath { target });
                    let alias = (self.fixed.ttl_secs, target);
                    return Some(self.alias(ask, at, alias, sink));
                }
            }
        }
        // The rest of a name of a Service that is there (an endpoint that is gone, a port that it does not have) is nobody else's.
        // One that the client may not see is as good as none.
        let rest = name.from_label(front - 1);
        let is_ours = match self.service(rest) {
            Some(entry) => is_seen(entry, ask.client),
            None => self.aliased(rest, ask.client).is_some(),
        };
        (outside && !is_ours).then_some(Verdict::Candidates)
    }

    /// How many labels the program asked for, where `name` is the first question of the client's search path.
    fn searched(&self, ask: &Ask<'_>, name: &Folded) -> Option<usize> {
        let client = ask.client.filter(|_| self.fixed.settings.autopath)?;
        let front =
            name.labels_below(&self.fixed.services_apex)?.checked_sub(1).filter(|front| *front > 0)?;
        name.label(front).eq_ignore_ascii_case(client.namespace.as_bytes()).then_some(front)
    }

    /// The questions that would follow. A name without a dot is not asked for outside as it is: nobody outside has it.
    fn search(&self, name: &Folded, front: usize) -> impl Iterator<Item = Folded> {
        let fixed = &self.fixed;
        let own = [&*fixed.services_apex.wire, &*fixed.apex.wire];
        let whole = (front > 1).then_some(&[0u8][..]);
        own.into_iter().chain(whole).filter_map(move |end| Folded::join(name.until_label(front), end))
    }

    /// Names outside to be tried for a question with [`Verdict::Candidates`], in this order.
    pub(crate) fn candidates(&self, ask: &Ask<'_>, name: &Folded) -> Vec<Folded> {
        let Some(front) = self.searched(ask, name) else { return Vec::new() };
        self.search(name, front).filter(|candidate| !self.owns_folded(candidate)).collect()
    }

    /// The SOA of a negative answer. Nobody keeps it: what is not there may be there in a second.
    fn deny<S: Sink>(&self, name: &Folded, place: Option<Place>, sink: &mut S) {
        // Records of one's own for a name elsewhere: that name alone is ours.
        let apex = place.map_or(name.as_wire(), |place| name.from_label(place.front));
        sink.authority(NameRef::whole(apex), 0, self.soa());
    }

    pub(crate) fn soa(&self) -> Data<'_> {
        // As CoreDNS has them: there are no secondaries to read them. The last one says how long a denial may be kept.
        let numbers = [self.revision as u32, 7_200, 1_800, 86_400, 0];
        Data::Soa { mname: (&self.fixed.server).into(), rname: (&self.fixed.hostmaster).into(), numbers }
    }
}

impl Trail {
    /// Notes `name`; whether `next` is new and the way not too long.
    fn goes_on(&mut self, name: &Folded, next: &Folded) -> bool {
        let Some(place) = self.seen.get_mut(self.len) else { return false };
        *place = hash(name.as_wire());
        self.len += 1;
        let next = hash(next.as_wire());
        !self.seen[..self.len].contains(&next)
    }
}
