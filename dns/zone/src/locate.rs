// SPDX-License-Identifier: Apache-2.0
//! Where a name lies, and what is there.

use std::net::IpAddr;

use crate::entry::{Endpoint, Entry};
use crate::ordered::key;
use crate::reverse::{self, Digits};
use crate::sink::{NameRef, Note, Sink, ip_of_label};
use crate::tree::hash;
use crate::zone::{Pointer, ip_hash};
use crate::{Client, Folded, PodNames, Zone, ZoneProtocol};

/// A zone of ours that a name lies in.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) kind: PlaceKind,
    /// Labels in front of the zone's top.
    pub(crate) front: usize,
}

#[derive(Clone, Copy)]
pub(crate) enum PlaceKind {
    /// A zone for records of one's own.
    Further,
    /// The zone of services.
    Origin,
    Reverse(Digits),
}

/// What is at a name.
pub(crate) enum Located<'z> {
    /// An address that is the top of a reverse zone itself: its network ends within the last label.
    AddressTop(Option<&'z Pointer>),
    /// Another name of a service.
    Alias(&'z Entry),
    /// The top of a zone.
    Apex,
    /// Exists, and has no records.
    Empty,
    /// The endpoints of a headless service that have this name.
    Endpoints(&'z [Endpoint]),
    /// Not in a zone of ours.
    Foreign,
    Nothing,
    /// Records of one's own.
    Own,
    Pod(IpAddr),
    Pointer(&'z Pointer),
    /// `ns.dns`
    Server,
    Service(&'z Entry),
    /// A named port: the label in front of the name, without its underscore.
    Srv(&'z Entry, ZoneProtocol),
    /// `dns-version`
    Version,
}

impl Zone {
    pub(crate) fn owns_folded(&self, name: &Folded) -> bool {
        self.place(name).is_some() || self.has_own(name, false, None)
    }

    pub(crate) fn place(&self, name: &Folded) -> Option<Place> {
        let fixed = &self.fixed;
        if let Some(front) = name.labels_below(&fixed.apex) {
            return Some(Place { kind: PlaceKind::Origin, front });
        }
        // The longest zone is the nearest one.
        let further = fixed.zones.iter().filter_map(|zone| name.labels_below(zone)).min();
        if let Some(front) = further {
            return Some(Place { kind: PlaceKind::Further, front });
        }
        let (front, digits) = reverse::place(name, &fixed.settings.reverse_cidrs)?;
        Some(Place { kind: PlaceKind::Reverse(digits), front })
    }

    pub(crate) fn locate<S: Sink>(
        &self,
        name: &Folded,
        place: Option<Place>,
        client: Option<&Client>,
        sink: &mut S,
    ) -> Located<'_> {
        let Some(place) = place else {
            return if self.has_own(name, false, client) { Located::Own } else { Located::Foreign };
        };
        let found = match (place.kind, place.front) {
            (PlaceKind::Reverse(Digits::Address(ip)), 0) => Located::AddressTop(self.pointer(ip, client)),
            (_, 0) => Located::Apex,
            (PlaceKind::Further, _) => Located::Nothing,
            (PlaceKind::Origin, front) => match name.label(front - 1) {
                b"svc" => self.locate_service(name, front - 1, client, sink),
                b"pod" => self.locate_pod(name, front - 1),
                b"dns-version" if front == 1 => Located::Version,
                b"dns" if front == 1 => Located::Empty,
                b"dns" if front == 2 && name.label(0) == b"ns" => Located::Server,
                _ => Located::Nothing,
            },
            (PlaceKind::Reverse(digits), _) => self.locate_pointer(digits, client),
        };
        match found {
            Located::Empty | Located::Nothing if self.has_own(name, true, client) => Located::Own,
            found => found,
        }
    }

    /// `front`: labels in front of `svc`.
    fn locate_service<S: Sink>(
        &self,
        name: &Folded,
        front: usize,
        client: Option<&Client>,
        sink: &mut S,
    ) -> Located<'_> {
        let Some(own) = front.checked_sub(2) else {
            let is_namespace = front == 1 && self.has_namespace(name.label(0));
            return if front == 0 || is_namespace { Located::Empty } else { Located::Nothing };
        };
        let wire = name.from_label(own);
        let Some(entry) = self.service(wire) else { return self.locate_alias(wire, own, client, sink) };
        if !is_seen(entry, client) {
            sink.note(Note::Hidden { service: &entry.name });
            return Located::Nothing;
        }
        sink.note(Note::Service { service: &entry.name });
        for left_out in &entry.left_out {
            sink.note(Note::LeftOut { address: left_out.address, reason: &left_out.reason });
        }
        match own {
            0 if entry.exists() => Located::Service(entry),
            1 => {
                if let Some(protocol) = protocol(name.label(0)) {
                    let has = entry.ports().any(|port| port.protocol == protocol);
                    return if has { Located::Empty } else { Located::Nothing };
                }
                match entry.endpoints(name.label(0)) {
                    [] => Located::Nothing,
                    endpoints => Located::Endpoints(endpoints),
                }
            }
            2 => {
                let (Some(protocol), Some(port)) =
                    (protocol(name.label(1)), name.label(0).strip_prefix(b"_"))
                else {
                    return Located::Nothing;
                };
                let is_it =
                    |known: &crate::entry::NamedPort| known.protocol == protocol && *known.name == *port;
                if entry.ports().any(is_it) { Located::Srv(entry, protocol) } else { Located::Nothing }
            }
            _ => Located::Nothing,
        }
    }

    fn locate_alias<S: Sink>(
        &self,
        wire: &[u8],
        own: usize,
        client: Option<&Client>,
        sink: &mut S,
    ) -> Located<'_> {
        match self.aliased(wire, client).filter(|_| own == 0) {
            Some(entry) => {
                sink.note(Note::Alias { target: NameRef::from(&*entry.name) });
                Located::Alias(entry)
            }
            None => Located::Nothing,
        }
    }

    /// The Service that has the name `wire` as an alias, for this client.
    pub(crate) fn aliased(&self, wire: &[u8], client: Option<&Client>) -> Option<&Entry> {
        let alias = self.aliases.find(hash(wire), |alias| alias.name.as_wire() == wire)?;
        let mut entries = alias.owners.iter().filter_map(|owner| self.service(owner.as_wire()));
        entries.find(|entry| is_seen(entry, client)).map(|entry| &**entry)
    }

    /// `front`: labels in front of `pod`.
    fn locate_pod(&self, name: &Folded, front: usize) -> Located<'_> {
        let mode = self.fixed.settings.pod_names;
        match front {
            _ if mode == PodNames::Disabled => Located::Nothing,
            0 => Located::Empty,
            1 if self.has_namespace(name.label(0)) => Located::Empty,
            2 if self.has_namespace(name.label(1)) => {
                let Some(ip) = ip_of_label(name.label(0)) else { return Located::Nothing };
                let in_it = |client: &Client| client.namespace.as_bytes().eq_ignore_ascii_case(name.label(1));
                if mode == PodNames::Insecure || self.client(ip).is_some_and(in_it) {
                    Located::Pod(ip)
                } else {
                    Located::Nothing
                }
            }
            _ => Located::Nothing,
        }
    }

    fn locate_pointer(&self, digits: Digits, client: Option<&Client>) -> Located<'_> {
        match digits {
            Digits::Address(ip) => self.pointer(ip, client).map_or(Located::Nothing, Located::Pointer),
            Digits::Network => Located::Empty,
            Digits::Nothing => Located::Nothing,
        }
    }

    fn pointer(&self, ip: IpAddr, client: Option<&Client>) -> Option<&Pointer> {
        let found = self.pointers.find(ip_hash(ip), |pointer| pointer.ip == ip)?;
        self.owners(found).any(|entry| is_seen(entry, client)).then_some(found)
    }

    /// The services that have an address.
    pub(crate) fn owners<'z>(&'z self, pointer: &'z Pointer) -> impl Iterator<Item = &'z Entry> {
        pointer.owners.iter().filter_map(|owner| self.service(owner.as_wire())).map(|entry| &**entry)
    }

    fn has_namespace(&self, label: &[u8]) -> bool {
        self.namespaces.find(hash(label), |known| *known.name == *label).is_some()
    }

    /// Whether somebody wrote records for a name, or (`below`) for names below it.
    fn has_own(&self, name: &Folded, below: bool, client: Option<&Client>) -> bool {
        if self.own.is_empty() {
            return false;
        }
        let mut buffer = [0; 255];
        let len = key(name, &mut buffer);
        let key = &buffer[..len];
        if below {
            return self.own.below(key).any(|(_, all)| all.iter().any(|own| own.is_seen_by(client)));
        }
        self.own.find(key).is_some_and(|all| all.iter().any(|own| own.is_seen_by(client)))
    }
}

pub(crate) fn is_seen(entry: &Entry, client: Option<&Client>) -> bool {
    entry.views.as_ref().is_none_or(|views| views.admit(client))
}

fn protocol(label: &[u8]) -> Option<ZoneProtocol> {
    match label {
        b"_sctp" => Some(ZoneProtocol::Sctp),
        b"_tcp" => Some(ZoneProtocol::Tcp),
        b"_udp" => Some(ZoneProtocol::Udp),
        _ => None,
    }
}
