// SPDX-License-Identifier: Apache-2.0
//! The rows and the run.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::pairs::{Bound, Row, Terms, measure};
use crate::worker::{self, Place};
use crate::{bare, cni_rows, dns, lab, say, services, tunnel};

/// The port of the answering server; the stream's sink is the one above it.
const PORT: u16 = 7000;
/// The service's address: in the static band, so that no other service of the run takes it.
const VIP: &str = "10.96.0.100";
/// Round trips of one latency sample.
const REQUESTS: u64 = 20_000;
/// Connections of one sample.
const CONNECTS: u64 = 5_000;
/// Services of the large row.
const MANY: usize = 10_000;

/// A round of the tunnels or services is long; ten pairs elsewhere make five of them, the fewest for a median that counts.
const PAIRS_PER_ROUND: usize = 2;

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub only: Option<String>,
    pub pairs: usize,
    pub secs: u64,
    /// The most services of the service rows.
    pub services: usize,
    pub report: PathBuf,
}

const ROWS: [&str; 5] =
    ["vxlan-throughput", "vxlan-latency", "vip-connect-1", "cni-add", "vip-connect-10000"];

/// Builds both sides, measures the wanted rows, prints the table, writes the report.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let asked = |row: &&str| plan.only.as_ref().is_none_or(|only| row.contains(only.as_str()));
    let wanted: Vec<&str> = ROWS.into_iter().filter(asked).collect();
    let of_services: Vec<&str> = services::ROWS.into_iter().filter(asked).collect();
    let of_names: Vec<&str> = dns::ROWS.into_iter().filter(asked).collect();
    let tunnels: Vec<&str> = tunnel::ROWS.into_iter().filter(asked).collect();
    anyhow::ensure!(
        !wanted.is_empty() || !of_services.is_empty() || !of_names.is_empty() || !tunnels.is_empty(),
        "no such row; there are: {}",
        ROWS.into_iter()
            .chain(services::ROWS)
            .chain(dns::ROWS)
            .chain(tunnel::ROWS)
            .collect::<Vec<_>>()
            .join(", ")
    );
    let mut rows = Vec::new();
    let mut figures = Figures::default();
    if !wanted.is_empty() {
        rows.extend(of_the_lab(plan, &wanted)?);
    }
    let rounds = plan.pairs.div_ceil(PAIRS_PER_ROUND);
    if !of_services.is_empty() {
        let (secs, services) = (plan.secs, plan.services);
        let (more, all) = services::run(&services::Plan { rows: of_services, rounds, secs, services })?;
        rows.extend(more);
        figures.services = all;
    }
    if !of_names.is_empty() {
        let (secs, services) = (plan.secs, plan.services);
        let (more, all) = dns::run(&dns::Plan { rows: of_names, rounds, secs, services })?;
        rows.extend(more);
        figures.names = all;
    }
    if !tunnels.is_empty() {
        let (whole, secs) = (plan.only.is_some(), plan.secs);
        let (more, all) = tunnel::run(&tunnel::Plan { rows: tunnels, whole, rounds, secs })?;
        rows.extend(more);
        figures.tunnels = all;
    }
    publish(plan, &rows, &figures)?;
    let failed = figures.services["failed"].as_array().map(Vec::as_slice).unwrap_or_default();
    anyhow::ensure!(failed.is_empty(), "not all of it could be measured: {failed:?}");
    Ok(())
}

/// All figures of the rows whose ways are more than two.
#[derive(Debug, Default)]
struct Figures {
    services: serde_json::Value,
    names: serde_json::Value,
    tunnels: serde_json::Value,
}

/// Weft in a lab against the bare paths.
fn of_the_lab(plan: &Plan, wanted: &[&'static str]) -> Result<Vec<Row>> {
    bare::create()?;
    lab::VXLAN.up()?;
    // p1 and p3 share node n1, p2 is on n2: as in the baseline.
    let (_client, far, near) = (
        lab::VXLAN.pod("n1", "p1", "client")?,
        lab::VXLAN.pod("n2", "p2", "far")?,
        lab::VXLAN.pod("n1", "p3", "near")?,
    );
    let bare_ip = |i: usize| -> Result<IpAddr> { Ok(bare::PODS[i].2.parse()?) };
    for (place, ip) in [(Place::Pod(lab::VXLAN, "p2"), far), (Place::Pod(lab::VXLAN, "p3"), near)] {
        place.server(ip, PORT)?;
    }
    for i in [1, 2] {
        Place::Bare(bare::PODS[i].0.to_owned()).server(bare_ip(i)?, PORT)?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let (weft, direct) = (Place::Pod(lab::VXLAN, "p1"), Place::Bare(bare::PODS[0].0.to_owned()));

    let mut rows = Vec::new();
    for &name in wanted {
        say(&format!("measuring {name} ({} pairs)", plan.pairs));
        if name == "cni-add" {
            rows.extend(cni_rows::run(plan.pairs)?);
            continue;
        }
        rows.push(match name {
            "vxlan-throughput" => {
                let port = PORT + 1;
                let pairs = measure(
                    plan.pairs,
                    || Ok(weft.client("stream", SocketAddr::new(far, port), plan.secs)?.bits_per_sec / 1e6),
                    || {
                        Ok(direct
                            .client("stream", SocketAddr::new(bare_ip(1)?, port), plan.secs)?
                            .bits_per_sec
                            / 1e6)
                    },
                )?;
                Row::new(name, VXLAN_THROUGHPUT, pairs)
            }
            "vxlan-latency" => {
                let pairs = measure(
                    plan.pairs,
                    || Ok(weft.client("requests", SocketAddr::new(far, PORT), REQUESTS)?.p50_us),
                    || Ok(direct.client("requests", SocketAddr::new(bare_ip(1)?, PORT), REQUESTS)?.p50_us),
                )?;
                Row::new(name, VXLAN_LATENCY, pairs)
            }
            _ => {
                lab::VXLAN.apply(&the_service(near))?;
                if name == "vip-connect-10000" {
                    lab::VXLAN.apply(&other_services(MANY - 1)).context("installing the other services")?;
                }
                let vip: IpAddr = VIP.parse()?;
                let pairs = measure(
                    plan.pairs,
                    || Ok(weft.client("connects", SocketAddr::new(vip, 80), CONNECTS)?.p50_us),
                    || Ok(direct.client("connects", SocketAddr::new(bare_ip(2)?, PORT), CONNECTS)?.p50_us),
                )?;
                Row::new(name, VIP_CONNECT, pairs)
            }
        });
    }
    worker::end_all();
    Ok(rows)
}

const VXLAN_THROUGHPUT: Terms = Terms {
    unit: "Mbit/s",
    weft: "weft vxlan",
    baseline: "kernel vxlan",
    bound: Bound::AtLeast(0.95),
    by_best: false,
};
const VXLAN_LATENCY: Terms = Terms {
    unit: "µs p50",
    weft: "weft vxlan",
    baseline: "kernel vxlan",
    // 0.95 of the bare VXLAN's speed: at most 1/0.95 of its time.
    bound: Bound::AtMost(1.05),
    by_best: false,
};
const VIP_CONNECT: Terms = Terms {
    unit: "µs p50",
    weft: "weft VIP",
    baseline: "direct veth",
    bound: Bound::AtMost(1.10),
    by_best: true,
};

/// A service whose only backend is the pod on the client's node.
fn the_service(backend: IpAddr) -> String {
    service("bench", VIP, PORT, &[backend.to_string()])
}

/// Others, two backends each, that nobody calls.
fn other_services(count: usize) -> String {
    let mut text = String::new();
    for i in 0..count {
        let (high, low) = (i / 250, i % 250);
        let vip = format!("10.96.{}.{}", 10 + high, low + 1);
        let backends =
            [format!("10.244.{}.{}", 128 + high, low + 1), format!("10.244.{}.{}", 192 + high % 64, low + 1)];
        text.push_str(&service(&format!("other-{i}"), &vip, 8080, &backends));
    }
    text
}

fn service(name: &str, vip: &str, target: u16, backends: &[String]) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {vip}, ports: [{{name: main, port: 80, targetPort: {target}}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-bench, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: main, port: {target}, protocol: TCP}}]\nendpoints:\n"
    );
    for backend in backends {
        let _ = writeln!(text, "- {{addresses: [{backend}]}}");
    }
    text
}

fn publish(plan: &Plan, rows: &[Row], figures: &Figures) -> Result<()> {
    let machine = json!({
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "congestion_control": std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default().trim(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "offloads": "as the kernel gives them to a veth, the same on both sides; those of tunnels: above each table",
    });
    say(&format!("\nmachine: {machine}\n"));
    for row in rows {
        say(&row.text());
    }
    if let Some(dir) = plan.report.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let Figures { services, names, tunnels } = figures;
    let report =
        json!({ "machine": machine, "rows": rows, "services": services, "names": names, "tunnels": tunnels });
    std::fs::write(&plan.report, serde_json::to_vec_pretty(&report)?)?;
    say(&format!("report: {}", plan.report.display()));
    Ok(())
}
