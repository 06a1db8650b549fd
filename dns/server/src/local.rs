// SPDX-License-Identifier: Apache-2.0
//! The zone's answers in hickory's types. Both sides keep names in wire form, so nothing is escaped on the way.

use dns_zone::{Outcome, Record as ZoneRecord, RecordData, Zone};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinDecodable;

/// What our zone says about a question.
#[derive(Debug)]
pub(crate) enum Local {
    /// There are such records.
    Answer { answers: Vec<Record>, additionals: Vec<Record> },
    /// No such name (NXDOMAIN) or no such record (NOERROR).
    Negative { rcode: ResponseCode, soa: Option<Box<Record>> },
    /// The name is not ours.
    Forward,
}

/// Asks the zone. `seed` decides the order of equal records.
pub(crate) fn ask(zone: &Zone, name: &Name, qtype: RecordType, seed: u64) -> Local {
    let Ok(question) = dns_zone::Name::from_labels(name.iter()) else { return Local::Forward };
    match zone.answer(&question, dns_zone::RecordType(qtype.into()), seed) {
        Outcome::Answer { records, additional } => {
            Local::Answer { answers: convert_all(records), additionals: convert_all(additional) }
        }
        Outcome::NoData { soa } => {
            Local::Negative { rcode: ResponseCode::NoError, soa: convert(soa).map(Box::new) }
        }
        Outcome::NxDomain { soa } => {
            Local::Negative { rcode: ResponseCode::NXDomain, soa: convert(soa).map(Box::new) }
        }
        Outcome::Forward => Local::Forward,
    }
}

fn convert_all(records: Vec<ZoneRecord>) -> Vec<Record> {
    records.into_iter().filter_map(convert).collect()
}

/// `None` only if hickory refused a name that the zone holds, which both sides' length limits exclude.
fn convert(record: ZoneRecord) -> Option<Record> {
    let data = match record.data {
        RecordData::A(ip) => RData::A(A(ip)),
        RecordData::Aaaa(ip) => RData::AAAA(AAAA(ip)),
        RecordData::Cname(target) => RData::CNAME(CNAME(convert_name(&target)?)),
        RecordData::Ns(server) => RData::NS(NS(convert_name(&server)?)),
        RecordData::Ptr(target) => RData::PTR(PTR(convert_name(&target)?)),
        RecordData::Soa(soa) => RData::SOA(SOA::new(
            convert_name(&soa.mname)?,
            convert_name(&soa.rname)?,
            soa.serial,
            soa.refresh_secs.try_into().ok()?,
            soa.retry_secs.try_into().ok()?,
            soa.expire_secs.try_into().ok()?,
            soa.minimum_secs,
        )),
        RecordData::Srv(srv) => {
            RData::SRV(SRV::new(srv.priority, srv.weight, srv.port, convert_name(&srv.target)?))
        }
        RecordData::Txt(text) => RData::TXT(TXT::new(vec![text])),
    };
    Some(Record::from_rdata(convert_name(&record.name)?, record.ttl_secs, data))
}

fn convert_name(name: &dns_zone::Name) -> Option<Name> {
    Name::from_bytes(name.as_wire()).ok()
}

#[cfg(test)]
mod tests {
    use dns_zone::{ZoneKind, ZoneService};

    use super::*;

    #[test]
    fn case_of_the_question_and_soa_of_a_negative_answer_survive() {
        let service = ZoneService {
            namespace: "default".into(),
            name: "web".into(),
            kind: ZoneKind::ClusterIp(vec!["10.96.0.20".parse().unwrap()]),
            ports: Vec::new(),
            endpoints: Vec::new(),
        };
        let zone = Zone::build("cluster.local", 5, 7, [service], &[]).unwrap();
        let name = Name::from_ascii("WEB.default.svc.cluster.local.").unwrap();
        let Local::Answer { answers, .. } = ask(&zone, &name, RecordType::A, 0) else { panic!("no answer") };
        assert_eq!(answers[0].to_string(), "WEB.default.svc.cluster.local. 5 IN A 10.96.0.20");

        let Local::Negative { rcode, soa } = ask(&zone, &name, RecordType::MX, 0) else {
            panic!("an answer")
        };
        assert_eq!(rcode, ResponseCode::NoError);
        let soa = soa.unwrap();
        assert_eq!(soa.record_type(), RecordType::SOA);
        assert_eq!(soa.name.to_string(), "cluster.local.");

        let other = Name::from_ascii("example.org.").unwrap();
        assert!(matches!(ask(&zone, &other, RecordType::A, 0), Local::Forward));
    }
}
