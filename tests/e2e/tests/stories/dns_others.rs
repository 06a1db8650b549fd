// SPDX-License-Identifier: Apache-2.0
//! DNS of a node whose netd is dead: other nodes answer its pods, at the node's address as at the cluster's.

use crate::dns_changes::asking;
use crate::dns_client::{Client, How, NODE_DNS, PATIENCE, VIP_DNS, question, read};
use crate::dns_records::svc;
use crate::lab_with;
use crate::service_stage::{SOON, Stage, checked, service, spec};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};
use weft_lab::{Lab, PodSpec, UpOptions, wait_until};

/// So soon after netd's death somebody else answers.
const TAKEOVER: Duration = Duration::from_millis(1_500);
/// What who asks waits for one answer.
const PATIENT: Duration = Duration::from_secs(1);
/// Less than what the C library waits before it asks the next name server.
const LIBRARY: Duration = Duration::from_secs(4);

#[test]
fn other_nodes_answer_while_netd_is_dead() -> Result<()> {
    let Some(mut stage) = Stage::of("dnssecond", 2, "vxlan", &[])? else { return Ok(()) };
    stage.backend("n2", "b1", "web")?;
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();
    let all: Vec<(&str, &str)> =
        ["c1", "g1"].iter().flat_map(|pod| NODE_DNS.iter().chain(&VIP_DNS).map(|at| (*pod, *at))).collect();
    let clients: Vec<Client> =
        all.iter().map(|(pod, at)| Client::pod(&stage.lab, pod, at)).collect::<Result<_>>()?;
    let right = |client: &Client, how: How, limit: Duration| -> Result<Duration> {
        let answer = client.ask_within(&svc("web"), "A", how, limit)?;
        ensure!(answer.data == [format!("A {vip}")], "{}: {:?}", client.server, answer.data);
        Ok(answer.took)
    };
    checked("each node knows who answers for it", others_known(&stage.lab))?;
    checked("doctor says who answers while netd is away", {
        let said = stage.lab.weft("n1", &["doctor"])?.stdout;
        ensure!(said.contains("while netd is away"), "{said}");
        Ok(())
    })?;
    checked("while netd lives, its own server answers, at either address", {
        clients.iter().try_for_each(|client| right(client, How::default(), PATIENT).map(drop))
    })?;
    // Sockets of programs that keep one for all that they ask.
    let kept: Vec<UdpSocket> = clients.iter().map(|client| client.socket(PATIENT)).collect::<Result<_>>()?;
    for socket in &kept {
        ensure!(asked(socket)? == [format!("A {vip}")], "before");
    }
    stage.lab.node_kill("n1")?;
    let killed = Instant::now();
    checked("killed: another node answers within a second or so, at all addresses", {
        for client in &clients {
            let soon = Duration::from_millis(200);
            let limit = TAKEOVER.saturating_sub(killed.elapsed()).max(soon);
            let answered = wait_until(limit, || Ok(right(client, How::default(), soon).is_ok()))?;
            ensure!(answered, "{} is not answered after {:?}", client.server, killed.elapsed());
        }
        println!("answered again after {:?}", killed.elapsed());
        ensure!(killed.elapsed() < TAKEOVER, "after {:?}", killed.elapsed());
        Ok(())
    })?;
    checked("and from then on every question, over UDP and TCP", {
        for client in &clients {
            for _ in 0..10 {
                right(client, How::default(), PATIENT)?;
            }
            right(client, How { tcp: true, ..How::default() }, PATIENT)?;
        }
        Ok(())
    })?;
    checked("sockets of before go on", {
        for (socket, (pod, at)) in kept.iter().zip(&all) {
            let data = asked(socket).with_context(|| format!("{pod} at {at}"))?;
            ensure!(data == [format!("A {vip}")], "{pod} at {at}: {data:?}");
        }
        Ok(())
    })?;
    checked("names of others, and the search path of the pod's own namespace", {
        let far = format!("A {}", weft_lab::OUTSIDE_FAR_IP);
        let name = "www.example.test.default.svc.cluster.local";
        let data = clients[0].data(name, "A")?;
        ensure!(data.contains(&far), "{data:?}");
        Ok(())
    })?;
    checked("the C library asks as ever, and waits for nothing", {
        let started = Instant::now();
        let said = stage.lab.exec("c1", &["getent", "ahosts", "web"])?.text("getent")?;
        ensure!(said.contains(&vip), "{said}");
        ensure!(started.elapsed() < LIBRARY, "after {:?}", started.elapsed());
        Ok(())
    })?;
    checked("processes of the node, too", {
        let dig = ["dig", "@10.96.0.10", "+time=1", "+tries=1", "+short", &svc("web"), "A"];
        let said = stage.lab.exec("n1", &dig)?.text("dig")?;
        ensure!(said == vip, "{said}");
        Ok(())
    })?;
    stage.lab.node_start("n1")?;
    checked("back: every question is answered all the while", {
        for client in &clients {
            for _ in 0..10 {
                right(client, How::default(), PATIENT)?;
            }
        }
        Ok(())
    })?;
    checked("restarted: every question is answered", {
        others_known(&stage.lab)?;
        asking(&stage, &vip, |_| {
            stage.lab.node_stop("n1")?;
            stage.lab.node_start("n1").map(drop)
        })
    })?;
    checked("killed and started: every question is answered, by whomever", {
        others_known(&stage.lab)?;
        asking(&stage, &vip, |answered| {
            stage.lab.node_kill("n1")?;
            // What was asked before others took over waits for netd.
            std::thread::sleep(TAKEOVER);
            stage.lab.node_start("n1")?;
            ensure!(wait_until(PATIENCE, || Ok(answered()))?, "not all of it is answered");
            Ok(())
        })
    })?;
    stage.lab.down()
}

#[test]
fn other_nodes_answer_over_every_overlay() -> Result<()> {
    for overlay in ["native", "wireguard"] {
        let options = UpOptions::new(&Lab::unique_name("dnsover"));
        let Some(lab) = lab_with(UpOptions { nodes: 2, overlay: overlay.into(), ..options })? else {
            return Ok(());
        };
        lab.pod_add(&PodSpec::new("n1", "c1"))?;
        others_known(&lab)?;
        lab.node_kill("n1")?;
        checked(&format!("{overlay}: at the node's address and the cluster's"), {
            let killed = Instant::now();
            [NODE_DNS[0], VIP_DNS[0]].iter().try_for_each(|at| {
                let client = Client::pod(&lab, "c1", at)?;
                let answered = wait_until(TAKEOVER, || {
                    let answer =
                        client.ask_within("dns-version.cluster.local", "TXT", How::default(), PATIENT / 5);
                    Ok(answer.is_ok_and(|answer| answer.data == ["TXT 1.1.0"]))
                })?;
                ensure!(answered, "{at} is not answered after {:?}", killed.elapsed());
                Ok(())
            })
        })?;
        lab.down()?;
    }
    Ok(())
}

/// The service of the cluster's DNS has servers of other nodes on n1.
fn others_known(lab: &Lab) -> Result<()> {
    let mut last = String::new();
    let known = wait_until(SOON, || {
        let detail = lab.ask("n1", async |client| client.service("kube-system", "kube-dns").await)?;
        let sources: Vec<String> =
            detail.backends.iter().map(|one| format!("{} {}", one.address, one.source)).collect();
        last = sources.join(", ");
        // Of each family that the node's own server has, one at least.
        let families = |source: &str| {
            let of = detail.backends.iter().filter(|one| one.source == source);
            of.map(|one| one.address.is_ipv4()).collect::<BTreeSet<bool>>()
        };
        Ok(!families("own server").is_empty() && families("another node's server") == families("own server"))
    })?;
    ensure!(known, "the cluster's DNS is {last}");
    Ok(())
}

/// One question by a socket that is kept.
fn asked(socket: &UdpSocket) -> Result<Vec<String>> {
    let question = question(&svc("web"), "A", None)?;
    let (sent, mut buffer) = (Instant::now(), [0; 512]);
    socket.send(&question.to_vec()?)?;
    let length = socket.recv(&mut buffer)?;
    Ok(read(&buffer[..length], question.metadata.id, sent.elapsed())?.data)
}
