// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 3: keys are renewed while packets flow, by members only, and who missed it finds back alone.

use crate::soaking;
use crate::wireguard::{PAUSE_MS_MAX, Pair, Pings, connect, progress, reach, wireguard_lab};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;
use weft_lab::{KeyRotateReply, KeyRotateRequest, Lab, PodSpec, wait_until};

/// The others hear of a key at once and move with its first handshake; the old one stays 10 s more.
const ROTATION: &str = "45s";
/// Until nothing of the older key is left anywhere, also where a node was away for a while.
const SETTLED_LIMIT: Duration = Duration::from_secs(90);
/// After five minutes nobody waits for a node any more that has not moved.
const MISSED_LIMIT: Duration = Duration::from_secs(400);
/// netd and the store notice each other's silence within this.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// Public keys that nodes use now.
fn keys(lab: &Lab, node: &str) -> Result<BTreeSet<String>> {
    let text = lab.exec(node, &["wg", "show", "all", "public-key"])?.text("wg show")?;
    let key = |line: &str| line.split('\t').nth(1).map(str::to_owned).filter(|key| key.len() == 44);
    Ok(text.lines().filter_map(key).collect())
}

fn look(lab: &Lab, node: &str) -> Result<KeyRotateReply> {
    lab.ask(node, async |client| client.key_rotate(&KeyRotateRequest { only_look: true }).await)
}

/// Waits until every node speaks this generation alone.
fn settled(lab: &Lab, generation: u64, limit: Duration) -> Result<()> {
    let mut seen = Vec::new();
    let settled = wait_until(limit, || {
        seen.clear();
        for node in lab.state()?.nodes {
            let reply = look(lab, &node.name)?;
            seen.push((node.name, reply.generation, reply.done, reply.waiting_for));
        }
        Ok(seen.iter().all(|(_, at, done, _)| *at == generation && *done))
    })?;
    ensure!(settled, "not all use generation {generation} alone after {limit:?}: {seen:?}");
    Ok(())
}

#[test]
fn part_3_keys_are_renewed_under_load_without_a_packet_lost() -> Result<()> {
    let Some(lab) = wireguard_lab("rotate", |options| options.nodes = 3)? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let generation = look(&lab, "n1")?.generation;
    let before = keys(&lab, "n1")?;
    let pings = Pings::start(&lab, &pair)?;
    let rotated = lab.weft("n1", &["key", "rotate", "--wait", ROTATION])?;
    ensure!(rotated.ok(), "{}{}", rotated.stdout, rotated.stderr);
    settled(&lab, generation + 1, SETTLED_LIMIT)?;
    let loss = pings.lost()?;
    println!("keys renewed: lost {loss}");
    ensure!(loss.lost == 0, "lost: {loss}");
    let after = keys(&lab, "n1")?;
    ensure!(after.len() == 1 && after.is_disjoint(&before), "{before:?} became {after:?}");

    // And back to the first device, under a transfer.
    let mut transfer = lab.stream("client", &pair.to()[0], Duration::from_secs(120))?;
    let before = progress(&mut transfer)?;
    let rotated = lab.weft("n2", &["key", "rotate", "--wait", ROTATION])?;
    ensure!(rotated.ok(), "{}{}", rotated.stdout, rotated.stderr);
    let after = progress(&mut transfer)?;
    println!("keys renewed under a transfer: longest pause {} ms", after.longest_pause_ms);
    ensure!(after.bytes > before.bytes, "the transfer stands still at {} bytes", after.bytes);
    ensure!(after.longest_pause_ms <= PAUSE_MS_MAX, "the transfer paused {} ms", after.longest_pause_ms);
    settled(&lab, generation + 2, SETTLED_LIMIT)?;
    connect(&lab, "client", &pair.to()[0])?;
    lab.down()
}

#[test]
fn part_3_a_node_that_was_away_follows_by_itself() -> Result<()> {
    let Some(lab) = wireguard_lab("rotaway", |options| options.nodes = 3)? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let third = lab.pod_add(&PodSpec::new("n3", "third"))?;
    let there = third.ips[0].to_string();
    let answers = || Ok(lab.exec("client", &["ping", "-c1", "-W1", &there])?.ok());
    ensure!(wait_until(SETTLED_LIMIT, answers)?, "the pod on n3 is not reached");
    let generation = look(&lab, "n1")?.generation;
    // Its tunnels go on without netd, with the key that they have.
    lab.node_kill("n3")?;
    let pings = Pings::start(&lab, &pair)?;
    let rotated = lab.weft("n1", &["key", "rotate", "--wait", "5s"])?;
    let told = format!("{}{}", rotated.stdout, rotated.stderr);
    ensure!(!rotated.ok() && told.contains("n3"), "nobody waits for n3: {told}");
    for _ in 0..5 {
        ensure!(answers()?, "n3 is cut off though the others wait for it");
    }
    if soaking() {
        let over = wait_until(MISSED_LIMIT, || Ok(keys(&lab, "n1")?.len() == 1))?;
        ensure!(over, "n1 waits for n3 for ever");
    }
    lab.node_start("n3")?;
    settled(&lab, generation + 1, SETTLED_LIMIT)?;
    ensure!(wait_until(SETTLED_LIMIT, answers)?, "n3 did not find back");
    let loss = pings.lost()?;
    ensure!(loss.lost == 0, "lost between the others: {loss}");
    lab.down()
}

#[test]
fn part_3_without_the_store_no_key_is_made_and_none_goes() -> Result<()> {
    let Some(lab) = wireguard_lab("rotstore", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let (generation, before) = (look(&lab, "n1")?.generation, keys(&lab, "n1")?);
    lab.etcd_stop()?;
    let noticed = wait_until(STORE_LIMIT, || Ok(!lab.status("n1")?.store.connected))?;
    ensure!(noticed, "n1 believes that the store answers");
    let refused = lab.weft("n1", &["key", "rotate"])?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("the store does not answer"),
        "{}{}",
        refused.stdout,
        refused.stderr
    );
    // The same from the last known state, with a netd that starts now.
    lab.node_kill("n1")?;
    lab.node_spawn("n1")?;
    let runs = wait_until(STORE_LIMIT, || Ok(lab.status("n1").is_ok_and(|status| !status.store.connected)))?;
    ensure!(runs, "n1 does not start without the store");
    reach(&lab, "client", &pair.to()[0])?;
    connect(&lab, "client", &pair.to()[0])?;
    ensure!(keys(&lab, "n1")? == before, "another key than {before:?}: {:?}", keys(&lab, "n1")?);
    lab.etcd_start()?;
    let synced = wait_until(STORE_LIMIT, || Ok(lab.status("n1")?.store.in_sync))?;
    ensure!(synced, "n1 is not in sync with the store again");
    let rotated = lab.weft("n1", &["key", "rotate", "--wait", ROTATION])?;
    ensure!(rotated.ok(), "{}{}", rotated.stdout, rotated.stderr);
    settled(&lab, generation + 1, SETTLED_LIMIT)?;
    connect(&lab, "client", &pair.to()[0]).context("with the new key")?;
    lab.down()
}
