// SPDX-License-Identifier: Apache-2.0
//! Against a zone that takes updates as RFC 2136, 3 says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::{Action, Change, Condition, Domain, Found, HostName, Mark, Plan, Update, Wish, choose, plan};
use crate::{Name, Record, RecordData, RecordType};

const TTL: u32 = 60;

/// By name and type, each with its TTL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model(BTreeMap<(Name, RecordType), BTreeMap<RecordData, u32>>);

impl Model {
    fn put(&mut self, record: Record) {
        let others = self.0.iter().any(|((name, of), set)| {
            *name == record.name && *of != record.data.record_type() && !set.is_empty()
        });
        let has_alias = self.has(&record.name, RecordType::CNAME);
        // 3.4.2.2: an alias beside anything else is passed over, and so is anything else beside an alias.
        if (record.data.record_type() == RecordType::CNAME && others)
            || (record.data.record_type() != RecordType::CNAME && has_alias)
        {
            return;
        }
        let key = (record.name, record.data.record_type());
        let set = self.0.entry(key).or_default();
        set.insert(record.data, record.ttl_secs);
        // 3.4.2.2: a set has one TTL, the last one's.
        set.values_mut().for_each(|ttl| *ttl = record.ttl_secs);
    }

    fn has(&self, name: &Name, of: RecordType) -> bool {
        self.0.contains_key(&(name.clone(), of))
    }

    fn set(&self, name: &Name, of: RecordType) -> BTreeMap<RecordData, u32> {
        self.0.get(&(name.clone(), of)).cloned().unwrap_or_default()
    }

    fn update(&mut self, update: &Update) -> Result<(), String> {
        for condition in &update.conditions {
            let holds = match condition {
                Condition::Absent(name, of) => !self.has(name, *of),
                Condition::Exactly(name, data) => {
                    self.set(name, data.record_type()).into_keys().eq([data.clone()])
                }
                Condition::Free(name) => !self.0.keys().any(|(other, _)| other == name),
            };
            if !holds {
                return Err(format!("{condition:?}"));
            }
        }
        for action in &update.actions {
            match action {
                Action::Add(record) => self.put(record.clone()),
                Action::Remove(name, data) => {
                    let key = (name.clone(), data.record_type());
                    if let Some(set) = self.0.get_mut(&key) {
                        set.remove(data);
                        if set.is_empty() {
                            self.0.remove(&key);
                        }
                    }
                }
                Action::RemoveAll(name, of) => drop(self.0.remove(&(name.clone(), *of))),
            }
        }
        Ok(())
    }

    /// As the shell reads it.
    fn look(&self, domain: &Domain, wished: &[HostName]) -> BTreeMap<HostName, Found> {
        let texts = |name: &Name| -> Vec<String> {
            let text = |data: RecordData| if let RecordData::Txt(text) = data { Some(text) } else { None };
            self.set(name, RecordType::TXT).into_keys().filter_map(text).collect()
        };
        let indexed: BTreeSet<HostName> =
            domain.index().iter().flat_map(texts).filter_map(|text| domain.host(&text).ok()).collect();
        let hosts = indexed.iter().chain(wished).cloned();
        let found = |host: HostName| {
            let mark = match texts(host.mark()).as_slice() {
                [text] => Mark::parse(text),
                _ => None,
            };
            let of = |of| self.set(host.name(), of);
            let records = [RecordType::A, RecordType::AAAA, RecordType::CNAME].into_iter().flat_map(of);
            let found = Found { mark, indexed: indexed.contains(&host), records: records.collect() };
            (host, found)
        };
        hosts.map(found).collect()
    }
}

fn domain() -> Domain {
    let name = |text: &str| Name::parse(text).unwrap();
    Domain::new(name("example.org"), name("apps.example.org"), "prod.eu", TTL).unwrap()
}

fn host(text: &str) -> HostName {
    domain().host(text).unwrap()
}

fn wish(service: &str, ips: &[&str]) -> Wish {
    let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    Wish::addresses(service, ips).unwrap()
}

fn record(name: &str, data: RecordData) -> Record {
    Record { name: Name::parse(name).unwrap(), ttl_secs: 3_600, data }
}

/// Plans for these wishes and does it; the updates that were sent, and those that the zone refused.
fn reconcile(zone: &mut Model, wishes: &[(HostName, Wish)]) -> (Vec<Update>, Vec<HostName>, Plan) {
    reconcile_without(zone, wishes, &BTreeSet::new())
}

/// The same, where it is not known what some Services want.
fn reconcile_without(
    zone: &mut Model,
    wishes: &[(HostName, Wish)],
    unread: &BTreeSet<String>,
) -> (Vec<Update>, Vec<HostName>, Plan) {
    let domain = domain();
    let hosts: Vec<HostName> = wishes.iter().map(|(host, _)| host.clone()).collect();
    let found = zone.look(&domain, &hosts);
    let (chosen, _) = choose(&domain, wishes.to_vec(), &found);
    let plan = plan(&domain, &chosen, &found, unread);
    let refused = plan.updates.iter().filter(|update| zone.update(update).is_err());
    let refused = refused.map(|update| update.host.clone()).collect();
    (plan.updates.clone(), refused, plan)
}

#[test]
fn names_that_may_be_published() {
    let domain = domain();
    for (text, shown) in [
        ("Shop.APPS.example.org.", "shop.apps.example.org"),
        ("*.shop.apps.example.org", "*.shop.apps.example.org"),
        ("apps.example.org", "apps.example.org"),
    ] {
        assert_eq!(domain.host(text).unwrap().to_string(), shown);
        assert_eq!(domain.host(shown), domain.host(text));
    }
    for (text, why) in [
        ("shop.example.org", "is not at or below apps.example.org"),
        ("www", "is not at or below"),
        ("_weft.apps.example.org", "is no name of a host"),
        ("a.*.apps.example.org", "is no name of a host"),
        ("-a.apps.example.org", "is no name of a host"),
        ("a b.apps.example.org", "is no name of a host"),
        ("a..apps.example.org", "empty label"),
        (".", "is no name of a host"),
    ] {
        let error = domain.host(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    // A mark must fit, too.
    let long = format!("{0}.{0}.{0}.{1}.apps.example.org", "x".repeat(63), "y".repeat(42));
    assert!(domain.host(&long).is_err() && Name::parse(&long).is_ok());
    let name = |text: &str| Name::parse(text).unwrap();
    assert!(Domain::new(name("example.org"), name("example.net"), "prod", TTL).is_err());
    for owner in ["", "a..b", "A", "a,b", "_", &"a".repeat(81)] {
        assert!(Domain::new(name("example.org"), name("example.org"), owner, TTL).is_err(), "{owner}");
    }
}

#[test]
fn the_index_is_spread_and_stands_for_ever() {
    let domain = domain();
    assert_eq!(domain.index()[10].to_string(), "0a.prod.eu._weft.apps.example.org.");
    // Where a name was found must be found by every later version.
    assert_eq!(
        domain.index_of(&host("shop.apps.example.org")).to_string(),
        "31.prod.eu._weft.apps.example.org."
    );
    let mut parts: BTreeMap<Name, usize> = BTreeMap::new();
    for number in 0..super::NAMES_MAX {
        let host = host(&format!("shop-{number}.apps.example.org"));
        *parts.entry(domain.index_of(&host).clone()).or_default() += 1;
    }
    assert_eq!(parts.len(), super::INDEX_SHARDS);
    assert!(parts.values().all(|count| *count <= 100), "{:?}", parts.values().max());
}

#[test]
fn marks_are_read_as_written() {
    let mark = Mark { owner: "prod.eu".into(), service: "default/shop".into() };
    assert_eq!(mark.to_string(), "heritage=weft,owner=prod.eu,service=default/shop");
    assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    for text in
        ["", "heritage=external-dns,owner=a,service=b", "heritage=weft,owner=,service=a/b", "v=spf1 -all"]
    {
        assert_eq!(Mark::parse(text), None, "{text}");
    }
}

#[test]
fn a_name_is_claimed_changed_handed_over_and_released() {
    let mut zone = Model::default();
    let shop = host("shop.apps.example.org");
    let first = [(shop.clone(), wish("default/shop", &["192.0.2.1", "2001:db8::1"]))];
    let (sent, refused, _) = reconcile(&mut zone, &first);
    assert_eq!((sent.len(), sent[0].change, refused.len()), (1, Change::Claim, 0));
    assert_eq!(zone.0.len(), 4, "A, AAAA, mark, index: {zone:?}");
    assert_eq!(reconcile(&mut zone, &first).0, [], "nothing left to do");

    let second = [(shop.clone(), wish("default/shop", &["192.0.2.2"]))];
    let (sent, _, _) = reconcile(&mut zone, &second);
    assert_eq!(sent[0].change, Change::Correct);
    assert_eq!(zone.set(shop.name(), RecordType::A), [(RecordData::A([192, 0, 2, 2].into()), TTL)].into());
    assert!(!zone.has(shop.name(), RecordType::AAAA));

    let alias = [(shop.clone(), Wish::alias("default/shop", Name::parse("LB.example.net").unwrap()))];
    reconcile(&mut zone, &alias);
    assert!(zone.has(shop.name(), RecordType::CNAME) && !zone.has(shop.name(), RecordType::A));

    // Another Service that comes first by name does not take it away; it gets it once the first lets go.
    let both = [alias[0].clone(), (shop.clone(), wish("default/a", &["192.0.2.3"]))];
    assert_eq!(reconcile(&mut zone, &both).0, []);
    let (sent, _, _) = reconcile(&mut zone, &both[1..]);
    assert_eq!((sent.len(), sent[0].change), (1, Change::Correct), "without a moment of nobody's");
    let text = RecordData::Txt("heritage=weft,owner=prod.eu,service=default/a".into());
    assert!(zone.set(shop.mark(), RecordType::TXT).contains_key(&text));

    let (sent, _, _) = reconcile(&mut zone, &[]);
    assert_eq!(sent[0].change, Change::Release);
    assert_eq!(zone, Model::default());
}

#[test]
fn what_somebody_else_did_to_our_records_is_mended() {
    let shop = host("shop.apps.example.org");
    let wishes = [(shop.clone(), wish("default/shop", &["192.0.2.1"]))];
    let mut good = Model::default();
    reconcile(&mut good, &wishes);
    let index = domain().index_of(&shop).clone();
    for (name, of) in [(shop.name(), RecordType::A), (&index, RecordType::TXT)] {
        let mut zone = good.clone();
        zone.0.remove(&(name.clone(), of));
        assert_eq!(reconcile(&mut zone, &wishes).0[0].change, Change::Correct, "{name} {of}");
        assert_eq!(zone, good);
    }
    let mut zone = good.clone();
    zone.put(record("shop.apps.example.org", RecordData::A([198, 51, 100, 1].into())));
    reconcile(&mut zone, &wishes);
    assert_eq!(zone, good, "who has the mark has all addresses");
    // Without its mark the name is whose it is now: it leaves the index, and nothing else.
    let mut zone = good.clone();
    zone.0.remove(&(shop.mark().clone(), RecordType::TXT));
    let (_, refused, _) = reconcile(&mut zone, &wishes);
    assert_eq!(refused, std::slice::from_ref(&shop));
    let (sent, _, _) = reconcile(&mut zone, &[]);
    assert_eq!(sent[0].change, Change::Forget);
    assert_eq!(zone.0.keys().collect::<Vec<_>>(), [&(shop.name().clone(), RecordType::A)]);
}

#[test]
fn what_a_service_wants_that_does_not_read_is_not_known() {
    let mut zone = Model::default();
    let shop = host("shop.apps.example.org");
    reconcile(&mut zone, &[(shop.clone(), wish("default/shop", &["192.0.2.1"]))]);
    let found = zone.look(&domain(), &[]);
    let unread = ["default/shop".to_owned()].into();
    assert_eq!(plan(&domain(), &BTreeMap::new(), &found, &unread), Plan::default());
    assert_eq!(plan(&domain(), &BTreeMap::new(), &found, &BTreeSet::new()).updates.len(), 1);
}

#[test]
fn a_rival_does_not_get_what_a_service_has_that_does_not_read() {
    let mut zone = Model::default();
    let shop = host("shop.apps.example.org");
    let own = [(shop.clone(), wish("default/shop", &["192.0.2.1"]))];
    reconcile(&mut zone, &own);
    let before = zone.clone();
    let rival = [(shop.clone(), wish("default/rival", &["192.0.2.9"]))];
    let unread = ["default/shop".to_owned()].into();
    let (sent, _, plan) = reconcile_without(&mut zone, &rival, &unread);
    assert_eq!((sent.len(), &zone), (0, &before));
    let held = &plan.held[0];
    assert_eq!((&held.host, &*held.refused, &*held.holder), (&shop, "default/rival", "default/shop"));
    // It reads again, and has what it had; what it wants itself is done though other words of it do not read.
    let both = [rival[0].clone(), own[0].clone()];
    assert_eq!(reconcile(&mut zone, &both).0, []);
    let moved = [rival[0].clone(), (shop.clone(), wish("default/shop", &["192.0.2.2"]))];
    assert_eq!(reconcile_without(&mut zone, &moved, &unread).0[0].change, Change::Correct);
}

#[test]
fn addresses_stay_where_others_records_leave_no_room_for_an_alias() {
    let mut zone = Model::default();
    let shop = host("shop.apps.example.org");
    reconcile(&mut zone, &[(shop.clone(), wish("default/shop", &["192.0.2.1"]))]);
    let mail = RecordData::Mx { preference: 10, exchange: Name::parse("mail.example.org").unwrap() };
    zone.put(record("shop.apps.example.org", mail));
    let before = zone.clone();
    let alias = [(shop.clone(), Wish::alias("default/shop", Name::parse("lb.example.net").unwrap()))];
    let (_, refused, _) = reconcile(&mut zone, &alias);
    assert_eq!((refused, &zone), (vec![shop.clone()], &before), "told as refused, and not dark");
    zone.0.remove(&(shop.name().clone(), RecordType::MX));
    reconcile(&mut zone, &alias);
    assert!(zone.has(shop.name(), RecordType::CNAME));
    // From one alias to another there is nothing beside it.
    let other = [(shop, Wish::alias("default/shop", Name::parse("lb2.example.net").unwrap()))];
    let (sent, _, _) = reconcile(&mut zone, &other);
    assert_eq!(sent[0].conditions.len(), 1);
}

#[test]
fn another_clusters_name_is_told_and_left() {
    let mut zone = Model::default();
    let theirs = RecordData::Txt("heritage=weft,owner=test,service=default/shop".into());
    zone.put(record("_weft.shop.apps.example.org", theirs));
    let before = zone.clone();
    let shop = host("shop.apps.example.org");
    let (sent, _, plan) = reconcile(&mut zone, &[(shop.clone(), wish("default/shop", &["192.0.2.1"]))]);
    assert_eq!((sent.len(), &plan.taken[0].0, plan.taken[0].1.owner.as_str()), (0, &shop, "test"));
    assert_eq!(zone, before);
}

const NAMES: [&str; 6] = [
    "apps.example.org",
    "a.apps.example.org",
    "b.apps.example.org",
    "*.b.apps.example.org",
    "c.b.apps.example.org",
    "d.apps.example.org",
];

/// Records of others, at names that are wished, beside their marks, and elsewhere.
fn foreign() -> impl Strategy<Value = Record> {
    let names: Vec<String> = NAMES
        .iter()
        .map(ToString::to_string)
        .chain(["www.example.org".into(), "_weft.a.apps.example.org".into(), "_weft.apps.example.org".into()])
        .collect();
    let data = prop_oneof![
        any::<u8>().prop_map(|last| RecordData::A([198, 51, 100, last].into())),
        Just(RecordData::Aaaa("2001:db8::77".parse().unwrap())),
        Just(RecordData::Mx { preference: 10, exchange: Name::parse("mail.example.org").unwrap() }),
        Just(RecordData::Cname(Name::parse("elsewhere.example.org").unwrap())),
        Just(RecordData::Txt("v=spf1 -all".into())),
        Just(RecordData::Txt("heritage=weft,owner=test,service=default/s0".into())),
    ];
    (prop::sample::select(names), data).prop_map(|(name, data)| record(&name, data))
}

fn wishes() -> impl Strategy<Value = Vec<(HostName, Wish)>> {
    let target = prop_oneof![
        3 => prop::collection::btree_set(0_u8..4, 1..3).prop_map(Some),
        1 => Just(None),
    ];
    let wish = (prop::sample::select(NAMES.to_vec()), 0_u8..3, target).prop_map(|(name, service, target)| {
        let service = format!("default/s{service}");
        let wish = match target {
            Some(last) => {
                Wish::addresses(&service, last.into_iter().map(|n| IpAddr::from([192, 0, 2, n]))).unwrap()
            }
            None => Wish::alias(&service, Name::parse("lb.example.net").unwrap()),
        };
        (host(name), wish)
    });
    prop::collection::vec(wish, 0..6)
}

/// What is done between two looks at the zone, and what is wished then.
#[derive(Clone, Debug)]
struct Turn {
    wishes: Vec<(HostName, Wish)>,
    /// Somebody takes over this name between the look and the updates: its mark and records go, theirs come.
    stolen: Option<HostName>,
    /// Of which it is not known what they want; none of the wishes is theirs.
    unread: BTreeSet<String>,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let stolen = prop::option::weighted(0.2, prop::sample::select(NAMES.to_vec()).prop_map(host));
    let unread = prop::option::weighted(0.3, 0_u8..3);
    let turn = (wishes(), stolen, unread).prop_map(|(mut wishes, stolen, unread)| {
        let unread: BTreeSet<String> =
            unread.map(|number| format!("default/s{number}")).into_iter().collect();
        wishes.retain(|(_, wish)| !unread.contains(wish.service()));
        Turn { wishes, stolen, unread }
    });
    prop::collection::vec(turn, 1..6)
}

proptest! {
    #[test]
    fn any_zone_comes_to_what_is_wished_and_nothing_of_others_is_touched(
        records in prop::collection::vec(foreign(), 0..8),
        turns in turns(),
    ) {
        let domain = domain();
        let mut zone = Model::default();
        records.into_iter().for_each(|record| zone.put(record));
        // Everything that is there by now is theirs.
        let mut theirs = zone.clone();
        for turn in turns {
            let hosts: Vec<HostName> = turn.wishes.iter().map(|(host, _)| host.clone()).collect();
            let found = zone.look(&domain, &hosts);
            let (chosen, _) = choose(&domain, turn.wishes.clone(), &found);
            let planned = plan(&domain, &chosen, &found, &turn.unread);
            let is_unread = |found: &Found| found.service(&domain).is_some_and(|of| turn.unread.contains(of));
            let kept: BTreeMap<HostName, Found> = found
                .iter()
                .filter(|(host, found)| is_unread(found) && turn.stolen.as_ref() != Some(*host))
                .map(|(host, found)| (host.clone(), found.clone()))
                .collect();
            if let Some(stolen) = &turn.stolen {
                let types = [RecordType::A, RecordType::AAAA, RecordType::CNAME];
                types.into_iter().for_each(|of| drop(zone.0.remove(&(stolen.name().clone(), of))));
                zone.0.remove(&(stolen.mark().clone(), RecordType::TXT));
                types.into_iter().for_each(|of| drop(theirs.0.remove(&(stolen.name().clone(), of))));
                theirs.0.remove(&(stolen.mark().clone(), RecordType::TXT));
                let taken = record(&stolen.to_string(), RecordData::A([203, 0, 113, 1].into()));
                zone.put(taken.clone());
                theirs.put(taken);
            }
            for update in &planned.updates {
                let _ = zone.update(update);
            }
            // Once more, for what was planned on an old look.
            let (_, refused, again) = reconcile_without(&mut zone, &turn.wishes, &turn.unread);

            for (key, set) in &theirs.0 {
                for (data, ttl) in set {
                    let now = zone.0.get(key).and_then(|set| set.get(data));
                    prop_assert_eq!(now, Some(ttl), "{:?} {:?} of others", key, data);
                }
            }
            let found = zone.look(&domain, &hosts);
            let taken: BTreeSet<&HostName> = again.taken.iter().map(|(host, _)| host).collect();
            let (mut chosen, _) = choose(&domain, turn.wishes.clone(), &found);
            for (host, before) in &kept {
                prop_assert_eq!(found.get(host), Some(before), "{} of one that does not read", host);
                chosen.remove(host);
            }
            for (host, found) in &found {
                let is_dark = found.service(&domain).is_some() && found.records.is_empty();
                prop_assert!(!is_dark, "{} has no records", host);
            }
            for (host, wish) in &chosen {
                if refused.contains(host) || taken.contains(host) {
                    let at_mark = theirs.0.keys().any(|(name, _)| name == host.mark());
                    let types = [RecordType::A, RecordType::AAAA, RecordType::CNAME];
                    let others = at_mark || types.into_iter().any(|of| theirs.has(host.name(), of));
                    let beside_alias = wish.records().iter().any(|d| matches!(d, RecordData::Cname(_)));
                    prop_assert!(others || beside_alias, "{} was refused for nothing", host);
                    // The one thing that DNS itself forbids: an alias beside what others have there.
                    let has_other = beside_alias && theirs.0.keys().any(|(name, _)| name == host.name());
                    prop_assert!(
                        has_other || found[host].service(&domain).is_none(), "{} is refused and ours", host
                    );
                } else {
                    prop_assert_eq!(&found[host], &Found::fulfilled(&domain, wish), "{}", host);
                }
            }
            // Nothing of ours stays that nobody wishes.
            for (host, found) in &found {
                let is_known = chosen.contains_key(host) || kept.contains_key(host);
                prop_assert!(is_known || found.service(&domain).is_none(), "{} is stale", host);
                prop_assert!(is_known || !found.indexed, "{} stands in the index", host);
            }
            let known: BTreeSet<Name> = chosen.keys().chain(kept.keys()).flat_map(|host| [host.name().clone(), host.mark().clone()])
                .chain(domain.index().iter().cloned()).collect();
            for (key, set) in &zone.0 {
                let others = theirs.0.get(key);
                prop_assert!(known.contains(&key.0) || others == Some(set), "{:?} is left", key);
            }
        }
    }
}
