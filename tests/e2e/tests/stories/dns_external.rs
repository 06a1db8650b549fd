// SPDX-License-Identifier: Apache-2.0
//! Names of Services in a zone of others, whose server is Debian's BIND.

use crate::dns_bind::{Bind, KEY, PORT, SECRET, WRONG_SECRET};
use crate::dns_client::{Client, becomes};
use crate::have;
use crate::service_stage::{
    SOON, Stage, annotated, balanced, checked, documented, refused_with, service, spec,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_lab::{OUTSIDE_IP, wait_until};

const NAMES: &str = "weft.dev/dns-external";
/// A lease's time, and what a busy machine adds.
const FAILOVER: Duration = Duration::from_secs(40);

#[test]
fn names_of_services_are_published_changed_and_removed_in_a_zone_of_others() -> Result<()> {
    if !tools("dnsext") {
        return Ok(());
    }
    let Some(mut stage) = Stage::of("dnsext", 2, "vxlan", &[])? else { return Ok(()) };
    let bind = Bind::start(&stage.lab)?;
    let before = bind.zone(&stage.lab)?;
    for node in ["n1", "n2"] {
        configure(&stage, node, &External::default())?;
    }
    let client = Client::at(&stage.lab.state()?.outside.netns, &format!("{OUTSIDE_IP}:{PORT}"))?;
    let is = |name: &str, kind: &str, data: &[&str]| becomes(&client, name, kind, data, SOON);
    stage.backend("n1", "b1", "web")?;

    checked("a load balancer's addresses, under each of its names, with a mark that says whose they are", {
        stage.service(&shop("shop.example.org, *.shop.example.org", &documented(1)))?;
        let [v4, v6] = documented(1).map(|ip| ip.to_string());
        for name in ["shop.example.org", "any.shop.example.org"] {
            is(name, "A", &[&v4])?;
            is(name, "AAAA", &[&v6])?;
        }
        let cluster = stage.lab.state()?.cluster;
        let mark = client.data("_weft.shop.example.org", "TXT")?.concat();
        let owner =
            mark.strip_prefix(&format!("TXT heritage=weft,owner={cluster}.")).context(mark.clone())?;
        ensure!(owner.len() == 29 && owner.ends_with(",service=default/shop"), "{mark}");
        ensure!(
            client.ask("shop.example.org", "A")?.message.answers[0].ttl == 60,
            "not the TTL of the default"
        );
        Ok(())
    })?;
    checked("another address, and one less", {
        let [v4, _] = documented(2);
        stage.service(&shop("shop.example.org, *.shop.example.org", &[v4]))?;
        is("shop.example.org", "A", &[&v4.to_string()])?;
        is("shop.example.org", "AAAA", &[])
    })?;
    checked("another name: the first one goes", {
        stage.service(&shop("store.example.org", &documented(2)))?;
        is("store.example.org", "A", &[&documented(2)[0].to_string()])?;
        client_becomes_nothing(&client, "shop.example.org")?;
        client_becomes_nothing(&client, "any.shop.example.org")
    })?;
    checked("node ports: the nodes' addresses; a load balancer's name: an alias", {
        let nodes = service("nodes", spec(json!({"type": "NodePort", "selector": {"app": "web"}})));
        stage.service(&annotated(nodes, NAMES, "nodes.example.org"))?;
        let [n1, n2] = [stage.node_ip("n1", false)?.to_string(), stage.node_ip("n2", false)?.to_string()];
        is("nodes.example.org", "A", &[&n1, &n2])?;
        let mut named = shop("named.example.org", &[]);
        named["metadata"]["name"] = "named".into();
        named["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "lb.example.net"}]}});
        stage.service(&named)?;
        is("named.example.org", "CNAME", &["lb.example.net."])
    })?;
    checked("what is somebody else's stays, and it is said whose Service cannot have it", {
        let theirs = "heritage=weft,owner=other.12345678,service=default/shop";
        let lines = "other.example.org. 60 A 198.51.100.2\nupdate add _weft.other.example.org. 60 TXT";
        bind.update(&stage.lab, &format!("update add {lines} {theirs:?}"))?;
        let names = "www.example.org, www.example.net, other.example.org, fine.example.org";
        let mut thief = shop(names, &documented(3));
        thief["metadata"]["name"] = "thief".into();
        stage.service(&thief)?;
        is("fine.example.org", "A", &[&documented(3)[0].to_string()])?;
        client.says("www.example.org", "A", "NOERROR", &["198.51.100.80"])?;
        client.says("other.example.org", "A", "NOERROR", &["198.51.100.2"])?;
        let leader = leader(&stage)?;
        let said = wait_until(SOON, || {
            let status = stage.lab.status(&leader)?;
            let pending = status.pending.iter().any(|item| {
                item.object == "name www.example.org"
                    && item.error.contains("has records that are not Weft's")
            });
            let bad = status.bad_values.iter().any(|bad| {
                bad.key == "Service default/thief"
                    && bad.reason.contains("www.example.net is not at or below example.org")
            });
            let taken = status.bad_values.iter().any(|bad| {
                bad.key == "name other.example.org" && bad.reason.contains("of cluster other.12345678 has it")
            });
            Ok(pending && bad && taken)
        })?;
        ensure!(said, "{:?}", stage.lab.status(&leader)?);
        let wrong = annotated(service("wrong", spec(json!({}))), NAMES, "a_b.example.org");
        refused_with(stage.put(&[wrong]), &["Service default/wrong", NAMES, "a_b.example.org"])?;
        stage.delete("Service", "thief")?;
        client.says("other.example.org", "A", "NOERROR", &["198.51.100.2"])?;
        let both = "update delete other.example.org.\nupdate delete _weft.other.example.org.";
        bind.update(&stage.lab, both)?;
        client_becomes_nothing(&client, "fine.example.org")
    })?;
    checked(
        "a name that the zone leaves to other servers is told of, and keeps none from being published",
        {
            let mut far = shop("x.sub.example.org, near.example.org", &documented(5));
            far["metadata"]["name"] = "far".into();
            stage.service(&far)?;
            let [v4, _] = documented(5).map(|ip| ip.to_string());
            is("near.example.org", "A", &[&v4])?;
            let leader = leader(&stage)?;
            let said = wait_until(SOON, || {
                let pending = stage.lab.status(&leader)?.pending;
                Ok(pending.iter().any(|item| {
                    item.object == "name x.sub.example.org"
                        && item.error.contains("delegated to other servers")
                }))
            })?;
            ensure!(said, "{:?}", stage.lab.status(&leader)?.pending);
            stage.delete("Service", "far")?;
            client_becomes_nothing(&client, "near.example.org")
        },
    )?;
    checked("metrics", {
        if have("curl", "dnsext") {
            let leader = leader(&stage)?;
            let url = ["curl", "-s", "http://127.0.0.1:9157/metrics"];
            let wanted = [
                "weft_dns_external_leader 1",
                "weft_dns_external_done 1",
                "weft_dns_external_names 3",
                "weft_dns_external_problems 0",
                "weft_dns_external_updates_total{change=\"claim\"}",
                "weft_dns_external_errors_total{reason=\"conflict\"}",
            ];
            let mut text = String::new();
            // The zone has it a moment before the metrics do.
            let counted = wait_until(SOON, || {
                text = stage.lab.exec(&leader, &url)?.text("metrics")?;
                Ok(wanted.iter().all(|line| text.contains(line)))
            })?;
            ensure!(counted, "{wanted:?} expected in:\n{text}");
        }
        Ok(())
    })?;
    checked("the leader is killed: the other node goes on once the lease is over", {
        let first = leader(&stage)?;
        let other = if first == "n1" { "n2" } else { "n1" };
        stage.lab.node_kill(&first)?;
        let start = Instant::now();
        delete(&stage, "shop")?;
        let gone = wait_until(FAILOVER, || Ok(client.ask("store.example.org", "A")?.rcode == "NXDOMAIN"))?;
        ensure!(gone, "store.example.org is still there after {FAILOVER:?}");
        println!("failover: {:?} after the leader was killed", start.elapsed());
        ensure!(leader(&stage)? == other, "the leader is not {other}");
        let nodes = [stage.node_ip("n1", false)?.to_string(), stage.node_ip("n2", false)?.to_string()];
        client.says("nodes.example.org", "A", "NOERROR", &[&nodes[0], &nodes[1]])?;
        stage.lab.node_start(&first)?;
        Ok(())
    })?;
    checked("the leader is stopped: the other one goes on at once", {
        let first = leader(&stage)?;
        let start = Instant::now();
        stage.lab.node_stop(&first)?;
        let taken = wait_until(SOON, || Ok(leader(&stage).is_ok_and(|leader| leader != first)))?;
        ensure!(taken, "nobody took over in {SOON:?}");
        println!("handed over: {:?} after the leader was told to stop", start.elapsed());
        stage.lab.node_start(&first)?;
        Ok(())
    })?;
    checked("a leader without a way to the server says so, and another one goes on", {
        let first = leader(&stage)?;
        let server = OUTSIDE_IP.to_string();
        let route = |verb: &str| {
            let argv = ["ip", "route", verb, "prohibit", &server];
            stage.lab.exec(&first, &argv)?.text("ip route").map(drop)
        };
        route("add")?;
        stage.service(&shop("moved.example.org", &documented(4)))?;
        let said = wait_until(SOON, || {
            let pending = stage.lab.status(&first)?.pending;
            Ok(pending.iter().any(|item| item.error.contains("cannot be connected to over TCP")))
        })?;
        ensure!(said, "{:?}", stage.lab.status(&first)?.pending);
        becomes(&client, "moved.example.org", "A", &[&documented(4)[0].to_string()], FAILOVER)?;
        ensure!(leader(&stage)? != first, "{first} still leads");
        route("del")?;
        stage.delete("Service", "shop")?;
        client_becomes_nothing(&client, "moved.example.org")
    })?;
    checked("what changed while no netd ran, in the store and in the zone, is made good", {
        stage.lab.node_stop("n1")?;
        stage.lab.node_stop("n2")?;
        delete(&stage, "named")?;
        bind.update(
            &stage.lab,
            "update delete nodes.example.org. A\nupdate add nodes.example.org. 60 A 198.51.100.1",
        )?;
        client.says("nodes.example.org", "A", "NOERROR", &["198.51.100.1"])?;
        client.says("named.example.org", "CNAME", "NOERROR", &["lb.example.net."])?;
        stage.lab.node_spawn("n1")?;
        stage.lab.node_start("n2")?;
        stage.lab.node_start("n1")?;
        let nodes = [stage.node_ip("n1", false)?.to_string(), stage.node_ip("n2", false)?.to_string()];
        becomes(&client, "nodes.example.org", "A", &[&nodes[0], &nodes[1]], FAILOVER)?;
        client_becomes_nothing(&client, "named.example.org")
    })?;
    checked(
        "an identifier of the cluster that does not read is told of with its key, and nothing goes by it",
        {
            let key = format!("/weft/v1/{}/id", stage.lab.state()?.cluster);
            let id = etcdctl(&stage, &["get", "--print-value-only", &key])?;
            stage.lab.node_stop("n1")?;
            stage.lab.node_stop("n2")?;
            etcdctl(&stage, &["put", &key, "?"])?;
            stage.lab.node_spawn("n1")?;
            stage.lab.node_start("n2")?;
            stage.lab.node_start("n1")?;
            let told = || {
                let pending = leader(&stage).and_then(|leader| Ok(stage.lab.status(&leader)?.pending));
                Ok(pending.is_ok_and(|pending| pending.iter().any(|item| item.error.contains(&key))))
            };
            ensure!(wait_until(FAILOVER, told)?, "nothing of {key}");
            let nodes = [stage.node_ip("n1", false)?.to_string(), stage.node_ip("n2", false)?.to_string()];
            client.says("nodes.example.org", "A", "NOERROR", &[&nodes[0], &nodes[1]])?;
            etcdctl(&stage, &["put", &key, id.trim()])?;
            ensure!(wait_until(FAILOVER, || Ok(!told()?))?, "{key} is still told of");
            client.says("nodes.example.org", "A", "NOERROR", &[&nodes[0], &nodes[1]])
        },
    )?;
    checked("the annotation goes, and with it everything of ours; nothing of others was touched", {
        let plain = service("nodes", spec(json!({"type": "NodePort", "selector": {"app": "web"}})));
        stage.service(&plain)?;
        client_becomes_nothing(&client, "nodes.example.org")?;
        let after = bind.zone(&stage.lab)?;
        ensure!(after == before, "before:\n{}\nafter:\n{}", before.join("\n"), after.join("\n"));
        Ok(())
    })?;
    drop(bind);
    stage.lab.down()
}

#[test]
fn a_server_that_does_not_do_what_it_is_asked_is_told_about_clearly() -> Result<()> {
    if !tools("dnsextno") {
        return Ok(());
    }
    let Some(stage) = Stage::alone("dnsextno", &[])? else { return Ok(()) };
    let bind = Bind::start(&stage.lab)?;
    let client = Client::at(&stage.lab.state()?.outside.netns, &format!("{OUTSIDE_IP}:{PORT}"))?;
    let good = External::default();
    let said = |external: &External, words: &[&str]| {
        configure(&stage, "n1", external)?;
        let mut last = Vec::new();
        let heard = wait_until(SOON, || {
            last = stage.lab.status("n1")?.pending;
            Ok(last.iter().any(|item| words.iter().all(|word| item.error.contains(word))))
        })?;
        ensure!(heard, "{words:?} expected: {last:?}");
        let log = stage.lab.node_log("n1", 200)?;
        ensure!(words.iter().all(|word| log.contains(word)), "{words:?} expected in the log:\n{log}");
        ensure!(!log.contains(SECRET) && !log.contains(WRONG_SECRET), "the secret is in the log");
        client.says("shop.example.org", "A", "NXDOMAIN", &[])
    };
    configure(&stage, "n1", &good)?;
    stage.service(&shop("shop.example.org, shop.closed.example, shop.nowhere.example", &documented(1)))?;
    becomes(&client, "shop.example.org", "A", &[&documented(1)[0].to_string()], SOON)?;
    stage.delete("Service", "shop")?;
    client_becomes_nothing(&client, "shop.example.org")?;
    stage.service(&shop("shop.closed.example, shop.nowhere.example", &documented(1)))?;

    checked("another secret: BADSIG", {
        said(
            &External { secret: WRONG_SECRET, ..good },
            &["the signature is wrong (BADSIG)", "secret-file", KEY],
        )
    })?;
    checked("another key: BADKEY", {
        said(&External { key: "wift", ..good }, &["does not know key wift with hmac-sha256 (BADKEY)"])
    })?;
    checked("another algorithm: BADKEY", {
        said(
            &External { algorithm: "hmac-sha512", ..good },
            &["does not know key weft with hmac-sha512 (BADKEY)"],
        )
    })?;
    checked("a zone that the key may not change: REFUSED", {
        said(
            &External { zone: "closed.example", ..good },
            &["refused a change of shop.closed.example (REFUSED)", "grant weft"],
        )
    })?;
    checked("a zone that is not the server's", {
        said(
            &External { zone: "nowhere.example", ..good },
            &["(REFUSED): is it a server of zone nowhere.example"],
        )
    })?;
    checked("no server there", {
        said(&External { port: PORT + 1, ..good }, &["cannot be connected to over TCP"])
    })?;
    checked("the configuration is put right: it is published", {
        configure(&stage, "n1", &good)?;
        stage.service(&shop("shop.example.org", &documented(1)))?;
        becomes(&client, "shop.example.org", "A", &[&documented(1)[0].to_string()], SOON)
    })?;
    checked("a secret that everybody may read is none", {
        let file = stage.lab.state()?.node("n1")?.dir.join("tsig");
        weft_lab::tool("chmod", &["644", &file.display().to_string()])?;
        let config = file.with_file_name("netd.toml").display().to_string();
        let netd = weft_lab::sibling("netd")?.display().to_string();
        let out = stage.lab.exec("n1", &[&netd, "--config", &config, "--run-dir", "/nonexistent"])?;
        ensure!(out.code == Some(2) && out.stderr.contains("chmod 600"), "{out:?}");
        Ok(())
    })?;
    drop(bind);
    stage.lab.down()
}

/// What `[dns.external]` says.
#[derive(Clone, Copy)]
struct External {
    port: u16,
    zone: &'static str,
    key: &'static str,
    algorithm: &'static str,
    secret: &'static str,
}

impl Default for External {
    fn default() -> Self {
        Self { port: PORT, zone: "example.org", key: KEY, algorithm: "hmac-sha256", secret: SECRET }
    }
}

/// Writes it into a node's configuration, in place of what it said, and starts its netd anew.
fn configure(stage: &Stage, node: &str, external: &External) -> Result<()> {
    let dir: PathBuf = stage.lab.state()?.node(node)?.dir.clone();
    let (config, secret) = (dir.join("netd.toml"), dir.join("tsig"));
    let External { port, zone, key, algorithm, secret: text } = external;
    let mut file =
        fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&secret)?;
    writeln!(file, "{text}")?;
    let had = fs::read_to_string(&config)?;
    let had = had.split("[dns.external]").next().context("no configuration")?.trim_end();
    let table = format!(
        "{had}\n\n[dns.external]\nserver = \"{OUTSIDE_IP}:{port}\"\nzone = \"{zone}\"\nkey = \"{key}\"\nalgorithm = \"{algorithm}\"\n\
         secret-file = \"{}\"\n",
        secret.display()
    );
    fs::write(&config, table)?;
    stage.lab.node_stop(node)?;
    stage.lab.node_start(node)?;
    Ok(())
}

/// A load balancer's service.
fn shop(names: &str, ips: &[IpAddr]) -> Value {
    let plain = service("shop", spec(json!({"type": "LoadBalancer", "selector": {"app": "web"}})));
    annotated(balanced(plain, ips), NAMES, names)
}

/// Which node publishes.
fn leader(stage: &Stage) -> Result<String> {
    let key = format!("/weft/v1/{}/leader/dns-external", stage.lab.state()?.cluster);
    let record: Value = serde_json::from_str(&etcdctl(stage, &["get", "--print-value-only", &key])?)?;
    let uuid = record["node"].as_str().context("no node")?.to_owned();
    for node in ["n1", "n2"] {
        let known = stage.lab.status(node).map(|status| status.node.uuid.to_string());
        if known.is_ok_and(|known| known == uuid) {
            return Ok(node.into());
        }
    }
    anyhow::bail!("{uuid} is no node that answers")
}

/// Takes a Service out of the store without any netd.
fn delete(stage: &Stage, name: &str) -> Result<()> {
    let key = format!("/weft/v1/{}/services/default/{name}", stage.lab.state()?.cluster);
    ensure!(etcdctl(stage, &["del", &key])?.trim() == "1", "{key} was not there");
    Ok(())
}

fn etcdctl(stage: &Stage, args: &[&str]) -> Result<String> {
    let url = format!("http://{}:2379", stage.lab.state()?.etcd.first().context("no etcd")?.ip);
    stage.lab.exec("n1", &[&["etcdctl", "--endpoints", &url], args].concat())?.text("etcdctl")
}

fn client_becomes_nothing(client: &Client, name: &str) -> Result<()> {
    let mut last = String::new();
    let gone = wait_until(SOON, || {
        last = client.ask(name, "A")?.rcode;
        Ok(last == "NXDOMAIN")
    })?;
    ensure!(gone, "{name}: {last} after {SOON:?}");
    Ok(())
}

fn tools(story: &str) -> bool {
    ["named", "nsupdate", "dig", "etcdctl"].iter().all(|tool| have(tool, story))
}
