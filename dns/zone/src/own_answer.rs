// SPDX-License-Identifier: Apache-2.0
//! Answers from records of one's own. A plain record belongs to its name; SkyDNS records also to every name above them inside
//! the zone: `web.example.com` has the addresses of `x1.web.example.com` and `x2.web.example.com`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::custom::OwnData;
use crate::locate::is_seen;
use crate::order::shuffled;
use crate::ordered::key;
use crate::resolve::Ask;
use crate::sink::{NameRef, Owner, Sink};
use crate::skydns::{Skydns, SkydnsHost};
use crate::{Folded, Name, OwnRecord, RecordData, RecordType, Zone};

/// SkyDNS: what lies below these labels belongs to the top of the zone.
const APEX_BELOW: &[u8] = b"\x03dns\x04apex";

/// What the client may see at a name.
struct Seen<'z> {
    plain: Vec<(&'z OwnRecord, &'z RecordData)>,
    /// By key.
    skydns: Vec<(&'z OwnRecord, &'z Skydns)>,
}

impl Zone {
    /// The CNAME at a name, or for addresses the name that a SkyDNS record leads to where none leads to an address.
    pub(crate) fn own_alias(&self, name: &Folded, ask: &Ask<'_>) -> Option<(u32, NameRef<'_>)> {
        let seen = self.seen(name, ask);
        let cname = seen.plain.iter().find_map(|(record, data)| match data {
            RecordData::Cname(target) => Some((self.ttl(record), NameRef::from(target))),
            _ => None,
        });
        let asks_address = matches!(ask.record_type, RecordType::A | RecordType::AAAA | RecordType::CNAME);
        let has_address =
            seen.skydns.iter().any(|(_, record)| matches!(record.host, Some(SkydnsHost::Ip(_))))
                || seen.plain.iter().any(|(_, data)| matches!(data, RecordData::A(_) | RecordData::Aaaa(_)));
        cname.or_else(|| {
            let mut hosts = seen.skydns.iter().filter(|_| asks_address && !has_address);
            hosts.find_map(|(record, skydns)| match &skydns.host {
                Some(SkydnsHost::Name(target)) => Some((self.ttl(record), NameRef::from(target))),
                _ => None,
            })
        })
    }

    /// As [`Zone::emit`].
    pub(crate) fn emit_own<S: Sink>(
        &self,
        name: &Folded,
        ask: &Ask<'_>,
        owner: Owner<'_>,
        sink: &mut S,
    ) -> bool {
        if self.own.is_empty() {
            return false;
        }
        let seen = self.seen(name, ask);
        let plain = seen.plain.iter().map(|(record, data)| (self.ttl(record), (*data).clone()));
        let made = seen.skydns.iter().flat_map(|(record, skydns)| {
            made(record, skydns, name).into_iter().map(|data| (self.ttl(record), data))
        });
        let all: Vec<(u32, RecordData)> = plain.chain(made).collect();
        let wanted = match (ask.record_type, all.first()) {
            (RecordType::ANY, Some((_, data))) => data.record_type(),
            (record_type, _) => record_type,
        };
        let mut known = BTreeSet::new();
        let matching = all.iter().filter(|(_, data)| data.record_type() == wanted && known.insert(data));
        let matching: Vec<&(u32, RecordData)> = matching.collect();
        // RFC 2181, 5.2: records of one name and type have one TTL.
        let ttl_secs = matching.iter().map(|(ttl_secs, _)| *ttl_secs).min().unwrap_or(0);
        for index in shuffled(matching.len(), ask.seed) {
            if !sink.answer(owner, ttl_secs, (&matching[index].1).into()) {
                return true;
            }
        }
        let mut targets = BTreeSet::new();
        for (_, data) in &matching {
            let target = match data {
                RecordData::Mx { exchange, .. } => exchange,
                RecordData::Srv(srv) => &srv.target,
                _ => continue,
            };
            if targets.insert(target) {
                let ips = self.addresses_of(target, ask, &seen);
                sink.additional(target.into(), ttl_secs, ips.into_iter());
            }
        }
        !matching.is_empty()
    }

    fn ttl(&self, record: &OwnRecord) -> u32 {
        record.ttl_secs.unwrap_or(self.fixed.ttl_secs)
    }

    fn seen(&self, name: &Folded, ask: &Ask<'_>) -> Seen<'_> {
        let mut seen = Seen { plain: Vec::new(), skydns: Vec::new() };
        let mut buffer = [0; 255];
        let len = key(name, &mut buffer);
        let at = &buffer[..len];
        let place = self.place(name);
        let apex_key = [at, APEX_BELOW].concat();
        let below: &[u8] = match place {
            Some(place) if place.front == 0 => &apex_key,
            _ => at,
        };
        let exact = self.own.find(at).into_iter().flat_map(|all| all.iter());
        for own in exact.filter(|own| own.is_seen_by(ask.client)) {
            match &own.record.data {
                OwnData::Plain(data) => seen.plain.push((&own.record, data)),
                OwnData::Skydns(record) if place.is_none() => seen.skydns.push((&own.record, record)),
                OwnData::Skydns(_) => {}
            }
        }
        if place.is_some() {
            for own in self.own.below(below).flat_map(|(_, all)| all.iter()) {
                match &own.record.data {
                    OwnData::Skydns(record) if own.is_seen_by(ask.client) => {
                        seen.skydns.push((&own.record, record))
                    }
                    _ => {}
                }
            }
        }
        retain_group(&mut seen.skydns);
        seen
    }

    /// Addresses that we know of a name.
    fn addresses_of(&self, target: &Name, ask: &Ask<'_>, seen: &Seen<'_>) -> BTreeSet<IpAddr> {
        let folded = Folded::from(target);
        if let Some(entry) = self.service(folded.as_wire()).filter(|entry| is_seen(entry, ask.client)) {
            return entry.ips().collect();
        }
        let of_target = seen.skydns.iter().filter(|(record, skydns)| self::target(record, skydns) == *target);
        let mut ips: BTreeSet<IpAddr> = of_target.filter_map(|(_, skydns)| ip(skydns)).collect();
        ips.extend(self.seen(&folded, ask).plain.into_iter().filter_map(|(_, data)| match data {
            RecordData::A(ip) => Some(IpAddr::V4(*ip)),
            RecordData::Aaaa(ip) => Some(IpAddr::V6(*ip)),
            _ => None,
        }));
        ips
    }
}

/// What SkyDNS makes of one record, asked for by `name`.
fn made(record: &OwnRecord, skydns: &Skydns, name: &Folded) -> Vec<RecordData> {
    let is_reverse = name.labels() > 1 && name.label(name.labels() - 1) == b"arpa";
    let mut made: Vec<RecordData> = ip(skydns).map(RecordData::from).into_iter().collect();
    if skydns.host.is_some() {
        let (priority, weight, port) = (skydns.priority, skydns.weight, skydns.port);
        made.push(RecordData::Srv(crate::Srv { priority, weight, port, target: target(record, skydns) }));
    }
    if let Some(SkydnsHost::Name(host)) = &skydns.host {
        if skydns.mail {
            made.push(RecordData::Mx { preference: skydns.priority, exchange: host.clone() });
        }
        if is_reverse {
            made.push(RecordData::Ptr(host.clone()));
        }
    }
    made.extend(skydns.text.clone().map(RecordData::Txt));
    made
}

fn ip(skydns: &Skydns) -> Option<IpAddr> {
    match skydns.host {
        Some(SkydnsHost::Ip(ip)) => Some(ip),
        _ => None,
    }
}

/// Where SRV leads: the host, or for an address the record's own name, less what is to be stripped.
fn target(record: &OwnRecord, skydns: &Skydns) -> Name {
    match &skydns.host {
        Some(SkydnsHost::Name(host)) => host.clone(),
        _ => {
            let labels: Vec<&[u8]> = record.name.labels().collect();
            // All but one label at most: the root is no target.
            let strip = skydns.targetstrip.min(labels.len().saturating_sub(1));
            Name::from_labels(labels[strip..].iter().copied()).unwrap_or_else(|_| record.name.clone())
        }
    }
}

/// SkyDNS: the record with the shortest name that has a group says which groups are shown; records without one always are.
/// Where those of the shortest names disagree, all are shown.
fn retain_group(records: &mut Vec<(&OwnRecord, &Skydns)>) {
    let grouped = || records.iter().filter(|(_, skydns)| skydns.group.is_some());
    let Some(shortest) = grouped().map(|(record, _)| record.name.labels().count()).min() else { return };
    let groups: BTreeSet<&str> = grouped()
        .filter(|(record, _)| record.name.labels().count() == shortest)
        .filter_map(|(_, skydns)| skydns.group.as_deref())
        .collect();
    if let [group] = groups.into_iter().collect::<Vec<_>>()[..] {
        let group = group.to_owned();
        records.retain(|(_, skydns)| skydns.group.as_ref().is_none_or(|own| *own == group));
    }
}
