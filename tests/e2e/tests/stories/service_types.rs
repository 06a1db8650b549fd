// SPDX-License-Identifier: Apache-2.0
//! Types, ports and families of services, and who is refused: one lab with two nodes and both families.

use crate::service_stage::{
    PORT, Stage, TCP, UDP, annotated, balanced, checked, documented, refused_with, service, slice, spec,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use weft_lab::PodSpec;

/// Another port of a backend, by name.
const NAMED: u16 = 8082;
const BOTH: &[&str] = &["b1", "b2"];

#[test]
fn types_ports_families_allocation_reachability_and_refusals() -> Result<()> {
    let Some(mut stage) = Stage::of("svctypes", 2, "vxlan", &[])? else { return Ok(()) };
    // The same name means another number in each pod.
    for (node, name, number) in [("n1", "b1", TCP), ("n2", "b2", NAMED)] {
        let pod = PodSpec::new(node, name).label("app", "web");
        stage.lab.pod_add(&pod.label("port.weft.dev/web", &number.to_string()))?;
        stage.serve(name, &[TCP, NAMED], &[UDP])?;
    }
    // Also on one node.
    for (name, number) in [("t1", TCP), ("t2", NAMED)] {
        let pod = PodSpec::new("n1", name).label("app", "twin");
        stage.lab.pod_add(&pod.label("port.weft.dev/web", &number.to_string()))?;
        stage.serve(name, &[number], &[])?;
    }
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    checked("reachable from pods, from the host, from the node's own address", reachable(&stage))?;
    checked("types: NodePort, with its static band", node_port(&stage))?;
    checked("types: LoadBalancer", load_balancer(&stage))?;
    checked("types: headless and ExternalName", names_only(&stage))?;
    checked("types: selector-less", selector_less(&stage))?;
    checked("ports: names, numbers, protocols", ports(&stage))?;
    checked("families: policies, order, the first one stays", families(&stage))?;
    checked("ClusterIP allocation: static band", allocation(&stage))?;
    checked("undefined ports are rejected", undefined(&stage))?;
    checked("no endpoints: reject; policy Local and none local: drop", nobody(&stage))?;
    checked("other proxies' services and headless ones are left alone", foreign(&stage))?;
    checked("fault injection is off by default, and named", fault(&stage))?;
    stage.lab.down()
}

fn web(name: &str, more: Value) -> Value {
    let mut spec = spec(more);
    spec["selector"] = json!({"app": "web"});
    service(name, spec)
}

fn reachable(stage: &Stage) -> Result<()> {
    let web = stage.service(&web("web", json!({})))?;
    ensure!(web.vips().len() == 2, "{:?}", web.0);
    for vip in web.vips() {
        for from in ["c1", "g1", "b1", "n1", "n2"] {
            stage.reaches_all_ways(from, vip, BOTH)?;
        }
    }
    // A program that knows IPv6 only writes IPv4 addresses in its clothes.
    if let SocketAddr::V4(vip) = web.vip(false)? {
        let mapped = SocketAddr::new(vip.ip().to_ipv6_mapped().into(), PORT);
        for from in ["c1", "n1"] {
            stage.reaches_all_ways(from, mapped, BOTH)?;
        }
    }
    Ok(())
}

fn node_port(stage: &Stage) -> Result<()> {
    let given = stage.service(&web("np", json!({"type": "NodePort"})))?;
    for (protocol, how) in [("TCP", &[][..]), ("UDP", &["--udp"])] {
        let port = given.node_port(protocol)?;
        // 86 of 2,768 are kept for those who ask by number.
        ensure!((30_086..=32_767).contains(&port), "{port}/{protocol} is not above the static band");
        for v6 in [false, true] {
            for node in ["n1", "n2"] {
                let to = SocketAddr::new(stage.node_ip(node, v6)?, port);
                for from in ["outside", "c1", "g1", "n1", "n2"] {
                    stage.reaches(from, to, how, BOTH).with_context(|| format!("node port of {node}"))?;
                }
            }
            let own: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
            stage.reaches("n1", SocketAddr::new(own, port), how, BOTH)?;
        }
    }
    let mut asked = web("np2", json!({"type": "NodePort"}));
    asked["spec"]["ports"][0]["nodePort"] = 30_001.into();
    ensure!(stage.service(&asked)?.node_port("TCP")? == 30_001);
    asked["metadata"]["name"] = "np3".into();
    refused_with(stage.put(&[asked]), &["30001"])
}

fn load_balancer(stage: &Stage) -> Result<()> {
    let ips = documented(10);
    stage.service(&balanced(web("lb", json!({"type": "LoadBalancer"})), &ips))?;
    for ip in ips {
        stage.route(ip, "n2")?;
        for from in ["outside", "c1", "g1", "n1"] {
            stage.reaches_all_ways(from, SocketAddr::new(ip, PORT), BOTH)?;
        }
    }
    Ok(())
}

fn names_only(stage: &Stage) -> Result<()> {
    let given = stage.service(&web("head", json!({"clusterIP": "None"})))?;
    ensure!(given.vips().is_empty(), "{:?}", given.0);
    for (kind, v6) in [("A", false), ("AAAA", true)] {
        let wanted = BTreeSet::from([stage.ip("b1", v6)?.to_string(), stage.ip("b2", v6)?.to_string()]);
        let found = stage.lab.query("c1", &["head.default.svc.cluster.local", kind])?;
        ensure!(found.data.iter().cloned().collect::<BTreeSet<_>>() == wanted, "{found:?}");
    }
    stage.service(&service("ext", json!({"type": "ExternalName", "externalName": "www.example.test"})))?;
    let found = stage.lab.query("c1", &["ext.default.svc.cluster.local", "A"])?;
    ensure!(found.data.iter().any(|name| name.starts_with("www.example.test")), "{found:?}");
    for name in ["head", "ext"] {
        let detail = stage.detail("n1", name)?;
        ensure!(detail.frontends.is_empty(), "{:?}", detail.frontends);
    }
    Ok(())
}

fn selector_less(stage: &Stage) -> Result<()> {
    let given = stage.service(&service("hand", spec(json!({}))))?;
    for vip in given.vips() {
        stage.refused("c1", vip)?;
    }
    stage.put(&stage.slices("hand", "a", &[("b2", json!({}))])?)?;
    for vip in given.vips() {
        for from in ["c1", "g1", "n1"] {
            stage.reaches_all_ways(from, vip, &["b2"])?;
        }
    }
    // A backend that is no pod at all.
    for v6 in [false, true] {
        let endpoint = json!({"addresses": [stage.outside_ip(v6)?.to_string()]});
        let mut slice = slice("hand", "a", v6, vec![endpoint]);
        slice["ports"] = json!([{"name": "http", "port": 7, "protocol": "TCP"}]);
        stage.put(&[slice])?;
        for from in ["c1", "g1", "n1"] {
            stage.reaches(from, given.vip(v6)?, &[], &["outside"])?;
        }
    }
    Ok(())
}

fn ports(stage: &Stage) -> Result<()> {
    let ports = json!([
        {"name": "web", "port": 8000, "targetPort": "web", "appProtocol": "kubernetes.io/h2c"},
        {"name": "dns", "port": 8000, "protocol": "UDP", "targetPort": UDP},
        {"name": "sig", "port": 8000, "protocol": "SCTP", "targetPort": 9000},
    ]);
    let reply = stage.put(&[web("ports", json!({"ports": ports}))])?;
    ensure!(reply.results[0].ignored.is_empty(), "{:?}", reply.results[0].ignored);
    let detail = stage.detail("n1", "ports")?;
    let numbers: BTreeSet<_> = detail
        .backends
        .iter()
        .filter(|backend| backend.port_name.as_deref() == Some("web"))
        .map(|backend| (backend.node.clone().unwrap_or_default(), backend.port))
        .collect();
    ensure!(numbers == BTreeSet::from([("n1".into(), TCP), ("n2".into(), NAMED)]), "{numbers:?}");
    for ip in &reply.results[0].cluster_ips {
        for from in ["c1", "g1"] {
            for how in [&[][..], &["--udp"]] {
                stage.reaches(from, SocketAddr::new(*ip, 8000), how, BOTH)?;
            }
        }
    }
    // No sockets for SCTP here: the maps have it, in both families, with both backends.
    let sctp: Vec<_> = detail.frontends.iter().filter(|frontend| frontend.protocol == "SCTP").collect();
    ensure!(sctp.len() == 2 && sctp.iter().all(|f| f.slot_count == 2 && f.port == 8000), "{sctp:?}");
    let mut twin = service("twin", spec(json!({"ports": [{"port": 8000, "targetPort": "web"}]})));
    twin["spec"]["selector"] = json!({"app": "twin"});
    for ip in stage.service(&twin)?.0.cluster_ips {
        for from in ["c1", "g1", "n2"] {
            stage.reaches(from, SocketAddr::new(ip, 8000), &[], &["t1", "t2"])?;
        }
    }
    let mut unnamed = web("unnamed", json!({}));
    unnamed["spec"]["ports"] = json!([{"port": 1}, {"port": 2}]);
    refused_with(stage.put(&[unnamed]), &["name"])
}

fn families(stage: &Stage) -> Result<()> {
    let with = |name: &str, more: Value| {
        let mut service = web(name, json!({}));
        service["spec"]["ipFamilyPolicy"] = more["ipFamilyPolicy"].clone();
        if !more["ipFamilies"].is_null() {
            service["spec"]["ipFamilies"] = more["ipFamilies"].clone();
        }
        service
    };
    let order = |given: &crate::service_stage::Given| -> Vec<bool> {
        given.0.cluster_ips.iter().map(IpAddr::is_ipv6).collect()
    };
    let single = stage.service(&with("fam1", json!({"ipFamilyPolicy": "SingleStack"})))?;
    ensure!(order(&single) == [false], "{:?}", single.0);
    let six = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]});
    let six = stage.service(&with("fam2", six))?;
    ensure!(order(&six) == [true], "{:?}", six.0);
    let prefer = stage.service(&with("fam3", json!({"ipFamilyPolicy": "PreferDualStack"})))?;
    ensure!(order(&prefer) == [false, true], "{:?}", prefer.0);
    let turned = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]});
    let turned = stage.service(&with("fam4", turned))?;
    ensure!(order(&turned) == [true, false], "{:?}", turned.0);
    for vip in [single.vips(), six.vips(), turned.vips()].concat() {
        stage.reaches("c1", vip, &[], BOTH)?;
        stage.reaches("g1", vip, &[], BOTH)?;
    }
    // The first one stays for good; the second comes and goes.
    let mut moved = with("fam1", json!({"ipFamilyPolicy": "SingleStack"}));
    moved["spec"]["clusterIP"] = "10.96.0.77".into();
    refused_with(stage.put(&[moved]), &["fam1", "clusterIP"])?;
    let grown = stage.service(&with("fam1", json!({"ipFamilyPolicy": "PreferDualStack"})))?;
    ensure!(
        order(&grown) == [false, true] && grown.0.cluster_ips[0] == single.0.cluster_ips[0],
        "{:?}",
        grown.0
    );
    stage.reaches("c1", grown.vip(true)?, &[], BOTH)
}

fn allocation(stage: &Stage) -> Result<()> {
    let mut asked = web("low", json!({}));
    asked["spec"]["clusterIPs"] = json!(["10.96.0.20", "fd00:10:96::20"]);
    let low = stage.service(&asked)?;
    let wanted: Vec<IpAddr> = vec!["10.96.0.20".parse()?, "fd00:10:96::20".parse()?];
    ensure!(low.0.cluster_ips == wanted, "{:?}", low.0);
    asked["metadata"]["name"] = "taken".into();
    refused_with(stage.put(&[asked]), &["10.96.0.20"])?;
    // min(max(16, 65536 / 16), 256) low addresses are for those who ask.
    for number in 0..3 {
        let given = stage.service(&web(&format!("dyn{number}"), json!({})))?;
        for ip in &given.0.cluster_ips {
            let offset = match ip {
                IpAddr::V4(ip) => u128::from(u32::from(*ip) & 0xffff),
                IpAddr::V6(ip) => u128::from(*ip) & 0xffff,
            };
            ensure!(offset > 256, "{ip} is in the static band");
        }
    }
    stage.delete("Service", "low")?;
    let mut again = web("taken", json!({}));
    again["spec"]["clusterIPs"] = json!(["10.96.0.20", "fd00:10:96::20"]);
    stage.service(&again).map(drop)
}

fn undefined(stage: &Stage) -> Result<()> {
    for ip in stage.service(&web("web", json!({})))?.0.cluster_ips {
        for from in ["c1", "g1", "n1"] {
            stage.refused(from, SocketAddr::new(ip, PORT + 1))?;
        }
    }
    Ok(())
}

fn nobody(stage: &Stage) -> Result<()> {
    let port = json!({"type": "NodePort", "selector": {"app": "nobody"}});
    let none = stage.service(&service("none", spec(port)))?;
    for v6 in [false, true] {
        for from in ["c1", "g1", "n1"] {
            stage.refused(from, none.vip(v6)?)?;
        }
        let port = none.node_port("TCP")?;
        let to = SocketAddr::new(stage.node_ip("n1", v6)?, port);
        let report = stage.ask("outside", to, 2, &["--timeout", "400ms"])?;
        ensure!(report.errors.keys().eq(["refused"]), "outside to {to}: {}", report.failures());
    }
    // The only backend is of the other node.
    let local = stage.service(&service("far", spec(json!({"internalTrafficPolicy": "Local"}))))?;
    stage.put(&stage.slices("far", "a", &[("b2", json!({}))])?)?;
    for vip in local.vips() {
        for from in ["c1", "g1", "n1"] {
            stage.dropped(from, vip)?;
        }
        stage.reaches_all_ways("n2", vip, &["b2"])?;
    }
    Ok(())
}

fn foreign(stage: &Stage) -> Result<()> {
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let mut foreign = web("foreign", json!({}));
        foreign["metadata"]["labels"][label] = "other".into();
        let given = stage.service(&foreign)?;
        let detail = stage.detail("n1", "foreign")?;
        ensure!(detail.frontends.is_empty(), "{label}: {:?}", detail.frontends);
        for vip in given.vips() {
            for from in ["c1", "g1"] {
                let report = stage.ask(from, vip, 1, &["--timeout", "400ms"])?;
                ensure!(report.ok == 0, "{label}: {from} gets an answer from {}", report.spread());
            }
        }
        stage.delete("Service", "foreign")?;
    }
    Ok(())
}

fn fault(stage: &Stage) -> Result<()> {
    let key = "weft.dev/fault";
    let given = stage.service(&annotated(web("fault", json!({})), key, "drop"))?;
    ensure!(given.0.ignored.iter().any(|field| field.contains(key)), "{:?}", given.0);
    for vip in given.vips() {
        for from in ["c1", "g1"] {
            stage.reaches(from, vip, &[], BOTH)?;
        }
    }
    let problems = stage.detail("n1", "fault")?.problems;
    let named = problems.iter().any(|problem| problem.contains(key) && problem.contains("fault-injection"));
    ensure!(named, "{problems:?}");
    refused_with(stage.put(&[annotated(web("fault2", json!({})), key, "explode")]), &[key])
}
