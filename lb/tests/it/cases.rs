// SPDX-License-Identifier: Apache-2.0
//! Runs `tests/cases/lb/*.txt`: what happens above the line of `=`, what comes of it below.
//! `WEFT_UPDATE=1` rewrites the lower halves.
//!
//! Steps (`> STEP`, manifests on the lines below it):
//!
//! | Step | |
//! | --- | --- |
//! | `apply` | objects, as an operator gives them |
//! | `delete KIND NS/NAME` | |
//! | `node NAME [zone=Z] [external-ips] [faults]` | which node this is; nodes n1, n2, n3 have indexes 1, 2, 3 |
//! | `pods [IP=LABEL:VALUE,…]…` | this node's pods, until the next `node` |
//! | `limits services=N backends=N slots=N …` | |
//! | `table` | Services, backends and verdicts |
//! | `compile NOW_MS` | writes what changed, and shows the maps with identifiers and slots |
//! | `maps NOW_MS` | writes what changed, and shows what clients see |
//! | `written NOW_MS` | the grace period begins |
//! | `restart` | a new compiler adopts the maps |
//! | `explain NS/NAME [CLIENT]` | where connections go, and why |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ebpf_abi::service::SERVICE_DROP_EMPTY;
use lb::{
    Catalogue, Changed, Compiler, Image, Limits, NodeInfo, NodeView, Object, ServiceName, explain,
    parse_object,
};

const SEPARATOR: &str = "====";

#[test]
fn text_cases() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cases/lb"));
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

#[derive(Default)]
struct World {
    catalogue: Catalogue,
    changed: Changed,
    view: NodeView,
    compiler: Option<Compiler>,
    limits: Limits,
    image: Image,
    output: String,
}

fn run(story: &str) -> String {
    let mut world = World::default();
    world.set_node(&["n1"]);
    let mut steps = story.split("\n> ");
    steps.next(); // the explanation above the first step
    for step in steps {
        let (command, body) = step.split_once('\n').unwrap_or((step, ""));
        let words: Vec<&str> = command.split_whitespace().collect();
        let out = &mut world.output;
        writeln!(out, "> {}", words.join(" ")).unwrap();
        match words[..] {
            ["apply"] => world.apply(body),
            ["compile", now] => world.compile(now.parse().unwrap(), true),
            ["delete", "EndpointSlice", name] => world.changed.extend(world.catalogue.remove_slice(name)),
            ["delete", "Service", name] => {
                world.changed.extend(world.catalogue.remove_service(&parsed(name)))
            }
            ["explain", name, ref client @ ..] => world.explain(name, client.first().copied()),
            ["limits", ..] => world.limit(&words[1..]),
            ["maps", now] => world.compile(now.parse().unwrap(), false),
            ["node", ..] => world.set_node(&words[1..]),
            ["pods", ref pods @ ..] => world.view.pods = pods.iter().map(|pod| labelled(pod)).collect(),
            ["restart"] => {
                let image = Image { names: BTreeMap::new(), ..world.image.clone() };
                world.compiler().adopt(&image);
            }
            ["table"] => world.show_table(),
            ["written", now] => world.compiler().written(now.parse().unwrap()),
            _ => panic!("no such step: {command}"),
        }
    }
    world.output
}

fn parsed(name: &str) -> ServiceName {
    let (namespace, name) = name.split_once('/').unwrap();
    ServiceName::new(namespace, name)
}

/// `10.244.0.2=app:web,tier:front`.
fn labelled(pod: &str) -> (IpAddr, BTreeMap<String, String>) {
    let (ip, labels) = pod.split_once('=').unwrap();
    let labels = labels.split(',').filter_map(|label| label.split_once(':'));
    (ip.parse().unwrap(), labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

impl World {
    fn apply(&mut self, body: &str) {
        for document in body.split("\n---\n") {
            let json: serde_json::Value = serde_norway::from_str(document).expect(document);
            match parse_object(json) {
                Err(error) => writeln!(self.output, "refused {error}").unwrap(),
                Ok((object, ignored)) => {
                    writeln!(self.output, "{object}").unwrap();
                    for field in ignored {
                        writeln!(self.output, "  ignored {field}").unwrap();
                    }
                    let name = format!("{}/{}", object.metadata().namespace, object.metadata().name);
                    self.changed.extend(match object {
                        Object::EndpointSlice(slice) => self.catalogue.set_slice(&name, Arc::new(slice)),
                        Object::Service(service) => self.catalogue.set_service(Arc::new(service)),
                    });
                }
            }
        }
    }

    fn set_node(&mut self, words: &[&str]) {
        let info = |index| NodeInfo { index };
        let nodes =
            ["n1", "n2", "n3"].into_iter().zip(1..).map(|(name, index)| (name.to_owned(), info(index)));
        self.view = NodeView { name: words[0].to_owned(), nodes: nodes.collect(), ..NodeView::default() };
        for word in &words[1..] {
            match word.split_once('=') {
                Some(("zone", zone)) => self.view.zone = Some(zone.to_owned()),
                None if *word == "external-ips" => self.view.external_ips_enabled = true,
                None if *word == "faults" => self.view.fault_injection_enabled = true,
                _ => panic!("no such word: {word}"),
            }
        }
    }

    fn limit(&mut self, words: &[&str]) {
        for word in words {
            let (name, size) = word.split_once('=').unwrap();
            let size = size.parse().unwrap();
            match name {
                "affinity" => self.limits.affinity_backends = size,
                "backends" => self.limits.backends = size,
                "ranges" => self.limits.source_ranges = size,
                "services" => self.limits.services = size,
                "slots" => self.limits.slots = size,
                _ => panic!("no such limit: {name}"),
            }
        }
    }

    fn compiler(&mut self) -> &mut Compiler {
        self.compiler.get_or_insert_with(|| Compiler::new(self.limits))
    }

    fn show_table(&mut self) {
        let table = self.catalogue.table(1);
        for problem in self.catalogue.problems() {
            writeln!(self.output, "  problem {problem}").unwrap();
        }
        for (name, entry) in table.services.iter() {
            let out = &mut self.output;
            write!(out, "  {name} {}", entry.kind).unwrap();
            if entry.headless {
                write!(out, " headless").unwrap();
            }
            if let Some(target) = &entry.external_name {
                write!(out, " -> {target}").unwrap();
            }
            for ip in &entry.cluster_ips {
                write!(out, " {ip}").unwrap();
            }
            for port in &entry.ports {
                let name = port.name.as_deref().unwrap_or("");
                write!(out, " {name}:{}/{}", port.port, port.protocol.as_lower()).unwrap();
                if let Some(node_port) = port.node_port {
                    write!(out, " node:{node_port}").unwrap();
                }
            }
            if let Some(port) = entry.health_check_node_port {
                let local = entry.ready_local(&self.view.name);
                write!(out, " health:{port}={}", if local > 0 { 200 } else { 503 }).unwrap();
            }
            writeln!(out).unwrap();
            for backend in &entry.backends {
                let ports = backend.ports.iter();
                let ports: Vec<String> = ports
                    .map(|port| format!("{}:{}", port.name.as_deref().unwrap_or(""), port.port))
                    .collect();
                let (address, verdict) = (backend.address, backend.verdict);
                write!(out, "    {address} {} {} ({})", ports.join(","), verdict.state, verdict.source)
                    .unwrap();
                let hints = backend.hints.as_deref().cloned().unwrap_or_default();
                let hints = [hints.nodes.join("+"), hints.zones.join("+")];
                let hints = hints.map(|hint| Some(hint).filter(|hint| !hint.is_empty()));
                for (what, value) in [
                    ("hostname", &backend.hostname),
                    ("node", &backend.node),
                    ("zone", &backend.zone),
                    ("pod", &backend.pod),
                    ("for-nodes", &hints[0]),
                    ("for-zones", &hints[1]),
                ] {
                    if let Some(value) = value {
                        write!(out, " {what}={value}").unwrap();
                    }
                }
                writeln!(out).unwrap();
            }
        }
    }

    fn compile(&mut self, now_ms: u64, detailed: bool) {
        let table = self.catalogue.table(1);
        let (changed, view) = (std::mem::take(&mut self.changed), self.view.clone());
        let writes = self.compiler().update(&table, &view, Some(&changed), now_ms);
        self.image.apply(&writes);
        self.image.names = self.compiler().names();
        if detailed {
            self.show_maps();
        } else {
            for line in self.image.dump().lines() {
                writeln!(self.output, "  {line}").unwrap();
            }
        }
        let compiler = self.compiler.as_ref().unwrap();
        let out = &mut self.output;
        for (service_id, backend_id) in &writes.left {
            let backend = compiler.backend(*backend_id).unwrap();
            let standing = compiler.standing(*service_id, *backend_id);
            if detailed {
                writeln!(out, "  left by {service_id}: {backend}: {standing:?}").unwrap();
            }
        }
        for problem in self.catalogue.problems().into_iter().chain(compiler.problems()) {
            writeln!(out, "  problem {problem}").unwrap();
        }
        for error in compiler.capacity() {
            writeln!(out, "  capacity {error}").unwrap();
        }
    }

    fn show_maps(&mut self) {
        let (image, out) = (&self.image, &mut self.output);
        let mut resting: BTreeSet<u32> = image.backends.keys().copied().collect();
        for (key, value) in &image.services {
            let name = image.names.get(&value.service_id).map_or("?", String::as_str);
            write!(out, "  {key} id={} {name}", value.service_id).unwrap();
            match value.slot_count {
                0 if value.flags & SERVICE_DROP_EMPTY != 0 => write!(out, " drop").unwrap(),
                0 => write!(out, " refuse").unwrap(),
                _ => {}
            }
            for slot in value.slot_offset..value.slot_offset + value.slot_count {
                let id = image.slots[&slot];
                write!(out, " [{slot}]={id}={}", image.backends[&id]).unwrap();
                resting.remove(&id);
            }
            writeln!(out).unwrap();
        }
        for id in resting {
            writeln!(out, "  unused backend {id}={}", image.backends[&id]).unwrap();
        }
    }

    fn explain(&mut self, name: &str, client: Option<&str>) {
        let table = self.catalogue.table(1);
        let client = client.map(|client| client.parse().unwrap());
        for found in explain(&table, &self.view, &parsed(name), client) {
            let out = &mut self.output;
            writeln!(out, "  {} ({}): {}: {}", found.frontend, found.asked_by, found.verdict, found.reason)
                .unwrap();
            for backend in found.backends {
                let here = if backend.local { ", here" } else { "" };
                writeln!(out, "    {} {:.1} %{here}", backend.backend, backend.share).unwrap();
            }
        }
    }
}
