// SPDX-License-Identifier: Apache-2.0
//! Aliases of ours in front of an answer of others, byte for byte. The records keep their form and stand behind the aliases;
//! their pointers (RFC 1035 section 4.1.4) are moved along. The name that the upstream was asked for is written out as the
//! last alias' target, and what pointed to it as the question points there.

use dns_zone::{Query, Record, RecordData};

use crate::wire::{HEADER, RecordAt, qtype};

/// The two highest bits of a pointer.
const POINTER: usize = 0xC000;
/// Pointers reach no farther.
const POINTER_MAX: usize = 0x3FFF;
/// Type, class, TTL and length of the data.
const FIXED: usize = 10;

/// What stands before the records of others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Front {
    /// Where it ends.
    pub(super) end: usize,
    /// Where the name stands that the records are about.
    pub(super) name: usize,
    pub(super) aliases: u16,
    /// All aliases had room, and lead to the name.
    pub(super) is_whole: bool,
}

/// Writes question and aliases. `name` is what the last of them should lead to.
pub(super) fn front(aliases: &[Record], name: &[u8], query: &Query<'_>, out: &mut [u8]) -> Front {
    let question = query.question();
    let mut front = Front { end: HEADER + question.len(), name: HEADER, aliases: 0, is_whole: false };
    out[HEADER..front.end].copy_from_slice(question);
    let mut known = &question[..question.len() - 4];
    for alias in aliases {
        let RecordData::Cname(target) = &alias.data else { continue };
        let target = target.as_wire();
        let pointer = ((POINTER | front.name) as u16).to_be_bytes();
        let owner = match alias.name.as_wire() {
            owner if owner.eq_ignore_ascii_case(known) => &pointer[..],
            owner => owner,
        };
        let data = front.end + owner.len() + FIXED;
        let Some(room) = out.get_mut(front.end..data + target.len()) else { return front };
        let (head, rest) = room.split_at_mut(owner.len());
        head.copy_from_slice(owner);
        rest[..4].copy_from_slice(&[0, qtype::CNAME as u8, 0, 1]);
        rest[4..8].copy_from_slice(&alias.ttl_secs.to_be_bytes());
        rest[8..FIXED].copy_from_slice(&(target.len() as u16).to_be_bytes());
        rest[FIXED..].copy_from_slice(target);
        (front.name, front.end, known) = (data, data + target.len(), target);
        front.aliases += 1;
    }
    front.is_whole = known.eq_ignore_ascii_case(name);
    front
}

/// Moves the pointers in the `count` records behind `front` that stood behind a question which ended at `question_end`. `None`
/// where one cannot be moved: the message is too long for it.
pub(super) fn shift_pointers(out: &mut [u8], front: Front, question_end: usize, count: usize) -> Option<()> {
    let mut at = front.end;
    for _ in 0..count {
        let record = RecordAt::read(out, at)?;
        let data = record.fixed + FIXED;
        let rtype = record.rtype(out);
        let mut moved = |at| shift_name(out, at, front, question_end);
        moved(at)?;
        // Only the data of types of RFC 1035 may have pointers (RFC 3597 section 4).
        match rtype {
            qtype::CNAME | qtype::NS | qtype::PTR => drop(moved(data)?),
            qtype::MX => drop(moved(data + 2)?),
            qtype::SOA => {
                let second = moved(data)?;
                moved(second)?;
            }
            _ => {}
        }
        at = record.end;
    }
    Some(())
}

/// Moves the pointer that the name at `at` ends in, if it does; gives where the name ends.
fn shift_name(out: &mut [u8], mut at: usize, front: Front, question_end: usize) -> Option<usize> {
    loop {
        match usize::from(*out.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            _ => {
                let pointer = out.get_mut(at..at + 2)?;
                let to = usize::from(u16::from_be_bytes([pointer[0], pointer[1]])) & POINTER_MAX;
                let to = match to < question_end {
                    true => to.checked_sub(HEADER)? + front.name,
                    false => to + front.end - question_end,
                };
                pointer.copy_from_slice(&((POINTER | to) as u16).to_be_bytes());
                return (to <= POINTER_MAX).then_some(at + 2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dns_zone::{Incoming, Name};
    use hickory_proto::op::{Message, OpCode, Query as Asked};
    use hickory_proto::rr::rdata::{A, CNAME, MX, SOA};
    use hickory_proto::rr::{Name as Theirs, RData, Record as TheirRecord, RecordType};
    use proptest::prelude::*;

    use crate::cache::Entry;

    use super::*;

    fn their(name: &str) -> Theirs {
        Theirs::from_ascii(name).unwrap()
    }

    /// `www.example.org` is an alias; its end has addresses, mail servers and a start of authority.
    fn entry(addresses: u8) -> (Entry, Message) {
        let mut message = Message::response(0, OpCode::Query);
        message.add_query(Asked::query(their("www.example.org."), RecordType::A));
        let end = their("end.cdn.example.org.");
        let add = |name: &Theirs, data| TheirRecord::from_rdata(name.clone(), 100, data);
        message.add_answer(add(&their("www.example.org."), RData::CNAME(CNAME(end.clone()))));
        for n in 0..addresses {
            message.add_answer(add(&end, RData::A(A([192, 0, 2, n].into()))));
        }
        message.add_answer(add(&end, RData::MX(MX::new(7, their("mail.example.org.")))));
        let soa = SOA::new(their("ns.example.org."), their("root.cdn.example.org."), 1, 2, 3, 4, 5);
        message.add_authority(add(&their("example.org."), RData::SOA(soa)));
        (Entry::new(message.to_vec().unwrap(), 100_000, 0).unwrap(), message)
    }

    fn alias(from: &str, to: &str) -> Record {
        let name = |text| Name::parse(text).unwrap();
        Record { name: name(from), ttl_secs: 5, data: RecordData::Cname(name(to)) }
    }

    fn write(aliases: &[Record], limit: usize, now_ms: u64) -> Message {
        let packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03Out\x02ns\x05local\0\0\x01\0\x01";
        let Incoming::Query(query) = dns_zone::parse(packet) else { panic!("a question") };
        let mut out = vec![0xAA; limit];
        let written = entry(3).0.write(aliases, &query, &mut out, now_ms, 0);
        let message = Message::from_vec(&out[..written.len]).unwrap();
        assert_eq!(message.metadata.truncation, written.truncated);
        message
    }

    #[test]
    fn every_name_says_the_same_behind_aliases_and_the_ttls_are_those_of_now() {
        let aliases = [alias("Out.ns.local", "other.local"), alias("other.local", "WWW.example.org")];
        let theirs = entry(3).1;
        let all = write(&aliases, 1_232, 40_500);
        let shown: Vec<String> = all.answers.iter().map(ToString::to_string).collect();
        assert_eq!(shown[0], "Out.ns.local. 5 IN CNAME other.local.");
        assert_eq!(shown[1], "other.local. 5 IN CNAME WWW.example.org.");
        let same = |record: &TheirRecord| record.to_string().to_lowercase().replace(" 100 ", " 60 ");
        let expected: Vec<String> = theirs.answers.iter().map(same).collect();
        assert_eq!(shown[2..].iter().map(|line| line.to_lowercase()).collect::<Vec<_>>(), expected);
        assert_eq!(all.authorities[0].to_string().to_lowercase(), same(&theirs.authorities[0]));
    }

    /// Behind the question for `a.org`, to which `out` leads, as whoever may take so many octets gets it.
    fn behind_an_alias(records: &[u8], answers: u8, limit: usize) -> Message {
        let head = [0, 0, 0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0];
        let question = b"\x01a\x03org\0\0\x01\0\x01";
        let entry = Entry::new([&head[..], question, records].concat(), 9_000, 0).unwrap();
        let packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03out\0\0\x01\0\x01";
        let Incoming::Query(query) = dns_zone::parse(packet) else { panic!("a question") };
        let mut out = vec![0; limit];
        let written = entry.write(&[alias("out", "a.org")], &query, &mut out, 0, 0);
        Message::from_vec(&out[..written.len]).unwrap()
    }

    #[test]
    fn a_pointer_that_cannot_be_moved_is_tc_at_first_and_servfail_over_a_stream() {
        let mut records = b"\x01b\0\0\x10\0\x01\0\0\0\x09\x3F\xD8".to_vec();
        records.resize(records.len() + 0x3FD8, 1);
        // The first name of the last record but one stands where pointers just reach.
        let at = 12 + 11 + records.len();
        assert!(at <= POINTER_MAX, "{at:x}");
        records.extend_from_slice(b"\x01c\0\0\x01\0\x01\0\0\0\x09\0\x04\xC0\0\x02\x01");
        records.extend_from_slice(&((POINTER | at) as u16).to_be_bytes());
        records.extend_from_slice(b"\0\x01\0\x01\0\0\0\x09\0\x04\xC0\0\x02\x02");
        let message = behind_an_alias(&records, 3, 1_232);
        assert!(message.metadata.truncation);
        let message = behind_an_alias(&records, 3, 65_535);
        assert!(!message.metadata.truncation);
        assert_eq!(message.metadata.response_code, hickory_proto::op::ResponseCode::ServFail);
    }

    #[test]
    fn aliases_that_lead_elsewhere_get_none_of_the_records() {
        let wrong = write(&[alias("Out.ns.local", "www.example.com")], 512, 0);
        assert!(wrong.metadata.truncation && wrong.answers.len() == 1, "{wrong}");
    }

    #[test]
    fn names_of_any_length_end_in_tc_where_they_have_no_room() {
        let long = |labels: usize, rest: usize| {
            let label = "x".repeat(60);
            format!("{}{}", format!("{label}.").repeat(labels), "y".repeat(rest))
        };
        for asked in [long(3, 40), long(3, 60), long(4, 9), long(0, 3)] {
            for target in [long(4, 9), long(3, 20)] {
                let name = |text: &str| Name::parse(text).unwrap();
                let mut wire = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
                wire.extend_from_slice(name(&target).as_wire());
                wire.extend_from_slice(&[0, 1, 0, 1, 0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
                let entry = Entry::new(wire, 9_000, 0).unwrap();
                let header = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0";
                let packet = [&header[..], name(&asked).as_wire(), &[0, 1, 0, 1]].concat();
                let Incoming::Query(query) = dns_zone::parse(&packet) else { panic!("a question") };
                let mut out = [0; 512];
                let written = entry.write(&[alias(&asked, &target)], &query, &mut out, 0, 0);
                let message = Message::from_vec(&out[..written.len]).unwrap();
                assert_eq!(message.answers.len() < 2, written.truncated, "{asked} {target}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_has_room_is_whole(limit in 60usize..400) {
            let all = write(&[alias("Out.ns.local", "www.example.org")], 1_232, 0);
            let some = write(&[alias("Out.ns.local", "www.example.org")], limit, 0);
            prop_assert_eq!(&all.answers[..some.answers.len()], &some.answers[..]);
            prop_assert_eq!(some.metadata.truncation, some.answers.len() < 6 || some.authorities.is_empty());
        }
    }
}
