// SPDX-License-Identifier: Apache-2.0
//! Messages: from what `dns_zone::external` says to what goes over the wire, and back.

use dns_zone::external::{Action, Condition, Update};
use dns_zone::{Name, Record, RecordData, RecordType};
use hickory_proto::ProtoError;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr;
use hickory_proto::rr::rdata;

/// Octets of one string of a TXT record (RFC 1035, 3.3).
const TXT_STRING_MAX: usize = 255;

/// An update of `zone` (RFC 2136, 2).
///
/// # Errors
/// A record that no message can carry: there is none among what is planned.
pub(super) fn update(id: u16, zone: &Name, update: &Update) -> Result<Message, ProtoError> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Update);
    message.add_query(Query::query(name(zone)?, rr::RecordType::SOA));
    for condition in &update.conditions {
        message.add_answer(match condition {
            Condition::Absent(at, of) => empty(name(at)?, rr::DNSClass::NONE, of.0.into()),
            Condition::Exactly(at, data) => rr::Record::from_rdata(name(at)?, 0, rdata(data)?),
            Condition::Free(at) => empty(name(at)?, rr::DNSClass::NONE, rr::RecordType::ANY),
        });
    }
    for action in &update.actions {
        message.add_authority(match action {
            Action::Add(record) => {
                rr::Record::from_rdata(name(&record.name)?, record.ttl_secs, rdata(&record.data)?)
            }
            Action::Remove(at, data) => {
                let mut record = rr::Record::from_rdata(name(at)?, 0, rdata(data)?);
                record.dns_class = rr::DNSClass::NONE;
                record
            }
            Action::RemoveAll(at, of) => empty(name(at)?, rr::DNSClass::ANY, of.0.into()),
        });
    }
    Ok(message)
}

/// A question to the zone's own server.
///
/// # Errors
/// None for names that are planned with.
pub(super) fn question(id: u16, at: &Name, of: RecordType) -> Result<Message, ProtoError> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(at)?, of.0.into()));
    Ok(message)
}

/// What an answer says of this name and type; what else it says is passed over.
pub(super) fn records(message: &Message, at: &Name, of: RecordType) -> Vec<Record> {
    let read = |record: &rr::Record| {
        let owner = Name::from_labels(record.name.iter()).ok()?;
        let data = read(&record.data)?;
        (owner == *at && data.record_type() == of).then_some(Record {
            name: owner,
            ttl_secs: record.ttl,
            data,
        })
    };
    message.answers.iter().filter_map(read).collect()
}

fn empty(at: rr::Name, class: rr::DNSClass, of: rr::RecordType) -> rr::Record {
    let mut record = rr::Record::update0(at, 0, of);
    record.dns_class = class;
    record.into_record_of_rdata()
}

fn read(data: &rr::RData) -> Option<RecordData> {
    Some(match data {
        rr::RData::A(ip) => RecordData::A(ip.0),
        rr::RData::AAAA(ip) => RecordData::Aaaa(ip.0),
        rr::RData::CNAME(to) => RecordData::Cname(Name::from_labels(to.0.iter()).ok()?.to_lower()),
        rr::RData::TXT(text) => {
            RecordData::Txt(String::from_utf8_lossy(&text.txt_data.concat()).into_owned())
        }
        _ => return None,
    })
}

fn rdata(data: &RecordData) -> Result<rr::RData, ProtoError> {
    Ok(match data {
        RecordData::A(ip) => rr::RData::A(rdata::A(*ip)),
        RecordData::Aaaa(ip) => rr::RData::AAAA(rdata::AAAA(*ip)),
        RecordData::Cname(to) => rr::RData::CNAME(rdata::CNAME(name(to)?)),
        RecordData::Txt(text) => {
            rr::RData::TXT(rdata::TXT::from_bytes(text.as_bytes().chunks(TXT_STRING_MAX).collect()))
        }
        other => return Err(ProtoError::from(format!("{} records are not published", other.record_type()))),
    })
}

/// Absolute.
pub(super) fn name(name: &Name) -> Result<rr::Name, ProtoError> {
    rr::Name::from_labels(name.labels())
}

#[cfg(test)]
mod tests {
    use dns_zone::external::{Change, Domain};

    use super::*;

    /// The RFC's own words about classes and lengths, octet by octet.
    #[test]
    fn an_update_looks_as_rfc_2136_says() {
        let zone = Name::parse("example.org").unwrap();
        let host = Domain::new(zone.clone(), zone.clone(), "p", 60).unwrap().host("a.example.org").unwrap();
        let at = host.name().clone();
        let record = Record { name: at.clone(), ttl_secs: 60, data: RecordData::A([192, 0, 2, 1].into()) };
        let text = RecordData::Txt("x".into());
        let made = Update {
            host,
            change: Change::Claim,
            conditions: vec![
                Condition::Absent(at.clone(), RecordType::A),
                Condition::Exactly(at.clone(), text.clone()),
                Condition::Free(at.clone()),
            ],
            actions: vec![
                Action::RemoveAll(at.clone(), RecordType::AAAA),
                Action::Remove(at.clone(), text),
                Action::Add(record),
            ],
        };
        let bytes = update(0x0102, &zone, &made).unwrap().to_vec().unwrap();
        let (header, rest) = bytes.split_at(12);
        assert_eq!(header, [1, 2, 0x28, 0, 0, 1, 0, 3, 0, 3, 0, 0], "opcode 5, one zone, three and three");
        // Type, class, TTL, length, data behind each name; names are compressed after the first of them.
        for (what, tail) in [
            ("zone", &[0, 6, 0, 1][..]),
            ("absent", &[0, 1, 0, 254, 0, 0, 0, 0, 0, 0]),
            ("exactly", &[0, 16, 0, 1, 0, 0, 0, 0, 0, 2, 1, b'x']),
            ("free", &[0, 255, 0, 254, 0, 0, 0, 0, 0, 0]),
            ("remove all", &[0, 28, 0, 255, 0, 0, 0, 0, 0, 0]),
            ("remove", &[0, 16, 0, 254, 0, 0, 0, 0, 0, 2, 1, b'x']),
            ("add", &[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]),
        ] {
            assert!(rest.windows(tail.len()).any(|window| window == tail), "{what}: {tail:?} in {rest:?}");
        }
    }

    #[test]
    fn answers_are_read_and_what_was_not_asked_for_is_passed_over() {
        let at = Name::parse("a.example.org").unwrap();
        let mut answer = question(7, &at, RecordType::A).unwrap().into_response();
        let put = |answer: &mut Message, owner: &str, data: RecordData| {
            let owner = name(&Name::parse(owner).unwrap()).unwrap();
            answer.add_answer(rr::Record::from_rdata(owner, 60, rdata(&data).unwrap()));
        };
        put(&mut answer, "A.example.org", RecordData::A([192, 0, 2, 1].into()));
        put(&mut answer, "b.example.org", RecordData::A([192, 0, 2, 2].into()));
        put(&mut answer, "a.example.org", RecordData::Txt("y".repeat(300)));
        let answer = Message::from_vec(&answer.to_vec().unwrap()).unwrap();
        let found = |of| records(&answer, &at, of).into_iter().map(|record| record.data).collect::<Vec<_>>();
        assert_eq!(found(RecordType::A), [RecordData::A([192, 0, 2, 1].into())]);
        assert_eq!(found(RecordType::TXT), [RecordData::Txt("y".repeat(300))]);
        assert_eq!(found(RecordType::CNAME), []);
    }
}
