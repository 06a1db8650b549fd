// SPDX-License-Identifier: Apache-2.0
//! A packet to the DNS port. Reading, answering and writing never panic; an answer keeps to its limit, repeats the question as it
//! was asked, reads as a packet again, and is itself never answered.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use dns_zone::{
    Client, Incoming, LinkSpec, Name, OwnRecord, PodNames, Query, RecordSpec, ReplyOptions, Response,
    RewriteSpec, Rules, SKYDNS_PREFIX, Transport, Views, Zone, ZoneEndpoint, ZoneKind, ZonePort,
    ZoneProtocol, ZoneService, ZoneSettings, parse, parse_skydns,
};

const HEADER: usize = 12;
const UDP_MAX: u16 = 1_232;
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

static ZONE: LazyLock<Zone> = LazyLock::new(zone);

pub(super) fn check(input: &[u8]) -> String {
    let query = match parse(input) {
        Incoming::Ignore => return "ignored".to_owned(),
        Incoming::Reject(reject) => {
            let mut out = [0; 512];
            let len = reject.encode(&options(512), &mut out);
            check_head(input, &out[..len]);
            return format!("{}", reject.rcode);
        }
        Incoming::Query(query) => query,
    };
    let mut labels = Vec::new();
    for (client, transport) in [(POD, Transport::Udp), (POD, Transport::Tcp), (STRANGER, Transport::Udp)] {
        labels.push(answered(input, &query, client, transport));
    }
    labels.join(" ")
}

fn answered(input: &[u8], query: &Query<'_>, client: IpAddr, transport: Transport) -> String {
    let limit = query.limit(transport, UDP_MAX);
    let mut out = vec![0; 65_535];
    match ZONE.respond(query, client, 7, &options(limit), &mut out) {
        Response::Forward(forward) => format!("forward{}+{}", forward.prefix.len(), forward.candidates.len()),
        Response::Written(written) => {
            let answer = &out[..written.len];
            assert!(answer.len() <= limit, "{} octets of {limit}", answer.len());
            check_head(input, answer);
            assert_eq!(answer.get(HEADER..HEADER + query.question().len()), Some(query.question()));
            assert_eq!(answer[2] & 2 != 0, written.truncated, "TC");
            let counts: Vec<u8> = answer[6..HEADER].iter().skip(1).step_by(2).copied().collect();
            walk(answer, query.question().len());
            format!("{} {counts:?}", written.rcode)
        }
    }
}

/// Id and opcode are the question's, and the answer is one.
fn check_head(question: &[u8], answer: &[u8]) {
    assert_eq!(answer[..2], question[..2], "id");
    assert_eq!(answer[2] & 0xF8, question[2] & 0x78 | 0x80, "QR and opcode");
    assert!(matches!(parse(answer), Incoming::Ignore), "an answer is answered");
}

/// All records of an answer up to its last octet; every name of an owner ends.
fn walk(answer: &[u8], question: usize) {
    let word = |at: usize| usize::from(u16::from_be_bytes([answer[at], answer[at + 1]]));
    let mut at = HEADER + question;
    for _ in 0..word(6) + word(8) + word(10) {
        at = skip_name(answer, at) + 8;
        at += 2 + word(at);
    }
    assert_eq!(at, answer.len(), "octets behind the last record");
}

fn skip_name(answer: &[u8], start: usize) -> usize {
    let (mut at, mut end, mut octets) = (start, None, 0);
    loop {
        let length = usize::from(answer[at]);
        if length >= 0xC0 {
            let target = (length & 0x3F) << 8 | usize::from(answer[at + 1]);
            assert!(target < at, "a pointer forwards");
            end.get_or_insert(at + 2);
            at = target;
            continue;
        }
        octets += 1 + length;
        assert!(octets <= 255, "a name that is too long");
        at += 1 + length;
        if length == 0 {
            return end.unwrap_or(at);
        }
    }
}

fn options(limit: usize) -> ReplyOptions<'static> {
    ReplyOptions {
        limit,
        udp_size: UDP_MAX,
        recursion_available: true,
        cookie: Some(&[7; 24]),
        extended_error: None,
    }
}

/// With something of everything.
fn zone() -> Zone {
    let settings = ZoneSettings {
        reverse_cidrs: ["10.96.0.0/16", "fd00::/64", "192.168.7.0/26"]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
        pod_names: PodNames::Insecure,
        autopath: true,
        zones: vec![Name::parse("skydns.local").unwrap()],
        clusterset: Some(Name::parse("clusterset.local").unwrap()),
        ..ZoneSettings::new("cluster.local")
    };
    let mut edit = Zone::new(settings).unwrap().edit();
    let client = Client { namespace: "shop".into(), pod: "web-1".into(), labels: Arc::default() };
    edit.set_client(POD, Some(Arc::new(client)));
    let port = ZonePort { name: Some("http".into()), protocol: ZoneProtocol::Tcp, port: 80 };
    let mut web = ZoneService::new(
        "shop",
        "web",
        ZoneKind::ClusterIp(["10.96.0.20", "192.168.7.10"].map(|ip| ip.parse().unwrap()).to_vec()),
    );
    web.ports = vec![port.clone()];
    web.aliases = vec!["www".to_owned()];
    web.views = Some(Views::parse("namespace=shop").unwrap());
    let mut db = ZoneService::new("shop", "db", ZoneKind::Headless);
    db.endpoints = (0..120u32)
        .map(|number| ZoneEndpoint {
            addresses: vec![
                IpAddr::V4((0x0A60_0100 + number).into()),
                IpAddr::V6((0xFD00u128 << 112 | u128::from(number)).into()),
            ],
            hostname: (number % 3 == 0).then(|| format!("db-{}", number / 2)),
            ports: vec![port.clone()],
        })
        .collect();
    let out = ZoneService::new("shop", "out", ZoneKind::ExternalName("www.example.com".to_owned()));
    let circle = ZoneService::new(
        "shop",
        "circle",
        ZoneKind::ExternalName("circle.shop.svc.cluster.local".to_owned()),
    );
    let inside = |name: &str, to: &str| {
        ZoneService::new("shop", name, ZoneKind::ExternalName(format!("{to}.shop.svc.cluster.local")))
    };
    [web, db, out, circle, inside("one", "two"), inside("two", "one")]
        .iter()
        .for_each(|service| edit.set_service(service));
    edit.set_records("a", vec![OwnRecord::address(Name::parse("own.example.com").unwrap(), POD)]);
    let spec = |name: &str, record_type: &str, data: &str| {
        let [name, record_type, data] = [name, record_type, data].map(str::to_owned);
        RecordSpec { name, record_type, data, ttl_secs: None, views: None }.parse().unwrap()
    };
    edit.set_records(
        "b",
        vec![spec("t.cluster.local", "TXT", &"x".repeat(700)), spec("m.org", "MX", "1 t.org")],
    );
    edit.set_records("c", vec![spec("shop.svc.cluster.local", "TXT", "beside the services")]);
    for key in ["/skydns/local/skydns/web/x1", "/skydns/local/skydns/web/x2"] {
        let value = br#"{"host":"192.0.2.1","port":80,"mail":true,"text":"t","targetstrip":1}"#;
        edit.set_records(key, vec![parse_skydns(key, value, SKYDNS_PREFIX).unwrap()]);
    }
    let mut rules = Rules::default();
    let origin = Name::parse("cluster.local").unwrap();
    let [name, to] = ["sql", "shop/db"].map(str::to_owned);
    rules.add_link(&LinkSpec { name, to, clients: None }, &origin).unwrap();
    let [from, to] = ["*.old.org", "shop.svc.cluster.local"].map(str::to_owned);
    rules.add_rewrite(&RewriteSpec { from, to, clients: None }, &origin).unwrap();
    let [from, to] = ["*.split.org", "inner.split.org"].map(str::to_owned);
    rules.add_rewrite(&RewriteSpec { from, to, clients: None }, &origin).unwrap();
    edit.set_rules(rules);
    edit.set_nameservers(&[IpAddr::V4(Ipv4Addr::new(169, 254, 53, 53))]);
    edit.finish(42)
}
