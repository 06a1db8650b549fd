// SPDX-License-Identifier: Apache-2.0
//! What the demo plays on: three clients and three backends, spread over the nodes, and two services over the backends.

use crate::interrupt::wait_until;
use crate::lab::Lab;
use crate::members::Pod;
use crate::pod::PodSpec;
use crate::running::{Capture, Running};
use crate::workers::probe::ProbeReport;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// All nodes there can be, in their order.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The clients, one on each node, or all on the only one.
pub(super) const CLIENTS: [&str; 3] = ["c1", "c2", "c3"];
/// The backends, each where the client of its number is.
pub(super) const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];
/// The backends' TCP port.
pub(super) const TCP_PORT: u16 = 8080;
/// The backends' UDP port.
const UDP_PORT: u16 = 8081;
/// Change is expected within milliseconds; this much only a broken node needs.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(8);
/// What must never be seen bare on the underlay: the addresses of pods and of services.
pub(super) const INNER: &str = "net 10.244.0.0/16 or net 10.96.0.0/16";

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {app: web}
  ports:
  - {name: http, protocol: TCP, port: 80, targetPort: 8080}
  - {name: who, protocol: UDP, port: 81, targetPort: 8081}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: default}
spec:
  clusterIP: None
  selector: {app: web}
  ports:
  - {name: http, protocol: TCP, port: 80, targetPort: 8080}
";

/// The stage.
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    /// The nodes.
    pub(super) nodes: &'static [&'static str],
    pub(super) pods: BTreeMap<&'static str, Pod>,
    /// The ClusterIP of `web`.
    pub(super) vip: IpAddr,
    /// The transfer that outlives a netd.
    pub(super) transfer: Option<Running>,
    servers: Vec<Running>,
    bare: Option<Capture>,
}

impl<'a> Stage<'a> {
    /// Sets the stage in a lab of one node or three.
    pub(super) fn set(lab: &'a Lab) -> Result<Stage<'a>> {
        let nodes = &NODES[..lab.state()?.nodes.len().min(NODES.len())];
        let bare = lab.capture(INNER)?;
        let mut pods = BTreeMap::new();
        let mut servers = Vec::new();
        for ((node, client), backend) in nodes.iter().cycle().zip(CLIENTS).zip(BACKENDS) {
            pods.insert(client, lab.pod_add(&PodSpec::new(node, client).label("app", "client"))?);
            pods.insert(backend, lab.pod_add(&PodSpec::new(node, backend).label("app", "web"))?);
            servers.push(lab.serve(backend, backend, &[TCP_PORT], &[UDP_PORT])?);
        }
        let reply = lab.apply(SERVICES)?;
        let vip =
            reply.results.iter().find_map(|result| result.cluster_ip).context("web got no ClusterIP")?;
        let stage = Stage { lab, nodes, pods, vip, transfer: None, servers, bare: Some(bare) };
        stage.wait_backends(3)?;
        Ok(stage)
    }

    /// The address of a pod.
    pub(super) fn ip(&self, pod: &str) -> Result<IpAddr> {
        let pod = self.pods.get(pod).with_context(|| format!("no pod {pod} on the stage"))?;
        pod.ips.first().copied().context("a pod without address")
    }

    /// The node of a pod.
    pub(super) fn node_of(&self, pod: &str) -> Result<&str> {
        let pod = self.pods.get(pod).with_context(|| format!("no pod {pod} on the stage"))?;
        Ok(&pod.node)
    }

    /// `address:port` of a pod.
    pub(super) fn at(&self, pod: &str, port: u16) -> Result<String> {
        Ok(SocketAddr::new(self.ip(pod)?, port).to_string())
    }

    /// `VIP:port` of the service.
    pub(super) fn vip(&self, port: u16) -> String {
        SocketAddr::new(self.vip, port).to_string()
    }

    /// Connects `count` times, all of which must be answered.
    pub(super) fn connect(&self, from: &str, to: &str, count: u32) -> Result<ProbeReport> {
        self.probe(from, &["--to", to, "--count", &count.to_string()])
    }

    /// Probes, and every attempt must be answered.
    pub(super) fn probe(&self, from: &str, args: &[&str]) -> Result<ProbeReport> {
        let report = self.lab.probe(from, args)?;
        ensure!(
            report.all_ok(),
            "{from} to {}: {} of {} answered ({})",
            report.to,
            report.ok,
            report.attempts,
            report.failures()
        );
        Ok(report)
    }

    /// Waits until every node sends new connections to exactly `count` backends of `web`; how long it took.
    pub(super) fn wait_backends(&self, count: usize) -> Result<Duration> {
        let started = Instant::now();
        let mut seen = String::new();
        let done = wait_until(SETTLE_LIMIT, || {
            let mut all = Vec::new();
            for node in self.nodes {
                let detail = self.lab.ask(node, async |client| client.service("default", "web").await)?;
                // Both ports have the same backends, so each counts once per pod.
                let up = detail.backends.iter().filter(|b| b.state == "up" && b.protocol == "TCP").count();
                all.push(up);
            }
            seen = format!("{all:?}");
            Ok(all.iter().all(|up| *up == count))
        })?;
        if !done {
            bail!("the nodes know {seen} backends of web after {SETTLE_LIMIT:?}, not {count}");
        }
        Ok(started.elapsed())
    }

    /// Ends the witness that ran from the first pod on.
    pub(super) fn bare_packets(&mut self) -> Result<String> {
        let packets = self.bare.take().context("the capture is over already")?.stop()?;
        let bare = packets.count("")?;
        ensure!(bare == 0, "{bare} packets:\n{}", packets.print("")?);
        Ok("0 packets in tcpdump's capture of the bridge".into())
    }

    /// Ends a backend's server.
    pub(super) fn end_server(&mut self, backend: &str) {
        if let Some(index) = BACKENDS.iter().position(|name| *name == backend) {
            // The pod's processes are dead already; this only reaps ours.
            let _ = self.servers[index].wait(Duration::from_secs(1));
        }
    }
}

/// All keys of a count must be this one.
pub(super) fn only(map: &BTreeMap<String, u32>, key: &str, what: &str) -> Result<()> {
    ensure!(map.len() == 1 && map.contains_key(key), "{what}: {map:?}, not only {key}");
    Ok(())
}

/// Adds up the answers of several probes.
pub(super) fn total<'r>(reports: impl IntoIterator<Item = &'r ProbeReport>) -> ProbeReport {
    let mut sum = ProbeReport::default();
    for report in reports {
        sum.attempts += report.attempts;
        sum.ok += report.ok;
        for (name, count) in &report.servers {
            *sum.servers.entry(name.clone()).or_default() += count;
        }
        sum.max_us = sum.max_us.max(report.max_us);
    }
    sum
}
