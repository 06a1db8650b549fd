// SPDX-License-Identifier: Apache-2.0
//! DNS of a node whose netd is dead: other nodes answer its pods, at the node's address as at the cluster's.

use crate::dns_asking::asking;
use crate::dns_client::{
    Client, How, NODE_DNS, PATIENCE, VIP_DNS, question, read, receive_framed, send_framed,
};
use crate::dns_records::svc;
use crate::lab_with;
use crate::service_stage::{SOON, Stage, checked, service, spec};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::{Lab, PodSpec, UpOptions, wait_until};

/// So soon after netd's death somebody else answers.
const TAKEOVER: Duration = Duration::from_millis(1_500);
/// A try of one that asks until it is answered.
const SHORT: Duration = Duration::from_millis(200);
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
    // All at once, each for itself: how long it takes for one is not to depend on another.
    let taken_over = |since: Instant| -> Result<Duration> {
        let answered = |client: &Client| -> Result<Duration> {
            let answered = wait_until(TAKEOVER, || Ok(right(client, How::default(), SHORT).is_ok()))?;
            ensure!(answered, "{} is not answered after {:?}", client.server, since.elapsed());
            Ok(since.elapsed())
        };
        thread::scope(|scope| {
            let askers: Vec<_> = clients.iter().map(|client| scope.spawn(move || answered(client))).collect();
            let mut took =
                askers.into_iter().map(|asker| asker.join().map_err(|_| anyhow::anyhow!("an asker"))?);
            took.try_fold(Duration::ZERO, |longest, took| Ok(longest.max(took?)))
        })
    };
    checked("killed: another node answers within a second or so, at all addresses", {
        println!("answered again after {:?}", taken_over(killed)?);
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
        asking(&stage, &vip, |asked| {
            asked.pause_for(|| stage.lab.node_kill("n1"))?;
            // What was asked before others took over waits for netd.
            thread::sleep(TAKEOVER);
            stage.lab.node_start("n1")?;
            ensure!(wait_until(PATIENCE, || Ok(asked.all_answered()))?, "not all of it is answered");
            Ok(())
        })
    })?;
    checked(
        "netd stands still for a while: what was asked on the way to its silence, in it and after it is answered",
        {
            others_known(&stage.lab)?;
            let mut streams = clients.iter().map(Client::connect).collect::<Result<Vec<_>>>()?;
            // The same ports before, in it and after it.
            let kept: Vec<UdpSocket> =
                clients.iter().map(|client| client.socket(SHORT)).collect::<Result<_>>()?;
            let answered = |socket: &UdpSocket| wait_until(PATIENCE, || Ok(asked(socket).is_ok()));
            for (socket, (pod, at)) in kept.iter().zip(&all) {
                ensure!(answered(socket)?, "{pod} at {at} before");
            }
            stage.lab.node_pause("n1")?;
            let question = question(&svc("web"), "A", None)?;
            let outcome = (|| -> Result<()> {
                for stream in &mut streams {
                    send_framed(stream, &question.to_vec()?)?;
                }
                thread::sleep(Duration::from_secs(1));
                for (socket, (pod, at)) in kept.iter().zip(&all) {
                    ensure!(answered(socket)?, "{pod} at {at} in the silence");
                }
                Ok(())
            })();
            stage.lab.node_resume("n1")?;
            outcome?;
            for (stream, (pod, at)) in streams.iter_mut().zip(&all) {
                let answer = receive_framed(stream).with_context(|| format!("{pod} at {at} over TCP"))?;
                let answer = read(&answer, question.metadata.id, Duration::ZERO)?;
                ensure!(answer.data == [format!("A {vip}")], "{pod} at {at} over TCP: {:?}", answer.data);
            }
            for (socket, (pod, at)) in kept.iter().zip(&all) {
                ensure!(answered(socket)?, "{pod} at {at} after the silence");
            }
            clients.iter().try_for_each(|client| right(client, How::default(), PATIENCE).map(drop))
        },
    )?;
    checked("stopped while it has no way to the store: nobody waits for the end of that", {
        others_known(&stage.lab)?;
        stage.lab.partition("n1", "store")?;
        let outcome = thread::scope(|scope| {
            let stopped = Instant::now();
            let stop = scope.spawn(|| stage.lab.node_stop("n1"));
            // As long as netd tries to say goodbye to the store, and a bit.
            let outcome = (|| -> Result<()> {
                let mut longest = Duration::ZERO;
                while stopped.elapsed() < Duration::from_secs(4) {
                    longest = longest.max(taken_over(Instant::now())?);
                    thread::sleep(SHORT / 2);
                }
                println!("the longest wait was {longest:?}");
                Ok(())
            })();
            stop.join().map_err(|_| anyhow::anyhow!("the stop"))??;
            outcome
        });
        stage.lab.heal("n1")?;
        outcome?;
        stage.lab.node_start("n1").map(drop)
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
    // That is what netd knows; the programs know it when it has written the maps.
    let known = lab.status("n1")?.store.revision;
    let written = wait_until(SOON, || Ok(lab.status("n1")?.programmed_revision >= known))?;
    ensure!(written, "n1 has not programmed revision {known}");
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
