// SPDX-License-Identifier: Apache-2.0
//! Names that people wrote: records, links and rewrites in the configuration file and in the store, and SkyDNS' records. One
//! that is wrong is reported with its key and the field, and skipped; the rest goes on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dns_zone::{LinkSpec, Name, OwnRecord, RecordSpec, RewriteSpec, Rules, ZoneEdit, parse_skydns};
use netd_api::BadValue;
use netd_store::{Key, KeyValue, Keys, Mirror};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::ZoneOptions;

/// Version of the values below `dns/`. A newer one may say more than this netd understands.
const SCHEMA: u64 = 1;

/// What people wrote, parsed once for each value.
#[derive(Debug, Default)]
pub(super) struct OwnNames {
    /// With their places in the file.
    file: Vec<(String, Result<Written, String>)>,
    /// By key.
    stored: BTreeMap<String, Stored>,
    /// Counts the looks at the store.
    round: u64,
    /// Keys whose records are not in the zone yet, or are no more to be.
    changed: BTreeSet<String>,
    rules_changed: bool,
    /// Of links and rewrites, as the zone was made from them last.
    rule_problems: Vec<BadValue>,
}

#[derive(Debug)]
struct Stored {
    value: Bytes,
    written: Result<Written, String>,
    round: u64,
}

#[derive(Clone, Debug)]
enum Written {
    Link(LinkSpec),
    Record(OwnRecord),
    Rewrite(RewriteSpec),
}

impl OwnNames {
    pub(super) fn new(options: &ZoneOptions) -> Self {
        let place = |option: &str, index: usize| format!("{option}[{index}]");
        let record = |(index, spec): (usize, &RecordSpec)| {
            let parsed = spec.parse().map(Written::Record).map_err(|error| error.to_string());
            (place("dns-records", index), parsed)
        };
        let link =
            |(index, spec): (usize, &LinkSpec)| (place("dns-links", index), Ok(Written::Link(spec.clone())));
        let rewrite = |(index, spec): (usize, &RewriteSpec)| {
            (place("dns-rewrites", index), Ok(Written::Rewrite(spec.clone())))
        };
        let records = options.records.iter().enumerate().map(record);
        let links = options.links.iter().enumerate().map(link);
        let rewrites = options.rewrites.iter().enumerate().map(rewrite);
        Self { file: records.chain(links).chain(rewrites).collect(), ..Self::default() }
    }

    /// Looks at the store: Weft's own keys, and SkyDNS' with their prefix. Returns whether something is to be done.
    pub(super) fn follow(&mut self, keys: &Keys, store: &Mirror, skydns: Option<(&str, &Mirror)>) -> bool {
        self.round += 1;
        let own = keys.dns();
        for item in store.range(&own) {
            self.see(item, |item| read(keys, item));
        }
        if let Some((prefix, mirror)) = skydns {
            let below = format!("{prefix}/");
            for item in mirror.range(&below) {
                let parse = |item: &KeyValue| parse_skydns(&item.key, &item.value, prefix);
                self.see(item, |item| {
                    Some(parse(item).map(Written::Record).map_err(|error| error.to_string()))
                });
            }
        }
        let round = self.round;
        for (key, gone) in self.stored.extract_if(.., |_, stored| stored.round != round) {
            self.rules_changed |= gone.is_rule();
            self.changed.insert(key);
        }
        self.rules_changed || !self.changed.is_empty()
    }

    fn see(&mut self, item: &KeyValue, parse: impl Fn(&KeyValue) -> Option<Result<Written, String>>) {
        let round = self.round;
        if let Some(stored) = self.stored.get_mut(&item.key)
            && stored.value == item.value
        {
            stored.round = round;
            return;
        }
        let Some(written) = parse(item) else { return };
        if let Err(reason) = &written {
            tracing::warn!(key = item.key, reason, "a DNS record is skipped");
        }
        let stored = Stored { value: item.value.clone(), written, round };
        self.rules_changed |= stored.is_rule();
        let old = self.stored.insert(item.key.clone(), stored);
        self.rules_changed |= old.is_some_and(|old| old.is_rule());
        self.changed.insert(item.key.clone());
    }

    /// Brings what changed into the zone, or everything.
    pub(super) fn apply(&mut self, edit: &mut ZoneEdit, everything: bool, origin: &Name) {
        if everything {
            self.rules_changed = true;
            self.changed = self.stored.keys().cloned().collect();
            for (place, written) in &self.file {
                if let Ok(Written::Record(record)) = written {
                    edit.set_records(place, vec![record.clone()]);
                }
            }
        }
        for key in std::mem::take(&mut self.changed) {
            let records = match self.stored.get(&key).map(|stored| &stored.written) {
                Some(Ok(Written::Record(record))) => vec![record.clone()],
                _ => Vec::new(),
            };
            edit.set_records(&key, records);
        }
        if std::mem::take(&mut self.rules_changed) {
            edit.set_rules(self.rules(origin));
        }
    }

    /// In the order of the file, then of the keys.
    fn rules(&mut self, origin: &Name) -> Rules {
        let mut rules = Rules::default();
        self.rule_problems.clear();
        let stored = self.stored.iter().map(|(key, stored)| (key, &stored.written));
        for (key, written) in self.file.iter().map(|(place, written)| (place, written)).chain(stored) {
            let added = match written {
                Ok(Written::Link(spec)) => rules.add_link(spec, origin),
                Ok(Written::Rewrite(spec)) => rules.add_rewrite(spec, origin),
                Ok(Written::Record(_)) | Err(_) => Ok(()),
            };
            if let Err(error) = added {
                self.rule_problems.push(BadValue { key: key.clone(), reason: error.to_string() });
            }
        }
        rules
    }

    /// What is skipped, and why.
    pub(super) fn problems(&self) -> impl Iterator<Item = BadValue> {
        let stored = self.stored.iter().map(|(key, stored)| (key, &stored.written));
        let all = self.file.iter().map(|(place, written)| (place, written)).chain(stored);
        let wrong = all.filter_map(|(key, written)| Some((key, written.as_ref().err()?)));
        let wrong = wrong.map(|(key, reason)| BadValue { key: key.clone(), reason: reason.clone() });
        wrong.chain(self.rule_problems.iter().cloned())
    }
}

impl Stored {
    fn is_rule(&self) -> bool {
        matches!(self.written, Ok(Written::Link(_) | Written::Rewrite(_)))
    }
}

/// `None` for kinds of keys that newer versions have: they are not ours to judge.
fn read(keys: &Keys, item: &KeyValue) -> Option<Result<Written, String>> {
    let written = match keys.parse(&item.key)? {
        Key::DnsLink(_) => spec(&item.value).map(Written::Link),
        Key::DnsRecord(_) => spec::<RecordSpec>(&item.value)
            .and_then(|spec| spec.parse().map_err(|error| error.to_string()))
            .map(Written::Record),
        Key::DnsRewrite(_) => spec(&item.value).map(Written::Rewrite),
        _ => return None,
    };
    Some(written)
}

/// A field that is not known is an error: what a newer version restricts by it would be open to everybody here.
fn spec<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    let mut value: Value = serde_json::from_slice(value).map_err(|error| format!("no JSON: {error}"))?;
    let schema = value.as_object_mut().and_then(|fields| fields.remove("schema"));
    match schema.map(|schema| schema.as_u64()) {
        None | Some(Some(..=SCHEMA)) => serde_json::from_value(value).map_err(|error| error.to_string()),
        Some(_) => Err("schema: newer than this netd; update it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dns_zone::{Outcome, RecordType, Zone, ZoneSettings};

    use super::*;

    fn mirror(items: &[(&str, &str)]) -> Mirror {
        let item = |(key, value): &(&str, &str)| {
            let value = Bytes::copy_from_slice(value.as_bytes());
            let item = KeyValue { key: (*key).to_owned(), value, create_revision: 1, mod_revision: 1 };
            ((*key).to_owned(), Arc::new(item))
        };
        let mut mirror = Mirror::new();
        mirror.items = items.iter().map(item).collect();
        mirror
    }

    fn asked(zone: &Zone, name: &str) -> Vec<String> {
        match zone.ask(&Name::parse(name).unwrap(), RecordType::A, None, 0) {
            Outcome::Answer { records, .. } => records.iter().map(|r| r.data.to_string()).collect(),
            Outcome::Forward(forward) => forward.prefix.iter().map(|r| r.data.to_string()).collect(),
            Outcome::NoData { .. } | Outcome::NxDomain { .. } => Vec::new(),
        }
    }

    fn problems(own: &OwnNames) -> Vec<String> {
        own.problems().map(|bad| format!("{}: {}", bad.key, bad.reason)).collect()
    }

    #[test]
    fn records_of_the_file_and_the_store_and_skydns_are_answered_and_wrong_ones_are_named() {
        let keys = Keys::new("weft").unwrap();
        let record = |name: &str, data: &str| RecordSpec {
            name: name.into(),
            record_type: "A".into(),
            data: data.into(),
            ttl_secs: None,
            views: None,
        };
        let options = ZoneOptions {
            records: vec![record("printer.home", "192.0.2.1"), record("broken.home", "::1")],
            rewrites: vec![RewriteSpec { from: "*.old.home".into(), to: "home".into(), clients: None }],
            ..ZoneOptions::default()
        };
        let store = mirror(&[
            ("/weft/v1/weft/dns/links/db", r#"{"schema": 1, "name": "db", "to": "prod/pg"}"#),
            ("/weft/v1/weft/dns/links/bad", r#"{"name": "db", "to": "a/b.c"}"#),
            ("/weft/v1/weft/dns/records/nas", r#"{"name": "nas.home", "type": "A", "data": "192.0.2.2"}"#),
            (
                "/weft/v1/weft/dns/records/new",
                r#"{"schema": 2, "name": "x", "type": "A", "data": "192.0.2.2"}"#,
            ),
            ("/weft/v1/weft/dns/records/typo", r#"{"name": "x", "type": "A", "date": "192.0.2.2"}"#),
            ("/weft/v1/weft/dns/unheard/of", "?"),
            ("/weft/v1/weft/services/default/web", "?"),
        ]);
        let skydns = mirror(&[
            ("/skydns/home/tv/x1", r#"{"host": "192.0.2.3"}"#),
            ("/skydns/home/tv/x2", r#"{"host": "192.0.2.4"}"#),
            ("/skydns/home/tv/x3", r#"{"host": 7}"#),
        ]);
        let mut own = OwnNames::new(&options);
        assert!(own.follow(&keys, &store, Some(("/skydns", &skydns))));
        let settings =
            ZoneSettings { zones: vec![Name::parse("home").unwrap()], ..ZoneSettings::new("cluster.local") };
        let mut edit = Zone::new(settings).unwrap().edit();
        let origin = Name::parse("cluster.local").unwrap();
        own.apply(&mut edit, true, &origin);
        let zone = edit.finish(1);
        assert_eq!(asked(&zone, "printer.home"), ["192.0.2.1"]);
        assert_eq!(asked(&zone, "nas.home"), ["192.0.2.2"]);
        assert_eq!(asked(&zone, "nas.old.home").last().unwrap(), "192.0.2.2", "by the rewrite");
        let mut tv = asked(&zone, "tv.home");
        tv.sort();
        assert_eq!(tv, ["192.0.2.3", "192.0.2.4"], "the bad one beside them is skipped");
        let told = problems(&own);
        let expected = [
            "dns-records[1]: data: \"::1\" is not an IPv4 address",
            "/skydns/home/tv/x3: field host: 7 is not a text",
            "/weft/v1/weft/dns/records/new: schema: newer than this netd; update it",
            "/weft/v1/weft/dns/records/typo: unknown field `date`",
            "/weft/v1/weft/dns/links/bad: to: \"b.c\" has a dot in it",
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}");
        }

        // The same again is nothing to do; what goes is gone.
        assert!(!own.follow(&keys, &store, Some(("/skydns", &skydns))));
        let store = mirror(&[(
            "/weft/v1/weft/dns/records/typo",
            r#"{"name": "x.home", "type": "A", "data": "192.0.2.9"}"#,
        )]);
        assert!(own.follow(&keys, &store, Some(("/skydns", &skydns))));
        let mut edit = zone.edit();
        own.apply(&mut edit, false, &origin);
        let zone = edit.finish(2);
        assert_eq!(asked(&zone, "nas.home"), Vec::<String>::new());
        assert_eq!(asked(&zone, "x.home"), ["192.0.2.9"]);
        assert_eq!(asked(&zone, "printer.home"), ["192.0.2.1"]);
        assert_eq!(problems(&own).len(), 2, "of the file, and of SkyDNS");
        let mut scratch = OwnNames::new(&options);
        scratch.follow(&keys, &store, Some(("/skydns", &skydns)));
        let mut edit = Zone::new(zone.settings().clone()).unwrap().edit();
        scratch.apply(&mut edit, true, &origin);
        assert_eq!(edit.finish(2), zone, "step by step as from scratch");
    }
}
