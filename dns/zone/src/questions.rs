// SPDX-License-Identifier: Apache-2.0
//! Every question that the zone has an answer to: for who compares it with another server.

use std::collections::BTreeSet;

use crate::custom::OwnData;
use crate::entry::{Entry, Kind};
use crate::locate::is_seen;
use crate::skydns::{Skydns, SkydnsHost};
use crate::{Name, RecordType, Zone, ZoneProtocol, reverse};

type Questions = BTreeSet<(Name, RecordType)>;

impl Zone {
    /// The names and types that somebody who is no known pod gets records for, sorted, each once: services, their ports and
    /// endpoints, addresses backwards, records of one's own. Not the names of pods made of addresses, and no names by rewrites.
    #[must_use]
    pub fn questions(&self) -> Vec<(Name, RecordType)> {
        let mut all = Questions::new();
        if let Ok(version) = self.origin().child("dns-version") {
            all.insert((version, RecordType::TXT));
        }
        for entry in self.services.iter().filter(|entry| entry.exists() && is_seen(entry, None)) {
            of_service(entry, &mut all);
        }
        let seen = |name: &Name| {
            self.service(name.as_wire()).is_some_and(|entry| entry.exists() && is_seen(entry, None))
        };
        let aliases = self.aliases.iter().filter(|alias| alias.owners.iter().any(|owner| seen(owner)));
        all.extend(aliases.map(|alias| (alias.name.clone(), RecordType::A)));
        let pointers = self.pointers.iter().filter(|pointer| pointer.owners.iter().any(|owner| seen(owner)));
        all.extend(pointers.map(|pointer| (reverse::name(pointer.ip), RecordType::PTR)));
        for own in self.own.iter().flat_map(|(_, all)| all.iter()).filter(|own| own.is_seen_by(None)) {
            let name = &own.record.name;
            match &own.record.data {
                OwnData::Plain(data) => drop(all.insert((name.clone(), data.record_type()))),
                OwnData::Skydns(record) => {
                    all.extend(of_skydns(record).into_iter().map(|record_type| (name.clone(), record_type)));
                }
            }
        }
        all.into_iter().collect()
    }
}

fn of_service(entry: &Entry, all: &mut Questions) {
    let name = &*entry.name;
    let address = |ip: std::net::IpAddr| if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    if let Kind::ExternalName(_) = entry.kind {
        all.insert((name.clone(), RecordType::CNAME));
    }
    all.extend(entry.ips().map(|ip| (name.clone(), address(ip))));
    for port in entry.ports() {
        let protocol: &[u8] = match port.protocol {
            ZoneProtocol::Sctp => b"_sctp",
            ZoneProtocol::Tcp => b"_tcp",
            ZoneProtocol::Udp => b"_udp",
        };
        let own = [b"_", &port.name[..]].concat();
        // A name that is too long has no records either.
        if let Ok(srv) = Name::from_labels([&own[..], protocol].into_iter().chain(name.labels())) {
            all.insert((srv, RecordType::SRV));
        }
    }
    if let Kind::Headless(endpoints) = &entry.kind {
        let named = endpoints.all.iter().map(|one| (entry.endpoint_name(one).to_name(), address(one.ip)));
        all.extend(named);
    }
}

fn of_skydns(record: &Skydns) -> Vec<RecordType> {
    let host = record.host.as_ref().map(|host| match host {
        SkydnsHost::Ip(ip) if ip.is_ipv4() => RecordType::A,
        SkydnsHost::Ip(_) => RecordType::AAAA,
        SkydnsHost::Name(_) => RecordType::CNAME,
    });
    let text = record.text.as_ref().map(|_| RecordType::TXT);
    host.into_iter().chain(host.map(|_| RecordType::SRV)).chain(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Outcome, SKYDNS_PREFIX, Views, ZoneEndpoint, ZoneKind, ZonePort, ZoneService, ZoneSettings,
        parse_skydns,
    };

    #[test]
    fn each_question_has_an_answer_and_nothing_hidden_is_among_them() {
        let settings = ZoneSettings {
            reverse_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            zones: vec![Name::parse("home").unwrap()],
            ..ZoneSettings::new("cluster.local")
        };
        let mut edit = Zone::new(settings).unwrap().edit();
        let port = ZonePort { name: Some("http".into()), protocol: ZoneProtocol::Tcp, port: 80 };
        let endpoint = |ip: &str, hostname: Option<&str>| ZoneEndpoint {
            addresses: vec![ip.parse().unwrap()],
            hostname: hostname.map(str::to_owned),
            ports: vec![port.clone()],
        };
        let ip = vec!["10.96.0.7".parse().unwrap()];
        edit.set_service(&ZoneService {
            ports: vec![port.clone()],
            aliases: vec!["www".into()],
            ..ZoneService::new("shop", "web", ZoneKind::ClusterIp(ip.clone()))
        });
        edit.set_service(&ZoneService {
            endpoints: vec![endpoint("10.0.0.2", Some("db-0")), endpoint("10.0.0.3", None)],
            ..ZoneService::new("shop", "db", ZoneKind::Headless)
        });
        edit.set_service(&ZoneService::new("shop", "empty", ZoneKind::Headless));
        edit.set_service(&ZoneService::new("shop", "out", ZoneKind::ExternalName("example.com".into())));
        edit.set_service(&ZoneService {
            views: Some(Views::nobody()),
            ..ZoneService::new("shop", "secret", ZoneKind::ClusterIp(vec!["10.96.0.8".parse().unwrap()]))
        });
        let record =
            parse_skydns("/skydns/home/tv/x", br#"{"host": "192.0.2.1", "text": "t"}"#, SKYDNS_PREFIX);
        edit.set_records("x", vec![record.unwrap()]);
        let zone = edit.finish(1);
        let questions = zone.questions();
        for (name, record_type) in &questions {
            let outcome = zone.ask(name, *record_type, None, 0);
            assert!(
                matches!(outcome, Outcome::Answer { .. } | Outcome::Forward(_)),
                "{name} {record_type}: {outcome}"
            );
        }
        let shown: Vec<String> = questions.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        for expected in [
            "web.shop.svc.cluster.local. A",
            "www.shop.svc.cluster.local. A",
            "_http._tcp.web.shop.svc.cluster.local. SRV",
            "db-0.db.shop.svc.cluster.local. A",
            "10-0-0-3.db.shop.svc.cluster.local. A",
            "2.0.0.10.in-addr.arpa. PTR",
            "out.shop.svc.cluster.local. CNAME",
            "x.tv.home. A",
            "x.tv.home. SRV",
            "x.tv.home. TXT",
            "dns-version.cluster.local. TXT",
        ] {
            assert!(shown.iter().any(|shown| shown == expected), "{expected} is not in {shown:?}");
        }
        assert!(!shown.iter().any(|shown| shown.contains("secret") || shown.contains("empty")), "{shown:?}");
    }
}
