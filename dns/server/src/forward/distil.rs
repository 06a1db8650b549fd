// SPDX-License-Identifier: Apache-2.0
//! What of an upstream's message is kept for clients, and for how long.

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::wire::Key;

/// A cached answer is asked for again after this time even if its TTL is longer.
const TTL_MAX_SECS: u32 = 3_600;

/// A cached "does not exist" lives shorter: people wait for names they just made.
const NEGATIVE_TTL_MAX_SECS: u32 = 30;

/// Records of the additional section that are passed on: addresses of a few targets.
const ADDITIONALS_MAX: usize = 16;

/// The message for clients without OPT record, and how many seconds it may be kept (0: not at all). `None` when it cannot be
/// written again.
pub(super) fn distil(key: &Key, message: Message) -> Option<(Vec<u8>, u32)> {
    let code = message.metadata.response_code;
    let mut kept = Message::response(0, OpCode::Query);
    kept.metadata.recursion_desired = true;
    kept.metadata.recursion_available = true;
    kept.metadata.response_code = code;
    // The name went out in random case. What is kept is in the key's case, so that clients get theirs (records that belong
    // to the question's name point at it).
    let name = Name::from_labels(labels(key.name())).ok()?;
    kept.add_query(Query::query(name.clone(), key.qtype().into()));
    let is_negative = code == ResponseCode::NXDomain || !has_type(&message.answers, key.qtype());
    let lifetime = match is_negative {
        true => negative_secs(&message.answers, &message.authorities),
        false => least_ttl(&message.answers).unwrap_or(0).min(TTL_MAX_SECS),
    };
    let dnssec = key.dnssec_ok();
    let limited = |mut record: Record| {
        record.ttl = record.ttl.min(TTL_MAX_SECS);
        if record.name == name {
            record.name = name.clone();
        }
        record
    };
    kept.add_answers(message.answers.into_iter().map(&limited));
    // What the upstream says about other zones' name servers is nobody's question. A client that validates needs the proofs.
    let authorities = message
        .authorities
        .into_iter()
        .filter(|record| dnssec || is_negative && record.record_type() == RecordType::SOA);
    kept.add_authorities(authorities.map(&limited));
    let additionals = message.additionals.into_iter().filter(|record| {
        matches!(record.record_type(), RecordType::A | RecordType::AAAA)
            || dnssec && record.record_type() == RecordType::RRSIG
    });
    kept.add_additionals(additionals.take(ADDITIONALS_MAX).map(limited));
    Some((kept.to_vec().ok()?, lifetime))
}

/// The labels of a name in wire form.
fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first().filter(|(length, _)| **length > 0)?;
        let (label, next) = tail.split_at_checked(usize::from(*length))?;
        rest = next;
        Some(label)
    })
}

fn has_type(records: &[Record], qtype: u16) -> bool {
    records.iter().any(|record| u16::from(record.record_type()) == qtype)
}

fn least_ttl(records: &[Record]) -> Option<u32> {
    records.iter().map(|record| record.ttl).min()
}

/// RFC 2308 section 5: the lesser of the SOA's TTL and its last field; without a SOA it is not kept.
fn negative_secs(answers: &[Record], authorities: &[Record]) -> u32 {
    let soa = authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let aliases = least_ttl(answers).unwrap_or(u32::MAX);
    soa.map_or(0, |secs| secs.min(aliases).min(NEGATIVE_TTL_MAX_SECS))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, NS, SOA};

    use super::*;

    fn name() -> Name {
        Name::from_ascii("www.example.org.").unwrap()
    }

    fn message(code: ResponseCode) -> Message {
        let mut message = Message::response(7, OpCode::Query);
        message.metadata.response_code = code;
        message.add_query(Query::query(name(), RecordType::A));
        message
    }

    fn key() -> Key {
        Key::new(b"\x03www\x07example\x03org\0", 1, 0)
    }

    fn address(ttl: u32) -> Record {
        Record::from_rdata(name(), ttl, RData::A(A([192, 0, 2, 1].into())))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        Record::from_rdata(name(), ttl, RData::SOA(SOA::new(name(), name(), 1, 2, 3, 4, minimum)))
    }

    #[test]
    fn the_shortest_ttl_counts_and_none_is_longer_than_an_hour() {
        let mut two = message(ResponseCode::NoError);
        two.add_answers([address(100_000), address(200_000)]);
        two.add_authority(Record::from_rdata(name(), 5, RData::NS(NS(name()))));
        let (wire, secs) = distil(&key(), two).unwrap();
        let kept = Message::from_vec(&wire).unwrap();
        assert_eq!((secs, kept.answers.len(), kept.authorities.len()), (3_600, 2, 0));
        assert!(kept.answers.iter().all(|record| record.ttl == 3_600));
    }

    #[test]
    fn negative_answers_live_as_their_soa_says_and_not_long() {
        for (ttl, minimum, lived) in [(10, 20, 10), (20, 10, 10), (900, 900, 30)] {
            for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
                let mut none = message(code);
                none.add_authority(soa(ttl, minimum));
                assert_eq!(distil(&key(), none).unwrap().1, lived);
            }
        }
        assert_eq!(
            distil(&key(), message(ResponseCode::NXDomain)).unwrap().1,
            0,
            "without a SOA it is not kept"
        );
    }
}
