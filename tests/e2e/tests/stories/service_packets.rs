// SPDX-License-Identifier: Apache-2.0
//! The packet path: clients whose sockets nobody sees. The same story with each way to attach programs, and over each overlay.

use crate::service_stage::{
    Given, PORT, SOON, Stage, TCP, UDP, annotated, balanced, checked, documented, service, spec,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use weft_lab::{Offloads, in_netns, patient, wait_until};

const BOTH: &[&str] = &["b1", "b2"];
const LIMIT: Duration = Duration::from_secs(10);
/// More than any MTU here, so in fragments; less than a datagram may have.
const LONG: usize = 4_000;
/// Source ports: one that programs give out themselves, and one that they do not.
const SOURCE_PORTS: [u16; 2] = [20_000, 45_000];

#[test]
fn packet_path_tcx_over_wireguard_hairpin_icmp_fragments_five_tuples_and_dsr() -> Result<()> {
    story("svcpackets", "wireguard", &[])
}

#[test]
fn packet_path_clsact_forced_over_vxlan_hairpin_icmp_fragments_five_tuples_and_dsr() -> Result<()> {
    story("svcclsact", "vxlan", &["--datapath-attach", "clsact"])
}

fn story(name: &str, overlay: &str, args: &[&str]) -> Result<()> {
    let Some(mut stage) = Stage::of(name, 2, overlay, args)? else { return Ok(()) };
    for (node, backend, client, guest) in [("n1", "b1", "c1", "g1"), ("n2", "b2", "c2", "g2")] {
        stage.backend(node, backend, "web")?;
        stage.client(node, client)?;
        stage.guest(node, guest)?;
    }
    checked("packets to ClusterIPs and node ports", ways_in(&stage))?;
    checked("hairpin: a pod and its own service, with affinity and DSR", hairpin(&stage))?;
    checked("a direct flow and a VIP flow with one 5-tuple", five_tuples(&stage))?;
    checked("ICMP errors are mapped back", icmp(&stage))?;
    checked("fragments", fragments(&stage))?;
    checked("bulk TCP, offloads on and off", bulk(&stage))?;
    checked("DSR", dsr(&stage))?;
    stage.lab.down()
}

fn web(name: &str, more: Value) -> Value {
    let mut spec = spec(more);
    spec["selector"] = json!({"app": "web"});
    service(name, spec)
}

fn by_hand(stage: &Stage, object: Value, backends: &[&str]) -> Result<Given> {
    let name = object["metadata"]["name"].as_str().context("no name")?.to_owned();
    let backends: Vec<_> = backends.iter().map(|name| (*name, json!({}))).collect();
    let reply = stage.put(&[vec![object], stage.slices(&name, "a", &backends)?].concat())?;
    Ok(Given(reply.results.into_iter().next().context("no answer")?))
}

fn ways_in(stage: &Stage) -> Result<()> {
    let given = stage.service(&web("web", json!({"type": "NodePort"})))?;
    for v6 in [false, true] {
        stage.reaches_all_ways("g1", given.vip(v6)?, BOTH)?;
        stage.reaches_all_ways("c1", given.vip(v6)?, BOTH)?;
        for (protocol, how) in [("TCP", &[][..]), ("UDP", &["--udp"])] {
            let to = SocketAddr::new(stage.node_ip("n1", v6)?, given.node_port(protocol)?);
            for from in ["outside", "g1", "c1"] {
                stage.reaches(from, to, how, BOTH)?;
            }
        }
        let report = stage.ask(
            "outside",
            SocketAddr::new(stage.node_ip("n1", v6)?, given.node_port("TCP")?),
            8,
            &[],
        )?;
        ensure!(report.all_ok(), "{}", report.failures());
    }
    let flows = stage.lab.ask("n1", async |client| client.flows(Some(("default", "web"))).await)?;
    ensure!(flows.iter().any(|flow| flow.path == "packet" && flow.backend.is_some()), "{flows:?}");
    Ok(())
}

fn hairpin(stage: &Stage) -> Result<()> {
    let ips = documented(40);
    for (name, more, key) in [
        ("self", json!({"type": "LoadBalancer"}), None),
        ("selfaff", json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"}), None),
        ("selfdsr", json!({"type": "LoadBalancer"}), Some("dsr")),
    ] {
        let mut object = balanced(service(name, spec(more)), &ips);
        if let Some(key) = key {
            object = annotated(object, "weft.dev/forwarding", key);
        }
        let given = by_hand(stage, object, &["b1"])?;
        for v6 in [false, true] {
            let own = stage.node_ip("n1", v6)?;
            for to in [
                given.vip(v6)?,
                SocketAddr::new(ips[usize::from(v6)], PORT),
                SocketAddr::new(own, given.node_port("TCP")?),
            ] {
                stage.reaches("b1", to, &[], &["b1"]).with_context(|| format!("{name}, sockets"))?;
                let report = stage.packets("b1", to, 4, &[])?;
                ensure!(report.all_ok(), "{name}, packets to {to}: {}", report.failures());
            }
            stage.reaches("b1", given.vip(v6)?, &["--udp"], &["b1"])?;
            let report = stage.packets("b1", given.vip(v6)?, 4, &["--udp", "--connected"])?;
            ensure!(report.all_ok(), "{name}, datagrams: {}", report.failures());
        }
        stage.delete("Service", name)?;
    }
    Ok(())
}

/// A socket of a fixed source port in a pod's netns, connected.
fn socket(stage: &Stage, from: &str, port: u16, to: SocketAddr, kind: Type) -> Result<Socket> {
    let any = if to.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    in_netns(&stage.lab.pod(from)?.netns, || {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.set_read_timeout(Some(patient(LIMIT)))?;
        socket.connect_timeout(&to.into(), patient(LIMIT)).with_context(|| format!("{port} to {to}"))?;
        // No TIME_WAIT: the next one has the same ports.
        if kind == Type::STREAM {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(socket)
    })
}

fn five_tuples(stage: &Stage) -> Result<()> {
    let given = by_hand(stage, service("tuple", spec(json!({}))), &["b2"])?;
    let near = by_hand(stage, service("near", spec(json!({}))), &["b1"])?;
    for (backend, given) in [("b2", &given), ("b1", &near)] {
        for v6 in [false, true] {
            for port in SOURCE_PORTS {
                for vip_first in [true, false] {
                    let direct = SocketAddr::new(stage.ip(backend, v6)?, TCP);
                    let mut order = [given.vip(v6)?, direct];
                    if !vip_first {
                        order.reverse();
                    }
                    let what = || format!("{backend}, port {port}, {order:?}");
                    let open = |to| socket(stage, "g1", port, to, Type::STREAM).map(TcpStream::from);
                    let mut both = [open(order[0]).with_context(what)?, open(order[1]).with_context(what)?];
                    for stream in &mut both {
                        let mut buffer = [0; 100];
                        let length = stream.read(&mut buffer).with_context(what)?;
                        ensure!(buffer[..length].starts_with(backend.as_bytes()), "{}", what());
                    }
                    for round in 0..4u8 {
                        for (index, stream) in both.iter_mut().enumerate() {
                            let sent = [round, index as u8, 7, 7];
                            stream.write_all(&sent)?;
                            let mut back = [0; 4];
                            stream.read_exact(&mut back).with_context(what)?;
                            ensure!(back == sent, "{}: {back:?} instead of {sent:?}", what());
                        }
                    }
                }
            }
            for port in SOURCE_PORTS {
                let direct = SocketAddr::new(stage.ip(backend, v6)?, UDP);
                let open = |to| socket(stage, "g1", port, to, Type::DGRAM).map(UdpSocket::from);
                let both = [open(given.vip(v6)?)?, open(direct)?];
                for round in 0..4u8 {
                    for (index, socket) in both.iter().enumerate() {
                        let sent = [b'e', b'c', b'h', b'o', round, index as u8];
                        socket.send(&sent)?;
                        let mut back = [0; 16];
                        let length =
                            socket.recv(&mut back).with_context(|| format!("datagrams, {backend} {port}"))?;
                        ensure!(back[..length] == sent, "{backend} {port}: {back:?} instead of {sent:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

fn icmp(stage: &Stage) -> Result<()> {
    // Nobody listens there.
    let given = stage.service(&service("dead", spec(json!({"type": "NodePort"}))))?;
    for backend in ["b1", "b2"] {
        let mut slices = stage.slices("dead", "a", &[(backend, json!({}))])?;
        for slice in &mut slices {
            slice["ports"] = json!([{"name": "dns", "port": 9, "protocol": "UDP"}]);
        }
        stage.put(&slices)?;
        for v6 in [false, true] {
            let node = SocketAddr::new(stage.node_ip("n1", v6)?, given.node_port("UDP")?);
            for (from, to) in [("g1", given.vip(v6)?), ("c1", given.vip(v6)?), ("outside", node)] {
                let how = ["--udp", "--connected", "--timeout", "700ms"];
                // Kernels send a few ICMP errors a second to one host.
                let mut failures = String::new();
                let told = wait_until(SOON, || {
                    let report = stage.ask(from, to, 1, &how)?;
                    failures = report.failures();
                    Ok(report.errors.contains_key("refused"))
                })?;
                ensure!(told, "{from} to {to}, {backend}: {failures} instead of refused");
            }
        }
    }
    Ok(())
}

fn fragments(stage: &Stage) -> Result<()> {
    let given = by_hand(stage, service("long", spec(json!({"type": "NodePort"}))), &["b1", "b2"])?;
    for v6 in [false, true] {
        let node = SocketAddr::new(stage.node_ip("n1", v6)?, given.node_port("UDP")?);
        let outside = stage.lab.state()?.outside.netns;
        let guest = stage.lab.pod("g1")?.netns;
        for (netns, to) in [(&outside, node), (&guest, given.vip(v6)?), (&guest, node)] {
            for round in 0..6u8 {
                let mut sent = vec![round; LONG];
                sent[..4].copy_from_slice(b"echo");
                let mut back = Err(anyhow::anyhow!("not tried"));
                // The way to the other node may be narrower than the wire: the sender is told, and cuts smaller pieces then.
                for _ in 0..3 {
                    back = in_netns(netns, || echo(to, &sent));
                    if back.is_ok() {
                        break;
                    }
                }
                let back = back.with_context(|| format!("{netns} to {to}, round {round}"))?;
                ensure!(back == sent, "{netns} to {to}: {} of {LONG} bytes came back", back.len());
            }
        }
    }
    Ok(())
}

/// What comes back of a datagram.
fn echo(to: SocketAddr, sent: &[u8]) -> Result<Vec<u8>> {
    let any = if to.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(patient(LIMIT)))?;
    socket.connect(to)?;
    socket.send(sent)?;
    let mut buffer = vec![0; 2 * LONG];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn bulk(stage: &Stage) -> Result<()> {
    let given = by_hand(stage, service("bulk", spec(json!({"type": "NodePort"}))), &["b2"])?;
    for offloads in [Offloads::NicLike, Offloads::None, Offloads::AsIs] {
        for node in ["n1", "n2"] {
            stage.lab.offloads(node, offloads)?;
        }
        for v6 in [false, true] {
            let node = SocketAddr::new(stage.node_ip("n1", v6)?, given.node_port("TCP")?);
            for (from, to) in [("outside", node), ("g1", given.vip(v6)?)] {
                streams(stage, from, to).with_context(|| format!("{offloads:?}"))?;
            }
        }
    }
    Ok(())
}

/// A transfer of blocks that come back as they went.
fn streams(stage: &Stage, from: &str, to: SocketAddr) -> Result<()> {
    let mut stream = stage.lab.stream(from, &to.to_string(), Duration::from_millis(250))?;
    let ended = stream.wait(Duration::from_secs(60))?;
    ensure!(ended, "{from} to {to}: {}", stream.errors().join(" "));
    Ok(())
}

fn dsr(stage: &Stage) -> Result<()> {
    let object = annotated(service("dsr", spec(json!({"type": "NodePort"}))), "weft.dev/forwarding", "dsr");
    let given = by_hand(stage, object, &["b2"])?;
    let link: Value = stage.lab.exec("n2", &["ip", "-j", "link", "show", "eth0"])?.json("the link of n2")?;
    let mac = link[0]["address"].as_str().context("no MAC")?;
    for v6 in [false, true] {
        let (node, client) = (stage.node_ip("n1", v6)?, stage.outside_ip(v6)?);
        let to = SocketAddr::new(node, given.node_port("TCP")?);
        let filter = format!("src host {node} and dst host {client}");
        let capture = stage.lab.capture(&filter)?;
        stage.reaches("outside", to, &[], &["b2"])?;
        let seen = stage.ask("outside", to, 2, &[])?.seen_as;
        ensure!(seen.keys().eq([&client.to_string()]), "the backend sees {seen:?} instead of {client}");
        streams(stage, "outside", to)?;
        let packets = capture.stop()?;
        let direct = packets.count(&format!("ether src {} and tcp", mac))?;
        ensure!(direct > 0, "answers do not come from the backend's node: {}", packets.print("tcp")?);
        let udp = SocketAddr::new(node, given.node_port("UDP")?);
        stage.reaches("outside", udp, &["--udp"], &["b2"])?;
        // Who is in the cluster needs no way around.
        stage.reaches("g1", to, &[], &["b2"])?;
        stage.reaches("c1", to, &[], &["b2"])?;
    }
    Ok(())
}
