// SPDX-License-Identifier: Apache-2.0
//! Runs `tests/cases/dns/*.txt`: services and questions above the line of `=`, answers below.
//! `WEFT_UPDATE=1` rewrites the lower halves.
//!
//! Steps (`> STEP`): `services` (YAML on the lines below it); `origin NAME`; `reverse CIDR…`; `nameservers IP…`;
//! `ask NAME TYPE [SEED]`; `problems` lists the names that could not be made.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use dns_zone::{
    Name, Outcome, Record, RecordType, Zone, ZoneEndpoint, ZoneKind, ZonePort, ZoneProtocol, ZoneService,
};
use ipnet::IpNet;
use serde::Deserialize;

const SEPARATOR: &str = "====";
const TTL_SECS: u32 = 5;
const REVISION: u64 = 42;

#[test]
fn text_cases() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/cases/dns"));
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let (story, expected) = text.split_once(&format!("{SEPARATOR}\n")).unwrap_or((&text, ""));
        let found = run(story);
        if std::env::var_os("WEFT_UPDATE").is_some() {
            std::fs::write(&path, format!("{}\n{SEPARATOR}\n{found}", story.trim_end())).unwrap();
        } else if found != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- found\n{found}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "WEFT_UPDATE=1 rewrites them; read the diff\n{}", wrong.join("\n"));
}

/// A service as the cases write it.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Service {
    /// `namespace/name`
    name: String,
    #[serde(default)]
    cluster_ips: Vec<IpAddr>,
    external_name: Option<String>,
    #[serde(default)]
    headless: bool,
    /// `name:port/protocol`
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    hostname: Option<String>,
    #[serde(default)]
    ports: Vec<String>,
}

struct World {
    origin: String,
    services: Vec<Service>,
    reverse: Vec<IpNet>,
    nameservers: Vec<IpAddr>,
}

fn run(story: &str) -> String {
    let mut world = World {
        origin: "cluster.local".to_owned(),
        services: Vec::new(),
        reverse: Vec::new(),
        nameservers: Vec::new(),
    };
    let mut out = String::new();
    let mut steps = story.split("\n> ");
    steps.next(); // the explanation above the first step
    for step in steps {
        let (command, body) = step.split_once('\n').unwrap_or((step, ""));
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["ask", name, record_type] => ask(&mut out, &world.zone(), name, record_type, 0),
            ["ask", name, record_type, seed] => {
                ask(&mut out, &world.zone(), name, record_type, seed.parse().unwrap())
            }
            ["nameservers", ..] => {
                world.nameservers = words[1..].iter().map(|word| word.parse().unwrap()).collect()
            }
            ["origin", origin] => origin.clone_into(&mut world.origin),
            ["problems"] => {
                for problem in world.zone().problems() {
                    writeln!(out, "problem {problem}").unwrap();
                }
            }
            ["reverse", ..] => world.reverse = words[1..].iter().map(|word| word.parse().unwrap()).collect(),
            ["services"] => world.services = serde_norway::from_str(body).expect(body),
            _ => panic!("no such step: {command}"),
        }
    }
    out
}

impl World {
    fn zone(&self) -> Zone {
        let services = self.services.iter().map(zone_service);
        let zone = Zone::build(&self.origin, TTL_SECS, REVISION, services, &self.reverse).unwrap();
        zone.with_nameservers(&self.nameservers)
    }
}

fn ask(out: &mut String, zone: &Zone, name: &str, record_type: &str, seed: u64) {
    writeln!(out, "> {name} {record_type}").unwrap();
    let question = Name::parse(name).unwrap();
    let mut show = |title: &str, records: &[Record]| {
        for record in records {
            writeln!(out, "  {title} {record}").unwrap();
        }
    };
    match zone.answer(&question, RecordType::parse(record_type).unwrap(), seed) {
        Outcome::Answer { records, additional } => {
            show("answer", &records);
            show("additional", &additional);
        }
        Outcome::Forward => writeln!(out, "  forward").unwrap(),
        Outcome::NoData { soa } => show("NODATA", &[soa]),
        Outcome::NxDomain { soa } => show("NXDOMAIN", &[soa]),
    }
}

fn zone_service(service: &Service) -> ZoneService {
    let (namespace, name) = service.name.split_once('/').unwrap();
    ZoneService {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        kind: match &service.external_name {
            Some(target) => ZoneKind::ExternalName(target.clone()),
            None if service.headless => ZoneKind::Headless,
            None => ZoneKind::ClusterIp(service.cluster_ips.clone()),
        },
        ports: ports(&service.ports),
        endpoints: service
            .endpoints
            .iter()
            .map(|endpoint| ZoneEndpoint {
                addresses: endpoint.addresses.clone(),
                hostname: endpoint.hostname.clone(),
                ports: ports(&endpoint.ports),
            })
            .collect(),
    }
}

fn ports(texts: &[String]) -> Vec<ZonePort> {
    let port = |text: &String| {
        let (name, rest) = text.split_once(':').unwrap();
        let (port, protocol) = rest.split_once('/').unwrap();
        ZonePort {
            name: if name.is_empty() { None } else { Some(name.to_owned()) },
            protocol: match protocol {
                "sctp" => ZoneProtocol::Sctp,
                "tcp" => ZoneProtocol::Tcp,
                "udp" => ZoneProtocol::Udp,
                _ => panic!("no such protocol: {protocol}"),
            },
            port: port.parse().unwrap(),
        }
    };
    texts.iter().map(port).collect()
}
