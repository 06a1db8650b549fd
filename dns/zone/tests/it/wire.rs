// SPDX-License-Identifier: Apache-2.0
//! A question through packets: what hickory reads in our answer is what the zone says as values.

use std::net::{IpAddr, Ipv4Addr};

use dns_zone::{
    Incoming, Name, Outcome, Query, Rcode, Record, RecordData, RecordType, ReplyOptions, Response, Soa, Srv,
    Transport, Zone, parse,
};
use hickory_proto::op::{Message, Query as HickoryQuery};
use hickory_proto::rr::{self, RData};
use hickory_proto::serialize::binary::BinDecodable;

/// What a UDP client without a pod's address has.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

pub(crate) const OPTIONS: ReplyOptions<'_> = ReplyOptions {
    limit: 65_535,
    udp_size: 1_232,
    recursion_available: true,
    cookie: None,
    extended_error: None,
};

pub(crate) fn packet(name: &Name, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(hickory_name(name), record_type.0.into()));
    message.to_vec().unwrap()
}

pub(crate) fn hickory_name(name: &Name) -> rr::Name {
    rr::Name::from_bytes(name.as_wire()).unwrap()
}

pub(crate) fn query(packet: &[u8]) -> Query<'_> {
    match parse(packet) {
        Incoming::Query(query) => query,
        other => panic!("not a question: {other:?}"),
    }
}

/// Asks by packet, and compares with [`Zone::ask`].
pub(crate) fn check(zone: &Zone, name: &Name, record_type: RecordType, client: Option<IpAddr>, seed: u64) {
    let outcome = zone.ask(name, record_type, client, seed);
    let packet = packet(name, record_type);
    let query = query(&packet);
    assert_eq!(query.name_as_asked().as_wire(), name.as_wire(), "the case is kept");
    let options = ReplyOptions { limit: query.limit(Transport::Tcp, 1_232), ..OPTIONS };
    let mut out = vec![0; 65_535];
    let response = zone.respond(&query, client.unwrap_or(STRANGER), seed, &options, &mut out);
    let written = match (response, &outcome) {
        (Response::Forward(forward), Outcome::Forward(expected)) => return assert_eq!(forward, *expected),
        (Response::Written(written), _) => written,
        (Response::Forward(forward), _) => panic!("{name} {record_type}: {forward:?} instead of {outcome:?}"),
    };
    let message = Message::from_vec(&out[..written.len]).unwrap();
    assert_eq!((message.metadata.id, message.metadata.authoritative), (0x1234, true));
    assert!(!written.truncated && !message.metadata.truncation);
    assert_eq!(message.queries[0].name, hickory_name(name));
    let question: Vec<&[u8]> = message.queries[0].name.iter().collect();
    assert!(name.labels().eq(question), "the case of the question");
    let (rcode, records, soa, additional) = match outcome {
        Outcome::Answer { records, additional } => (Rcode::NOERROR, records, vec![], additional),
        Outcome::NoData { records, soa } => (Rcode::NOERROR, records, vec![soa], vec![]),
        Outcome::NxDomain { records, soa } => (Rcode::NXDOMAIN, records, vec![soa], vec![]),
        Outcome::Forward(forward) => panic!("{name} {record_type}: answered instead of {forward:?}"),
    };
    assert_eq!((written.rcode, u16::from(message.metadata.response_code)), (rcode, rcode.0));
    for (section, expected) in
        [(&message.answers, records), (&message.authorities, soa), (&message.additionals, additional)]
    {
        assert_eq!(section.iter().map(record).collect::<Vec<_>>(), expected, "{name} {record_type}");
    }
}

/// A record of hickory's as one of ours.
pub(crate) fn record(record: &rr::Record) -> Record {
    let name = |name: &rr::Name| Name::from_labels(name.iter()).unwrap();
    let data = match &record.data {
        RData::A(ip) => RecordData::A(ip.0),
        RData::AAAA(ip) => RecordData::Aaaa(ip.0),
        RData::CNAME(target) => RecordData::Cname(name(&target.0)),
        RData::MX(mx) => RecordData::Mx { preference: mx.preference, exchange: name(&mx.exchange) },
        RData::NS(server) => RecordData::Ns(name(&server.0)),
        RData::PTR(target) => RecordData::Ptr(name(&target.0)),
        RData::SOA(soa) => RecordData::Soa(Soa {
            mname: name(&soa.mname),
            rname: name(&soa.rname),
            serial: soa.serial,
            refresh_secs: soa.refresh as u32,
            retry_secs: soa.retry as u32,
            expire_secs: soa.expire as u32,
            minimum_secs: soa.minimum,
        }),
        RData::SRV(srv) => RecordData::Srv(Srv {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: name(&srv.target),
        }),
        RData::TXT(txt) => RecordData::Txt(String::from_utf8(txt.txt_data.concat()).unwrap()),
        other => panic!("{other:?}"),
    };
    Record { name: name(&record.name), ttl_secs: record.ttl, data }
}
