// SPDX-License-Identifier: Apache-2.0
//! The records at a name.

use std::net::IpAddr;

use crate::entry::{Endpoint, Endpoints, Entry, Kind, NO_HOST, NamedPort};
use crate::locate::{Located, is_seen};
use crate::order::shuffled;
use crate::resolve::Ask;
use crate::sink::{Data, NameRef, Owner, Sink};
use crate::zone::Pointer;
use crate::{Folded, RecordType, Zone, ZoneProtocol};

/// All targets are tried alike (RFC 2782: lower first).
const SRV_PRIORITY: u16 = 0;
/// All targets get the same share.
const SRV_WEIGHT: u16 = 100;

impl Zone {
    /// What stands for another name, and its TTL.
    pub(crate) fn alias_of<'z>(
        &'z self,
        located: &Located<'z>,
        name: &Folded,
        ask: &Ask<'_>,
    ) -> Option<(u32, NameRef<'z>)> {
        let ttl_secs = self.fixed.ttl_secs;
        match located {
            Located::Alias(entry) => Some((ttl_secs, NameRef::from(&*entry.name))),
            Located::Service(Entry { kind: Kind::ExternalName(target), .. }) => {
                Some((ttl_secs, target.into()))
            }
            Located::Own => self.own_alias(name, ask),
            _ => None,
        }
    }

    /// Gives the records of the type asked for, or of one type for ANY; whether there are any.
    pub(crate) fn emit<S: Sink>(
        &self,
        located: &Located<'_>,
        name: &Folded,
        ask: &Ask<'_>,
        owner: Owner<'_>,
        sink: &mut S,
    ) -> bool {
        let ttl_secs = self.fixed.ttl_secs;
        let wants = |record_type: RecordType| [record_type, RecordType::ANY].contains(&ask.record_type);
        match located {
            Located::Apex => self.emit_apex(ask, owner, sink) || self.emit_own(name, ask, owner, sink),
            Located::Endpoints(endpoints) => {
                addresses(endpoints.iter().map(|endpoint| endpoint.ip), ask, |ip| {
                    sink.answer(owner, ttl_secs, ip.into())
                })
            }
            Located::Own => self.emit_own(name, ask, owner, sink),
            Located::Pod(ip) => {
                addresses([*ip].into_iter(), ask, |ip| sink.answer(owner, ttl_secs, ip.into()))
            }
            Located::Pointer(pointer) if wants(RecordType::PTR) => {
                self.emit_pointer(pointer, ask, owner, sink)
            }
            Located::Server => {
                addresses(self.servers.iter().copied(), ask, |ip| sink.answer(owner, ttl_secs, ip.into()))
            }
            Located::Service(entry) => self.emit_addresses(entry, ask, owner, sink),
            Located::Srv(entry, protocol) if wants(RecordType::SRV) => {
                let port = name.label(0).get(1..).unwrap_or_default();
                self.emit_srv(entry, (*protocol, port), ask, owner, sink);
                true
            }
            Located::Version if wants(RecordType::TXT) => {
                sink.answer(owner, ttl_secs, Data::Txt(crate::DNS_SCHEMA_VERSION));
                true
            }
            _ => false,
        }
    }

    fn emit_addresses<S: Sink>(&self, entry: &Entry, ask: &Ask<'_>, owner: Owner<'_>, sink: &mut S) -> bool {
        let ttl_secs = self.fixed.ttl_secs;
        let any = ask.record_type == RecordType::ANY;
        if (ask.record_type == RecordType::A || any) && !entry.v4.is_empty() {
            let mut order = shuffled(entry.v4.len(), ask.seed);
            let _ = order.all(|index| sink.answer(owner, ttl_secs, Data::A(entry.v4[index])));
            return true;
        }
        if (ask.record_type == RecordType::AAAA || any) && !entry.v6.is_empty() {
            let mut order = shuffled(entry.v6.len(), ask.seed);
            let _ = order.all(|index| sink.answer(owner, ttl_secs, Data::Aaaa(entry.v6[index])));
            return true;
        }
        false
    }

    fn emit_srv<S: Sink>(
        &self,
        entry: &Entry,
        wanted: (ZoneProtocol, &[u8]),
        ask: &Ask<'_>,
        owner: Owner<'_>,
        sink: &mut S,
    ) {
        let srv = |port: u16, target| Data::Srv { priority: SRV_PRIORITY, weight: SRV_WEIGHT, port, target };
        let is_it = |port: &&NamedPort| (port.protocol, &*port.name) == wanted;
        let ttl_secs = self.fixed.ttl_secs;
        let Kind::Headless(endpoints) = &entry.kind else {
            let target = NameRef::from(&*entry.name);
            for port in entry.ports().filter(is_it) {
                sink.answer(owner, ttl_secs, srv(port.port, target));
            }
            return sink.additional(target, ttl_secs, entry.ips());
        };
        let of = |index: usize| endpoints.ports(&endpoints.all[index]).iter().filter(is_it);
        let order = || shuffled(endpoints.all.len(), ask.seed);
        'all: for index in order() {
            let target = entry.endpoint_name(&endpoints.all[index]);
            for port in of(index).filter(|port| is_first(endpoints, index, port)) {
                if !sink.answer(owner, ttl_secs, srv(port.port, target)) {
                    break 'all;
                }
            }
        }
        let has_it = |endpoint: &Endpoint| endpoints.ports(endpoint).iter().any(|port| is_it(&port));
        let comes_first = |index: &usize| !before(endpoints, *index).iter().any(has_it);
        for index in order().filter(|index| has_it(&endpoints.all[*index])).filter(comes_first) {
            let ips = endpoints.same_name(index).iter().map(|endpoint| endpoint.ip);
            sink.additional(entry.endpoint_name(&endpoints.all[index]), ttl_secs, distinct(ips));
        }
    }

    fn emit_pointer<S: Sink>(
        &self,
        pointer: &Pointer,
        ask: &Ask<'_>,
        owner: Owner<'_>,
        sink: &mut S,
    ) -> bool {
        let ttl_secs = self.fixed.ttl_secs;
        let owners = || self.owners(pointer).filter(|entry| is_seen(entry, ask.client));
        // A name that somebody gave (StatefulSets) is the one, whatever headless services have the address, too: who looks up
        // who asks expects that name, and no made up one beside it.
        let given = owners().any(|entry| match &entry.kind {
            Kind::Headless(endpoints) => {
                endpoints.all.iter().any(|one| one.ip == pointer.ip && one.host != NO_HOST)
            }
            _ => true,
        });
        for entry in owners() {
            let Kind::Headless(endpoints) = &entry.kind else {
                sink.answer(owner, ttl_secs, Data::Ptr(NameRef::from(&*entry.name)));
                continue;
            };
            let mut last = None;
            let meant = |one: &&Endpoint| one.ip == pointer.ip && (one.host != NO_HOST || !given);
            for endpoint in endpoints.all.iter().filter(meant) {
                // Sorted by host: one name comes once.
                if last.replace(endpoint.host) != Some(endpoint.host) {
                    sink.answer(owner, ttl_secs, Data::Ptr(entry.endpoint_name(endpoint)));
                }
            }
        }
        true
    }

    fn emit_apex<S: Sink>(&self, ask: &Ask<'_>, owner: Owner<'_>, sink: &mut S) -> bool {
        let server = NameRef::from(&self.fixed.server);
        match ask.record_type {
            RecordType::NS => {
                sink.answer(owner, self.fixed.ttl_secs, Data::Ns(server));
                sink.additional(server, self.fixed.ttl_secs, self.servers.iter().copied());
            }
            RecordType::ANY | RecordType::SOA => drop(sink.answer(owner, self.fixed.ttl_secs, self.soa())),
            _ => return false,
        }
        true
    }
}

/// Gives the addresses of the family asked for, of the first one there is for ANY; whether there are any.
pub(crate) fn addresses(
    ips: impl Iterator<Item = IpAddr> + Clone,
    ask: &Ask<'_>,
    mut give: impl FnMut(IpAddr) -> bool,
) -> bool {
    let wants_v4 = match ask.record_type {
        RecordType::A => true,
        RecordType::AAAA => false,
        RecordType::ANY => ips.clone().next().is_some_and(|ip| ip.is_ipv4()),
        _ => return false,
    };
    let wanted = distinct(ips.filter(move |ip| ip.is_ipv4() == wants_v4));
    let mut given = false;
    for ip in wanted {
        given = true;
        if !give(ip) {
            break;
        }
    }
    given
}

/// Of sorted addresses, each once.
fn distinct(ips: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = IpAddr> {
    let mut last = None;
    ips.filter(move |ip| last.replace(*ip) != Some(*ip))
}

/// Whether no endpoint before it gives the same target the same port.
fn is_first(endpoints: &Endpoints, index: usize, port: &NamedPort) -> bool {
    let before = before(endpoints, index);
    !before.iter().any(|other| endpoints.ports(other).iter().any(|known| known == port))
}

/// Those of the same name in front of the one at `index`.
fn before(endpoints: &Endpoints, index: usize) -> &[Endpoint] {
    let same = endpoints.same_name(index);
    let place = same.iter().position(|other: &Endpoint| std::ptr::eq(other, &endpoints.all[index]));
    &same[..place.unwrap_or(0)]
}
