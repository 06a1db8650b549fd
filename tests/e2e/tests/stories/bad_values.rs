// SPDX-License-Identifier: Apache-2.0
//! Values in the store that would do harm: reported with their key, and everything else goes on.

use crate::left::{etcdctl, key};
use crate::{have, lab, service};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, wait_until};

const NODES: [&str; 2] = ["n1", "n2"];
const SOON: Duration = Duration::from_secs(5);
/// Of nobody here.
const STRANGER: &str = "11111111-2222-4333-8444-555555555555";

#[test]
fn harmful_values_are_named_and_stop_nothing() -> Result<()> {
    if !have("etcdctl", "harmful") {
        return Ok(());
    }
    let Some(lab) = lab("harmful", 2)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    let b = lab.pod_add(&PodSpec::new("n2", "b").label("app", "web"))?;
    let _server = lab.serve("b", "b", &[8080], &[])?;
    let vip = format!("{}:80", lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap());
    let works = |when: &str, from: &str| -> Result<()> {
        for to in [vip.clone(), format!("{}:8080", b.ips[0]), "172.31.77.254:7".into()] {
            let report = lab.probe(from, &["--to", &to, "--count", "5"])?;
            ensure!(report.all_ok(), "{when}: {from} to {to}: {}", report.failures());
        }
        Ok(())
    };
    works("at first", "client")?;
    let good = etcdctl(&lab, &["get", &key(&lab, "config"), "--print-value-only"])?;
    let rules = rules(&lab)?;
    let pool = |name: &str, cidr: &str| format!(r#"{{"name":"{name}","cidr":"{cidr}","block_prefix":26}}"#);
    let block = |owner: &str| {
        format!(
            r#"{{"schema":1,"cidr":"10.244.250.64/26","pool":"default","owner":"{owner}","epoch":1,"state":"active","allocations":{{}}}}"#
        )
    };
    let bad = [
        // Would cut the nodes off from each other and from the store.
        ("ipam/pools/underlay", pool("underlay", "172.31.77.0/24"), "underlay"),
        ("ipam/pools/everything", pool("everything", "0.0.0.0/0"), "everything"),
        ("ipam/pools/services", pool("services", "10.96.128.0/24"), "service"),
        ("ipam/pools/named", pool("other", "10.250.0.0/24"), "name"),
        ("ipam/pools/torn", "{\"name\":".into(), ""),
        ("ipam/blocks/10.244.250.0-26", "{ not json".into(), ""),
        // Says another prefix than its key.
        ("ipam/blocks/10.244.250.128-26", block(STRANGER), "cidr"),
        (&format!("nodes/{STRANGER}"), "{}".into(), ""),
        ("services/default/torn", "[1]".into(), ""),
        (&format!("endpoints/default/web/{STRANGER}"), "\"x\"".into(), ""),
        (&format!("pods/{STRANGER}/weft.c0ffee.eth0"), "7".into(), ""),
        ("config", "{ broken".into(), ""),
    ];
    for (path, value, _) in &bad {
        etcdctl(&lab, &["put", &key(&lab, path), value])?;
    }
    let reported = |node: &str| -> Result<()> {
        let mut said = Vec::new();
        let all = wait_until(SOON, || {
            said = shown(&lab, node)?;
            Ok(bad.iter().all(|(path, _, word)| {
                said.iter().any(|(named, reason)| *named == key(&lab, path) && reason.contains(word))
            }))
        })?;
        let keys: BTreeSet<_> = said.iter().map(|(key, _)| key.clone()).collect();
        let missing: Vec<_> =
            bad.iter().map(|(path, ..)| key(&lab, path)).filter(|key| !keys.contains(key)).collect();
        ensure!(all, "{node} does not report {missing:?}, only {said:#?}");
        Ok(())
    };
    for node in NODES {
        reported(node)?;
        ensure!(lab.status(node)?.ready, "{node}: {:?}", lab.status(node)?);
    }
    works("with bad values", "client")?;
    ensure!(self::rules(&lab)? == rules, "a pool that was refused is in the rules: {}", self::rules(&lab)?);
    lab.pod_add(&PodSpec::new("n1", "late"))?;
    works("with bad values", "late")?;
    lab.apply(&service("more", "web"))?;

    // A start that meets all of them at once, in turn on each node.
    for node in NODES {
        lab.node_stop(node)?;
        let status = lab.node_start(node)?;
        ensure!(status.ready, "{status:?}");
        reported(node)?;
        works(&format!("after the start of {node}"), "client")?;
        works(&format!("after the start of {node}"), "late")?;
    }
    lab.pod_add(&PodSpec::new("n2", "later"))?;
    works("after the starts", "later")?;
    let stands = etcdctl(&lab, &["get", &key(&lab, "config"), "--print-value-only"])?;
    ensure!(stands == "{ broken", "somebody overwrote what an operator has to look at: {stands}");

    for (path, ..) in &bad[..bad.len() - 1] {
        etcdctl(&lab, &["del", &key(&lab, path)])?;
    }
    etcdctl(&lab, &["put", &key(&lab, "config"), &good])?;
    for node in NODES {
        let healed = wait_until(SOON, || Ok(shown(&lab, node)?.is_empty()))?;
        ensure!(healed, "{node}: {:#?}", shown(&lab, node)?);
        let status = lab.status(node)?;
        ensure!(status.ready && status.pending.is_empty(), "{status:?}");
    }
    works("healed", "later")?;
    lab.down()
}

/// What a node owns in the store comes back when somebody spoils it.
#[test]
fn a_node_writes_its_own_records_again() -> Result<()> {
    if !have("etcdctl", "spoiled") {
        return Ok(());
    }
    let Some(lab) = lab("spoiled", 2)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "a"))?;
    let b = lab.pod_add(&PodSpec::new("n2", "b").label("app", "web"))?;
    let _server = lab.serve("b", "b", &[8080], &[])?;
    lab.apply(&service("web", "web"))?;
    let uuid = lab.status("n2")?.node.uuid.to_string();
    let mine = ["nodes/", "pods/", "ipam/blocks/", "endpoints/"];
    let all = || -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        for folder in mine {
            for path in crate::left::keys(&lab, folder)? {
                let value = etcdctl(&lab, &["get", &path, "--print-value-only"])?;
                all.push((path, value));
            }
        }
        Ok(all)
    };
    let before = all()?;
    let of_n2 = before.iter().filter(|(key, value)| key.contains(&uuid) || value.contains(&uuid));
    let of_n2: Vec<_> = of_n2.map(|(key, _)| key.clone()).collect();
    ensure!(of_n2.len() >= 4, "{of_n2:?}");
    for (round, spoil) in ["{ broken", ""].into_iter().enumerate() {
        for key in &of_n2 {
            match spoil {
                "" => etcdctl(&lab, &["del", key])?,
                spoil => etcdctl(&lab, &["put", key, spoil])?,
            };
        }
        let mut now = Vec::new();
        let back = wait_until(SOON, || {
            now = all()?;
            Ok(now == before)
        })?;
        ensure!(back, "round {round}: {now:#?} instead of {before:#?}\n{}", lab.node_log("n2", 20)?);
        let works = wait_until(SOON, || {
            Ok(lab.probe("a", &["--to", &format!("{}:8080", b.ips[0]), "--count", "5"])?.all_ok())
        })?;
        ensure!(works, "round {round}: {:?}", lab.status("n1")?);
    }
    for node in NODES {
        let status = lab.status(node)?;
        ensure!(status.ready && status.pending.is_empty() && status.bad_values.is_empty(), "{status:?}");
    }
    lab.down()
}

/// `bad_values` of `weft status --json`: key and reason.
fn shown(lab: &Lab, node: &str) -> Result<Vec<(String, String)>> {
    let status: Value = lab.weft(node, &["status", "--json"])?.json("weft status")?;
    let values = status["bad_values"].as_array().context("no bad_values")?;
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    Ok(values.iter().map(|value| (text(value, "key"), text(value, "reason"))).collect())
}

fn rules(lab: &Lab) -> Result<String> {
    lab.exec("n1", &["nft", "-s", "list", "table", "inet", "weft"])?.text("nft")
}
