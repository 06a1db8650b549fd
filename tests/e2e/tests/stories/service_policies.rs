// SPDX-License-Identifier: Apache-2.0
//! Who may ask for whom: traffic policies, load balancers' and external addresses, node ports' addresses. Two nodes, both
//! families, WireGuard between them.

use crate::have;
use crate::service_stage::{PORT, Stage, WAYS, balanced, checked, conditions, documented, service, spec};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use weft_lab::wait_until;

const BOTH: &[&str] = &["b1", "b2"];

#[test]
fn traffic_policies_load_balancers_external_ips_and_health_checks() -> Result<()> {
    let args = ["--external-ips=true", "--node-labels", "topology.kubernetes.io/zone=here"];
    let Some(mut stage) = Stage::of("svcpolicy", 2, "wireguard", &args)? else { return Ok(()) };
    for (node, backend, client, guest) in [("n1", "b1", "c1", "g1"), ("n2", "b2", "c2", "g2")] {
        stage.backend(node, backend, "web")?;
        stage.client(node, client)?;
        stage.guest(node, guest)?;
    }
    checked("internalTrafficPolicy: Local", internal_local(&stage))?;
    checked("externalTrafficPolicy: Cluster, with SNAT", external_cluster(&stage))?;
    checked(
        "externalTrafficPolicy: Local keeps the source; pods are treated as Cluster",
        external_local(&stage),
    )?;
    checked("healthCheckNodePort: 200 and 503 by ready local endpoints", health_check(&mut stage))?;
    checked("loadBalancerSourceRanges", source_ranges(&stage))?;
    checked("allocateLoadBalancerNodePorts, loadBalancerClass, ipMode", balancer_settings(&stage))?;
    checked("externalIPs, opted in", external_ips(&stage))?;
    checked("trafficDistribution by selector: same node, same zone", distribution(&stage))?;
    stage.lab.down()
}

#[test]
fn node_port_addresses_are_configurable_and_external_ips_an_opt_in() -> Result<()> {
    let args = ["--node-port-addresses", "172.31.77.0/24"];
    let Some(mut stage) = Stage::alone("svcbind", &args)? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    let outside = documented(30);
    let external: Vec<_> = outside.iter().map(IpAddr::to_string).collect();
    let given = stage.service(&web("web", json!({"type": "NodePort", "externalIPs": external})))?;
    let port = given.node_port("TCP")?;
    let at = |ip: IpAddr| SocketAddr::new(ip, port);
    for from in ["outside", "c1", "g1", "n1"] {
        stage.reaches(from, at(stage.node_ip("n1", false)?), &[], &["b1"])?;
        silent(&stage, from, at(stage.node_ip("n1", true)?))?;
        for ip in outside {
            stage.route(ip, "n1")?;
            silent(&stage, from, SocketAddr::new(ip, PORT))?;
        }
    }
    silent(&stage, "n1", at(Ipv4Addr::LOCALHOST.into()))?;
    let problems = stage.detail("n1", "web")?.problems;
    ensure!(problems.iter().any(|problem| problem.contains("external-ips")), "{problems:?}");
    // What nobody serves is not taken either: a program of the host may have it.
    let bound = stage.lab.serve("n1", "host", &[port + 1], &[]);
    ensure!(bound.is_ok(), "{bound:?}");
    let taken = stage.lab.serve("n1", "host", &[port], &[]);
    ensure!(taken.is_err(), "a node port was bound by a program of the host");
    stage.lab.down()
}

fn web(name: &str, more: Value) -> Value {
    let mut spec = spec(more);
    spec["selector"] = json!({"app": "web"});
    service(name, spec)
}

fn internal_local(stage: &Stage) -> Result<()> {
    let given = stage.service(&web("near", json!({"internalTrafficPolicy": "Local"})))?;
    for vip in given.vips() {
        for (from, wanted) in
            [("c1", "b1"), ("g1", "b1"), ("n1", "b1"), ("c2", "b2"), ("g2", "b2"), ("n2", "b2")]
        {
            stage.reaches_all_ways(from, vip, &[wanted])?;
        }
    }
    Ok(())
}

fn external_cluster(stage: &Stage) -> Result<()> {
    let given = stage.service(&web("any", json!({"type": "NodePort"})))?;
    for (protocol, ways) in [("TCP", &WAYS[..1]), ("UDP", &WAYS[1..])] {
        for v6 in [false, true] {
            for node in ["n1", "n2"] {
                let to = SocketAddr::new(stage.node_ip(node, v6)?, given.node_port(protocol)?);
                ways.iter().try_for_each(|how| stage.reaches("outside", to, how, BOTH))?;
            }
        }
    }
    Ok(())
}

fn external_local(stage: &Stage) -> Result<()> {
    let ips = documented(20);
    let wish = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let given = stage.service(&balanced(web("local", wish), &ips))?;
    for (ip, v6) in ips.into_iter().zip([false, true]) {
        let client = stage.outside_ip(v6)?.to_string();
        for (node, backend) in [("n1", "b1"), ("n2", "b2")] {
            stage.route(ip, node)?;
            let addresses = [
                SocketAddr::new(ip, PORT),
                SocketAddr::new(stage.node_ip(node, v6)?, given.node_port("TCP")?),
            ];
            for to in addresses {
                stage.reaches("outside", to, &[], &[backend])?;
                let seen = stage.ask("outside", to, 3, &[])?.seen_as;
                ensure!(seen.keys().eq([&client]), "{node}: the backend sees {seen:?} instead of {client}");
            }
            stage.reaches("outside", SocketAddr::new(ip, PORT), &["--udp"], &[backend])?;
        }
        // Who is in the cluster goes anywhere.
        for from in ["c1", "g1", "n1", "c2"] {
            stage.reaches(from, SocketAddr::new(ip, PORT), &[], BOTH)?;
        }
    }
    // Where none is, packets are dropped: the load balancer was told.
    let hand = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    let given = stage.service(&service("one", spec(hand)))?;
    stage.put(&stage.slices("one", "a", &[("b1", json!({}))])?)?;
    for v6 in [false, true] {
        let at =
            |node| Ok::<_, anyhow::Error>(SocketAddr::new(stage.node_ip(node, v6)?, given.node_port("TCP")?));
        stage.reaches("outside", at("n1")?, &[], &["b1"])?;
        let report = stage.ask("outside", at("n2")?, 2, &["--timeout", "400ms"])?;
        ensure!(report.errors.keys().eq(["timeout"]), "{} {}", report.spread(), report.failures());
        stage.reaches("c2", at("n2")?, &[], &["b1"])?;
    }
    Ok(())
}

fn health_check(stage: &mut Stage) -> Result<()> {
    if !have("curl", "healthCheckNodePort") {
        return Ok(());
    }
    let wish = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let given = stage.service(&balanced(service("hc", spec(wish)), &documented(21)))?;
    let port = given.0.health_check_node_port.context("no health check port")?;
    let answers = |stage: &Stage, node: &str, wanted: &str| -> Result<()> {
        for v6 in [false, true] {
            let url = format!("http://{}/healthz", SocketAddr::new(stage.node_ip(node, v6)?, port));
            let mut said = String::new();
            let as_wanted = wait_until(crate::service_stage::SOON, || {
                let argv = ["curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", &url];
                said = stage.lab.exec("outside", &argv)?.stdout;
                Ok(said == wanted)
            })?;
            ensure!(as_wanted, "{node}: {said} instead of {wanted}");
        }
        Ok(())
    };
    stage.put(&stage.slices("hc", "a", &[("b1", json!({}))])?)?;
    answers(stage, "n1", "200")?;
    answers(stage, "n2", "503")?;
    // Terminating: the load balancer turns away while connections finish.
    stage.put(&stage.slices("hc", "a", &[("b1", conditions(false, true, true))])?)?;
    answers(stage, "n1", "503")?;
    stage.put(&stage.slices("hc", "a", &[("b1", json!({})), ("b2", json!({}))])?)?;
    answers(stage, "n1", "200")?;
    answers(stage, "n2", "200")
}

fn source_ranges(stage: &Stage) -> Result<()> {
    let ips = documented(22);
    let ranged = |ranges: Value| {
        balanced(web("ranges", json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges})), &ips)
    };
    let hosts = [stage.outside_ip(false)?, stage.outside_ip(true)?];
    for ip in ips {
        stage.route(ip, "n1")?;
    }
    let given = stage.service(&ranged(json!([format!("{}/32", hosts[0]), format!("{}/128", hosts[1])])))?;
    for ip in ips {
        stage.reaches("outside", SocketAddr::new(ip, PORT), &[], BOTH)?;
        stage.reaches("outside", SocketAddr::new(ip, PORT), &["--udp"], BOTH)?;
        // Pods and nodes are clients like others there, and everywhere else they may ask.
        for from in ["c1", "g1"] {
            stage.dropped(from, SocketAddr::new(ip, PORT))?;
            stage.reaches(from, given.vip(ip.is_ipv6())?, &[], BOTH)?;
        }
    }
    for (one, other) in [("c1", "g1"), ("g1", "c1")] {
        let own = [format!("{}/32", stage.ip(one, false)?), format!("{}/128", stage.ip(one, true)?)];
        stage.service(&ranged(json!(own)))?;
        for ip in ips {
            stage.reaches(one, SocketAddr::new(ip, PORT), &[], BOTH)?;
            stage.dropped(other, SocketAddr::new(ip, PORT))?;
        }
    }
    // Changed in place.
    stage.service(&ranged(json!(["198.51.100.0/24", "2001:db8:99::/48"])))?;
    for ip in ips {
        stage.dropped("outside", SocketAddr::new(ip, PORT))?;
    }
    stage.service(&ranged(json!([])))?;
    for ip in ips {
        for from in ["outside", "c1", "g1"] {
            stage.reaches(from, SocketAddr::new(ip, PORT), &[], BOTH)?;
        }
    }
    Ok(())
}

fn balancer_settings(stage: &Stage) -> Result<()> {
    let ips = documented(23);
    let wish = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "loadBalancerClass": "example.com/bare",
    });
    let object = balanced(web("plain", wish), &ips);
    let given = stage.service(&object)?;
    ensure!(given.0.node_ports.is_empty() && given.0.ignored.is_empty(), "{:?}", given.0);
    for ip in ips {
        stage.route(ip, "n2")?;
        for from in ["outside", "c1", "g1"] {
            stage.reaches(from, SocketAddr::new(ip, PORT), &[], BOTH)?;
        }
    }
    // The load balancer speaks for itself: nobody in the cluster goes past it.
    let mut proxy = object;
    for ingress in proxy["status"]["loadBalancer"]["ingress"].as_array_mut().context("no ingress")? {
        ingress["ipMode"] = "Proxy".into();
    }
    stage.service(&proxy)?;
    for ip in ips {
        for from in ["c1", "g1"] {
            silent(stage, from, SocketAddr::new(ip, PORT))?;
        }
    }
    Ok(())
}

fn external_ips(stage: &Stage) -> Result<()> {
    let ips = documented(24);
    let external: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
    stage.service(&web("ext", json!({"externalIPs": external})))?;
    for ip in ips {
        stage.route(ip, "n1")?;
        for from in ["outside", "c1", "g1", "n1", "n2"] {
            stage.reaches(from, SocketAddr::new(ip, PORT), &[], BOTH)?;
        }
        stage.reaches("outside", SocketAddr::new(ip, PORT), &["--udp"], BOTH)?;
    }
    Ok(())
}

fn distribution(stage: &Stage) -> Result<()> {
    for (kind, own) in [("PreferSameNode", true), ("PreferSameZone", false), ("PreferClose", false)] {
        let given = stage.service(&web("dist", json!({"trafficDistribution": kind})))?;
        for vip in given.vips() {
            for (from, near) in [("c1", "b1"), ("g1", "b1"), ("c2", "b2"), ("g2", "b2")] {
                let wanted: &[&str] = if own { &[near] } else { BOTH };
                stage.reaches(from, vip, &[], wanted).context(kind)?;
            }
        }
    }
    Ok(())
}

/// Nobody answers, in whatever way.
fn silent(stage: &Stage, from: &str, to: SocketAddr) -> Result<()> {
    let report = stage.ask(from, to, 1, &["--timeout", "300ms"])?;
    ensure!(report.ok == 0, "{from} to {to}: {} answers", report.spread());
    Ok(())
}
