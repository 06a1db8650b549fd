// SPDX-License-Identifier: Apache-2.0
//! A SkyDNS record in the store: the key up to the first line's end, the value behind it. It is a record or an error that names
//! what is wrong, and a zone that has it answers for its name and for every name above.

use std::net::{IpAddr, Ipv4Addr};

use dns_zone::{Name, Outcome, RecordType, SKYDNS_PREFIX, Zone, ZoneSettings, parse_skydns};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7));

pub(super) fn check(input: &[u8]) -> String {
    let end = input.iter().position(|octet| *octet == b'\n').unwrap_or(input.len());
    let Ok(key) = std::str::from_utf8(&input[..end]) else { return "no key".to_owned() };
    let record = match parse_skydns(key, input.get(end + 1..).unwrap_or_default(), SKYDNS_PREFIX) {
        Ok(record) => record,
        Err(error) => return error.to_string().chars().take(40).collect(),
    };
    let settings = ZoneSettings {
        zones: ["local", "org", "com"].map(|name| Name::parse(name).unwrap()).to_vec(),
        ..ZoneSettings::new("cluster.local")
    };
    let mut edit = Zone::new(settings).unwrap().edit();
    let mut name = Some(record.name.clone());
    edit.set_records(key, vec![record]);
    let zone = edit.finish(1);
    let mut label = String::new();
    while let Some(asked) = name {
        for record_type in [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT, RecordType::MX]
        {
            let outcome = zone.ask(&asked, record_type, Some(CLIENT), 7);
            let missing = matches!(outcome, Outcome::NxDomain { ref records, .. } if records.is_empty());
            assert!(!missing, "{asked} does not exist");
            label.push(match outcome {
                Outcome::Answer { .. } => 'a',
                Outcome::Forward(_) => 'f',
                Outcome::NoData { .. } => 'n',
                Outcome::NxDomain { .. } => 'x',
            });
        }
        name = asked.parent().filter(|parent| *parent != Name::root());
    }
    label
}
