// SPDX-License-Identifier: Apache-2.0
//! The stage of the stories about services: a lab with both families, backends, and clients of each path.
//!
//! Clients: `c…` are pods whose sockets the programs see (socket path), `g…` pods outside of the control group (packet path), a
//! node is a process of the host, `outside` is the world.

use crate::lab_with;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use weft_lab::{
    ApplyReply, ApplyResult, Families, Lab, Pod, PodSpec, ProbeOptions, ProbeReport, Running, ServiceDetail,
    UpOptions, in_netns, patient, probe,
};

/// Where backends listen.
pub(crate) const TCP: u16 = 8080;
pub(crate) const UDP: u16 = 8081;
/// Each service's port, the same number for both protocols.
pub(crate) const PORT: u16 = 80;
/// The ways to ask, as arguments of a probe.
pub(crate) const WAYS: [&[&str]; 3] = [&[], &["--udp"], &["--udp", "--connected"]];
/// What a node that is told of a change by somebody else's objects needs at most.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long an answer may take: no promise, only that a busy machine is none of the product's faults.
const PATIENCE: &str = "10s";
/// For how long nobody is to answer.
const SILENCE: &str = "400ms";
/// A client that keeps its socket runs until the story ends it.
pub(crate) const ENDLESS: &str = "3600s";
/// A client that asks many times a second prints a line within this.
pub(crate) const LINE: Duration = Duration::from_secs(20);

/// A lab and what runs in it.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    servers: BTreeMap<String, Running>,
}

impl Stage {
    /// One node without etcd: comes up fast.
    pub(crate) fn alone(story: &str, netd: &[&str]) -> Result<Option<Stage>> {
        Stage::with(UpOptions::alone(&Lab::unique_name(story)), netd)
    }

    /// Nodes with an overlay.
    pub(crate) fn of(story: &str, nodes: u16, overlay: &str, netd: &[&str]) -> Result<Option<Stage>> {
        let options = UpOptions::new(&Lab::unique_name(story));
        Stage::with(UpOptions { nodes, overlay: overlay.into(), ..options }, netd)
    }

    fn with(options: UpOptions, netd: &[&str]) -> Result<Option<Stage>> {
        let netd_args = netd.iter().map(ToString::to_string).collect();
        let lab = lab_with(UpOptions { families: Families::Dual, netd_args, ..options })?;
        Ok(lab.map(|lab| Stage { lab, servers: BTreeMap::new() }))
    }

    /// A pod with a server on [`TCP`] and [`UDP`], labelled `app`.
    pub(crate) fn backend(&mut self, node: &str, name: &str, app: &str) -> Result<Pod> {
        let pod = self.lab.pod_add(&PodSpec::new(node, name).label("app", app))?;
        self.serve(name, &[TCP], &[UDP])?;
        Ok(pod)
    }

    /// A server in a pod or node.
    pub(crate) fn serve(&mut self, name: &str, tcp: &[u16], udp: &[u16]) -> Result<()> {
        let running = self.lab.serve(name, name, tcp, udp)?;
        self.servers.insert(name.into(), running);
        Ok(())
    }

    /// Ends a server.
    pub(crate) fn silence(&mut self, name: &str) {
        self.servers.remove(name);
    }

    /// A client of the socket path.
    pub(crate) fn client(&self, node: &str, name: &str) -> Result<Pod> {
        self.lab.pod_add(&PodSpec::new(node, name))
    }

    /// A client of the packet path.
    pub(crate) fn guest(&self, node: &str, name: &str) -> Result<Pod> {
        self.lab.pod_add(&PodSpec::new(node, name).outside_cgroup())
    }

    /// Applies objects, and waits until every node has them in its maps.
    pub(crate) fn put(&self, objects: &[Value]) -> Result<ApplyReply> {
        self.lab.apply(&objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n"))
    }

    /// Applies one service.
    pub(crate) fn service(&self, service: &Value) -> Result<Given> {
        let reply = self.put(std::slice::from_ref(service))?;
        Ok(Given(reply.results.into_iter().next().context("an answer about nothing")?))
    }

    /// Deletes an object, and waits until every node has done so.
    pub(crate) fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.lab.delete(kind, name)
    }

    /// A node's own view of a service.
    pub(crate) fn detail(&self, node: &str, name: &str) -> Result<ServiceDetail> {
        self.lab.ask(node, async |client| client.service("default", name).await)
    }

    /// A pod's address in a family.
    pub(crate) fn ip(&self, pod: &str, v6: bool) -> Result<IpAddr> {
        let ips = self.lab.pod(pod)?.ips;
        ips.into_iter().find(|ip| ip.is_ipv6() == v6).with_context(|| format!("{pod} has no such address"))
    }

    /// A node's underlay address in a family.
    pub(crate) fn node_ip(&self, node: &str, v6: bool) -> Result<IpAddr> {
        let state = self.lab.state()?;
        let node = state.node(node)?;
        Ok(if v6 { node.underlay_ip6.context("no IPv6")?.into() } else { node.underlay_ip.into() })
    }

    /// The outside host's address in a family.
    pub(crate) fn outside_ip(&self, v6: bool) -> Result<IpAddr> {
        let outside = self.lab.state()?.outside;
        Ok(if v6 { outside.ip6.context("no IPv6")?.into() } else { outside.ip.into() })
    }

    /// The outside host sends packets to an address by a node.
    pub(crate) fn route(&self, ip: IpAddr, node: &str) -> Result<()> {
        let via = self.node_ip(node, ip.is_ipv6())?.to_string();
        let to = if ip.is_ipv6() { format!("{ip}/128") } else { format!("{ip}/32") };
        let family = if ip.is_ipv6() { "-6" } else { "-4" };
        self.lab
            .exec("outside", &["ip", family, "route", "replace", &to, "via", &via])?
            .text("ip route")
            .map(drop)
    }

    /// Two slices, one of each family, for a service without a selector: backends by pod, each with its conditions (and, where
    /// they have them, `hints` and other fields). Ports as in [`spec`].
    pub(crate) fn slices(&self, service: &str, part: &str, backends: &[(&str, Value)]) -> Result<Vec<Value>> {
        [false, true]
            .into_iter()
            .map(|v6| {
                let endpoints: Result<Vec<_>> = backends
                    .iter()
                    .map(|(name, conditions)| {
                        let pod = self.lab.pod(name)?;
                        let address = self.ip(name, v6)?.to_string();
                        let mut endpoint = json!({
                            "addresses": [address], "nodeName": pod.node,
                            "targetRef": {"kind": "Pod", "namespace": "default", "name": name},
                        });
                        for field in ["hints", "zone", "nodeName", "conditions"] {
                            if let Some(value) = conditions.get(field) {
                                endpoint[field] = value.clone();
                            }
                        }
                        Ok(endpoint)
                    })
                    .collect();
                Ok(slice(service, part, v6, endpoints?))
            })
            .collect()
    }

    /// Probes of the packet path from any place: sockets that no control group of ours has made.
    pub(crate) fn packets(
        &self,
        from: &str,
        to: SocketAddr,
        count: u32,
        how: &[&str],
    ) -> Result<ProbeReport> {
        let options = ProbeOptions {
            to: to.to_string(),
            count,
            udp: how.contains(&"--udp"),
            connected: how.contains(&"--connected"),
            limit: patient(Duration::from_secs(10)),
            interval: Duration::ZERO,
        };
        in_netns(&self.lab.pod(from)?.netns, || Ok(probe(&options)))
    }

    /// Probes from a pod, a node or `outside`.
    pub(crate) fn ask(&self, from: &str, to: SocketAddr, count: u32, how: &[&str]) -> Result<ProbeReport> {
        let (to, count) = (to.to_string(), count.to_string());
        let limit: &[&str] = if how.contains(&"--timeout") { &[] } else { &["--timeout", PATIENCE] };
        self.lab.probe(from, &[&["--to", &to, "--count", &count], limit, how].concat())
    }

    /// Each of `wanted` answers, and nobody else. As many attempts as make a mistake about that rarer than one in a million.
    pub(crate) fn reaches(&self, from: &str, to: SocketAddr, how: &[&str], wanted: &[&str]) -> Result<()> {
        let count = match wanted.len() {
            0 | 1 => 4,
            2 => 22,
            backends => 40 * backends as u32 / 2,
        };
        let report = self.ask(from, to, count, how)?;
        ensure!(report.all_ok(), "{from} to {to} {how:?}: {} of {count}, {}", report.ok, report.failures());
        let found: BTreeSet<_> = report.servers.keys().map(String::as_str).collect();
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        ensure!(found == wanted, "{from} to {to} {how:?}: {} instead of {wanted:?}", report.spread());
        let peers: Vec<_> = report.peers.keys().collect();
        ensure!(peers == [&to.to_string()], "{from} to {to} {how:?}: the peer is {peers:?}");
        Ok(())
    }

    /// The same over TCP and over datagrams of both kinds.
    pub(crate) fn reaches_all_ways(&self, from: &str, to: SocketAddr, wanted: &[&str]) -> Result<()> {
        WAYS.iter().try_for_each(|how| self.reaches(from, to, how, wanted))
    }

    /// Nobody answers, and the client hears so at once.
    pub(crate) fn refused(&self, from: &str, to: SocketAddr) -> Result<()> {
        for how in [&[][..], &["--udp", "--connected"]] {
            self.fails(from, to, how, PATIENCE, &["refused"])?;
        }
        Ok(())
    }

    /// Nobody answers, and nobody says so: a packet is dropped, a socket has no route.
    pub(crate) fn dropped(&self, from: &str, to: SocketAddr) -> Result<()> {
        for how in [&[][..], &["--udp", "--connected"]] {
            self.fails(from, to, how, SILENCE, &["timeout", "unreachable"])?;
        }
        Ok(())
    }

    fn fails(&self, from: &str, to: SocketAddr, how: &[&str], limit: &str, kinds: &[&str]) -> Result<()> {
        let report = self.ask(from, to, 2, &[how, &["--timeout", limit]].concat())?;
        let as_wanted = report.errors.keys().all(|kind| kinds.contains(&kind.as_str()));
        ensure!(
            report.ok == 0 && as_wanted,
            "{from} to {to} {how:?}: {kinds:?} expected; answers: {}, failures: {}",
            report.spread(),
            report.failures()
        );
        Ok(())
    }
}

/// What a service was given.
pub(crate) struct Given(pub(crate) ApplyResult);

impl Given {
    /// Its ClusterIPs, with [`PORT`].
    pub(crate) fn vips(&self) -> Vec<SocketAddr> {
        self.0.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect()
    }

    /// Its ClusterIP of a family.
    pub(crate) fn vip(&self, v6: bool) -> Result<SocketAddr> {
        let found = self.vips().into_iter().find(|vip| vip.is_ipv6() == v6);
        found.with_context(|| format!("no such address: {:?}", self.0.cluster_ips))
    }

    /// The node port of a protocol.
    pub(crate) fn node_port(&self, protocol: &str) -> Result<u16> {
        let port = self.0.node_ports.iter().find(|port| port.protocol == protocol);
        port.map(|port| port.node_port).with_context(|| format!("{:?}", self.0.node_ports))
    }
}

/// A service of this spec.
pub(crate) fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Both families, [`PORT`] over TCP and UDP to [`TCP`] and [`UDP`], and `more`.
pub(crate) fn spec(more: Value) -> Value {
    let mut spec = json!({
        "ipFamilyPolicy": "RequireDualStack",
        "ports": [
            {"name": "http", "port": PORT, "targetPort": TCP},
            {"name": "dns", "protocol": "UDP", "port": PORT, "targetPort": UDP},
        ],
    });
    if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
        spec.extend(more);
    }
    spec
}

/// A service with an annotation.
pub(crate) fn annotated(mut service: Value, key: &str, value: &str) -> Value {
    service["metadata"]["annotations"][key] = value.into();
    service
}

/// A service with addresses that a load balancer leads to the nodes.
pub(crate) fn balanced(mut service: Value, ips: &[IpAddr]) -> Value {
    let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    service
}

/// A slice of one family, with the ports of [`spec`].
pub(crate) fn slice(service: &str, part: &str, v6: bool, endpoints: Vec<Value>) -> Value {
    let family = if v6 { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{part}-{}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [
            {"name": "http", "port": TCP, "protocol": "TCP"}, {"name": "dns", "port": UDP, "protocol": "UDP"},
        ],
    })
}

/// Conditions of an endpoint.
pub(crate) fn conditions(ready: bool, serving: bool, terminating: bool) -> Value {
    json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

/// Documentation addresses (RFC 5737, RFC 3849) for what a load balancer or somebody else gives.
pub(crate) fn documented(last: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(203, 0, 113, last).into(), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last.into()).into()]
}

/// A step of a story: said when it is kept, named when it is not.
pub(crate) fn checked(what: &str, kept: Result<()>) -> Result<()> {
    if kept.is_ok() {
        println!("kept: {what}");
    }
    kept.with_context(|| format!("NOT KEPT: {what}"))
}

/// Fails unless `error` says all of `words`.
pub(crate) fn refused_with(reply: Result<ApplyReply>, words: &[&str]) -> Result<()> {
    match reply {
        Ok(reply) => bail!("accepted: {:?}", reply.results),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(words.iter().all(|word| text.contains(word)), "{words:?} expected: {text}");
            Ok(())
        }
    }
}
