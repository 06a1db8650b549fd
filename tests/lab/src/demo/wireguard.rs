// SPDX-License-Identifier: Apache-2.0
//! Promises of the encrypted overlay: nothing is readable, nothing leaks, and keys and overlay change while it runs.

use super::pods::OUR_VNI;
use super::report::Report;
use super::stage::{INNER, Stage, TCP_PORT};
use super::survival::{PAUSE_MS_MAX, progress};
use crate::interrupt::wait_until;
use crate::running::Running;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// The ports of both devices of each node.
const WIREGUARD: &str = "udp portrange 51820-51821";
const COUNT: u32 = 20;
/// What a handshake needs that goes unanswered once (WireGuard repeats it after 5 s), twice over.
const BACK_LIMIT: Duration = Duration::from_secs(15);
/// As long as nodes take at most to change the overlay, and to retire a key.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Outlives both changes of the overlay.
const TRANSFER: Duration = Duration::from_secs(180);

pub(super) fn prove(stage: &mut Stage<'_>, report: &mut Report) {
    let promise = "pod traffic between nodes is encrypted: the capture on the underlay shows no pod address in the clear";
    report.prove(promise, || encrypted(stage));
    report.prove("weft-wireguard killed: traffic stops, nothing leaks; started again: it flows", || {
        killed(stage)
    });
    if knows(stage, &["key", "rotate"]) {
        report.prove("keys rotated under a running transfer without a lost byte", || keys_rotated(stage));
    }
    if knows(stage, &["config", "set"]) {
        let promise = "overlay changed from wireguard to vxlan and back under a running transfer";
        report.prove(promise, || overlay_changed(stage));
    }
}

/// Whether the CLI has a command.
fn knows(stage: &Stage<'_>, command: &[&str]) -> bool {
    stage.lab.weft("n1", &[command, &["--help"]].concat()).is_ok_and(|help| help.ok())
}

fn encrypted(stage: &Stage<'_>) -> Result<String> {
    let capture = stage.lab.capture("")?;
    stage.connect("c1", &stage.at("b2", TCP_PORT)?, COUNT)?;
    stage.connect("c3", &stage.at("b1", TCP_PORT)?, COUNT)?;
    let packets = capture.stop()?;
    let sealed = packets.count(WIREGUARD)?;
    // SYN, SYN-ACK, ACK, data, FIN of each connection at the least.
    let least = 2 * COUNT as usize * 5;
    ensure!(sealed >= least, "only {sealed} packets of WireGuard for {} connections", 2 * COUNT);
    let bare = packets.print(&format!("not ({WIREGUARD}) and ({INNER})"))?;
    ensure!(bare.is_empty(), "bare packets:\n{bare}");
    // Backends greet with their name and the client's address: a tunnel that does not encrypt would show it inside.
    for (backend, client) in [("b2", "c1"), ("b1", "c3")] {
        let greeting = format!("{backend} {}:", stage.ip(client)?);
        let readable = packets.holding(greeting.as_bytes())?;
        ensure!(readable == 0, "{readable} packets in which {greeting:?} can be read");
    }
    Ok(format!(
        "{} connections; tcpdump on the bridge: {sealed} packets of WireGuard, 0 bare, 0 with a readable greeting",
        2 * COUNT
    ))
}

fn killed(stage: &Stage<'_>) -> Result<String> {
    let lab = stage.lab;
    let (there, here) = (stage.at("b2", TCP_PORT)?, stage.at("b1", TCP_PORT)?);
    let witness = lab.witness()?;
    lab.tunnel_kill("n1")?;
    let cut = lab.probe("c1", &["--to", &there, "--count", "3", "--timeout", "700ms"]);
    let near = stage.connect("c1", &here, COUNT);
    // Whatever happened: the promises after this one need it.
    lab.tunnel_start("n1")?;
    let back = Instant::now();
    let cut = cut?;
    ensure!(cut.ok == 0, "{} of {} connections passed without a tunnel", cut.ok, cut.attempts);
    near.context("pods of one node need no tunnel")?;
    let flows = wait_until(BACK_LIMIT, || {
        Ok(lab.probe("c1", &["--to", &there, "--count", "1", "--timeout", "500ms"])?.all_ok())
    })?;
    ensure!(flows, "nothing flows {BACK_LIMIT:?} after weft-wireguard was started again");
    let back = back.elapsed();
    stage.connect("c1", &there, COUNT)?;
    let clear = witness.stop()?;
    ensure!(clear.packets == 0, "{} packets in the clear:\n{}", clear.packets, clear.lines);
    Ok(format!(
        "0 of {} connections passed, {COUNT} on the node itself did, 0 packets in the clear; flows {} ms after the start",
        cut.attempts,
        back.as_millis()
    ))
}

fn keys_rotated(stage: &Stage<'_>) -> Result<String> {
    let transfer = stage.lab.stream("c1", &stage.at("b2", TCP_PORT)?, TRANSFER)?;
    let before = progress(&transfer)?;
    let started = Instant::now();
    let output = stage.lab.weft("n1", &["key", "rotate", "--wait", "25s"])?;
    output.text("weft key rotate")?;
    let took = started.elapsed();
    let (moved, pause) = went_on(transfer, before.bytes)?;
    Ok(format!("in {} ms; {moved} KiB more moved unharmed, longest pause {pause} ms", took.as_millis()))
}

fn overlay_changed(stage: &Stage<'_>) -> Result<String> {
    let transfer = stage.lab.stream("c1", &stage.at("b2", TCP_PORT)?, TRANSFER)?;
    let before = progress(&transfer)?;
    let there = change(stage, "vxlan", OUR_VNI, WIREGUARD);
    // Whatever happened: the promises after this one are about an encrypted overlay.
    let back = change(stage, "wireguard", WIREGUARD, OUR_VNI);
    let (there, back) = (there?, back?);
    let (moved, pause) = went_on(transfer, before.bytes)?;
    Ok(format!(
        "there in {} ms, back in {} ms; {moved} KiB more moved unharmed, longest pause {pause} ms",
        there.as_millis(),
        back.as_millis()
    ))
}

/// Asks for an overlay, and waits until the transfer's packets and new connections travel by it and not by the other.
fn change(stage: &Stage<'_>, overlay: &str, wanted: &str, other: &str) -> Result<Duration> {
    let lab = stage.lab;
    let started = Instant::now();
    lab.weft("n1", &["config", "set", "--overlay", overlay])?.text("weft config set")?;
    let mut seen = String::new();
    let changed = wait_until(CHANGE_LIMIT, || {
        let capture = lab.capture("udp")?;
        stage.connect("c1", &stage.at("b2", TCP_PORT)?, 5)?;
        let packets = capture.stop()?;
        // Frames with payload: handshakes and keepalives of a device that is about to go are shorter.
        let (by, not_by) = (
            packets.count(&format!("({wanted}) and greater 200"))?,
            packets.count(&format!("({other}) and greater 200"))?,
        );
        seen = format!("{by} packets by {overlay}, {not_by} by the other");
        Ok(by > 0 && not_by == 0)
    })?;
    ensure!(changed, "{CHANGE_LIMIT:?} after the change to {overlay}: {seen}");
    Ok(started.elapsed())
}

/// A transfer that was not disturbed: KiB since then, and its longest pause in milliseconds.
fn went_on(mut transfer: Running, before: u64) -> Result<(u64, u64)> {
    let after = progress(&transfer)?;
    ensure!(transfer.alive(), "the transfer ended: {}", transfer.errors().join(" "));
    ensure!(after.bytes > before, "the transfer stands still at {} bytes", after.bytes);
    ensure!(after.longest_pause_ms <= PAUSE_MS_MAX, "the transfer paused {} ms", after.longest_pause_ms);
    Ok(((after.bytes - before) / 1024, after.longest_pause_ms))
}
