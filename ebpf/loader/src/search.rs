// SPDX-License-Identifier: Apache-2.0
//! One walk through all that remembers where connections go, for those that are to end: in steps, so that whoever holds the
//! [`Datapath`] may give it to others between two of them, however many connections there are.

use std::collections::BTreeSet;

use ebpf_abi::{CtKey, PROTO_TCP, PROTO_UDP, conntrack::CT_REPLY, conntrack::CtValue};

use crate::{ServiceSocket, datapath::Datapath, error::MapAccessError, map::Walk};

/// Entries per step: about a millisecond.
const STEP: usize = 4_096;

/// (Frontend, backend) pairs of which something ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parting {
    /// TCP: sockets are found, flows of the packet path forgotten, both directions.
    pub connections: BTreeSet<(u32, u32)>,
    /// UDP: sockets are found, and the client's datagrams choose anew; answers that are on their way still arrive.
    pub datagrams: BTreeSet<(u32, u32)>,
    /// UDP, the same, and nobody waits for answers any more.
    pub answered: BTreeSet<(u32, u32)>,
}

/// A walk, and what it found so far.
#[derive(Debug)]
pub struct Search {
    parting: Parting,
    part: Part,
    walk: Walk,
    sockets: Vec<ServiceSocket>,
    forgotten: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Sockets,
    /// Version 1 remembered connected sockets among the flows.
    OldSockets,
    Live,
    New,
    Over,
}

impl Parting {
    /// Whether nothing ends.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.datagrams.is_empty() && self.answered.is_empty()
    }

    /// Leaves out the pairs of which nothing has to end any more, as `is_ended` says of a pair's connections (`false`) and its
    /// datagrams (`true`).
    fn retain(&mut self, mut is_ended: impl FnMut((u32, u32), bool) -> bool) {
        self.connections.retain(|pair| is_ended(*pair, false));
        for datagrams in [&mut self.datagrams, &mut self.answered] {
            datagrams.retain(|pair| is_ended(*pair, true));
        }
    }

    fn has_socket(&self, proto: u8, pair: (u32, u32)) -> bool {
        match proto {
            PROTO_TCP => self.connections.contains(&pair),
            _ => self.datagrams.contains(&pair) || self.answered.contains(&pair),
        }
    }

    /// The entries that go with this one.
    fn doomed(&self, key: &CtKey, value: &CtValue) -> [Option<CtKey>; 2] {
        let pair = (value.service_id, value.backend_id);
        let all = match key.proto {
            PROTO_TCP => self.connections.contains(&pair),
            PROTO_UDP => self.answered.contains(&pair),
            _ => false,
        };
        if all {
            return [Some(*key), Some(key.peer(value))];
        }
        let is_question = key.proto == PROTO_UDP && value.flags & CT_REPLY == 0;
        [(is_question && self.datagrams.contains(&pair)).then_some(*key), None]
    }
}

impl Search {
    /// For all of these.
    pub fn new(parting: Parting) -> Self {
        let part = if parting.is_empty() { Part::Over } else { Part::Sockets };
        Self { parting, part, walk: Walk::default(), sockets: Vec::new(), forgotten: 0 }
    }

    /// Goes on without the pairs of which nothing has to end any more: who is back has new connections that live. `is_ended` says
    /// of a pair's connections (`false`) and of its datagrams (`true`) whether they have to. What was found of them stays.
    pub fn retain(&mut self, is_ended: impl FnMut((u32, u32), bool) -> bool) {
        self.parting.retain(is_ended);
        if self.parting.is_empty() {
            self.part = Part::Over;
        }
    }

    /// The sockets that were found; those of an older version among them, of which some may be closed by now.
    pub fn sockets(&self) -> &[ServiceSocket] {
        &self.sockets
    }

    /// How many entries of flows were removed: two for each flow where both directions are.
    pub fn forgotten(&self) -> usize {
        self.forgotten
    }
}

impl Datapath {
    /// Goes on with a search for some thousand entries; `true` when it is over.
    ///
    /// # Errors
    /// A map cannot be read or written. The search may be gone on with.
    pub fn search(&mut self, search: &mut Search) -> Result<bool, MapAccessError> {
        let next = match search.part {
            Part::Sockets => self.search_sockets(search)?.then_some(Part::OldSockets),
            Part::OldSockets => self.search_old_sockets(search)?.then_some(Part::Live),
            Part::Live | Part::New => {
                let next = if matches!(search.part, Part::Live) { Part::New } else { Part::Over };
                self.search_flows(search)?.then_some(next)
            }
            Part::Over => None,
        };
        if let Some(next) = next {
            search.part = next;
            search.walk = Walk::default();
        }
        Ok(matches!(search.part, Part::Over))
    }

    fn search_sockets(&self, search: &mut Search) -> Result<bool, MapAccessError> {
        let Some(entries) = self.maps.sockets.step(&mut search.walk, STEP)? else { return Ok(true) };
        for (cookie, socket) in entries {
            if search.parting.has_socket(socket.proto, (socket.service_id, socket.backend_id)) {
                search.sockets.push(self.service_socket(cookie, &socket)?);
            }
        }
        Ok(false)
    }

    fn search_old_sockets(&self, search: &mut Search) -> Result<bool, MapAccessError> {
        let Some(entries) = self.maps.flows.step(&mut search.walk, STEP)? else { return Ok(true) };
        let parting = &search.parting;
        let wanted = |pair| parting.has_socket(PROTO_TCP, pair);
        search.sockets.extend(
            entries
                .into_iter()
                .filter(|(key, flow)| key.proto == PROTO_TCP && wanted((flow.service_id, flow.backend_id)))
                .map(|(key, flow)| ServiceSocket::of_old_flow(&key, &flow)),
        );
        Ok(false)
    }

    fn search_flows(&self, search: &mut Search) -> Result<bool, MapAccessError> {
        let maps = [&self.maps.ct_live, &self.maps.ct_new];
        let map = if matches!(search.part, Part::Live) { maps[0] } else { maps[1] };
        let Some(entries) = map.step(&mut search.walk, STEP)? else { return Ok(true) };
        let doomed = entries.iter().flat_map(|(key, value)| search.parting.doomed(key, value)).flatten();
        let doomed: BTreeSet<CtKey> = doomed.collect();
        if !doomed.is_empty() {
            // Wherever they are: the two directions of a flow may be in two maps.
            for map in maps {
                search.forgotten += map.remove_all(doomed.iter())?;
            }
        }
        Ok(false)
    }
}
