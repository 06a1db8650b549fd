// SPDX-License-Identifier: Apache-2.0
//! Ports of the host that lead to a pod (capability portMappings), from everywhere a client can be.

use crate::{have, lab, lab_with};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use weft_lab::{Families, Lab, PodSpec, PortMapping, UpOptions, in_netns, wait_until};

const TCP: u16 = 8080;
const UDP: u16 = 8081;
/// Host ports on every address, and on one.
const ANY: u16 = 18080;
const ANY_UDP: u16 = 18081;
const ONE: u16 = 18082;
const LOOPBACK: u16 = 18083;
const SIX: u16 = 18084;
/// netd's own.
const METRICS: u16 = 9157;
const SOON: Duration = Duration::from_secs(5);
/// What the kernel says when nobody answers a datagram.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

#[test]
fn a_mapped_port_answers_everybody() -> Result<()> {
    let Some(lab) = dual("ports", 2)? else { return Ok(()) };
    let node = lab.state()?.node("n1")?.clone();
    let (v4, v6) = (IpAddr::from(node.underlay_ip), IpAddr::from(node.underlay_ip6.context("no IPv6")?));
    let on =
        |ip: IpAddr, host| PortMapping { host_ip: Some(ip), host, container: TCP, protocol: "tcp".into() };
    let mut spec = PodSpec::new("n1", "web").port(ANY, TCP, "tcp").port(ANY_UDP, UDP, "udp");
    spec.ports.extend([on(v4, ONE), on(v6, SIX), on(Ipv4Addr::LOCALHOST.into(), LOOPBACK)]);
    lab.pod_add(&spec)?;
    lab.pod_add(&PodSpec::new("n1", "near"))?;
    lab.pod_add(&PodSpec::new("n2", "far"))?;
    let server = lab.serve("web", "web", &[TCP], &[UDP])?;

    for from in ["outside", "n1", "n2", "near", "far", "web"] {
        for ip in [v4, v6] {
            answers(&lab, from, SocketAddr::new(ip, ANY), &[])?;
            answers(&lab, from, SocketAddr::new(ip, ANY_UDP), &["--udp"])?;
        }
        answers(&lab, from, SocketAddr::new(v4, ONE), &[])?;
        answers(&lab, from, SocketAddr::new(v6, SIX), &[])?;
    }
    // Loopback is the node's own, and on each node its own.
    for (ip, port) in
        [(Ipv4Addr::LOCALHOST, ANY), (Ipv4Addr::LOCALHOST, LOOPBACK), (Ipv4Addr::new(127, 0, 0, 9), ANY)]
    {
        answers(&lab, "n1", SocketAddr::new(ip.into(), port), &[])?;
        silent(&lab, "n2", SocketAddr::new(ip.into(), port))?;
    }
    answers(&lab, "n1", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ANY_UDP), &["--udp"])?;
    // A mapping on one address is none on the others.
    silent(&lab, "outside", SocketAddr::new(v6, ONE))?;
    silent(&lab, "outside", SocketAddr::new(v4, SIX))?;
    silent(&lab, "n1", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ONE))?;
    silent(&lab, "outside", SocketAddr::new(v4, LOOPBACK))?;
    // The client's address stays.
    let seen = lab.probe("outside", &["--to", &format!("{v4}:{ANY}"), "--count", "1"])?.seen_as;
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&lab.state()?.outside.ip.to_string()]);
    lab.pod_check("n1", "web")?;

    // The ports need no netd.
    lab.node_kill("n1")?;
    for from in ["outside", "n1", "near", "far", "web"] {
        answers(&lab, from, SocketAddr::new(v4, ANY), &[])?;
        answers(&lab, from, SocketAddr::new(v6, ANY_UDP), &["--udp"])?;
    }
    lab.node_start("n1")?;
    answers(&lab, "outside", SocketAddr::new(v4, ANY), &[])?;
    answers(&lab, "n1", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ANY), &[])?;
    drop(server);

    // With the pod they go.
    lab.pod_rm("n1", "web")?;
    let rules = lab.exec("n1", &["nft", "list", "table", "inet", "weft"])?.text("nft")?;
    for port in [ANY, ANY_UDP, ONE, LOOPBACK, SIX] {
        assert!(!rules.contains(&port.to_string()), "{port} is still there: {rules}");
    }
    silent(&lab, "outside", SocketAddr::new(v4, ANY))?;
    lab.down()
}

#[test]
fn a_port_that_is_taken_is_refused_with_the_name_of_the_pod_that_has_it() -> Result<()> {
    let Some(lab) = lab("portclash", 1)? else { return Ok(()) };
    let node = lab.state()?.node("n1")?.clone();
    lab.pod_add(&PodSpec::new("n1", "first").port(ANY, TCP, "tcp"))?;
    let addresses = addresses(&lab)?;
    let mut one = PodSpec::new("n1", "second");
    let host_ip = Some(node.underlay_ip.into());
    one.ports.push(PortMapping { host_ip, host: ANY, container: 1, protocol: "tcp".into() });
    for spec in [one, PodSpec::new("n1", "second").port(ANY, 1, "tcp")] {
        let error = format!("{:#}", lab.pod_add(&spec).map(|pod| pod.name).unwrap_err());
        let json = error.find('{').map(|start| &error[start..]).context(error.clone())?;
        let answer: Value =
            serde_json::Deserializer::from_str(json).into_iter().next().context("no answer")??;
        assert_eq!(answer["code"], 102, "{error}");
        let message = answer["msg"].as_str().unwrap_or_default();
        assert!(message.contains("default/first") && message.contains(&ANY.to_string()), "{message}");
    }
    assert_eq!(self::addresses(&lab)?, addresses, "the refused pod keeps an address");
    // Another transport, and the same port of another node, are other ports.
    lab.pod_add(&PodSpec::new("n1", "second").port(ANY, TCP, "udp"))?;
    lab.pod_rm("n1", "first")?;
    lab.pod_add(&PodSpec::new("n1", "third").port(ANY, TCP, "tcp"))?;
    let _server = lab.serve("third", "web", &[TCP], &[])?;
    answers(&lab, "outside", SocketAddr::new(node.underlay_ip.into(), ANY), &[])?;
    lab.down()
}

#[test]
fn a_port_that_the_host_listens_on_is_refused() -> Result<()> {
    let Some(lab) = lab("portown", 1)? else { return Ok(()) };
    let node = lab.state()?.node("n1")?.clone();
    let refused = |name: &str, host_ip: Option<IpAddr>, host: u16, protocol: &str| {
        let mut spec = PodSpec::new("n1", name);
        spec.ports.push(PortMapping { host_ip, host, container: TCP, protocol: protocol.into() });
        crate::ipam::refused(lab.pod_add(&spec))
    };
    let ready = || lab.exec("n1", &["curl", "-sS", "-m", "2", "http://127.0.0.1:9157/readyz"]);
    refused("metrics", None, METRICS, "tcp")?.says(102, &["9157/tcp", "metrics-listen"])?;
    refused("metrics", Some(Ipv4Addr::LOCALHOST.into()), METRICS, "tcp")?.says(102, &["9157/tcp"])?;
    ensure!(!have("curl", "portown") || ready()?.ok(), "netd's own port went: {:?}", ready()?);
    // Somebody else's, like sshd's.
    let server = lab.serve("n1", "host", &[ANY], &[ANY_UDP])?;
    for (port, protocol) in [(ANY, "tcp"), (ANY_UDP, "udp")] {
        refused("theirs", None, port, protocol)?
            .says(102, &[&format!("{port}/{protocol}"), "listens there", "process"])?;
    }
    lab.pod_add(&PodSpec::new("n1", "other").port(ANY, TCP, "udp"))?;
    lab.pod_rm("n1", "other")?;
    drop(server);
    // The pod's own name, where it is a pod that has the port.
    lab.pod_add(&PodSpec::new("n1", "web").port(ANY, TCP, "tcp"))?;
    let _server = lab.serve("web", "web", &[TCP], &[])?;
    answers(&lab, "outside", SocketAddr::new(node.underlay_ip.into(), ANY), &[])?;
    let wide = lab.weft("n1", &["pod", "ls", "--wide"])?.text("weft pod ls --wide")?;
    ensure!(wide.lines().any(|line| line.contains("web") && line.contains("18080:8080/tcp")), "{wide}");
    lab.down()
}

#[test]
fn a_udp_flow_goes_to_the_new_pod() -> Result<()> {
    let Some(lab) = dual("portflow", 1)? else { return Ok(()) };
    let state = lab.state()?;
    let node = state.node("n1")?;
    let hosts = [IpAddr::from(node.underlay_ip), node.underlay_ip6.context("no IPv6")?.into()];
    // One socket for each family: the same flow, as conntrack sees it, all the time.
    let mut clients = Vec::new();
    for host in hosts {
        let any =
            if host.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = in_netns(&state.outside.netns, || Ok(UdpSocket::bind((any, 0))?))?;
        client.set_read_timeout(Some(ANSWER_LIMIT))?;
        client.connect((host, ANY_UDP))?;
        clients.push(client);
    }
    // Before there is a mapping: conntrack learns a flow that leads to the node itself.
    for client in &clients {
        assert_eq!(ask(client)?, None);
    }
    for name in ["old", "new"] {
        lab.pod_add(&PodSpec::new("n1", name).port(ANY_UDP, UDP, "udp"))?;
        let _server = lab.serve(name, name, &[], &[UDP])?;
        for client in &clients {
            let mut last = None;
            let answered = wait_until(SOON, || {
                last = ask(client)?;
                Ok(last.as_deref() == Some(name))
            })?;
            assert!(answered, "{last:?} answers instead of {name}");
        }
        lab.pod_rm("n1", name)?;
        for client in &clients {
            assert_eq!(ask(client)?, None, "{name} was deleted");
        }
    }
    lab.down()
}

fn dual(story: &str, nodes: u16) -> Result<Option<Lab>> {
    lab_with(UpOptions { nodes, families: Families::Dual, ..UpOptions::new(&Lab::unique_name(story)) })
}

/// The server `web` of the pod answers.
fn answers(lab: &Lab, from: &str, to: SocketAddr, how: &[&str]) -> Result<()> {
    let to = to.to_string();
    let report = lab.probe(from, &[&["--to", &to, "--count", "2"], how].concat())?;
    let failures = report.failures();
    ensure!(report.servers.get("web") == Some(&2), "{from} to {to} {how:?}: {} {failures}", report.spread());
    Ok(())
}

/// Nobody answers.
fn silent(lab: &Lab, from: &str, to: SocketAddr) -> Result<()> {
    let to = to.to_string();
    let report = lab.probe(from, &["--to", &to, "--count", "1", "--timeout", "300ms"])?;
    ensure!(report.ok == 0, "{from} to {to}: {} answers", report.spread());
    Ok(())
}

/// The name of the backend that answers a datagram.
fn ask(client: &UdpSocket) -> Result<Option<String>> {
    let mut buffer = [0; 200];
    // What is left of the question before: an answer, or the ICMP error to it.
    client.set_nonblocking(true)?;
    for _ in 0..8 {
        let _ = client.recv(&mut buffer);
    }
    client.set_nonblocking(false)?;
    let answer = client.send(b"who\n").and_then(|_| client.recv(&mut buffer));
    let text = answer.map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
    Ok(text.ok().and_then(|text| text.split(' ').next().map(str::to_owned)))
}

/// How many addresses of n1 have an owner.
fn addresses(lab: &Lab) -> Result<usize> {
    let ipam = lab.ask("n1", async |client| client.ipam().await)?;
    Ok(ipam.addresses.iter().filter(|address| address.owner.contains("eth0")).count())
}
