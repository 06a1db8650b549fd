// SPDX-License-Identifier: Apache-2.0
//! What the zone answers and why, for `weft dns`.

use std::net::{IpAddr, SocketAddr};

use dns_zone::{Explanation, Name, Outcome, Record, RecordType, Zone};
use netd_api::{
    ApiError, DnsAnswer, DnsQueryReply, DnsQueryRequest, DnsQuestion, DnsQuestionsReply, DnsQuestionsRequest,
};
use uuid::Uuid;

use crate::desired;
use crate::node::Node;
use crate::view::View;

/// `ndots` of pods: names with so many dots are asked for as they are before the search path is gone through.
const NDOTS: usize = 5;
/// Some 6 MiB of answer.
const QUESTIONS_MAX: usize = 50_000;

/// `POST /v1/dns/query`.
pub(crate) fn query(node: &Node, request: &DnsQueryRequest) -> Result<DnsQueryReply, ApiError> {
    let zone = zone(node)?;
    let wanted = request.record_type.to_ascii_uppercase();
    let record_type = RecordType::parse(&wanted)
        .ok_or_else(|| ApiError::invalid(format!("{wanted:?} is no record type, such as A, SRV, TYPE65")))?;
    let view = node.view.load();
    let pod = request.client.as_deref().map(|pod| pod_of(&view, pod)).transpose()?;
    let client = pod.map(|(_, ip)| ip);
    let elsewhere = pod.and_then(|(its, _)| asks_another(&view, its, node.uuid));
    let namespace = client.and_then(|ip| zone.client(ip)).map(|client| client.namespace.to_string());
    let mut questions = Vec::new();
    for name in searched(&request.name, namespace.as_deref(), zone.origin()) {
        let name = Name::parse(&name).map_err(|error| ApiError::invalid(format!("{name}: {error}")))?;
        let explanation = zone.explain(&name, record_type, client);
        let found = matches!(explanation.outcome, Outcome::Answer { .. } | Outcome::Forward(_));
        questions.push(shown(explanation));
        if found {
            break;
        }
    }
    if let (Some(reason), Some(first)) = (elsewhere, questions.first_mut()) {
        first.reasons.insert(0, reason);
    }
    Ok(DnsQueryReply { questions })
}

/// `POST /v1/dns/questions`.
pub(crate) fn questions(node: &Node, request: &DnsQuestionsRequest) -> Result<DnsQuestionsReply, ApiError> {
    let zone = zone(node)?;
    let all = zone.questions();
    let part = all.iter().skip(request.skip).take(QUESTIONS_MAX);
    let question = |(name, record_type): &(Name, RecordType)| DnsQuestion {
        name: name.to_string(),
        record_type: record_type.to_string(),
    };
    let server = |ip: &IpAddr| SocketAddr::new(*ip, desired::DNS_PORT);
    Ok(DnsQuestionsReply {
        servers: node.config.dns_addresses.iter().map(server).collect(),
        revision: zone.revision(),
        questions: part.map(question).collect(),
        more: all.len() > request.skip.saturating_add(QUESTIONS_MAX),
    })
}

fn zone(node: &Node) -> Result<std::sync::Arc<Zone>, ApiError> {
    node.zone.load_full().ok_or_else(|| {
        ApiError::retry(
            "this node is not in sync with the store yet: its DNS answers SERVFAIL (see `weft status`)",
        )
    })
}

/// The node of the pod `NAMESPACE/NAME`, and an address.
fn pod_of(view: &View, pod: &str) -> Result<(Uuid, IpAddr), ApiError> {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let mut pods = view.pods.iter().filter(|(_, pod)| pod.namespace == namespace && pod.name == name);
    let found = pods.find_map(|(node, pod)| Some((*node, *pod.ips.first()?)));
    found.ok_or_else(|| ApiError::not_found(format!("no pod {namespace}/{name}; `weft pod ls` lists them")))
}

/// Nodes answer by files and servers of their own: this answer is not what a pod of another one gets.
fn asks_another(view: &View, its: Uuid, own: Uuid) -> Option<String> {
    if its == own {
        return None;
    }
    let name = view.nodes.get(&its).map_or_else(|| its.to_string(), |record| record.name.clone());
    Some(format!(
        "this pod asks the server of node {name}, with that node's configuration; here is what this node would answer"
    ))
}

/// The whole names that a pod's resolver asks for, in its order (resolv.conf(5)); see `attach` for the search path.
fn searched(name: &str, namespace: Option<&str>, zone: &Name) -> Vec<String> {
    let Some(namespace) = namespace.filter(|_| !name.ends_with('.')) else {
        return vec![format!("{}.", name.trim_end_matches('.'))];
    };
    let searched = [format!("{namespace}.svc.{zone}"), format!("svc.{zone}"), zone.to_string()];
    let mut names: Vec<String> = searched.iter().map(|domain| format!("{name}.{domain}")).collect();
    let at = if name.matches('.').count() >= NDOTS { 0 } else { names.len() };
    names.insert(at, format!("{name}."));
    names
}

fn shown(explanation: Explanation) -> DnsAnswer {
    let texts = |records: &[Record]| -> Vec<String> { records.iter().map(Record::to_string).collect() };
    let mut answer = DnsAnswer {
        name: explanation.question.to_string(),
        record_type: explanation.record_type.to_string(),
        client: explanation.client,
        revision: explanation.revision,
        reasons: explanation.reasons,
        ..DnsAnswer::default()
    };
    match explanation.outcome {
        Outcome::Answer { records, additional } => {
            answer.outcome = "answer".into();
            (answer.answer, answer.additional) = (texts(&records), texts(&additional));
        }
        Outcome::NoData { records, soa } => {
            answer.outcome = "NODATA".into();
            (answer.answer, answer.authority) = (texts(&records), texts(&[soa]));
        }
        Outcome::NxDomain { records, soa } => {
            answer.outcome = "NXDOMAIN".into();
            (answer.answer, answer.authority) = (texts(&records), texts(&[soa]));
        }
        Outcome::Forward(forward) => {
            answer.outcome = "forward".into();
            answer.answer = texts(&forward.prefix);
            let one = forward.name.unwrap_or(explanation.question);
            let names = if forward.candidates.is_empty() { vec![one] } else { forward.candidates };
            answer.forward = names.iter().map(Name::to_string).collect();
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use dns_zone::{LeftOut, ZoneEndpoint, ZoneKind, ZoneService, ZoneSettings};

    use super::*;

    #[test]
    fn a_short_name_goes_through_the_search_path_of_the_pod() {
        let zone = Name::parse("cluster.local").unwrap();
        assert_eq!(
            searched("db", Some("shop"), &zone),
            ["db.shop.svc.cluster.local.", "db.svc.cluster.local.", "db.cluster.local.", "db."]
        );
        assert_eq!(searched("a.b.c.d.e.f", Some("shop"), &zone)[0], "a.b.c.d.e.f.");
        assert_eq!(searched("db.", Some("shop"), &zone), ["db."]);
        assert_eq!(searched("db.example", None, &zone), ["db.example."]);
    }

    #[test]
    fn who_asks_another_node_is_told_so() {
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let view = View::default();
        assert_eq!(asks_another(&view, own, own), None);
        // A node whose record is not there is named all the same.
        let said = asks_another(&view, other, own).unwrap();
        assert!(said.contains(&format!("node {other}")), "{said}");
    }

    #[test]
    fn an_answer_says_who_is_left_out_and_what_goes_upstream() {
        let mut edit = Zone::new(ZoneSettings::new("cluster.local")).unwrap().edit();
        edit.set_service(&ZoneService {
            endpoints: vec![ZoneEndpoint {
                addresses: vec!["10.0.0.2".parse().unwrap()],
                hostname: None,
                ports: Vec::new(),
            }],
            left_out: vec![LeftOut { address: "10.0.0.3".parse().unwrap(), reason: "not ready".into() }],
            ..ZoneService::new("shop", "db", ZoneKind::Headless)
        });
        let zone = edit.finish(7);
        let ask = |name: &str| shown(zone.explain(&Name::parse(name).unwrap(), RecordType::A, None));
        let db = ask("db.shop.svc.cluster.local");
        assert_eq!((db.outcome.as_str(), db.revision), ("answer", 7));
        assert_eq!(db.answer, ["db.shop.svc.cluster.local. 5 IN A 10.0.0.2"]);
        assert!(
            db.reasons.iter().any(|reason| reason == "endpoint 10.0.0.3 is left out: not ready"),
            "{db:?}"
        );
        let none = ask("no.shop.svc.cluster.local");
        assert_eq!((none.outcome.as_str(), none.authority.len()), ("NXDOMAIN", 1));
        assert_eq!(ask("example.com").forward, ["example.com."]);
    }
}
