// SPDX-License-Identifier: Apache-2.0
//! DNS while things change: endpoints, the store, netd itself; and records of SkyDNS and of one's own.

use crate::dns_asking::asking;
use crate::dns_client::{Client, NODE_DNS, PATIENCE, becomes};
use crate::dns_records::svc;
use crate::have;
use crate::service_stage::{SOON, Stage, checked, conditions, service, spec};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

/// Changes of one headless service.
const CHANGES: usize = 40;
/// After its return netd has answered what waited within this.
const RETURN_LIMIT: Duration = Duration::from_secs(1);

#[test]
fn headless_answers_and_slots_change_in_the_same_revision() -> Result<()> {
    let Some(mut stage) = Stage::alone("dnschurn", &[])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.backend("n1", "b2", "web")?;
    stage.client("n1", "c1")?;
    let client = Client::pod(&stage.lab, "c1", NODE_DNS[0])?;
    let ips = [stage.ip("b1", false)?.to_string(), stage.ip("b2", false)?.to_string()];
    let web = stage.service(&service("web", spec(json!({}))))?;
    stage.service(&service("peers", spec(json!({"clusterIP": "None"}))))?;
    for number in 0..CHANGES {
        let second_is_up = number % 2 == 0;
        let backends =
            [("b1", conditions(true, true, false)), ("b2", conditions(second_is_up, second_is_up, false))];
        let mut objects = stage.slices("web", "a", &backends)?;
        objects.extend(stage.slices("peers", "a", &backends)?);
        stage.put(&objects)?;
        // From here on the slots are those of the change; so is every answer.
        let wanted: Vec<&str> =
            ips.iter().take(if second_is_up { 2 } else { 1 }).map(String::as_str).collect();
        client.says(&svc("peers"), "A", "NOERROR", &wanted).with_context(|| format!("change {number}"))?;
        let backends: &[&str] = if second_is_up { &["b1", "b2"] } else { &["b1"] };
        if number < 6 {
            stage.reaches("c1", web.vip(false)?, &[], backends)?;
        }
    }
    stage.lab.down()
}

#[test]
fn not_in_sync_is_servfail_and_never_nxdomain() -> Result<()> {
    let Some(stage) = Stage::of("dnssync", 1, "vxlan", &[])? else { return Ok(()) };
    stage.client("n1", "c1")?;
    let web = stage.service(&service("web", spec(json!({}))))?;
    let vip = web.vip(false)?.ip().to_string();
    let client = Client::pod(&stage.lab, "c1", NODE_DNS[0])?;
    client.says(&svc("web"), "A", "NOERROR", &[&vip])?;
    stage.lab.node_stop("n1")?;
    stage.lab.etcd_stop()?;
    // Without what the node remembers of the cluster nothing stands in for the store.
    let state = stage.lab.state()?.node("n1")?.dir.join("state");
    for entry in fs::read_dir(&state)?.flatten() {
        if entry.file_name().to_string_lossy().contains("snapshot") {
            fs::remove_file(entry.path())?;
        }
    }
    stage.lab.node_spawn("n1")?;
    checked("without the store: SERVFAIL for names of ours, there or not", {
        for name in [svc("web"), svc("nobody"), "cluster.local".into(), "10.0.96.10.in-addr.arpa".into()] {
            client.says(&name, "A", "SERVFAIL", &[])?;
        }
        Ok(())
    })?;
    stage.lab.etcd_start()?;
    checked("with the store: answers", {
        becomes(&client, &svc("web"), "A", &[&vip], 3 * SOON)?;
        client.says(&svc("nobody"), "A", "NXDOMAIN", &[])
    })?;
    stage.lab.down()
}

#[test]
fn no_question_is_lost_while_netd_is_restarted_or_killed() -> Result<()> {
    // Nobody else is there who could answer meanwhile.
    let Some(mut stage) = Stage::of("dnsrestart", 1, "vxlan", &[])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();

    checked("netd restarted: every question is answered, in both families", {
        asking(&stage, &vip, |_| {
            stage.lab.node_stop("n1")?;
            stage.lab.node_start("n1").map(drop)
        })
    })?;
    checked("netd killed: what waited is answered within a second of its return", {
        asking(&stage, &vip, |asked| {
            asked.pause_for(|| stage.lab.node_kill("n1"))?;
            ensure!(weft_lab::wait_until(PATIENCE, || Ok(!asked.all_answered()))?, "answered with netd dead");
            stage.lab.node_start("n1")?;
            let back = Instant::now();
            let caught_up = weft_lab::wait_until(PATIENCE, || Ok(asked.all_answered()))?;
            ensure!(caught_up && back.elapsed() < RETURN_LIMIT, "after {:?}", back.elapsed());
            Ok(())
        })
    })?;
    stage.lab.down()
}

#[test]
fn skydns_records_in_etcd_and_records_of_ones_own() -> Result<()> {
    if !have("etcdctl", "dnssky") {
        return Ok(());
    }
    let Some(mut stage) = Stage::of("dnssky", 1, "vxlan", &["--dns-zones", "sky.test"])? else {
        return Ok(());
    };
    stage.backend("n1", "b1", "web")?;
    stage.lab.pod_add(&weft_lab::PodSpec::new("n1", "front").label("tier", "front"))?;
    stage.client("n1", "c1")?;
    let vip = stage
        .service(&service("web", spec(json!({"selector": {"app": "web"}}))))?
        .vip(false)?
        .ip()
        .to_string();
    let client = Client::pod(&stage.lab, "c1", NODE_DNS[0])?;
    let url = format!("http://{}:2379", stage.lab.state()?.etcd.first().context("no etcd")?.ip);
    let etcdctl = |args: &[&str]| {
        stage.lab.exec("n1", &[&["etcdctl", "--endpoints", &url], args].concat())?.text("etcdctl").map(drop)
    };

    checked("a key in etcd is a name at once, as external-dns writes it", {
        etcdctl(&["put", "/skydns/test/sky/bad", "{not json"])?;
        etcdctl(&["put", "/skydns/test/sky/www/1a2b", r#"{"host":"203.0.113.7","ttl":60}"#])?;
        etcdctl(&["put", "/skydns/test/sky/www/3c4d", r#"{"host":"2001:db8::7"}"#])?;
        becomes(&client, "www.sky.test", "A", &["203.0.113.7"], SOON)?;
        becomes(&client, "www.sky.test", "AAAA", &["2001:db8::7"], SOON)?;
        etcdctl(&["put", "/skydns/test/sky/note", r#"{"text":"hello"}"#])?;
        becomes(&client, "note.sky.test", "TXT", &["hello"], SOON)
    })?;
    checked("a bad record is said, and nothing else is touched by it", {
        let bad = stage.lab.status("n1")?.bad_values;
        ensure!(bad.iter().any(|bad| format!("{bad:?}").contains("/skydns/test/sky/bad")), "{bad:?}");
        client.says("bad.sky.test", "A", "NXDOMAIN", &[])
    })?;
    checked("a key that is gone is no name", {
        etcdctl(&["del", "/skydns/test/sky/www/1a2b"])?;
        becomes(&client, "www.sky.test", "A", &[], SOON)?;
        client.says("www.sky.test", "AAAA", "NOERROR", &["2001:db8::7"])
    })?;
    checked("a record of one's own in the store", {
        let key = format!("/weft/v1/{}/dns/records/printer", stage.lab.state()?.cluster);
        etcdctl(&["put", &key, r#"{"schema":1,"name":"printer.sky.test","type":"A","data":"203.0.113.9"}"#])?;
        becomes(&client, "printer.sky.test", "A", &["203.0.113.9"], SOON)?;
        etcdctl(&["del", &key])?;
        becomes(&client, "printer.sky.test", "A", &[], SOON)
    })?;
    checked("records, links and rewrites of the configuration", {
        let file = stage.lab.state()?.node("n1")?.dir.join("netd.toml");
        fs::OpenOptions::new().append(true).open(&file)?.write_all(OWN.as_bytes())?;
        stage.lab.node_stop("n1")?;
        stage.lab.node_start("n1")?;
        client.says("mail.sky.test", "A", "NOERROR", &["203.0.113.25"])?;
        let front = Client::pod(&stage.lab, "front", NODE_DNS[0])?;
        let data = front.data(&svc("db"), "A")?;
        ensure!(data.contains(&format!("A {vip}")), "the link: {data:?}");
        client.says(&svc("db"), "A", "NXDOMAIN", &[])?;
        let data = client.data("www.old.test", "A")?;
        ensure!(data.contains(&format!("A {}", weft_lab::OUTSIDE_FAR_IP)), "the rewrite: {data:?}");
        Ok(())
    })?;
    checked("started without the store: SERVFAIL, then SkyDNS' names as they were known; never NXDOMAIN", {
        stage.lab.node_stop("n1")?;
        stage.lab.etcd_stop()?;
        stage.lab.node_spawn("n1")?;
        let mut last = String::new();
        let known = weft_lab::wait_until(2 * SOON, || {
            let answer = client.ask("www.sky.test", "AAAA")?;
            last = format!("{} {:?}", answer.rcode, answer.data);
            ensure!(answer.rcode == "SERVFAIL" || answer.rcode == "NOERROR", "{last}");
            Ok(answer.data == ["AAAA 2001:db8::7"])
        })?;
        ensure!(known, "{last}");
        stage.lab.etcd_start()?;
        becomes(&client, &svc("web"), "A", &[&vip], 3 * SOON)
    })?;
    stage.lab.down()
}

const OWN: &str = r#"
[[dns-records]]
name = "mail.sky.test"
type = "A"
data = "203.0.113.25"

[[dns-links]]
name = "db"
to = "default/web"
clients = "tier=front"

[[dns-rewrites]]
from = "*.old.test"
to = "example.test"
"#;
