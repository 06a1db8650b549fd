// SPDX-License-Identifier: Apache-2.0
//! Passes against a server that does what RFC 2136 says, or fails as servers do.

use std::collections::{BTreeMap, BTreeSet};

use dns_zone::external::{Action, Condition, Domain, Update};
use dns_zone::{Name, Record, RecordData, RecordType};

use super::External;
use super::client::{Answered, Outcome, ZoneServer};
use super::error::ServerError;
use super::reconcile::{Pass, REREAD_MS, Reconciler, SETTLED_MS};
use super::troubles::Troubles;
use super::wishes::Wishes;

/// A zone, and what goes wrong with it.
#[derive(Default)]
struct Server {
    records: BTreeMap<(Name, RecordType), BTreeSet<RecordData>>,
    /// Below this nothing is answered by it.
    delegated: Option<Name>,
    /// Names that it fails to tell of.
    hides: BTreeSet<Name>,
    /// Names of hosts at whose change it fails.
    fails_at: BTreeSet<String>,
    /// It fails at what adds records to a name.
    is_full: bool,
    /// What comes next is done, and its answer is lost.
    loses: bool,
    asked: usize,
    updates: Vec<String>,
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn domain() -> Domain {
    Domain::new(name("example.org"), name("example.org"), "prod", 60).unwrap()
}

fn servfail() -> ServerError {
    ServerError::ServFail { server: "S".into(), what: "it".into() }
}

impl Server {
    fn has(&self, at: &str) -> Vec<String> {
        let set = self.records.get(&(name(at), RecordType::A));
        set.into_iter().flatten().map(ToString::to_string).collect()
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent(at, of) => !self.records.contains_key(&(at.clone(), *of)),
            Condition::Exactly(at, data) => {
                let set = self.records.get(&(at.clone(), data.record_type()));
                set.is_some_and(|set| set.iter().eq([data]))
            }
            Condition::Free(at) => !self.records.keys().any(|(of, _)| of == at),
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Add(record) => {
                let key = (record.name.clone(), record.data.record_type());
                self.records.entry(key).or_default().insert(record.data.clone());
            }
            Action::Remove(at, data) => {
                let key = (at.clone(), data.record_type());
                let set = self.records.entry(key.clone()).or_default();
                set.remove(data);
                if set.is_empty() {
                    self.records.remove(&key);
                }
            }
            Action::RemoveAll(at, of) => drop(self.records.remove(&(at.clone(), *of))),
        }
    }
}

impl ZoneServer for Server {
    async fn update(&mut self, update: &Update) -> Result<Outcome, ServerError> {
        let host = update.host.to_string();
        self.updates.push(format!("{} {host}", update.change.as_str()));
        let adds = update.actions.iter().any(|action| matches!(action, Action::Add(_)));
        if self.fails_at.contains(&host) || (self.is_full && adds) {
            return Err(servfail());
        }
        if !update.conditions.iter().all(|condition| self.holds(condition)) {
            return Ok(Outcome::Conflict("NXRRSET"));
        }
        update.actions.iter().for_each(|action| self.act(action));
        if std::mem::take(&mut self.loses) {
            return Err(ServerError::Silent { server: "S".into(), what: "it".into(), seconds: 10 });
        }
        Ok(Outcome::Done)
    }

    async fn ask(&mut self, questions: &[(Name, RecordType)]) -> Result<Vec<Answered>, ServerError> {
        self.asked += questions.len();
        let answer = |(at, of): &(Name, RecordType)| {
            if self.delegated.as_ref().is_some_and(|cut| at.is_at_or_below(cut)) {
                let (server, zone) = ("S".into(), "example.org".into());
                return Err(ServerError::Elsewhere { server, what: at.to_string(), zone });
            }
            if self.hides.contains(at) {
                return Err(servfail());
            }
            let set = self.records.get(&(at.clone(), *of)).into_iter().flatten();
            Ok(set.map(|data| Record { name: at.clone(), ttl_secs: 60, data: data.clone() }).collect())
        };
        Ok(questions.iter().map(answer).collect())
    }
}

struct Story {
    server: Server,
    zone: Reconciler,
    said: External,
    /// As of the last pass.
    wished: String,
    now: u64,
}

impl Story {
    fn new() -> Self {
        let zone = Reconciler::new(Troubles::new(1));
        Self { server: Server::default(), zone, said: External::default(), wished: String::new(), now: 1_000 }
    }

    /// One pass, after so long.
    async fn pass(&mut self, after: u64, wishes: &Wishes) -> Result<(), ServerError> {
        self.now += after;
        let before = std::mem::replace(&mut self.wished, format!("{wishes:?}"));
        self.zone.is_done &= before == self.wished;
        let pass = Pass { domain: &domain(), wishes, said: &self.said, now: self.now };
        self.zone.pass(pass, &mut self.server, || true).await
    }

    fn pending(&self) -> Vec<String> {
        let pending = self.zone.troubles.pending(&domain());
        pending.into_iter().map(|item| format!("{}: {}", item.object, item.error)).collect()
    }
}

/// `NAME ADDRESS`, each of a Service called as the first label.
fn wishes(lines: &[&str]) -> Wishes {
    let mut wishes = Wishes::default();
    for line in lines {
        let (host, ip) = line.split_once(' ').unwrap();
        let service = format!("default/{}", host.split('.').next().unwrap());
        wishes.push(domain().host(host).unwrap(), &service, ip.parse().unwrap());
    }
    wishes
}

#[tokio::test]
async fn a_name_that_is_not_the_servers_keeps_no_other_from_being_published() {
    let mut story = Story::new();
    story.server.delegated = Some(name("sub.example.org"));
    let all = wishes(&["a.example.org 192.0.2.1", "x.sub.example.org 192.0.2.1", "z.example.org 192.0.2.1"]);
    story.pass(0, &all).await.unwrap();
    assert_eq!(story.server.updates, ["claim a.example.org", "claim z.example.org"]);
    assert!(!story.zone.is_done);
    let [pending] = &story.pending()[..] else { panic!("{:?}", story.pending()) };
    assert!(pending.starts_with("name x.sub.example.org: ") && pending.contains("delegated"), "{pending}");
    story.pass(1_000, &wishes(&["x.sub.example.org 192.0.2.1", "z.example.org 192.0.2.2"])).await.unwrap();
    assert_eq!(story.server.updates[2..], ["correct z.example.org", "release a.example.org"]);
    story.server.delegated = None;
    let last = wishes(&["x.sub.example.org 192.0.2.1", "z.example.org 192.0.2.2"]);
    story.pass(60_000, &last).await.unwrap();
    assert_eq!(story.server.has("x.sub.example.org"), ["192.0.2.1"]);
    assert!(story.zone.is_done && story.pending().is_empty());
}

#[tokio::test]
async fn a_name_of_ours_that_was_delegated_later_is_left_alone() {
    let mut story = Story::new();
    let all = wishes(&["a.sub.example.org 192.0.2.1", "b.example.org 192.0.2.1"]);
    story.pass(0, &all).await.unwrap();
    story.server.delegated = Some(name("sub.example.org"));
    story.pass(REREAD_MS, &wishes(&["b.example.org 192.0.2.2"])).await.unwrap();
    assert_eq!(story.server.updates[2..], ["correct b.example.org"]);
    story.server.delegated = None;
    story.pass(60_000, &wishes(&["b.example.org 192.0.2.2"])).await.unwrap();
    assert_eq!(story.server.updates[3..], ["release a.sub.example.org"]);
}

#[tokio::test]
async fn a_change_that_the_server_fails_at_is_one_names_where_others_go_through() {
    let mut story = Story::new();
    story.server.fails_at.insert("a.example.org".into());
    let all = wishes(&["a.example.org 192.0.2.1", "b.example.org 192.0.2.1"]);
    story.pass(0, &all).await.unwrap();
    assert_eq!(story.server.has("b.example.org"), ["192.0.2.1"]);
    assert!(story.pending()[0].starts_with("name a.example.org: "), "{:?}", story.pending());
    story.server.fails_at.clear();
    story.pass(60_000, &all).await.unwrap();
    assert!(story.zone.is_done && story.server.has("a.example.org") == ["192.0.2.1"]);
}

#[tokio::test]
async fn names_that_fail_again_and_again_are_not_the_server() {
    let mut story = Story::new();
    story.server.fails_at.extend(["a.example.org".into(), "b.example.org".into()]);
    story.server.hides.extend([name("_weft.x.example.org"), name("_weft.y.example.org")]);
    let names = ["a", "b", "c", "x", "y"].map(|label| format!("{label}.example.org 192.0.2.1"));
    let all = wishes(&names.each_ref().map(String::as_str));
    story.pass(0, &all).await.unwrap();
    let asked = story.server.asked;
    for _ in 0..3 {
        story.pass(60_000, &all).await.unwrap();
        assert_eq!(story.pending().len(), 4, "{:?}", story.pending());
    }
    assert!(story.server.updates.len() == 3 + 3 * 2 && story.server.asked > asked);
    (story.server.fails_at, story.server.hides) = Default::default();
    story.pass(60_000, &all).await.unwrap();
    assert!(story.zone.is_done && story.pending().is_empty());
}

#[tokio::test]
async fn names_that_fail_keep_none_behind_them_from_being_corrected() {
    let mut story = Story::new();
    story.pass(0, &wishes(&["web.example.org 192.0.2.1"])).await.unwrap();
    let failing: Vec<String> = (0..8).map(|number| format!("a{number}.example.org")).collect();
    story.server.fails_at.extend(failing.iter().cloned());
    let lines: Vec<String> =
        failing.iter().chain([&"web.example.org".into()]).map(|host| format!("{host} 192.0.2.2")).collect();
    story.pass(1_000, &wishes(&lines.iter().map(String::as_str).collect::<Vec<_>>())).await.unwrap();
    assert_eq!(story.server.has("web.example.org"), ["192.0.2.2"]);
}

#[tokio::test]
async fn while_all_fail_others_are_tried_first() {
    let mut story = Story::new();
    let names: Vec<String> = (0..9).map(|number| format!("a{number}.example.org 192.0.2.1")).collect();
    let all = wishes(&names.iter().map(String::as_str).collect::<Vec<_>>());
    story.server.fails_at.extend((0..8).map(|number| format!("a{number}.example.org")));
    story.pass(0, &all).await.unwrap_err();
    story.pass(1_000, &all).await.unwrap();
    assert_eq!(story.server.has("a8.example.org"), ["192.0.2.1"]);
}

#[tokio::test]
async fn a_zone_that_is_full_gets_room_by_what_goes() {
    let mut story = Story::new();
    story.pass(0, &wishes(&["old.example.org 192.0.2.1"])).await.unwrap();
    story.server.is_full = true;
    let many: Vec<String> = (0..30).map(|number| format!("n{number:02}.example.org 192.0.2.1")).collect();
    let many = wishes(&many.iter().map(String::as_str).collect::<Vec<_>>());
    story.pass(1_000, &many).await.unwrap();
    assert_eq!(story.server.updates.last().unwrap(), "release old.example.org");
    assert_eq!(story.server.updates.len(), 1 + 8 + 1, "not all are tried: {:?}", story.server.updates);
    // Those of before are known to fail; the next ones are not.
    story.pass(60_000, &many).await.unwrap();
    let error = story.pass(1_000, &many).await.unwrap_err();
    assert_eq!(error.reason(), "servfail", "where nothing goes through it is the server's");
    story.server.is_full = false;
    story.pass(1_000, &many).await.unwrap();
    assert!(story.zone.is_done || story.pass(60_000, &many).await.is_ok());
    assert!(story.zone.is_done);
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_looked_at_and_not_done_twice() {
    let mut story = Story::new();
    story.server.loses = true;
    let all = wishes(&["a.example.org 192.0.2.1"]);
    assert_eq!(story.pass(0, &all).await.unwrap_err().reason(), "timeout");
    story.pass(1_000, &all).await.unwrap();
    assert_eq!(story.server.updates, ["claim a.example.org"]);
    assert!(story.zone.is_done);
}

#[tokio::test]
async fn who_lost_the_lease_changes_nothing() {
    let mut story = Story::new();
    let all = wishes(&["a.example.org 192.0.2.1"]);
    let pass = Pass { domain: &domain(), wishes: &all, said: &story.said, now: 0 };
    story.zone.pass(pass, &mut story.server, || false).await.unwrap();
    assert!(story.server.updates.is_empty() && !story.zone.is_done);
}

#[tokio::test]
async fn a_new_leader_reads_again_what_the_last_one_may_have_changed_late() {
    let mut story = Story::new();
    let all = wishes(&["a.example.org 192.0.2.1"]);
    story.pass(0, &all).await.unwrap();
    let asked = story.server.asked;
    story.pass(SETTLED_MS - 1, &all).await.unwrap();
    assert_eq!(story.server.asked, asked);
    // The last leader's, late.
    let late = BTreeSet::from([RecordData::from("192.0.2.9".parse::<std::net::IpAddr>().unwrap())]);
    story.server.records.insert((name("a.example.org"), RecordType::A), late);
    story.pass(1, &all).await.unwrap();
    assert_eq!(story.server.has("a.example.org"), ["192.0.2.1"]);
    let asked = story.server.asked;
    story.pass(REREAD_MS - 1, &all).await.unwrap();
    assert_eq!(story.server.asked, asked);
}

#[tokio::test]
async fn what_somebody_changed_is_looked_at_alone() {
    let mut story = Story::new();
    let all = wishes(&["a.example.org 192.0.2.1", "b.example.org 192.0.2.1"]);
    story.pass(0, &all).await.unwrap();
    let mark = (name("_weft.a.example.org"), RecordType::TXT);
    let theirs = RecordData::Txt("heritage=weft,owner=other,service=default/a".into());
    story.server.records.insert(mark, [theirs].into());
    let asked = story.server.asked;
    story.pass(1_000, &wishes(&["b.example.org 192.0.2.1"])).await.unwrap();
    assert_eq!(story.server.updates.last().unwrap(), "release a.example.org");
    story.pass(15_000, &wishes(&["b.example.org 192.0.2.1"])).await.unwrap();
    assert_eq!(story.server.updates.last().unwrap(), "forget a.example.org", "it is another's now");
    assert_eq!(story.server.asked, asked + 1, "and not with all the others");
    assert_eq!(story.server.has("a.example.org"), ["192.0.2.1"]);
}
