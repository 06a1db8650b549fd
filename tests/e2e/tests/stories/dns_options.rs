// SPDX-License-Identifier: Apache-2.0
//! DNS as the operator wants it: pod names, TTL, the query log; and how it differs from another server.

use crate::dns_client::{Client, How, NODE_DNS, PATIENCE};
use crate::dns_records::svc;
use crate::dns_upstream::Upstream;
use crate::service_stage::{SOON, Stage, checked, service, spec};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::Ipv4Addr;
use weft_lab::{Output, wait_until};

/// Lines of a log that is looked at.
const LINES: usize = 2_000;

#[test]
fn pod_names_ttl_and_query_log_are_as_configured() -> Result<()> {
    let options = ["--dns-pod-names", "insecure", "--dns-ttl-secs", "30", "--dns-query-log-every", "1"];
    let Some(mut stage) = Stage::alone("dnsopt", &options)? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();
    let client = Client::pod(&stage.lab, "c1", NODE_DNS[0])?;
    let nobody = "10-244-99-99.default.pod.cluster.local";
    let pod = format!("{}.default.pod.cluster.local", stage.ip("b1", false)?.to_string().replace('.', "-"));
    let pod_ip = stage.ip("b1", false)?.to_string();
    let ttl = |name: &str| -> Result<u32> {
        Ok(client.ask(name, "A")?.message.answers.first().context("no record")?.ttl)
    };

    checked("insecure: any address has a name, in a namespace that is there", {
        client.says(nobody, "A", "NOERROR", &["10.244.99.99"])?;
        client.says(&pod, "A", "NOERROR", &[&pod_ip])?;
        client.says("10-244-99-99.nowhere.pod.cluster.local", "A", "NXDOMAIN", &[])
    })?;
    checked("a TTL of 30 s", {
        ensure!(ttl(&svc("web"))? == 30, "{}", ttl(&svc("web"))?);
        // What there is not is kept by nobody all the same.
        let soa = client.ask(&svc("nobody"), "A")?.message.authorities.first().context("no SOA")?.ttl;
        ensure!(soa == 0, "a denial with TTL {soa}");
        Ok(())
    })?;
    checked("query log: a line says who asked for what, how, and what came of it", {
        client.ask(&svc("logged"), "A")?;
        client.ask_how(&svc("web"), "AAAA", How { tcp: true, ..How::default() })?;
        let own = stage.ip("c1", false)?.to_string();
        let has = |words: &[&str]| -> Result<bool> {
            let log = stage.lab.node_log("n1", LINES)?;
            Ok(log.lines().any(|line| words.iter().all(|word| line.contains(word))))
        };
        for words in [
            ["DNS question", &own, "logged.default.svc.cluster.local", "NXDOMAIN", "Udp"],
            ["DNS question", &own, "web.default.svc.cluster.local", "AAAA", "Tcp"],
        ] {
            ensure!(wait_until(SOON, || has(&words))?, "no line with {words:?}");
        }
        Ok(())
    })?;

    restart(&stage, &["--dns-pod-names", "disabled", "--dns-ttl-secs", "0", "--dns-query-log-every", "10"])?;
    checked("disabled: no pod has such a name", {
        client.says(&pod, "A", "NXDOMAIN", &[])?;
        client.says("default.pod.cluster.local", "A", "NXDOMAIN", &[])
    })?;
    checked("a TTL of 0", {
        ensure!(ttl(&svc("web"))? == 0, "{}", ttl(&svc("web"))?);
        Ok(())
    })?;
    checked("query log: of a hundred questions ten lines", {
        let name = svc("sampled");
        for _ in 0..100 {
            client.ask(&name, "A")?;
        }
        let lines = || -> Result<usize> {
            let log = stage.lab.node_log("n1", LINES)?;
            Ok(log.lines().filter(|line| line.contains("DNS question") && line.contains(&name)).count())
        };
        ensure!(wait_until(SOON, || Ok(lines()? >= 10))?, "{} lines", lines()?);
        ensure!(lines()? == 10, "{} lines", lines()?);
        Ok(())
    })?;

    restart(&stage, &[])?;
    checked("as a rule: verified pod names, a TTL of 5 s, and no query log", {
        client.says(nobody, "A", "NXDOMAIN", &[])?;
        client.says(&pod, "A", "NOERROR", &[&pod_ip])?;
        ensure!(ttl(&svc("web"))? == 5, "{}", ttl(&svc("web"))?);
        client.says(&svc("web"), "A", "NOERROR", &[&vip])?;
        client.ask(&svc("unlogged"), "A")?;
        let log = stage.lab.node_log("n1", LINES)?;
        ensure!(!log.contains("unlogged"), "{log}");
        Ok(())
    })?;
    stage.lab.down()
}

fn restart(stage: &Stage, options: &[&str]) -> Result<()> {
    stage.lab.netd_args(options)?;
    stage.lab.node_stop("n1")?;
    stage.lab.node_start("n1").map(drop)
}

#[test]
fn compare_shows_where_another_server_differs() -> Result<()> {
    let Some(mut stage) = Stage::of("dnscmp", 2, "vxlan", &[])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n2", "c2")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();
    stage.service(&service("peers", spec(json!({"clusterIP": "None", "selector": {"app": "web"}}))))?;

    checked("another node's server says the same: exit code 0", {
        let other = other_server(&stage)?;
        let mut said = String::new();
        // It hears of the objects when the store tells it.
        let same = wait_until(PATIENCE, || {
            let output = compare(&stage, &other)?;
            said = format!("{}{}", output.stdout, output.stderr);
            Ok(output.ok())
        })?;
        ensure!(same, "{said}");
        Ok(())
    })?;
    checked(
        "a server that knows none of it: each name is shown, with what each of the two says; exit code 1",
        {
            let _stranger = Upstream::start(&stage.lab, 5_305, Ipv4Addr::new(192, 0, 2, 5))?;
            let output = compare(&stage, &format!("{}:5305", weft_lab::OUTSIDE_IP))?;
            ensure!(output.code == Some(1), "{:?} {}{}", output.code, output.stdout, output.stderr);
            for wanted in [
                svc("web").as_str(),
                &svc("peers"),
                &format!("_http._tcp.{}", svc("web")),
                &vip,
                "in-addr.arpa",
                "ip6.arpa",
            ] {
                ensure!(output.stdout.contains(wanted), "no {wanted} in:\n{}", output.stdout);
            }
            Ok(())
        },
    )?;
    checked("a server that is not there: said, with its address, and no result", {
        let output = compare(&stage, &format!("{}:5306", weft_lab::OUTSIDE_IP))?;
        ensure!(!output.ok() && output.stderr.contains(":5306"), "{:?} {}", output.code, output.stderr);
        Ok(())
    })?;
    stage.lab.down()
}

/// As an operator does it on n1.
fn compare(stage: &Stage, server: &str) -> Result<Output> {
    let weft = weft_lab::sibling("weft")?.display().to_string();
    let socket = format!("WEFT_SOCKET={}", stage.lab.state()?.node("n1")?.socket().display());
    stage.lab.exec("n1", &["env", &socket, &weft, "dns", "compare", server])
}

/// Where n2 answers others' pods.
fn other_server(stage: &Stage) -> Result<String> {
    let mut found = None;
    wait_until(SOON, || {
        let detail = stage.lab.ask("n1", async |client| client.service("kube-system", "kube-dns").await)?;
        found =
            detail.backends.iter().find(|one| one.source == "another node's server").map(|one| one.address);
        Ok(found.is_some())
    })?;
    Ok(found.context("no other server")?.to_string())
}
