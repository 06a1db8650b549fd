// SPDX-License-Identifier: Apache-2.0
//! Which backend: conditions, slices, hints, affinity, weights, algorithms. One node, both families, both paths.

use crate::service_stage::{
    ENDLESS, Given, LINE, PORT, SOON, Stage, annotated, checked, conditions, service, slice, spec,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::{Said, slow, wait_until};

const BACKENDS: [&str; 4] = ["b1", "b2", "b3", "b4"];
/// Choices of the measured split, and how near it must be: more than five standard deviations.
const CHOICES: u64 = 100_000;
const WITHIN: f64 = 0.01;
/// Fewer where packets are hashed (a client has 28,232 source ports, and each has its place) or it was measured before.
const QUICK: u64 = 20_000;
const QUICK_WITHIN: f64 = 0.02;
/// As many times fewer for each time that the machine is slower; a share may then be off by as many standard deviations.
const FEWER: u64 = 8;
const DEVIATIONS: f64 = 5.5;

#[test]
fn backend_choice_conditions_slices_hints_and_drain() -> Result<()> {
    let Some(stage) = set("svcchoice")? else { return Ok(()) };
    checked("backend choice: ready, else terminating and serving; nil conditions", by_conditions(&stage))?;
    checked("publishNotReadyAddresses", published(&stage))?;
    checked("EndpointSlices: several, duplicates, other families, mirrored ones", merged(&stage))?;
    checked("hints forZones and forNodes, with fallback", hints(&stage))?;
    checked("the same verdict on both paths for the same table", same_verdict(&stage))?;
    stage.lab.down()
}

#[test]
fn session_affinity_client_ip_on_both_paths_with_timeout_and_in_place() -> Result<()> {
    let Some(stage) = set("svcaffinity")? else { return Ok(()) };
    checked("a client stays, whatever the path", stays(&stage))?;
    checked("change in place", in_place(&stage))?;
    checked("timeout", times_out(&stage))?;
    stage.lab.down()
}

#[test]
fn weights_split_within_one_percent_and_algorithms_choose() -> Result<()> {
    let Some(stage) = set("svcweights")? else { return Ok(()) };
    checked("weights between backends", weights(&stage))?;
    checked("weights between services: canary", canary(&stage))?;
    checked("least-connections", least_connections(&stage))?;
    checked("maglev", maglev(&stage))?;
    checked("slow start", slow_start(&stage))?;
    stage.lab.down()
}

fn set(story: &str) -> Result<Option<Stage>> {
    let args = ["--node-labels", "topology.kubernetes.io/zone=a"];
    let Some(mut stage) = Stage::alone(story, &args)? else { return Ok(None) };
    for name in BACKENDS {
        stage.backend("n1", name, "web")?;
    }
    stage.client("n1", "c1")?;
    stage.guest("n1", "g1")?;
    Ok(Some(stage))
}

fn web(name: &str, more: Value) -> Value {
    let mut spec = spec(more);
    spec["selector"] = json!({"app": "web"});
    service(name, spec)
}

/// A service without a selector, and its backends.
fn by_hand(stage: &Stage, name: &str, more: Value, backends: &[(&str, Value)]) -> Result<Given> {
    let reply = stage.put(&[vec![service(name, spec(more))], stage.slices(name, "a", backends)?].concat())?;
    Ok(Given(reply.results.into_iter().next().context("no answer")?))
}

/// Both paths, both families, TCP and UDP.
fn reached(stage: &Stage, given: &Given, wanted: &[&str]) -> Result<()> {
    for vip in given.vips() {
        for from in ["c1", "g1"] {
            stage.reaches_all_ways(from, vip, wanted)?;
        }
    }
    Ok(())
}

fn by_conditions(stage: &Stage) -> Result<()> {
    let (unready, leaving) = (conditions(false, false, false), conditions(false, true, true));
    let gone = conditions(false, false, true);
    let half = json!({"conditions": {"ready": null}});
    let put = |backends: &[(&str, Value)]| by_hand(stage, "cond", json!({}), backends);
    let given = put(&[("b1", json!({})), ("b2", unready.clone()), ("b3", leaving.clone()), ("b4", half)])?;
    reached(stage, &given, &["b1", "b4"])?;
    // The last ones finish what comes.
    put(&[("b1", leaving.clone()), ("b2", unready.clone()), ("b3", leaving), ("b4", gone.clone())])?;
    reached(stage, &given, &["b1", "b3"])?;
    put(&[("b2", unready), ("b4", gone)])?;
    for vip in given.vips() {
        stage.refused("c1", vip)?;
        stage.refused("g1", vip)?;
    }
    Ok(())
}

fn published(stage: &Stage) -> Result<()> {
    let unready = [("b1", conditions(false, false, false)), ("b2", json!({}))];
    let given = by_hand(stage, "pub", json!({}), &unready)?;
    reached(stage, &given, &["b2"])?;
    let given = by_hand(stage, "pub", json!({"publishNotReadyAddresses": true}), &unready)?;
    reached(stage, &given, &["b1", "b2"])
}

fn merged(stage: &Stage) -> Result<()> {
    let given = by_hand(stage, "slices", json!({}), &[("b1", json!({})), ("b2", json!({}))])?;
    // On its way from one slice to another an endpoint is in both.
    stage.put(&stage.slices("slices", "b", &[("b2", json!({})), ("b3", json!({}))])?)?;
    let mut mirrored = stage.slices("slices", "mirror", &[("b4", json!({}))])?;
    for slice in &mut mirrored {
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] =
            "endpointslicemirroring-controller.k8s.io".into();
    }
    stage.put(&mirrored)?;
    let mut named = slice("slices", "names", false, vec![json!({"addresses": ["www.example.test"]})]);
    named["addressType"] = "FQDN".into();
    stage.put(&[named])?;
    reached(stage, &given, &BACKENDS)?;
    let detail = stage.detail("n1", "slices")?;
    for verdict in detail.verdicts.iter().filter(|verdict| !verdict.backends.is_empty()) {
        ensure!(verdict.backends.iter().all(|backend| backend.share == 25.0), "twice is once: {verdict:?}");
    }
    // Other services' slices are theirs.
    stage.delete("EndpointSlice", "slices-mirror-ipv4")?;
    stage.delete("EndpointSlice", "slices-mirror-ipv6")?;
    reached(stage, &given, &BACKENDS[..3])
}

fn hints(stage: &Stage) -> Result<()> {
    // A service of its own for each: a datagram's flow stays with its backend as long as that one is good, and a later client
    // may happen to have its source port.
    let mut number = 0;
    let mut put = |more: Value, backends: &[(&str, Value)]| {
        number += 1;
        by_hand(stage, &format!("hint{number}"), more, backends)
    };
    let zone = |name: &str| json!({"hints": {"forZones": [{"name": name}]}});
    let node = |name: &str| json!({"hints": {"forNodes": [{"name": name}]}});
    for kind in ["PreferSameZone", "PreferClose"] {
        let more = json!({"trafficDistribution": kind});
        let given = put(more.clone(), &[("b1", zone("a")), ("b2", zone("b"))])?;
        reached(stage, &given, &["b1"])?;
        // One without a hint: nobody's are believed.
        let given = put(more.clone(), &[("b1", zone("a")), ("b2", zone("b")), ("b3", json!({}))])?;
        reached(stage, &given, &BACKENDS[..3])?;
        // None is meant for here: somebody is better than nobody.
        let given = put(more, &[("b1", zone("c")), ("b2", zone("b"))])?;
        reached(stage, &given, &["b1", "b2"])?;
    }
    let more = json!({"trafficDistribution": "PreferSameNode"});
    let given = put(more, &[("b1", node("n9")), ("b2", node("n1"))])?;
    reached(stage, &given, &["b2"])?;
    // The near one goes: the far one takes over.
    let gone = json!({"hints": node("n1")["hints"], "conditions": {"ready": false}});
    let more = json!({"trafficDistribution": "PreferSameNode"});
    let given = put(more, &[("b1", node("n9")), ("b2", gone)])?;
    reached(stage, &given, &["b1"])
}

/// The verdict, more of the spec, and the backends.
type Table<'a> = (&'a str, Value, Vec<(&'a str, Value)>);

/// Several tables, and for each what the CLI says, what sockets get and what packets get.
fn same_verdict(stage: &Stage) -> Result<()> {
    let leaving = conditions(false, true, true);
    let tables: [Table; 5] = [
        ("forward", json!({}), vec![("b1", json!({})), ("b3", json!({}))]),
        ("forward", json!({}), vec![("b2", leaving.clone()), ("b4", leaving)]),
        ("forward", json!({"sessionAffinity": "ClientIP"}), vec![("b3", json!({}))]),
        ("refuse", json!({}), vec![]),
        ("drop", json!({"internalTrafficPolicy": "Local"}), vec![("b1", json!({"nodeName": "n9"}))]),
    ];
    for (number, (verdict, more, backends)) in tables.into_iter().enumerate() {
        let name = format!("same{number}");
        let given = by_hand(stage, &name, more, &backends)?;
        let detail = stage.detail("n1", &name)?;
        for vip in given.vips() {
            let frontend = format!("{vip}/tcp");
            let said =
                detail.verdicts.iter().find(|v| v.frontend.starts_with(&frontend) && v.asked_by == "cluster");
            let said = said.with_context(|| format!("{frontend}: {:?}", detail.verdicts))?;
            ensure!(said.verdict == verdict, "{said:?} instead of {verdict}");
            match verdict {
                "forward" => {
                    let names = said.backends.iter().map(|backend| name_of(stage, &backend.backend));
                    let names: Vec<String> = names.collect::<Result<_>>()?;
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    for from in ["c1", "g1"] {
                        stage.reaches_all_ways(from, vip, &names)?;
                    }
                }
                "refuse" => ["c1", "g1"].iter().try_for_each(|from| stage.refused(from, vip))?,
                _ => ["c1", "g1"].iter().try_for_each(|from| stage.dropped(from, vip))?,
            }
        }
    }
    Ok(())
}

/// The pod behind `10.244.0.7:8080/tcp`.
fn name_of(stage: &Stage, backend: &str) -> Result<String> {
    let address: SocketAddr = backend.rsplit_once('/').context("no protocol")?.0.parse()?;
    for name in BACKENDS {
        if stage.ip(name, address.is_ipv6())? == address.ip() {
            return Ok(name.into());
        }
    }
    Err(anyhow::anyhow!("{backend} is nobody's"))
}

fn sticky(secs: u32) -> Value {
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": secs}}})
}

fn stays(stage: &Stage) -> Result<()> {
    let given = stage.service(&web("stay", sticky(10_800)))?;
    for vip in given.vips() {
        for from in ["c1", "b1", "b2"] {
            // TCP and UDP are two frontends, each with a memory of its own; the same client is sent the same way by both paths.
            for how in crate::service_stage::WAYS {
                let sockets = stage.ask(from, vip, 8, how)?;
                let packets = stage.packets(from, vip, 8, how)?;
                let mut found: BTreeSet<_> = sockets.servers.keys().collect();
                found.extend(packets.servers.keys());
                ensure!(
                    sockets.all_ok() && packets.all_ok() && found.len() == 1,
                    "{from} to {vip} {how:?}: sockets {} {}, packets {} {}",
                    sockets.spread(),
                    sockets.failures(),
                    packets.spread(),
                    packets.failures()
                );
            }
        }
    }
    Ok(())
}

fn in_place(stage: &Stage) -> Result<()> {
    let plain = stage.service(&web("place", json!({})))?;
    for vip in plain.vips() {
        stage.reaches("c1", vip, &[], &BACKENDS)?;
        stage.reaches("g1", vip, &[], &BACKENDS)?;
    }
    let given = stage.service(&web("place", sticky(60)))?;
    ensure!(given.0.cluster_ips == plain.0.cluster_ips, "{:?}", given.0);
    for vip in given.vips() {
        for from in ["c1", "g1"] {
            let found = stage.ask(from, vip, 20, &[])?.servers;
            ensure!(found.len() == 1, "{from}: {found:?}");
        }
    }
    stage.service(&web("place", json!({"sessionAffinity": "None"})))?;
    for vip in plain.vips() {
        stage.reaches("c1", vip, &[], &BACKENDS)?;
        stage.reaches("g1", vip, &[], &BACKENDS)?;
    }
    Ok(())
}

/// With a longer time where the machine takes too long between two questions of a client.
fn times_out(stage: &Stage) -> Result<()> {
    for secs in [4, 20, 120] {
        if times_out_after(stage, secs)? {
            return Ok(());
        }
    }
    bail!("no client came back within two minutes")
}

/// False where nothing could be said: the second question came too late.
fn times_out_after(stage: &Stage, secs: u32) -> Result<bool> {
    let (name, time) = (format!("time{secs}"), Duration::from_secs(secs.into()));
    let given = by_hand(stage, &name, sticky(secs), &[("b1", json!({}))])?;
    let clients = ["c1", "g1", "b1", "b2", "b3", "b4"];
    // Who came to b1, and when that began.
    let all = || -> Result<Vec<(Instant, bool)>> {
        let mut came = Vec::new();
        for vip in given.vips() {
            for from in clients {
                let began = Instant::now();
                came.push((began, stage.ask(from, vip, 2, &[])?.servers.keys().eq(["b1"])));
            }
        }
        Ok(came)
    };
    let first = all()?;
    ensure!(first.iter().all(|(_, kept)| *kept), "the only backend");
    // Three more: who has come stays, as long as it comes in time.
    by_hand(stage, &name, sticky(secs), &BACKENDS.map(|name| (name, json!({}))))?;
    let second = all()?;
    // The programs count whole seconds.
    if first[0].0.elapsed() + Duration::from_secs(1) > time {
        return Ok(false);
    }
    ensure!(second.iter().all(|(_, kept)| *kept), "a client was moved though it came in time: {second:?}");
    thread::sleep(time + Duration::from_secs(1));
    // By then everybody is chosen for anew: all twelve again on the first of four happens once in sixteen millions.
    ensure!(!all()?.iter().all(|(_, kept)| *kept), "nobody was chosen for anew after the time-out");
    Ok(true)
}

fn weights(stage: &Stage) -> Result<()> {
    let object = annotated(web("split", json!({})), "weft.dev/weights", "b1=50,b2=30,b3=15,b4=5");
    let given = stage.service(&object)?;
    let wanted = [("b1", 0.5), ("b2", 0.3), ("b3", 0.15), ("b4", 0.05)];
    measured(stage, "c1", given.vip(false)?, true, CHOICES, &wanted)?;
    measured(stage, "c1", given.vip(true)?, false, CHOICES, &wanted)?;
    measured(stage, "g1", given.vip(true)?, true, QUICK, &wanted)?;
    measured(stage, "g1", given.vip(false)?, false, QUICK, &wanted)
}

fn canary(stage: &Stage) -> Result<()> {
    for (name, backends) in [("stable", &["b1", "b2", "b3"][..]), ("new", &["b4"])] {
        let backends: Vec<_> = backends.iter().map(|backend| (*backend, json!({}))).collect();
        by_hand(stage, name, json!({}), &backends)?;
    }
    let object = annotated(service("front", spec(json!({}))), "weft.dev/weights", "stable=90,new=10");
    let given = stage.service(&object)?;
    let wanted = [("b1", 0.3), ("b2", 0.3), ("b3", 0.3), ("b4", 0.1)];
    measured(stage, "c1", given.vip(true)?, true, QUICK, &wanted)?;
    measured(stage, "g1", given.vip(false)?, false, QUICK, &wanted)?;
    // Turned up in place.
    stage.service(&annotated(service("front", spec(json!({}))), "weft.dev/weights", "stable=0,new=10"))?;
    for vip in given.vips() {
        stage.reaches_all_ways("c1", vip, &["b4"])?;
        stage.reaches_all_ways("g1", vip, &["b4"])?;
    }
    Ok(())
}

/// Every connection is answered, and each backend's share is as it should be.
fn measured(
    stage: &Stage,
    from: &str,
    to: SocketAddr,
    udp: bool,
    count: u64,
    wanted: &[(&str, f64)],
) -> Result<()> {
    let few = if slow() > 1 { count / (FEWER * u64::from(slow())) } else { count };
    let (address, number) = (to.to_string(), few.to_string());
    let mut args = vec!["--to", &address, "--count", &number, "--threads", "2", "--timeout", "10s"];
    args.extend(udp.then_some("--udp"));
    let report = stage.lab.rush(from, &args)?;
    ensure!(report.errors.is_empty() && report.attempts == few, "{from} to {to}: {report:?}");
    let promised = if count >= CHOICES { WITHIN } else { QUICK_WITHIN };
    for (name, share) in wanted {
        let found = report.servers.get(*name).copied().unwrap_or_default() as f64 / few as f64;
        let deviation = (share * (1.0 - share) / few as f64).sqrt();
        let within = if few < count { DEVIATIONS * deviation } else { promised };
        ensure!(
            (found - share).abs() < within,
            "{from} to {to}: {name} has {found} instead of {share}: {report:?}"
        );
    }
    Ok(())
}

fn least_connections(stage: &Stage) -> Result<()> {
    let object = annotated(web("least", json!({})), "weft.dev/algorithm", "least-connections");
    let vip = stage.service(&object)?.vip(false)?.to_string();
    let (mut held, mut counts) = (Vec::new(), BTreeMap::<String, u32>::new());
    for _ in 0..24 {
        let args = ["talk", "--to", &vip, "--interval", "1s", "--timeout", "10s", "--for", ENDLESS];
        let talk = stage.lab.worker_start("c1", &args)?;
        let said: Said = serde_json::from_str(&talk.wait_line(LINE)?)?;
        *counts.entry(said.server.with_context(|| format!("{:?}", said.error))?).or_default() += 1;
        held.push(talk);
    }
    // Six each; at random one in two sees a difference of more than five.
    let (most, least) = (counts.values().max().copied(), counts.values().min().copied());
    ensure!(
        counts.len() == 4 && most.zip(least).is_some_and(|(most, least)| most - least <= 4),
        "{counts:?}"
    );
    Ok(())
}

fn maglev(stage: &Stage) -> Result<()> {
    let object = annotated(web("hash", json!({})), "weft.dev/algorithm", "maglev");
    let given = stage.service(&object)?;
    reached(stage, &given, &BACKENDS)?;
    let detail = stage.detail("n1", "hash")?;
    let slots: Vec<_> = detail.frontends.iter().filter(|f| f.port == PORT).map(|f| f.slot_count).collect();
    ensure!(!slots.is_empty() && slots.iter().all(|count| *count >= 400), "{slots:?} slots for 4 backends");
    for verdict in detail.verdicts.iter().filter(|verdict| !verdict.backends.is_empty()) {
        let even = verdict.backends.iter().all(|backend| (backend.share - 25.0).abs() < 1.0);
        ensure!(even, "{verdict:?}");
    }
    Ok(())
}

/// With a longer time where the machine takes too long to look at the beginning.
fn slow_start(stage: &Stage) -> Result<()> {
    for secs in [5, 20, 90] {
        if warms(stage, secs)? {
            return Ok(());
        }
    }
    bail!("the beginning of a minute and a half was missed")
}

/// False where nothing could be said: the look at a cold backend came too late.
fn warms(stage: &Stage, secs: u64) -> Result<bool> {
    let (name, warming) = (format!("slow{secs}"), Duration::from_secs(secs));
    let put = |backends: &[&str]| -> Result<Given> {
        let backends: Vec<_> = backends.iter().map(|name| (*name, json!({}))).collect();
        let object = annotated(service(&name, spec(json!({}))), "weft.dev/slow-start", &format!("{secs}s"));
        let reply = stage.put(&[vec![object], stage.slices(&name, "a", &backends)?].concat())?;
        Ok(Given(reply.results.into_iter().next().context("no answer")?))
    };
    let given = put(&["b1"])?;
    let to = given.vip(false)?.to_string();
    let share = || -> Result<u64> {
        let report = stage.lab.rush("c1", &["--to", &to, "--udp", "--count", "2000", "--timeout", "10s"])?;
        ensure!(report.errors.is_empty(), "{report:?}");
        Ok(report.servers.get("b2").copied().unwrap_or_default())
    };
    // Who comes first has everything, and is warm when the next one comes.
    ensure!(share()? == 0);
    thread::sleep(warming + Duration::from_millis(500));
    let began = Instant::now();
    put(&["b1", "b2"])?;
    let cold = share()?;
    // Half of its weight by then, so a third of all.
    if began.elapsed() > warming * 4 / 10 {
        return Ok(false);
    }
    ensure!((20..800).contains(&cold), "a cold backend gets {cold} of 2000");
    let warm = wait_until(warming + SOON, || Ok(share()? > 880))?;
    ensure!(warm, "after {warming:?} and more it still gets {} of 2000", share()?);
    Ok(true)
}
