// SPDX-License-Identifier: Apache-2.0
//! Addresses that follow a name: over restarts, over moves, and never to two pods at once.

use crate::ipam::{added_soon, agree, reach, refused, route, show, soon};
use crate::{lab, lab_with};
use anyhow::{Result, ensure};
use serde_json::json;
use weft_lab::{Families, Lab, PodSpec, UpOptions};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

#[test]
fn a_sticky_name_keeps_its_addresses_over_restarts_and_moves() -> Result<()> {
    let options = UpOptions {
        families: Families::Dual,
        overlay: "vxlan".into(),
        ..UpOptions::new(&Lab::unique_name("sticky"))
    };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    let clients = ["c1", "c2", "c3"];
    for (node, client) in NODES.iter().zip(clients) {
        lab.pod_add(&PodSpec::new(node, client))?;
    }
    let first = lab.pod_add(&PodSpec::new("n1", "db").sticky("db-0"))?;
    ensure!(first.ips.len() == 2, "{:?}", first.ips);
    reach(&lab, &clients, &first.ips)?;

    lab.pod_rm("n1", "db")?;
    let other = lab.pod_add(&PodSpec::new("n1", "other"))?;
    ensure!(other.ips.iter().all(|ip| !first.ips.contains(ip)), "a kept address was given away: {other:?}");
    lab.node_kill("n1")?;
    lab.node_start("n1")?;
    // Home again, to both others, from one of them to the other, and home at last.
    for node in ["n1", "n2", "n3", "n1"] {
        let pod = lab.pod_add(&PodSpec::new(node, "db").sticky("db-0"))?;
        ensure!(pod.ips == first.ips, "on {node}: {:?} instead of {:?}", pod.ips, first.ips);
        let _server = lab.serve("db", node, &[8080], &[])?;
        reach(&lab, &[clients, NODES].concat(), &pod.ips)?;
        for ip in &pod.ips {
            let to = std::net::SocketAddr::new(*ip, 8080).to_string();
            for client in clients {
                let report = lab.probe(client, &["--to", &to, "--count", "3"])?;
                ensure!(report.spread() == format!("{node} 3"), "{client} to {to}: {}", report.failures());
            }
            for from in NODES {
                let route = route(&lab, from, *ip)?;
                let over = route.contains("dev weft.vxlan");
                ensure!(
                    over == (from != node) && route.contains("dev weft"),
                    "db on {node}, {from}: {route}"
                );
            }
        }
        let held = |node: &str| Ok(show(&lab, node)?["sticky"].clone());
        let name = json!([{"name": "db-0", "addresses": first.ips, "node": node, "pod": "default/db"}]);
        for from in NODES {
            soon(&format!("{from} knows where db-0 is"), || held(from), |seen| *seen == name)?;
        }
        lab.pod_rm(node, "db")?;
        // Nobody holds it now: no node keeps a way to where it was.
        let free = json!([{"name": "db-0", "addresses": first.ips}]);
        soon("db-0 is given back", || held("n2"), |seen| *seen == free)?;
    }
    agree(&lab, &NODES)?;
    lab.down()
}

#[test]
fn a_name_has_one_holder_and_gives_its_addresses_up_on_request() -> Result<()> {
    let options = UpOptions {
        nodes: 2,
        netd_args: vec!["--cool-down-secs".into(), "1".into()],
        ..UpOptions::new(&Lab::unique_name("holder"))
    };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    let held = lab.pod_add(&PodSpec::new("n1", "db").sticky("db"))?;
    for node in ["n1", "n2"] {
        let refusal = refused(lab.pod_add(&PodSpec::new(node, "second").sticky("db")))?;
        refusal.says(11, &["sticky name db", &held.container_id, "on node n1"])?;
    }
    let rm = || lab.weft("n2", &["ipam", "sticky", "rm", "db"]);
    let answer = rm()?;
    ensure!(answer.code == Some(1) && answer.stderr.contains("n1"), "{answer:?}");
    // Who was refused has left nothing, and the holder has lost nothing.
    reach(&lab, &["n1", "n2"], &held.ips)?;
    agree(&lab, &["n1", "n2"])?;

    lab.pod_rm("n1", "db")?;
    let removed = soon("sticky rm", rm, |answer| answer.ok())?;
    ensure!(removed.stdout == "sticky db removed\n", "{removed:?}");
    let unknown = rm()?;
    ensure!(unknown.code == Some(1) && unknown.stderr.contains("no sticky name db"), "{unknown:?}");
    let owners = || Ok(show(&lab, "n1")?["addresses"].to_string());
    soon("n1 frees what it kept", owners, |seen| !seen.contains("sticky/"))?;
    added_soon(&lab, &PodSpec::new("n2", "plain").ip(held.ips[0]))?;
    reach(&lab, &["n1", "n2"], &held.ips)?;
    agree(&lab, &["n1", "n2"])?;
    lab.down()
}

#[test]
fn a_pod_s_own_name_and_a_mac_are_sticky_names_too() -> Result<()> {
    let Some(lab) = lab("names", 2)? else { return Ok(()) };
    // As an operator writes it into the network's configuration, for all pods.
    let of_pod = |node: &str, name: &str, namespace: &str| {
        lab.pod_add(&PodSpec::new(node, name).namespace(namespace).extra(json!({"sticky": "pod"})))
    };
    let first = of_pod("n1", "web-0", "shop")?;
    lab.pod_rm("n1", "web-0")?;
    let elsewhere = of_pod("n2", "web-0", "test")?;
    ensure!(elsewhere.ips != first.ips, "a pod of the same name in another namespace");
    lab.pod_rm("n2", "web-0")?;
    let moved = of_pod("n2", "web-0", "shop")?;
    ensure!(moved.ips == first.ips, "{:?} instead of {:?}", moved.ips, first.ips);
    reach(&lab, &["n1", "n2"], &moved.ips)?;

    let mac = "02:00:5e:00:53:01";
    let by_mac = |node: &str, name: &str| {
        lab.pod_add(&PodSpec { mac: Some(mac.into()), ..PodSpec::new(node, name).sticky("mac") })
    };
    let first = by_mac("n2", "one")?;
    lab.pod_rm("n2", "one")?;
    let second = by_mac("n1", "two")?;
    ensure!(second.ips == first.ips, "{:?} instead of {:?}", second.ips, first.ips);
    let link = lab.exec("two", &["ip", "-o", "link", "show", "eth0"])?.text("ip link")?;
    ensure!(link.contains(&format!("link/ether {mac} ")), "{link}");
    reach(&lab, &["web-0", "n1", "n2"], &second.ips)?;
    agree(&lab, &["n1", "n2"])?;
    lab.down()
}
