// SPDX-License-Identifier: Apache-2.0
//! Runs `tests/cases/dns/*.txt`: services and questions above the line of `=`, answers below.
//! `WEFT_UPDATE=1` rewrites the lower halves.
//!
//! Steps (`> STEP`), the ones with a body on the lines below them:
//! - `origin NAME`; `reverse CIDR…`; `nameservers IP…`; `pods disabled|insecure|verified`; `autopath`; `zones NAME…`;
//!   `clusterset NAME`: what the zone is; each begins anew.
//! - `services` (YAML): all of them; `service` (YAML): one more, or what it is now; `remove NAMESPACE/NAME`.
//! - `clients` (YAML), `records`, `links`, `rewrites` (YAML), `skydns` (`KEY VALUE` lines).
//! - `ask NAME TYPE [SEED] [as IP]`; `explain NAME TYPE [as IP]`; `problems` lists the names that could not be made.
//!
//! Each question also goes through a packet and back, and has to come out the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use dns_zone::{
    Client, LeftOut, LinkSpec, Name, PodNames, RecordSpec, RecordType, RewriteSpec, Rules, SKYDNS_PREFIX,
    Views, Zone, ZoneEndpoint, ZoneKind, ZonePort, ZoneProtocol, ZoneService, ZoneSettings, parse_skydns,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::wire;

const SEPARATOR: &str = "====";
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
    /// Address and why.
    #[serde(default)]
    left_out: BTreeMap<IpAddr, String>,
    views: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    /// `namespace/name`
    pod: String,
    ips: Vec<IpAddr>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    hostname: Option<String>,
    #[serde(default)]
    ports: Vec<String>,
}

fn run(story: &str) -> String {
    let mut settings = ZoneSettings::new("cluster.local");
    let mut zone = Zone::new(settings.clone()).unwrap();
    let mut rules = Rules::default();
    let mut out = String::new();
    let mut steps = story.split("\n> ");
    steps.next(); // the explanation above the first step
    for step in steps {
        let (command, body) = step.split_once('\n').unwrap_or((step, ""));
        let mut words: Vec<&str> = command.split_whitespace().collect();
        let mut client = None;
        if let [.., "as", ip] = words[..] {
            client = Some(ip.parse().unwrap());
            words.truncate(words.len() - 2);
        }
        let rest = &words[1..];
        match words[0] {
            "ask" => ask(&mut out, &zone, rest, client),
            "autopath" => settings.autopath = true,
            "clients" => edit(&mut zone, |edit| {
                for pod in yaml::<Vec<Pod>>(body) {
                    let (namespace, name) = pod.pod.split_once('/').unwrap();
                    let labels = Arc::new(pod.labels);
                    let client = Arc::new(Client { namespace: namespace.into(), pod: name.into(), labels });
                    pod.ips.iter().for_each(|ip| edit.set_client(*ip, Some(client.clone())));
                }
            }),
            "clusterset" => settings.clusterset = Some(Name::parse(rest[0]).unwrap()),
            "explain" => {
                let [name, record_type] = rest else { panic!("explain NAME TYPE") };
                let (name, record_type) =
                    (Name::parse(name).unwrap(), RecordType::parse(record_type).unwrap());
                write!(out, "> {}", zone.explain(&name, record_type, client)).unwrap();
            }
            "links" => {
                let origin = zone.origin().clone();
                for link in yaml::<Vec<LinkSpec>>(body) {
                    if let Err(error) = rules.add_link(&link, &origin) {
                        writeln!(out, "link {}: {error}", link.name).unwrap();
                    }
                }
                edit(&mut zone, |edit| edit.set_rules(rules.clone()));
            }
            "nameservers" => {
                let servers: Vec<IpAddr> = rest.iter().map(|word| word.parse().unwrap()).collect();
                edit(&mut zone, |edit| edit.set_nameservers(&servers));
            }
            "origin" => rest[0].clone_into(&mut settings.origin),
            "pods" => {
                settings.pod_names = match rest[0] {
                    "disabled" => PodNames::Disabled,
                    "insecure" => PodNames::Insecure,
                    _ => PodNames::Verified,
                }
            }
            "problems" => {
                for problem in zone.problems() {
                    writeln!(out, "problem {problem}").unwrap();
                }
            }
            "records" => edit(&mut zone, |edit| {
                for (index, spec) in yaml::<Vec<RecordSpec>>(body).into_iter().enumerate() {
                    match spec.parse() {
                        Ok(record) => edit.set_records(&format!("config/{index:03}"), vec![record]),
                        Err(error) => writeln!(out, "record {}: {error}", spec.name).unwrap(),
                    }
                }
            }),
            "remove" => {
                let (namespace, name) = rest[0].split_once('/').unwrap();
                edit(&mut zone, |edit| edit.remove_service(namespace, name));
            }
            "reverse" => settings.reverse_cidrs = rest.iter().map(|word| word.parse().unwrap()).collect(),
            "rewrites" => {
                let origin = zone.origin().clone();
                for rewrite in yaml::<Vec<RewriteSpec>>(body) {
                    if let Err(error) = rules.add_rewrite(&rewrite, &origin) {
                        writeln!(out, "rewrite {}: {error}", rewrite.from).unwrap();
                    }
                }
                edit(&mut zone, |edit| edit.set_rules(rules.clone()));
            }
            "service" => edit(&mut zone, |edit| edit.set_service(&zone_service(&yaml(body)))),
            "services" => {
                let services: Vec<Service> = yaml(body);
                let cidrs = &settings.reverse_cidrs;
                let made = services.iter().map(zone_service);
                let built = Zone::build(&settings.origin, settings.ttl_secs, REVISION, made, cidrs).unwrap();
                edit(&mut zone, |edit| {
                    services.iter().for_each(|service| edit.set_service(&zone_service(service)))
                });
                if !built.problems().is_empty() {
                    zone = built;
                }
            }
            "skydns" => edit(&mut zone, |edit| {
                for line in body.lines().filter(|line| !line.is_empty()) {
                    let (key, value) = line.split_once(' ').unwrap();
                    match parse_skydns(key, value.as_bytes(), SKYDNS_PREFIX) {
                        Ok(record) => edit.set_records(key, vec![record]),
                        Err(error) => writeln!(out, "skydns {key}: {error}").unwrap(),
                    }
                }
            }),
            "zones" => settings.zones = rest.iter().map(|word| Name::parse(word).unwrap()).collect(),
            _ => panic!("no such step: {command}"),
        }
        if *zone.settings() != settings {
            zone = Zone::new(settings.clone()).unwrap();
        }
    }
    out
}

fn yaml<T: DeserializeOwned>(body: &str) -> T {
    serde_norway::from_str(body).expect(body)
}

fn edit(zone: &mut Zone, change: impl FnOnce(&mut dns_zone::ZoneEdit)) {
    let mut edit = zone.edit();
    change(&mut edit);
    *zone = edit.finish(REVISION);
}

fn ask(out: &mut String, zone: &Zone, words: &[&str], client: Option<IpAddr>) {
    let (name, record_type, seed) = match words {
        [name, record_type] => (name, record_type, 0),
        [name, record_type, seed] => (name, record_type, seed.parse().unwrap()),
        _ => panic!("ask NAME TYPE [SEED]"),
    };
    let from = client.map(|client| format!(" as {client}")).unwrap_or_default();
    writeln!(out, "> {name} {record_type}{from}").unwrap();
    let (question, record_type) = (Name::parse(name).unwrap(), RecordType::parse(record_type).unwrap());
    write!(out, "{}", zone.ask(&question, record_type, client, seed)).unwrap();
    wire::check(zone, &question, record_type, client, seed);
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
        left_out: service
            .left_out
            .iter()
            .map(|(address, reason)| LeftOut { address: *address, reason: reason.clone() })
            .collect(),
        views: service.views.as_deref().map(|text| Views::parse(text).unwrap()),
        aliases: service.aliases.clone(),
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
