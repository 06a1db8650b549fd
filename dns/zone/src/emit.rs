// SPDX-License-Identifier: Apache-2.0
//! The records at a name.

use std::net::IpAddr;

use crate::entry::{Entry, Kind, NamedPort};
use crate::locate::{Located, is_seen};
use crate::order::shuffled;
use crate::own_answer::OwnSeen;
use crate::resolve::Ask;
use crate::sink::{Data, NameRef, Owner, Sink};
use crate::zone::Pointer;
use crate::{Folded, RecordType, Zone, ZoneProtocol};

/// All targets are tried alike (RFC 2782: lower first).
const SRV_PRIORITY: u16 = 0;
/// All targets get the same share.
const SRV_WEIGHT: u16 = 100;

/// What is at a name, and what the client may see of one's own there.
pub(crate) struct There<'z> {
    pub(crate) located: Located<'z>,
    pub(crate) own: OwnSeen<'z>,
}

impl Zone {
    /// What stands for another name, and its TTL.
    pub(crate) fn alias_of<'z>(
        &'z self,
        there: &There<'z>,
        name: &Folded,
        ask: &Ask<'_>,
    ) -> Option<(u32, NameRef<'z>)> {
        let ttl_secs = self.fixed.ttl_secs;
        match &there.located {
            Located::Alias(entry) => Some((ttl_secs, NameRef::from(&*entry.name))),
            Located::Service(Entry { kind: Kind::ExternalName(target), .. }) => {
                Some((ttl_secs, target.into()))
            }
            Located::AddressTop(None) | Located::Own => self.own_alias(&there.own, name, ask),
            _ => None,
        }
    }

    /// Gives the records of the type asked for, or of one type for ANY; whether there are any.
    pub(crate) fn emit<S: Sink>(
        &self,
        there: &There<'_>,
        name: &Folded,
        ask: &Ask<'_>,
        owner: Owner<'_>,
        sink: &mut S,
    ) -> bool {
        let ttl_secs = self.fixed.ttl_secs;
        let wants = |record_type: RecordType| [record_type, RecordType::ANY].contains(&ask.record_type);
        match &there.located {
            Located::AddressTop(Some(pointer)) if wants(RecordType::PTR) => {
                self.emit_pointer(pointer, ask, owner, sink)
            }
            Located::AddressTop(_) | Located::Apex => {
                self.emit_apex(ask, owner, sink) || self.emit_own(&there.own, name, ask, owner, sink)
            }
            Located::Endpoints(endpoints) => addresses(
                endpoints,
                |endpoint| endpoint.ip,
                ask,
                |ip| sink.answer(owner, ttl_secs, ip.into()),
            ),
            Located::Own => self.emit_own(&there.own, name, ask, owner, sink),
            Located::Pod(ip) => {
                addresses(&[*ip], |ip| *ip, ask, |ip| sink.answer(owner, ttl_secs, ip.into()))
            }
            Located::Pointer(pointer) if wants(RecordType::PTR) => {
                self.emit_pointer(pointer, ask, owner, sink)
            }
            Located::Server => {
                addresses(&self.servers, |ip| *ip, ask, |ip| sink.answer(owner, ttl_secs, ip.into()))
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
            let mut ports = entry.ports().filter(is_it);
            if ports.all(|port| sink.answer(owner, ttl_secs, srv(port.port, target))) {
                sink.additional(target, ttl_secs, entry.ips());
            }
            return;
        };
        // Name by name, however many endpoints each has.
        let names = || {
            shuffled(endpoints.names(), ask.seed).filter_map(|index| {
                let same = endpoints.named(index);
                same.first().map(|first| (first, same))
            })
        };
        for (endpoint, _) in names() {
            let target = entry.endpoint_name(endpoint);
            let mut ports = endpoints.ports(endpoint).iter().filter(is_it);
            if !ports.all(|port| sink.answer(owner, ttl_secs, srv(port.port, target))) {
                return;
            }
        }
        for (endpoint, same) in names() {
            let has_it = endpoints.ports(endpoint).iter().any(|port| is_it(&port));
            let ips = same.iter().map(|endpoint| endpoint.ip);
            if has_it && !sink.additional(entry.endpoint_name(endpoint), ttl_secs, ips) {
                return;
            }
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
            Kind::Headless(endpoints) => endpoints.of_ip(pointer.ip).0.next().is_some(),
            _ => true,
        });
        for entry in owners() {
            let mut give = |name| sink.answer(owner, ttl_secs, Data::Ptr(name));
            let fits = match &entry.kind {
                Kind::Headless(endpoints) => {
                    let (hosted, unhosted) = endpoints.of_ip(pointer.ip);
                    let unhosted = unhosted.filter(|_| !given);
                    hosted.chain(unhosted).all(|endpoint| give(entry.endpoint_name(endpoint)))
                }
                _ => give(NameRef::from(&*entry.name)),
            };
            if !fits {
                break;
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

/// Gives the addresses of the family asked for, of the first one there is for ANY, in an order that the seed decides; whether
/// there are any. Those of IPv4 stand in front, each address once.
fn addresses<T>(
    all: &[T],
    ip_of: impl Fn(&T) -> IpAddr,
    ask: &Ask<'_>,
    mut give: impl FnMut(IpAddr) -> bool,
) -> bool {
    let (v4, v6) = all.split_at(all.partition_point(|one| ip_of(one).is_ipv4()));
    let wanted = match ask.record_type {
        RecordType::A => v4,
        RecordType::AAAA => v6,
        RecordType::ANY if v4.is_empty() => v6,
        RecordType::ANY => v4,
        _ => return false,
    };
    let _ = shuffled(wanted.len(), ask.seed).all(|index| give(ip_of(&wanted[index])));
    !wanted.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locate::Located;
    use crate::{Name, ZoneEndpoint, ZoneKind, ZonePort, ZoneService};

    /// Has room for so many answers, and counts what it is given.
    struct Full {
        room: usize,
        answers: usize,
        additional: usize,
    }

    impl Sink for Full {
        fn answer(&mut self, _: Owner<'_>, _: u32, _: Data<'_>) -> bool {
            self.answers += 1;
            self.answers <= self.room
        }

        fn authority(&mut self, _: NameRef<'_>, _: u32, _: Data<'_>) {}

        fn additional(&mut self, _: NameRef<'_>, _: u32, _: impl Iterator<Item = IpAddr>) -> bool {
            self.additional += 1;
            self.additional <= self.room
        }
    }

    /// `hostname` says which of so many endpoints have which.
    fn zone(count: u32, hostname: impl Fn(u32) -> Option<String>) -> Zone {
        let mut service = ZoneService::new("shop", "db", ZoneKind::Headless);
        let endpoint = |number: u32| ZoneEndpoint {
            addresses: vec![IpAddr::V4((0x0A00_0000 + number / 2).into())],
            hostname: hostname(number),
            ports: vec![ZonePort { name: Some("pg".into()), protocol: ZoneProtocol::Tcp, port: 5_432 }],
        };
        service.endpoints = (0..count).map(endpoint).collect();
        let records = "/skydns/shop/x".to_owned();
        let mut edit =
            Zone::build("cluster.local", 5, 1, [service], &["10.0.0.0/8".parse().unwrap()]).unwrap().edit();
        for number in 0..count {
            let value = format!("{{\"host\": \"192.0.2.{}\", \"port\": {}}}", number % 250, 1 + number / 250);
            let key = format!("/skydns/local/cluster/own/x{number}");
            let record = crate::parse_skydns(&key, value.as_bytes(), crate::SKYDNS_PREFIX).unwrap();
            edit.set_records(&format!("{records}{number}"), vec![record]);
        }
        edit.finish(1)
    }

    fn asked(zone: &Zone, name: &str, record_type: RecordType, room: usize) -> (usize, usize) {
        let ask = Ask { record_type, client: None, seed: 7 };
        let mut sink = Full { room, answers: 0, additional: 0 };
        zone.resolve(&ask, &Folded::from(&Name::parse(name).unwrap()), &mut sink);
        (sink.answers, sink.additional)
    }

    #[test]
    fn what_is_full_is_given_nothing_more() {
        let zone = zone(1_000, |number| Some(format!("db-{number}")));
        let srv = "_pg._tcp.db.shop.svc.cluster.local";
        for (name, record_type) in [
            (srv, RecordType::SRV),
            ("db.shop.svc.cluster.local", RecordType::A),
            ("own.cluster.local", RecordType::SRV),
            ("own.cluster.local", RecordType::A),
        ] {
            assert_eq!(asked(&zone, name, record_type, 20), (21, 0), "{name}");
        }
        assert_eq!(asked(&zone, srv, RecordType::SRV, 1_000), (1_000, 1_000));
        // Two names have an address.
        assert_eq!(asked(&zone, "7.0.0.10.in-addr.arpa", RecordType::PTR, 1), (2, 0));
    }

    #[test]
    fn endpoints_of_one_name_are_gone_through_as_one() {
        let zone = zone(1_000, |number| (number < 900).then(|| "all".to_owned()));
        let srv = "_pg._tcp.db.shop.svc.cluster.local";
        // The host, and 50 addresses without one.
        assert_eq!(asked(&zone, srv, RecordType::SRV, 1_000), (51, 51));
        assert_eq!(asked(&zone, "all.db.shop.svc.cluster.local", RecordType::A, 1_000), (450, 0));
        assert_eq!(asked(&zone, "7.0.0.10.in-addr.arpa", RecordType::PTR, 1_000), (1, 0));
        assert_eq!(asked(&zone, "199.1.0.10.in-addr.arpa", RecordType::PTR, 1_000), (1, 0));
        let name = Folded::from(&Name::parse(srv).unwrap());
        let mut sink = Full { room: 0, answers: 0, additional: 0 };
        let located = zone.locate(&name, zone.place(&name), None, &mut sink);
        let Located::Srv(Entry { kind: Kind::Headless(endpoints), .. }, _) = located else { panic!() };
        assert_eq!((endpoints.names(), endpoints.all.len()), (51, 500), "each address of a name once");
    }

    #[test]
    fn addresses_of_an_endpoints_name_come_in_the_order_of_the_seed() {
        let zone = zone(40, |_| Some("all".to_owned()));
        let name = Name::parse("all.db.shop.svc.cluster.local").unwrap();
        let first = |seed| match zone.answer(&name, RecordType::A, seed) {
            crate::Outcome::Answer { records, .. } => records.first().map(ToString::to_string),
            other => panic!("{other}"),
        };
        let firsts: std::collections::BTreeSet<_> = (0..200).map(first).collect();
        assert_eq!(firsts.len(), 20);
    }
}
