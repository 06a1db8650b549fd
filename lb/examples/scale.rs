// SPDX-License-Identifier: Apache-2.0
//! How long 50,000 Services with two backends each take from nothing, and one change among them:
//! `cargo run --release -p lb --example scale [SERVICES]`.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "what it is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use lb::{Catalogue, Compiler, EndpointSlice, Limits, NodeInfo, NodeView, Service, ServiceName};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(50_000), |text| text.parse())?;
    let mut objects = Vec::new();
    for number in 0..count {
        objects.push((service(number)?, slice(number, 2)?));
    }
    let nodes = BTreeMap::from([("n1".to_owned(), NodeInfo { index: 1 })]);
    let view = NodeView { name: "n1".to_owned(), nodes, ..NodeView::default() };

    let start = Instant::now();
    let mut catalogue = Catalogue::new();
    for (number, (service, slice)) in objects.into_iter().enumerate() {
        catalogue.set_service(Arc::new(service));
        catalogue.set_slice(&number.to_string(), Arc::new(slice));
    }
    let table = catalogue.table(1);
    println!("{count} services: table       {:>9.3} ms", ms(start));

    let start = Instant::now();
    let mut compiler = Compiler::new(Limits::default());
    let writes = compiler.update(&table, &view, None, 0);
    println!("{count} services: compile     {:>9.3} ms, {} changes of maps", ms(start), writes.len());
    println!("did not fit: {}", compiler.capacity().len());
    compiler.written(0);

    let (mut catalogue_ms, mut compile_ms) = (Vec::new(), Vec::new());
    for round in 0..200u32 {
        let number = round * 7_919 % count;
        let slice = Arc::new(slice(number, 1 + round % 3)?);
        let now_ms = u64::from(round) * 10;
        let start = Instant::now();
        let changed = catalogue.set_slice(&number.to_string(), slice);
        let table = catalogue.table(1);
        catalogue_ms.push(ms(start));
        let start = Instant::now();
        compiler.update(&table, &view, Some(&changed), now_ms);
        compiler.written(now_ms);
        compile_ms.push(ms(start));
    }
    for (what, mut samples) in [("table", catalogue_ms), ("compile", compile_ms)] {
        samples.sort_by(f64::total_cmp);
        let (median, worst) = (samples[samples.len() / 2], samples[samples.len() - 1]);
        println!("one change: {what:<12} median {median:.3} ms, worst {worst:.3} ms");
    }

    let start = Instant::now();
    let writes =
        compiler.update(&table, &view, Some(&BTreeSet::from([ServiceName::new("default", "none")])), 0);
    println!("nothing to do             {:>9.3} ms, empty: {}", ms(start), writes.is_empty());
    Ok(())
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0
}

fn service(number: u32) -> Result<Service, serde_json::Error> {
    let [_, a, b, c] = number.to_be_bytes();
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{number}"), "namespace": "default"},
        "spec": {"clusterIP": format!("10.{}.{b}.{c}", 96 + a), "ports": [{"port": 80, "targetPort": 8080}]},
    }))
}

fn slice(number: u32, backends: u32) -> Result<EndpointSlice, serde_json::Error> {
    let address = |index: u32| {
        let [_, a, b, c] = (number * 4 + index).to_be_bytes();
        json!({"addresses": [format!("10.{}.{b}.{c}", 128 + a)], "nodeName": "n1"})
    };
    serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("s{number}"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": format!("s{number}")},
        },
        "addressType": "IPv4",
        "endpoints": (0..backends).map(address).collect::<Vec<_>>(),
        "ports": [{"port": 8080}],
    }))
}
