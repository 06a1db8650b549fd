// SPDX-License-Identifier: Apache-2.0
//! DNS: which names there are and what they have, after the Kubernetes DNS-based service discovery specification 1.1, asked by
//! pods over both families.

use crate::dns_client::{Answer, Client, How, NODE_DNS};
use crate::service_stage::{SOON, Stage, annotated, checked, conditions, service, slice, spec};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::IpAddr;

const ZONE: &str = "cluster.local";

#[test]
fn records_of_every_kind_follow_the_specification() -> Result<()> {
    let Some(mut stage) = Stage::alone("dnsrec", &[])? else { return Ok(()) };
    let b1 = stage.backend("n1", "b1", "web")?;
    let b2 = stage.backend("n1", "b2", "web")?;
    stage.client("n1", "c1")?;
    let clients = NODE_DNS.map(|server| Client::pod(&stage.lab, "c1", server));
    let [v4, v6] = clients;
    let clients = [v4?, v6?];
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let [vip4, vip6] = [web.vip(false)?.ip(), web.vip(true)?.ip()];
    let all = |kept: &dyn Fn(&Client) -> Result<()>| clients.iter().try_for_each(kept);

    checked("dns-version is 1.1.0", {
        all(&|client| client.says(&format!("dns-version.{ZONE}"), "TXT", "NOERROR", &["1.1.0"]))
    })?;
    checked("ClusterIP: an address for each family of clusterIPs", {
        all(&|client| {
            client.says(&svc("web"), "A", "NOERROR", &[&vip4.to_string()])?;
            client.says(&svc("web"), "AAAA", "NOERROR", &[&vip6.to_string()])
        })
    })?;
    checked("SRV for each named port, with the addresses beside it; none for one without a name", {
        stage.service(&service("plain", json!({"selector": {"app": "web"}, "ports": [{"port": 80}]})))?;
        all(&|client| {
            let answer = client.ask(&format!("_http._tcp.{}", svc("web")), "SRV")?;
            ensure!(answer.data == [format!("SRV 0 100 80 {}.", svc("web"))], "{:?}", answer.data);
            let beside: Vec<String> =
                [("A", vip4), ("AAAA", vip6)].map(|(kind, ip)| format!("{}. {kind} {ip}", svc("web"))).into();
            ensure!(answer.additional == beside, "{:?} instead of {beside:?}", answer.additional);
            client.says(
                &format!("_dns._udp.{}", svc("web")),
                "SRV",
                "NOERROR",
                &[&format!("0 100 80 {}.", svc("web"))],
            )?;
            client.says(&format!("_http._udp.{}", svc("web")), "SRV", "NXDOMAIN", &[])?;
            client.says(&format!("_80._tcp.{}", svc("plain")), "SRV", "NXDOMAIN", &[])
        })
    })?;
    checked("PTR of each ClusterIP", {
        all(&|client| {
            [vip4, vip6].into_iter().try_for_each(|ip| {
                client.says(&reverse(ip), "PTR", "NOERROR", &[&format!("{}.", svc("web"))])
            })
        })
    })?;
    checked("headless with a selector: every ready endpoint in one answer, in no fixed order", {
        let headless = json!({"clusterIP": "None", "selector": {"app": "web"}});
        stage.service(&service("peers", spec(headless)))?;
        all(&|client| {
            for (kind, v6) in [("A", false), ("AAAA", true)] {
                let ips = [stage.ip("b1", v6)?.to_string(), stage.ip("b2", v6)?.to_string()];
                client.says(&svc("peers"), kind, "NOERROR", &[&ips[0], &ips[1]])?;
            }
            let firsts = (0..40).map(|_| first(&client.ask(&svc("peers"), "A")?));
            let firsts = firsts.collect::<Result<std::collections::BTreeSet<_>>>()?;
            ensure!(firsts.len() == 2, "40 answers begin with {firsts:?}");
            Ok(())
        })
    })?;
    checked("headless without ready endpoints: NXDOMAIN, its namespace has no data", {
        let none = json!({"clusterIP": "None", "selector": {"app": "nobody"}});
        stage.service(&service("nobody", spec(none)))?;
        all(&|client| {
            client.says(&svc("nobody"), "A", "NXDOMAIN", &[])?;
            client.says(&format!("default.svc.{ZONE}"), "A", "NOERROR", &[])
        })
    })?;
    checked("headless without a selector: endpoints as given, their host names, SRV and PTR", {
        let endpoint = |ip: IpAddr, name: &str| json!({"addresses": [ip.to_string()], "hostname": name});
        let ips = [stage.ip("b1", false)?, stage.ip("b2", false)?];
        stage.put(&[
            service("db", spec(json!({"clusterIP": "None"}))),
            slice("db", "a", false, vec![endpoint(ips[0], "db-0"), endpoint(ips[1], "db-1")]),
        ])?;
        all(&|client| {
            client.says(&svc("db"), "A", "NOERROR", &[&ips[0].to_string(), &ips[1].to_string()])?;
            let name = |index: usize| format!("db-{index}.{}", svc("db"));
            for (index, ip) in ips.iter().enumerate() {
                client.says(&name(index), "A", "NOERROR", &[&ip.to_string()])?;
                client.says(&reverse(*ip), "PTR", "NOERROR", &[&format!("{}.", name(index))])?;
            }
            client.says(&name(0), "AAAA", "NOERROR", &[])?;
            client.says(&name(2), "A", "NXDOMAIN", &[])?;
            let srv = [0, 1].map(|index| format!("0 100 8080 {}.", name(index)));
            client.says(&format!("_http._tcp.{}", svc("db")), "SRV", "NOERROR", &[&srv[0], &srv[1]])
        })
    })?;
    checked("ExternalName: a CNAME, and its target from outside", {
        stage
            .service(&service("far", json!({"type": "ExternalName", "externalName": "www.example.test"})))?;
        all(&|client| {
            client.says(&svc("far"), "CNAME", "NOERROR", &["www.example.test."])?;
            let data = client.data(&svc("far"), "A")?;
            let wanted = [format!("A {}", weft_lab::OUTSIDE_FAR_IP), "CNAME www.example.test.".into()];
            ensure!(data == wanted, "{data:?}");
            Ok(())
        })
    })?;
    checked("a pod's dashed address, only of a pod that is there", {
        all(&|client| {
            for ip in &b1.ips {
                let (dashed, kind) = (dashed(*ip), if ip.is_ipv4() { "A" } else { "AAAA" });
                let name = format!("{dashed}.default.pod.{ZONE}");
                client.says(&name, kind, "NOERROR", &[&ip.to_string()])?;
                client.says(&format!("{dashed}.other.pod.{ZONE}"), kind, "NXDOMAIN", &[])?;
            }
            client.says(&format!("10-244-99-99.default.pod.{ZONE}"), "A", "NXDOMAIN", &[])
        })
    })?;
    checked(
        "empty non-terminals have no data; what is unknown is NXDOMAIN with our SOA, to be kept by nobody",
        {
            all(&|client| {
                for name in
                    [format!("svc.{ZONE}"), format!("default.svc.{ZONE}"), format!("_tcp.{}", svc("web"))]
                {
                    client.says(&name, "A", "NOERROR", &[])?;
                    denial(&client.ask(&name, "A")?)?;
                }
                for name in [svc("nobody-at-all"), format!("x.{ZONE}"), format!("web.other.svc.{ZONE}")] {
                    client.says(&name, "A", "NXDOMAIN", &[])?;
                    denial(&client.ask(&name, "A")?)?;
                }
                client.says(&format!("*.default.svc.{ZONE}"), "A", "NXDOMAIN", &[])?;
                client.says(&format!("any.default.svc.{ZONE}"), "A", "NXDOMAIN", &[])
            })
        },
    )?;
    checked("SOA and NS at the apex; the name server has an address", {
        all(&|client| {
            let soa = client.data(ZONE, "SOA")?;
            ensure!(soa.len() == 1 && soa[0].starts_with("SOA ns.dns.cluster.local."), "{soa:?}");
            client.says(ZONE, "NS", "NOERROR", &["ns.dns.cluster.local."])?;
            let servers = client.data("ns.dns.cluster.local", "A")?;
            ensure!(servers.contains(&"A 169.254.53.53".into()), "{servers:?}");
            Ok(())
        })
    })?;
    checked("case does not matter, and the answer keeps the question's (0x20)", {
        all(&|client| {
            let answer = client.ask("WeB.dEfAuLt.SvC.cLuStEr.LoCaL", "A")?;
            ensure!(answer.data == [format!("A {vip4}")], "{:?}", answer.data);
            let asked = answer.message.queries[0].name().to_string();
            ensure!(asked == "WeB.dEfAuLt.SvC.cLuStEr.LoCaL.", "{asked}");
            ensure!(
                answer.message.answers[0].name.to_string() == asked,
                "{}",
                answer.message.answers[0].name
            );
            Ok(())
        })
    })?;
    checked("a TTL of 5 s, and we are the authority", {
        all(&|client| {
            let answer = client.ask(&svc("web"), "A")?;
            ensure!(answer.message.answers[0].ttl == 5, "{}", answer.message.answers[0].ttl);
            ensure!(answer.message.metadata.authoritative, "not authoritative");
            Ok(())
        })
    })?;
    checked("reverse: ours with authority, all others forwarded", {
        all(&|client| {
            let ours = client.ask(&reverse("10.96.250.250".parse()?), "PTR")?;
            ensure!(ours.rcode == "NXDOMAIN" && ours.message.metadata.authoritative, "{}", ours.rcode);
            let other = client.ask(&reverse("192.0.2.9".parse()?), "PTR")?;
            ensure!(!other.message.metadata.authoritative, "{} is not ours", other.rcode);
            Ok(())
        })
    })?;
    checked("clusterset.local is reserved: never asked for outside", {
        all(&|client| {
            let answer = client.ask("web.default.svc.clusterset.local", "A")?;
            ensure!(
                answer.rcode == "NXDOMAIN" && answer.message.metadata.authoritative,
                "{} {:?}",
                answer.rcode,
                answer.data
            );
            Ok(())
        })
    })?;
    checked(
        "conditions of endpoints: not ready is left out, publishNotReadyAddresses is not; terminating ones",
        {
            let backends = |ready| [("b1", conditions(true, true, false)), ("b2", ready)];
            let (out, leaving) = (conditions(false, false, false), conditions(false, true, true));
            let peers = |name: &str, publish: bool| {
                service(name, spec(json!({"clusterIP": "None", "publishNotReadyAddresses": publish})))
            };
            for (name, second) in [("some", &out), ("rest", &leaving)] {
                let mut objects = vec![peers(name, false)];
                objects.extend(stage.slices(name, "a", &backends(second.clone()))?);
                stage.put(&objects)?;
            }
            let mut objects = vec![peers("all", true)];
            objects.extend(stage.slices("all", "a", &backends(out.clone()))?);
            stage.put(&objects)?;
            let [one, two] = [stage.ip("b1", false)?.to_string(), stage.ip("b2", false)?.to_string()];
            all(&|client| {
                client.says(&svc("some"), "A", "NOERROR", &[&one])?;
                client.says(&svc("rest"), "A", "NOERROR", &[&one])?;
                client.says(&svc("all"), "A", "NOERROR", &[&one, &two])
            })
        },
    )?;
    checked("EDNS, truncation and TCP: many endpoints", many(&stage, &clients))?;
    checked("a service created after a question for it is answered at once", {
        all(&|client| client.says(&svc("late"), "A", "NXDOMAIN", &[]))?;
        let late = stage.service(&service("late", spec(json!({"selector": {"app": "web"}}))))?;
        let vip = late.vip(false)?.ip().to_string();
        all(&|client| client.says(&svc("late"), "A", "NOERROR", &[&vip]))?;
        stage.delete("Service", "late")?;
        all(&|client| client.says(&svc("late"), "A", "NXDOMAIN", &[]))
    })?;
    checked("A and AAAA at once from one socket", {
        let ips = ["getent", "ahosts", "web"];
        let said = stage.lab.exec("c1", &ips)?.text("getent")?;
        ensure!(said.contains(&vip4.to_string()) && said.contains(&vip6.to_string()), "{said}");
        Ok(())
    })?;
    checked("resolv.conf: the node first, then the cluster's address; search path, ndots", {
        let text = stage.lab.exec("c1", &["cat", "/etc/resolv.conf"])?.text("resolv.conf")?;
        let servers: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
        ensure!(servers.len() <= 3 && servers.first() == Some(&"169.254.53.53"), "{text}");
        ensure!(servers.contains(&"10.96.0.10"), "{text}");
        ensure!(text.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{text}");
        ensure!(text.contains("options ndots:5 timeout:1 attempts:3"), "{text}");
        Ok(())
    })?;
    drop(b2);
    stage.lab.down()
}

/// Sixty endpoints do not fit into 512 octets, and two hundred not into 1,232.
fn many(stage: &Stage, clients: &[Client]) -> Result<()> {
    for (name, count) in [("many", 60_u8), ("more", 200)] {
        let endpoints = (1..=count).map(|last| json!({"addresses": [format!("10.244.77.{last}")]})).collect();
        stage
            .put(&[service(name, spec(json!({"clusterIP": "None"}))), slice(name, "a", false, endpoints)])?;
    }
    for client in clients {
        let plain = client.ask(&svc("many"), "A")?;
        ensure!(plain.message.metadata.truncation && plain.bytes <= 512, "{} octets", plain.bytes);
        let edns = client.ask_how(&svc("many"), "A", How { edns: Some(1_232), ..How::default() })?;
        ensure!(!edns.message.metadata.truncation && edns.data.len() == 60, "{} addresses", edns.data.len());
        ensure!(edns.bytes <= 60 * 16 + 80, "not compressed: {} octets", edns.bytes);
        let cut = client.ask_how(&svc("more"), "A", How { edns: Some(4_096), ..How::default() })?;
        ensure!(cut.message.metadata.truncation && cut.bytes <= 1_232, "{} octets", cut.bytes);
        let whole = client.ask_how(&svc("more"), "A", How { tcp: true, ..How::default() })?;
        ensure!(!whole.message.metadata.truncation && whole.data.len() == 200, "{}", whole.data.len());
    }
    // As programs do it: a truncated answer is asked for again over TCP.
    let dig = stage.lab.exec("c1", &["dig", "+short", "+noedns", &svc("more"), "A"])?.text("dig")?;
    ensure!(dig.lines().filter(|line| line.starts_with("10.244.77.")).count() == 200, "{dig}");
    Ok(())
}

#[test]
fn answers_depend_on_who_asks() -> Result<()> {
    let Some(mut stage) = Stage::alone("dnswho", &[])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    let pod = |name: &str| weft_lab::PodSpec::new("n1", name);
    stage.lab.pod_add(&pod("front").label("tier", "front"))?;
    stage.lab.pod_add(&pod("back").label("tier", "back"))?;
    stage.lab.pod_add(&pod("shop").namespace("shop"))?;
    let client = |pod: &str| Client::pod(&stage.lab, pod, NODE_DNS[0]);
    let (front, back, shop) = (client("front")?, client("back")?, client("shop")?);
    let plain = spec(json!({"selector": {"app": "web"}}));

    checked("views by label: who may not see a service gets NXDOMAIN for all of it", {
        let secret = annotated(service("secret", plain.clone()), "weft.dev/dns-views", "tier=front");
        let given = stage.service(&secret)?;
        let vip = given.vip(false)?.ip();
        front.says(&svc("secret"), "A", "NOERROR", &[&vip.to_string()])?;
        for other in [&back, &shop] {
            other.says(&svc("secret"), "A", "NXDOMAIN", &[])?;
            other.says(&format!("_http._tcp.{}", svc("secret")), "SRV", "NXDOMAIN", &[])?;
            other.says(&reverse(vip), "PTR", "NXDOMAIN", &[])?;
        }
        Ok(())
    })?;
    checked("views by namespace", {
        let ours = annotated(service("ours", plain.clone()), "weft.dev/dns-views", "namespace=shop");
        let vip = stage.service(&ours)?.vip(false)?.ip().to_string();
        shop.says(&svc("ours"), "A", "NOERROR", &[&vip])?;
        front.says(&svc("ours"), "A", "NXDOMAIN", &[])
    })?;
    checked("a label that changes changes the view", {
        stage.lab.weft("n1", &["pod", "label", "default/back", "tier=front"])?.text("weft pod label")?;
        let vip = stage.lab.ask("n1", async |client| client.service("default", "secret").await)?;
        let vip = vip.info.cluster_ips.iter().find(|ip| ip.is_ipv4()).context("no IPv4")?.to_string();
        crate::dns_client::becomes(&back, &svc("secret"), "A", &[&vip], SOON)
    })?;
    checked("aliases of a service", {
        let named = annotated(service("pg", plain.clone()), "weft.dev/dns-aliases", "db, sql.shop");
        let vip = stage.service(&named)?.vip(false)?.ip().to_string();
        for (who, name) in [(&front, svc("db")), (&shop, format!("sql.shop.svc.{ZONE}"))] {
            let data = who.data(&name, "A")?;
            ensure!(data == [format!("A {vip}"), format!("CNAME {}.", svc("pg"))], "{data:?}");
        }
        Ok(())
    })?;
    checked("the search path is answered on the first question, by the client's namespace", {
        stage.service(&service("web", plain.clone()))?;
        // What the C library asks first: the name below the pod's own namespace.
        let outside = |namespace: &str| format!("www.example.test.{namespace}.svc.{ZONE}");
        let far = format!("A {}", weft_lab::OUTSIDE_FAR_IP);
        let answer = front.ask(&outside("default"), "A")?;
        ensure!(
            answer.rcode == "NOERROR" && answer.data.contains(&far),
            "{} {:?}",
            answer.rcode,
            answer.data
        );
        // The name says a namespace, the address of the client which is its own.
        shop.says(&outside("default"), "A", "NXDOMAIN", &[])?;
        let answer = shop.ask(&outside("shop"), "A")?;
        ensure!(
            answer.rcode == "NOERROR" && answer.data.contains(&far),
            "{} {:?}",
            answer.rcode,
            answer.data
        );
        shop.says(&format!("web.shop.svc.{ZONE}"), "A", "NXDOMAIN", &[])?;
        let said = stage.lab.exec("shop", &["getent", "ahostsv4", "web.default"])?.text("getent")?;
        ensure!(said.starts_with("10.96."), "{said}");
        Ok(())
    })?;
    stage.lab.down()
}

#[test]
fn what_the_operator_is_told_about_a_name() -> Result<()> {
    let Some(mut stage) = Stage::alone("dnstold", &[])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.lab.pod_add(&weft_lab::PodSpec::new("n1", "front").label("tier", "front"))?;
    stage.client("n1", "back")?;
    let secret = service("secret", spec(json!({"selector": {"app": "web"}})));
    let given = stage.service(&annotated(secret, "weft.dev/dns-views", "tier=front"))?;
    let vip = given.vip(false)?.ip().to_string();
    let told = |pod: &str| {
        stage.lab.weft("n1", &["dns", "query", &svc("secret"), "--as", pod])?.text("weft dns query")
    };
    let (front, back) = (told("default/front")?, told("default/back")?);
    ensure!(front.contains(&vip), "{front}");
    ensure!(back.contains("NXDOMAIN") && !back.contains(&vip), "{back}");
    stage.lab.down()
}

fn first(answer: &Answer) -> Result<String> {
    Ok(answer.message.answers.first().context("no record")?.data.to_string())
}

/// Our SOA is there, and tells nobody to keep the "no".
fn denial(answer: &Answer) -> Result<()> {
    let soa = answer.message.authorities.first().context("no SOA")?;
    let text = soa.data.to_string();
    ensure!(soa.ttl == 0 && text.ends_with(" 0"), "{soa}");
    Ok(())
}

/// A service's name in full.
pub(crate) fn svc(name: &str) -> String {
    format!("{name}.default.svc.{ZONE}")
}

/// The name for PTR (RFC 1035, 3.5; RFC 3596, 2.5).
pub(crate) fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let nibbles = ip.octets().into_iter().rev().flat_map(|octet| [octet & 15, octet >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}
