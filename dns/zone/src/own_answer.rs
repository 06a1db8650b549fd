// SPDX-License-Identifier: Apache-2.0
//! Answers from records of one's own. A plain record belongs to its name; SkyDNS records also to every name above them inside
//! the zone: `web.example.com` has the addresses of `x1.web.example.com` and `x2.web.example.com`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::custom::{OwnData, TTL_SECS_LARGEST};
use crate::locate::{Place, PlaceKind, is_seen};
use crate::order::shuffled;
use crate::ordered::key;
use crate::resolve::Ask;
use crate::reverse::Digits;
use crate::sink::{Data, NAME_MAX, NameRef, Owner, Sink};
use crate::skydns::{Skydns, SkydnsHost};
use crate::{Client, Folded, OwnRecord, RecordData, RecordType, Zone};

/// SkyDNS: what lies below these labels belongs to the top of the zone.
const APEX_BELOW: &[u8] = b"\x03dns\x04apex";
/// Records looked at for one question: about as many as an answer over TCP has room for, and some 0.1 ms.
pub(crate) const RECORDS_MAX: usize = 2_048;

/// What the client may see at a name.
#[derive(Default)]
pub(crate) struct OwnSeen<'z> {
    plain: Vec<(&'z OwnRecord, &'z RecordData)>,
    /// By key.
    skydns: Vec<(&'z OwnRecord, &'z Skydns)>,
    /// There are more than [`RECORDS_MAX`].
    pub(crate) is_cut: bool,
}

/// A record's content by what it says: what two records say alike is given once.
struct Said<'a>(Data<'a>);

impl Zone {
    pub(crate) fn own_seen(
        &self,
        name: &Folded,
        place: Option<Place>,
        client: Option<&Client>,
    ) -> OwnSeen<'_> {
        let mut seen = OwnSeen::default();
        if self.own.is_empty() {
            return seen;
        }
        let mut buffer = [0; 255];
        let len = key(name, &mut buffer);
        let at = &buffer[..len];
        for own in self.own.find(at).into_iter().flat_map(|all| all.iter()) {
            match &own.record.data {
                _ if !own.is_seen_by(client) => {}
                OwnData::Plain(data) => seen.plain.push((&own.record, data)),
                OwnData::Skydns(record) if place.is_none() => seen.skydns.push((&own.record, record)),
                OwnData::Skydns(_) => {}
            }
        }
        let Some(place) = place else {
            retain_group(&mut seen.skydns);
            return seen;
        };
        let is_top = place.front == 0 && !matches!(place.kind, PlaceKind::Reverse(Digits::Address(_)));
        let top_key = if is_top { [at, APEX_BELOW].concat() } else { Vec::new() };
        let below = if is_top { &top_key } else { at };
        for (looked_at, own) in self.own.below(below).flat_map(|(_, all)| all.iter()).enumerate() {
            if looked_at == RECORDS_MAX {
                seen.is_cut = true;
                break;
            }
            match &own.record.data {
                OwnData::Skydns(record) if own.is_seen_by(client) => seen.skydns.push((&own.record, record)),
                _ => {}
            }
        }
        retain_group(&mut seen.skydns);
        seen
    }

    /// The CNAME at a name, or for addresses the name that a SkyDNS record leads to where none leads to an address.
    pub(crate) fn own_alias<'z>(
        &self,
        seen: &OwnSeen<'z>,
        name: &Folded,
        ask: &Ask<'_>,
    ) -> Option<(u32, NameRef<'z>)> {
        let cname = seen.plain.iter().find_map(|(record, data)| match data {
            RecordData::Cname(target) => Some((self.ttl(record), NameRef::from(target))),
            _ => None,
        });
        let asks_address = matches!(ask.record_type, RecordType::A | RecordType::AAAA | RecordType::CNAME);
        let has_address = || {
            seen.skydns.iter().any(|(_, record)| matches!(record.host, Some(SkydnsHost::Ip(_))))
                || seen.plain.iter().any(|(_, data)| matches!(data, RecordData::A(_) | RecordData::Aaaa(_)))
        };
        if cname.is_some() || !asks_address || has_address() {
            return cname;
        }
        seen.skydns.iter().find_map(|(record, skydns)| match &skydns.host {
            // One that leads to its own name leads nowhere.
            Some(SkydnsHost::Name(target)) if !target.as_wire().eq_ignore_ascii_case(name.as_wire()) => {
                Some((self.ttl(record), NameRef::from(target)))
            }
            _ => None,
        })
    }

    /// As [`Zone::emit`].
    pub(crate) fn emit_own<S: Sink>(
        &self,
        seen: &OwnSeen<'_>,
        name: &Folded,
        ask: &Ask<'_>,
        owner: Owner<'_>,
        sink: &mut S,
    ) -> bool {
        let is_reverse = name.labels() > 1 && name.label(name.labels() - 1) == b"arpa";
        let plain = || seen.plain.iter().map(|(record, data)| (*record, Data::from(*data)));
        let made = || {
            seen.skydns.iter().flat_map(move |&(record, skydns)| {
                made(record, skydns, is_reverse).map(move |data| (record, data))
            })
        };
        let first = || plain().chain(made()).next().map(|(_, data)| data.record_type());
        let wanted = match ask.record_type {
            RecordType::ANY => first(),
            record_type => Some(record_type),
        };
        let (mut known, mut ttl_secs) = (BTreeSet::new(), TTL_SECS_LARGEST);
        let mut matching = Vec::new();
        for (record, data) in plain().chain(made()).filter(|(_, data)| Some(data.record_type()) == wanted) {
            // RFC 2181, 5.2: records of one name and type have one TTL.
            ttl_secs = ttl_secs.min(self.ttl(record));
            if known.insert(Said(data)) {
                matching.push(data);
            }
        }
        if shuffled(matching.len(), ask.seed).all(|index| sink.answer(owner, ttl_secs, matching[index])) {
            self.emit_targets(seen, &matching, ask, ttl_secs, sink);
        }
        !matching.is_empty()
    }

    /// Addresses of the names that records lead to.
    fn emit_targets<S: Sink>(
        &self,
        seen: &OwnSeen<'_>,
        records: &[Data<'_>],
        ask: &Ask<'_>,
        ttl_secs: u32,
        sink: &mut S,
    ) {
        let target = |data: &Data<'_>| match data {
            Data::Mx { exchange, .. } => Folded::read(exchange.rest),
            Data::Srv { target, .. } => Folded::read(target.rest),
            _ => None,
        };
        if records.first().and_then(target).is_none() {
            return;
        }
        let mut made: BTreeMap<Vec<u8>, BTreeSet<IpAddr>> = BTreeMap::new();
        for (record, skydns) in &seen.skydns {
            if let Some(SkydnsHost::Ip(ip)) = skydns.host {
                let wire = self::target(record, skydns).rest.to_ascii_lowercase();
                made.entry(wire).or_default().insert(ip);
            }
        }
        let mut told = BTreeSet::new();
        for data in records {
            let Some(folded) = target(data).filter(|folded| told.insert(folded.as_wire().to_vec())) else {
                continue;
            };
            let of_service = self.service(folded.as_wire()).filter(|entry| is_seen(entry, ask.client));
            let ips = match of_service {
                Some(entry) => entry.ips().collect(),
                None => {
                    let mut ips = made.remove(folded.as_wire()).unwrap_or_default();
                    self.plain_addresses(&folded, ask.client, &mut ips);
                    ips
                }
            };
            let (Data::Mx { exchange: name, .. } | Data::Srv { target: name, .. }) = data else { continue };
            if !sink.additional(*name, ttl_secs, ips.into_iter()) {
                return;
            }
        }
    }

    fn plain_addresses(&self, name: &Folded, client: Option<&Client>, ips: &mut BTreeSet<IpAddr>) {
        let mut buffer = [0; NAME_MAX];
        let len = key(name, &mut buffer);
        let all = self.own.find(&buffer[..len]).into_iter().flat_map(|all| all.iter());
        ips.extend(all.filter(|own| own.is_seen_by(client)).filter_map(|own| match &own.record.data {
            OwnData::Plain(RecordData::A(ip)) => Some(IpAddr::V4(*ip)),
            OwnData::Plain(RecordData::Aaaa(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        }));
    }

    fn ttl(&self, record: &OwnRecord) -> u32 {
        record.ttl_secs.unwrap_or(self.fixed.ttl_secs).min(TTL_SECS_LARGEST)
    }
}

/// What SkyDNS makes of one record.
fn made<'z>(
    record: &'z OwnRecord,
    skydns: &'z Skydns,
    is_reverse: bool,
) -> impl Iterator<Item = Data<'z>> + use<'z> {
    let (ip, name) = match &skydns.host {
        Some(SkydnsHost::Ip(ip)) => (Some(*ip), None),
        Some(SkydnsHost::Name(name)) => (None, Some(NameRef::from(name))),
        None => (None, None),
    };
    let srv = skydns.host.as_ref().map(|_| Data::Srv {
        priority: skydns.priority,
        weight: skydns.weight,
        port: skydns.port,
        target: target(record, skydns),
    });
    let mx = name.filter(|_| skydns.mail);
    let mx = mx.map(|exchange| Data::Mx { preference: skydns.priority, exchange });
    let ptr = name.filter(|_| is_reverse).map(Data::Ptr);
    let txt = skydns.text.as_deref().map(Data::Txt);
    [ip.map(Data::from), srv, mx, ptr, txt].into_iter().flatten()
}

/// Where SRV leads: the host, or for an address the record's own name, less what is to be stripped.
fn target<'z>(record: &'z OwnRecord, skydns: &'z Skydns) -> NameRef<'z> {
    if let Some(SkydnsHost::Name(host)) = &skydns.host {
        return host.into();
    }
    let mut wire = record.name.as_wire();
    for _ in 0..skydns.targetstrip {
        match wire.get(1 + usize::from(wire[0])..) {
            // All but one label at most: the root is no target.
            None | Some([0] | []) => break,
            Some(rest) => wire = rest,
        }
    }
    NameRef::whole(wire)
}

/// SkyDNS: the record with the shortest name that has a group says which groups are shown; records without one always are.
/// Where those of the shortest names disagree, all are shown.
fn retain_group(records: &mut Vec<(&OwnRecord, &Skydns)>) {
    let grouped = || records.iter().filter(|(_, skydns)| skydns.group.is_some());
    let Some(shortest) = grouped().map(|(record, _)| record.name.depth()).min() else { return };
    let groups: BTreeSet<&str> = grouped()
        .filter(|(record, _)| record.name.depth() == shortest)
        .filter_map(|(_, skydns)| skydns.group.as_deref())
        .collect();
    if let [group] = groups.into_iter().collect::<Vec<_>>()[..] {
        let group = group.to_owned();
        records.retain(|(_, skydns)| skydns.group.as_ref().is_none_or(|own| *own == group));
    }
}

impl Ord for Said<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let name = |a: &NameRef<'_>, b: &NameRef<'_>| {
            let lower = |octet: &u8| octet.to_ascii_lowercase();
            a.rest.iter().map(lower).cmp(b.rest.iter().map(lower))
        };
        match (&self.0, &other.0) {
            (Data::A(a), Data::A(b)) => a.cmp(b),
            (Data::Aaaa(a), Data::Aaaa(b)) => a.cmp(b),
            (Data::Cname(a), Data::Cname(b)) | (Data::Ns(a), Data::Ns(b)) | (Data::Ptr(a), Data::Ptr(b)) => {
                name(a, b)
            }
            (Data::Mx { preference: p, exchange: a }, Data::Mx { preference: q, exchange: b }) => {
                p.cmp(q).then_with(|| name(a, b))
            }
            (
                Data::Srv { priority: p, weight: w, port, target: a },
                Data::Srv { priority: q, weight: x, port: other, target: b },
            ) => (p, w, port).cmp(&(q, x, other)).then_with(|| name(a, b)),
            (Data::Txt(a), Data::Txt(b)) => a.cmp(b),
            // Others are compared as values: nobody writes many of them.
            (a, b) => a.to_data().cmp(&b.to_data()),
        }
    }
}

impl PartialOrd for Said<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Said<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Said<'_> {}
