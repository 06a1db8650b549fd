// SPDX-License-Identifier: Apache-2.0
//! Node ports asked from outside, with the backend on another node than the one asked: nftables with DNAT and masquerade on
//! the bare ground, Weft with SNAT, and Weft with direct server return, in turns.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};

use super::peers::OWN;
use super::rules;
use crate::lab::VXLAN as LAB;
use crate::pairs::Pair;
use crate::worker::Place;
use crate::{bare, netns, say};

/// The backends' port for several clients at once.
const PORT: u16 = 7000;
const SERVED: u16 = PORT + 3;
const NODE_PORTS: [u16; 3] = [30_080, 30_081, 30_082];
/// Connections of one sample, and clients at once: more would find masquerade's ports all in use.
const CONNECTS: u64 = 6_000;
const CLIENTS: u64 = 4;
/// The bare ground's outside host; node one is 192.0.2.1.
const OUTSIDE: &str = "192.0.2.254/24";
const ASKED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// How often the first connection is tried, a second each at most.
const FIRST_TRIES: usize = 20;

/// Connections in a second, one of each for each round.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(super) struct Figures {
    pub nftables: Vec<f64>,
    pub snat: Vec<f64>,
    pub dsr: Vec<f64>,
}

impl Figures {
    pub(super) fn pairs(ours: &[f64], theirs: &[f64]) -> Vec<Pair> {
        ours.iter().zip(theirs).map(|(ours, theirs)| Pair::new(*ours, *theirs)).collect()
    }
}

/// One of the three.
struct Way {
    name: &'static str,
    from: Place,
    to: SocketAddr,
}

impl Way {
    fn sample(&self) -> Result<f64> {
        let figures = self.from.client_with("rate", self.to, &[CONNECTS, CLIENTS]);
        Ok(figures.with_context(|| self.name.to_owned())?.connects_per_sec)
    }

    /// Handshakes with neighbours, programs that are still being attached: none of it belongs into a sample.
    fn first(&self) -> Result<()> {
        let mut last = None;
        for _ in 0..FIRST_TRIES {
            match self.from.client_with("rate", self.to, &[CLIENTS, CLIENTS]) {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        bail!("{}: no answer: {last:?}", self.name)
    }
}

/// Builds both grounds and measures.
pub(super) fn run(rounds: usize) -> Result<Figures> {
    let nftables = ground()?;
    let [snat, dsr] = weft()?;
    for way in [&nftables, &snat, &dsr] {
        way.first()?;
    }
    let mut figures = Figures::default();
    say(&format!("measuring service-nodeport ({rounds} rounds)"));
    for round in 0..rounds {
        // The one that begins moves on.
        for turn in 0..3 {
            match (turn + round) % 3 {
                0 => figures.nftables.push(nftables.sample()?),
                1 => figures.snat.push(snat.sample()?),
                _ => figures.dsr.push(dsr.sample()?),
            }
        }
    }
    Ok(figures)
}

/// The bare ground: an outside host on the underlay, a DNAT on the first node, the backend on the second.
fn ground() -> Result<Way> {
    bare::create()?;
    let outside = format!("{OWN}-outside");
    bare::ip(None, &["netns", "add", &outside])?;
    bare::ip(Some(&outside), &["link", "set", "lo", "up"])?;
    let veth = ["link", "add", "outside", "type", "veth", "peer", "name", "eth0", "netns", &outside];
    bare::ip(Some(bare::NET), &veth)?;
    bare::ip(Some(bare::NET), &["link", "set", "outside", "master", "br0", "up"])?;
    bare::ip(Some(&outside), &["addr", "add", OUTSIDE, "dev", "eth0"])?;
    bare::ip(Some(&outside), &["link", "set", "eth0", "up"])?;
    let backend: Ipv4Addr = bare::PODS[1].2.parse()?;
    let rules = rules::nftables_node_port(NODE_PORTS[0], backend, SERVED);
    let file = std::env::temp_dir().join(format!("weft-bench-nodeport-{}", std::process::id()));
    std::fs::write(&file, rules)?;
    let out = netns::command(bare::NODES[0], "nft").arg("-f").arg(&file).output();
    let _ = std::fs::remove_file(&file);
    let out = out.context("cannot run nft")?;
    if !out.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Place::Bare(bare::PODS[1].0.to_owned()).server(backend.into(), PORT)?;
    let to = SocketAddr::new(ASKED.into(), NODE_PORTS[0]);
    Ok(Way { name: "nftables DNAT and masquerade", from: Place::Bare(outside), to })
}

/// The lab: two services with the same backend.
fn weft() -> Result<[Way; 2]> {
    LAB.up()?;
    let backend = LAB.pod("n2", "p2", "far")?;
    Place::Pod(LAB, "p2").server(backend, PORT)?;
    LAB.apply(&[manifest("snat", NODE_PORTS[1], backend), manifest("dsr", NODE_PORTS[2], backend)].concat())?;
    let shown = LAB.show()?;
    let asked: IpAddr =
        shown["nodes"][0]["underlay_ip"].as_str().context("a node without an address")?.parse()?;
    let outside = shown["outside"]["netns"].as_str().context("a lab without an outside host")?.to_owned();
    let way = |name, port| Way { name, from: Place::Bare(outside.clone()), to: SocketAddr::new(asked, port) };
    Ok([way("Weft with SNAT", NODE_PORTS[1]), way("Weft with DSR", NODE_PORTS[2])])
}

fn manifest(forwarding: &str, node_port: u16, backend: IpAddr) -> String {
    format!(
        "---\n\
         apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: {forwarding}, annotations: {{weft.dev/forwarding: {forwarding}}}}}\n\
         spec: {{type: NodePort, ports: [{{name: main, port: 80, targetPort: {SERVED}, nodePort: {node_port}}}]}}\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata: {{name: {forwarding}-bench, labels: {{kubernetes.io/service-name: {forwarding}}}}}\n\
         addressType: IPv4\n\
         ports: [{{name: main, port: {SERVED}, protocol: TCP}}]\n\
         endpoints: [{{addresses: [{backend}], nodeName: n2}}]\n"
    )
}
