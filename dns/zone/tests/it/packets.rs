// SPDX-License-Identifier: Apache-2.0
//! Packets from outside, held against hickory's reading of them, and answers at their limits.

use std::net::{IpAddr, Ipv4Addr};

use dns_zone::{
    Encoder, Incoming, Name, Rcode, Record, RecordData, RecordType, ReplyOptions, Response, Transport, Zone,
    ZoneEndpoint, ZoneKind, ZoneService, parse,
};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as HickoryQuery};
use hickory_proto::rr::rdata::opt::EdnsOption;
use proptest::prelude::*;

use crate::wire::{OPTIONS, hickory_name, packet, query, record};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 9));

fn name() -> impl Strategy<Value = Name> {
    let label = prop::collection::vec(any::<u8>(), 1..20);
    prop::collection::vec(label, 0..8)
        .prop_map(|labels| Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap())
}

/// A headless service of `count` endpoints.
fn zone(count: u32) -> Zone {
    let endpoint = |number: u32| ZoneEndpoint {
        addresses: vec![IpAddr::V4(Ipv4Addr::from(0x0AF4_0000 + number))],
        hostname: None,
        ports: vec![dns_zone::ZonePort {
            name: Some("http".into()),
            protocol: dns_zone::ZoneProtocol::Tcp,
            port: 80,
        }],
    };
    let mut service = ZoneService::new("default", "db", ZoneKind::Headless);
    service.endpoints = (0..count).map(endpoint).collect();
    Zone::build("cluster.local", 5, 1, [service], &[]).unwrap()
}

fn with_edns(name: &str, record_type: RecordType, edns: Option<Edns>) -> Vec<u8> {
    let mut message = Message::from_vec(&packet(&Name::parse(name).unwrap(), record_type)).unwrap();
    if let Some(edns) = edns {
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn size(udp_size: u16) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(udp_size);
    edns
}

#[test]
fn a_large_answer_is_cut_at_the_size_that_the_client_takes() {
    let zone = zone(2_000);
    let svc = "db.default.svc.cluster.local";
    for (edns, limit) in
        [(None, 512), (Some(100), 512), (Some(900), 900), (Some(1_232), 1_232), (Some(65_535), 1_232)]
    {
        for (asked, least) in [(svc, 16), ("_http._tcp.db.default.svc.cluster.local", 70)] {
            let record_type = if asked == svc { RecordType::A } else { RecordType::SRV };
            let packet = with_edns(asked, record_type, edns.map(size));
            let query = query(&packet);
            let options = ReplyOptions { limit: query.limit(Transport::Udp, 1_232), ..OPTIONS };
            assert_eq!(options.limit, limit);
            let mut out = [0; 2_048];
            let Response::Written(written) = zone.respond(&query, CLIENT, 7, &options, &mut out) else {
                panic!()
            };
            assert!(
                written.truncated && written.len <= limit && written.len > limit - least,
                "{}",
                written.len
            );
            let message = Message::from_vec(&out[..written.len]).unwrap();
            assert!(message.metadata.truncation && message.additionals.is_empty());
            assert_eq!(message.edns.map(|edns| edns.max_payload()), edns.map(|_| 1_232), "OPT is never cut");
        }
    }
}

#[test]
fn additional_records_go_without_tc() {
    // 12 SRV records fit into 1,232 octets, their 12 addresses do not all.
    let zone = zone(12);
    let packet = with_edns("_http._tcp.db.default.svc.cluster.local", RecordType::SRV, Some(size(1_232)));
    let query = query(&packet);
    let mut out = [0; 1_232];
    let options = ReplyOptions { limit: 960, ..OPTIONS };
    let Response::Written(written) = zone.respond(&query, CLIENT, 7, &options, &mut out) else { panic!() };
    let message = Message::from_vec(&out[..written.len]).unwrap();
    assert!(!written.truncated && !message.metadata.truncation);
    assert_eq!(message.answers.len(), 12);
    assert!((1..12).contains(&message.additionals.len()), "{}", message.additionals.len());
}

#[test]
fn over_tcp_two_thousand_endpoints_fit() {
    let zone = zone(2_000);
    let packet = with_edns("db.default.svc.cluster.local", RecordType::A, None);
    let query = query(&packet);
    let options = ReplyOptions { limit: query.limit(Transport::Tcp, 1_232), ..OPTIONS };
    let mut out = vec![0; 65_535];
    let Response::Written(written) = zone.respond(&query, CLIENT, 7, &options, &mut out) else { panic!() };
    assert!(!written.truncated);
    assert_eq!(Message::from_vec(&out[..written.len]).unwrap().answers.len(), 2_000);
}

#[test]
fn an_answer_is_never_answered() {
    let mut packet = packet(&Name::parse("a.b").unwrap(), RecordType::A);
    packet[2] |= 0x80;
    assert!(matches!(parse(&packet), Incoming::Ignore));
    assert!(matches!(parse(&packet[..11]), Incoming::Ignore));
    assert!(matches!(parse(&[]), Incoming::Ignore));
}

#[test]
fn what_is_no_question_is_told_why() {
    let good = packet(&Name::parse("a.b").unwrap(), RecordType::A);
    let changed = |at: usize, octet: u8| {
        let mut packet = good.clone();
        packet[at] = octet;
        packet
    };
    let mut version = size(1_232);
    version.set_version(1);
    let cookie = |length: usize| {
        let mut edns = size(1_232);
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![1; length]));
        with_edns("a.b", RecordType::A, Some(edns))
    };
    let mut two = with_edns("a.b", RecordType::A, Some(size(1_232)));
    two.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    two[11] = 2;
    for (packet, rcode) in [
        (changed(2, 0x28), Rcode::NOTIMP),
        (changed(2, 0x20), Rcode::NOTIMP),
        (changed(5, 0), Rcode::FORMERR),
        (changed(5, 2), Rcode::FORMERR),
        (changed(12, 0xC0), Rcode::FORMERR),
        (changed(11, 1), Rcode::FORMERR),
        (good[..good.len() - 1].to_vec(), Rcode::FORMERR),
        (with_edns("a.b", RecordType::A, Some(version)), Rcode::BADVERS),
        (cookie(7), Rcode::FORMERR),
        (cookie(12), Rcode::FORMERR),
        (two, Rcode::FORMERR),
    ] {
        let Incoming::Reject(reject) = parse(&packet) else { panic!("{packet:?}") };
        assert_eq!(reject.rcode, rcode, "{packet:?}");
        let mut out = [0; 512];
        let len = reject.encode(&OPTIONS, &mut out);
        let message = Message::from_vec(&out[..len]).unwrap();
        assert_eq!((message.metadata.id, message.metadata.message_type), (0x1234, MessageType::Response));
        let high = message.edns.as_ref().map_or(0, |edns| u16::from(edns.rcode_high()));
        assert_eq!(high << 4 | u16::from(message.metadata.response_code) & 0xF, rcode.0);
        assert_eq!(message.metadata.op_code, OpCode::from_u8(packet[2] >> 3 & 0xF));
    }
    let packet = cookie(24);
    let query = query(&packet);
    assert_eq!(query.edns().unwrap().cookie.as_ref().unwrap().server(), [1; 16]);
}

#[test]
fn a_reply_says_back_cookie_and_error() {
    let mut edns = size(4_096);
    edns.set_dnssec_ok(true);
    let packet = with_edns("A.b", RecordType::A, Some(edns));
    let query = query(&packet);
    let options = ReplyOptions { cookie: Some(&[7; 24]), extended_error: Some(14), ..OPTIONS };
    let mut out = [0; 512];
    let len = query.reply(Rcode::SERVFAIL, &options, &mut out);
    let message = Message::from_vec(&out[..len]).unwrap();
    assert_eq!(u16::from(message.metadata.response_code), 2);
    assert!(message.metadata.recursion_desired && message.metadata.recursion_available);
    let edns = message.edns.unwrap();
    assert!(edns.flags().dnssec_ok);
    assert_eq!(edns.option(10.into()), Some(&EdnsOption::Unknown(10, vec![7; 24])));
    assert_eq!(edns.option(15.into()), Some(&EdnsOption::Unknown(15, vec![0, 14])));
    assert_eq!(query.reply(Rcode::SERVFAIL, &options, &mut out[..511]), 0, "a buffer that is too short");
}

#[test]
fn other_classes_and_transfers_are_refused() {
    let zone = zone(1);
    let mut packet = packet(&Name::parse("db.default.svc.cluster.local").unwrap(), RecordType::A);
    let last = packet.len() - 1;
    for (at, octet, rcode) in
        [(last, 3, Rcode::REFUSED), (last - 2, 252, Rcode::REFUSED), (last - 2, 41, Rcode::FORMERR)]
    {
        let mut packet = packet.clone();
        packet[at] = octet;
        let query = query(&packet);
        let mut out = [0; 512];
        let Response::Written(written) = zone.respond(&query, CLIENT, 0, &OPTIONS, &mut out) else {
            panic!()
        };
        assert_eq!(written.rcode, rcode);
    }
    packet[last] = 1;
}

proptest! {
    /// What we read of a question is what hickory reads of it.
    #[test]
    fn questions_are_read_as_hickory_reads_them(
        name in name(),
        record_type: u16,
        id: u16,
        edns in prop::option::of((any::<u16>(), any::<bool>(), prop::option::of(16usize..40))),
    ) {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(HickoryQuery::query(hickory_name(&name), record_type.into()));
        if let Some((udp_size, dnssec_ok, cookie)) = &edns {
            let mut edns = size(*udp_size);
            edns.set_dnssec_ok(*dnssec_ok);
            if let Some(length) = cookie {
                edns.options_mut().insert(EdnsOption::Unknown(10, vec![3; *length]));
            }
            message.set_edns(edns);
        }
        let packet = message.to_vec().unwrap();
        let query = query(&packet);
        prop_assert_eq!((query.id(), query.record_type(), query.class()), (id, RecordType(record_type), 1));
        prop_assert_eq!(query.name_as_asked().as_wire().to_vec(), name.as_wire().to_vec());
        prop_assert_eq!(query.name().to_name(), name);
        prop_assert_eq!(query.edns().is_some(), edns.is_some());
        if let (Some(read), Some((udp_size, dnssec_ok, cookie))) = (query.edns(), edns) {
            prop_assert_eq!((read.udp_size, read.dnssec_ok), (message.edns.unwrap().max_payload(), dnssec_ok));
            prop_assert!(read.udp_size >= udp_size.min(512));
            prop_assert_eq!(read.cookie.as_ref().map(|cookie| 8 + cookie.server().len()), cookie);
        }
    }

    /// Whatever comes, reading it ends without a panic; what we take for a question hickory takes for the same one.
    #[test]
    fn any_packet_is_a_question_or_not(
        mut packet in prop::collection::vec(any::<u8>(), 0..80),
        tidy: bool,
    ) {
        if tidy && packet.len() > 12 {
            packet[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        if let Incoming::Query(query) = parse(&packet) {
            if let Ok(message) = Message::from_vec(&packet) {
                prop_assert_eq!(hickory_name(&query.name_as_asked()), message.queries[0].name.clone());
            }
            let mut out = [0; 512];
            let Response::Written(written) = zone(3).respond(&query, CLIENT, 0, &OPTIONS, &mut out) else { return Ok(()) };
            prop_assert!(Message::from_vec(&out[..written.len]).is_ok());
        }
    }

    /// Any records, compressed by us, are the same records when hickory reads them.
    #[test]
    fn records_survive_compression(
        asked in name(),
        names in prop::collection::vec(name(), 1..12),
        picks in prop::collection::vec((0usize..12, 0usize..12, 0u8..6, any::<u32>()), 0..80),
        limit in 512usize..4_000,
    ) {
        // Endings in common are what compression is about.
        let joined = |left: &Name, right: &Name| Name::from_labels(left.labels().chain(right.labels()));
        let all: Vec<Name> = names.iter().flat_map(|name| [Some(name.clone()), joined(name, &asked).ok(), joined(name, &names[0]).ok()]).flatten().collect();
        let at = |index: usize| all[index % all.len()].clone();
        let packet = packet(&asked, RecordType::A);
        let query = query(&packet);
        let mut out = vec![0; 4_000];
        let mut encoder = Encoder::new(&query, &ReplyOptions { limit, ..OPTIONS }, &mut out);
        let mut given = Vec::new();
        let mut fits = true;
        for (owner, target, kind, number) in picks {
            let data = match kind {
                0 => RecordData::A(number.into()),
                1 => RecordData::Cname(at(target)),
                2 => RecordData::Mx { preference: number as u16, exchange: at(target) },
                3 => RecordData::Srv(dns_zone::Srv { priority: 1, weight: 2, port: number as u16, target: at(target) }),
                4 => RecordData::Txt("x".repeat(number as usize % 600)),
                _ => RecordData::Ptr(at(target)),
            };
            let record = Record { name: at(owner), ttl_secs: number >> 1, data };
            fits = encoder.answer(&record);
            if !fits {
                break;
            }
            given.push(record);
        }
        let written = encoder.finish(Rcode::NOERROR, true);
        prop_assert_eq!(written.truncated, !fits);
        prop_assert!(written.len <= limit);
        let message = Message::from_vec(&out[..written.len]).unwrap();
        prop_assert_eq!(message.answers.iter().map(record).collect::<Vec<_>>(), given);
    }
}
