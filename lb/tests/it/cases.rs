// SPDX-License-Identifier: Apache-2.0
//! Runs `tests/cases/lb/*.txt`: what happens above the line of `=`, what comes of it below.
//! `WEFT_UPDATE=1` rewrites the lower halves.
//!
//! Steps (`> STEP`, manifests on the lines below it):
//! `apply` objects; `delete KIND NS/NAME`; `table` shows backends and verdicts; `limits services=N backends=N slots=N`;
//! `compile NOW_MS` shows the image; `written NOW_MS`; `restart` adopts the last image in a new compiler.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use lb::{Compiler, EndpointSlice, Image, Limits, Object, Service, ServiceTable, parse_object};

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
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    compiler: Option<Compiler>,
    limits: Limits,
    image: Image,
    output: String,
}

fn run(story: &str) -> String {
    let mut world = World::default();
    let mut steps = story.split("\n> ");
    steps.next(); // the explanation above the first step
    for step in steps {
        let (command, body) = step.split_once('\n').unwrap_or((step, ""));
        let words: Vec<&str> = command.split_whitespace().collect();
        let out = &mut world.output;
        writeln!(out, "> {}", words.join(" ")).unwrap();
        match words[..] {
            ["apply"] => world.apply(body),
            ["compile", now] => world.compile(now.parse().unwrap()),
            ["delete", "EndpointSlice", name] => drop(world.slices.remove(name).unwrap()),
            ["delete", "Service", name] => drop(world.services.remove(name).unwrap()),
            ["limits", ..] => world.limit(&words[1..]),
            ["restart"] => {
                let image = world.image.clone();
                world.compiler().adopt(&image);
            }
            ["table"] => world.show_table(),
            ["written", now] => world.compiler().written(now.parse().unwrap()),
            _ => panic!("no such step: {command}"),
        }
    }
    world.output
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
                    match object {
                        Object::EndpointSlice(slice) => drop(self.slices.insert(name, slice)),
                        Object::Service(service) => drop(self.services.insert(name, service)),
                    }
                }
            }
        }
    }

    fn limit(&mut self, words: &[&str]) {
        for word in words {
            let (name, size) = word.split_once('=').unwrap();
            let size = size.parse().unwrap();
            match name {
                "backends" => self.limits.backends = size,
                "services" => self.limits.services = size,
                "slots" => self.limits.slots = size,
                _ => panic!("no such limit: {name}"),
            }
        }
    }

    fn compiler(&mut self) -> &mut Compiler {
        self.compiler.get_or_insert_with(|| Compiler::new(self.limits))
    }

    fn table(&mut self) -> ServiceTable {
        let (table, problems) = ServiceTable::build(1, self.services.values(), self.slices.values());
        for problem in problems {
            writeln!(self.output, "  problem {problem}").unwrap();
        }
        table
    }

    fn show_table(&mut self) {
        for (name, entry) in self.table().services {
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
            }
            writeln!(out).unwrap();
            for backend in &entry.backends {
                let ports = backend.ports.iter();
                let ports: Vec<String> = ports
                    .map(|port| format!("{}:{}", port.name.as_deref().unwrap_or(""), port.port))
                    .collect();
                let verdict = backend.verdict;
                write!(
                    out,
                    "    {} {} {} ({})",
                    backend.address,
                    ports.join(","),
                    verdict.state,
                    verdict.source
                )
                .unwrap();
                for (what, value) in
                    [("hostname", &backend.hostname), ("node", &backend.node), ("pod", &backend.pod)]
                {
                    if let Some(value) = value {
                        write!(out, " {what}={value}").unwrap();
                    }
                }
                writeln!(out).unwrap();
            }
        }
    }

    fn compile(&mut self, now_ms: u64) {
        let table = self.table();
        let outcome = self.compiler().compile(&table, now_ms);
        let (image, out) = (outcome.image, &mut self.output);
        let mut retired_slots = image.slots.clone();
        let mut retired_backends = image.backends.clone();
        for (key, value) in &image.services {
            let name = image.names.get(&value.service_id).map_or("?", String::as_str);
            write!(out, "  {key} id={} {name}", value.service_id).unwrap();
            if value.slot_count == 0 {
                write!(out, " refuse").unwrap();
            }
            for slot in value.slot_offset..value.slot_offset + value.slot_count {
                let id = image.slots[&slot];
                write!(out, " [{slot}]={id}={}", image.backends[&id]).unwrap();
                retired_slots.remove(&slot);
                retired_backends.remove(&id);
            }
            writeln!(out).unwrap();
        }
        if !retired_slots.is_empty() {
            writeln!(out, "  retired slots {:?}", retired_slots.keys().collect::<Vec<_>>()).unwrap();
        }
        for (id, backend) in retired_backends {
            writeln!(out, "  retired backend {id}={backend}").unwrap();
        }
        for problem in &outcome.problems {
            writeln!(out, "  problem {problem}").unwrap();
        }
        for error in &outcome.capacity {
            writeln!(out, "  capacity {error}").unwrap();
        }
        self.image = image;
    }
}
