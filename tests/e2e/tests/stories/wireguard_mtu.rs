// SPDX-License-Identifier: Apache-2.0
//! Overlays, part 7: what fits through to each peer is asked of the way itself, and followed in both directions.

use crate::lab_with;
use crate::wireguard::{PORT, Pair, progress, wireguard_lab};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use weft_lab::{Lab, Offloads, PodSpec, UpOptions, wait_until};

/// A way in use is asked every 5 s, and a size is lost after three questions: twice that.
const FOUND_LIMIT: Duration = Duration::from_secs(20);
/// An event of the kernel and a word to the store, each of which may have to wait on a busy machine.
const NOTICED_LIMIT: Duration = Duration::from_secs(20);
/// What probes found while only one end had it is asked anew every 5 s; a search takes some losses of 1 s.
const WHOLE_LIMIT: Duration = Duration::from_secs(25);
/// More is tried every so many seconds.
const RAISE_SECS: &str = "5";
const RAISED_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a packet on the underlay that the router on the way lets through.
const HOLE: u32 = 1400;
/// The search ends within so many bytes of the truth.
const PRECISION: u32 = 8;

#[test]
fn part_7_a_router_that_swallows_large_packets_is_found_over_wireguard() -> Result<()> {
    let raise = ["--mtu-probe-secs".into(), RAISE_SECS.into()];
    let Some(lab) = wireguard_lab("hole", |options| options.netd_args.extend(raise))? else {
        return Ok(());
    };
    black_hole(lab, 60)
}

#[test]
fn part_7_a_router_that_swallows_large_packets_is_found_over_vxlan() -> Result<()> {
    let options = UpOptions {
        nodes: 2,
        overlay: "vxlan".into(),
        netd_args: vec!["--mtu-probe-secs".into(), RAISE_SECS.into()],
        ..UpOptions::new(&Lab::unique_name("vxhole"))
    };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    black_hole(lab, 50)
}

/// Large packets to n2 vanish without a word while a transfer runs; `overhead` is the overlay's, in bytes.
fn black_hole(lab: Lab, overhead: u32) -> Result<()> {
    for node in ["n1", "n2"] {
        // Packets on the wire are as large as what is in them.
        lab.offloads(node, Offloads::None)?;
    }
    let pair = Pair::on(&lab, "n1", "n2")?;
    let (full, less) = (mtu(&lab)?, HOLE - overhead);
    ensure!(full == 1500 - overhead, "the MTU to n2 is {full}");
    let mut transfer = lab.stream("client", &pair.to()[0], Duration::from_secs(180))?;
    let before = progress(&mut transfer)?;

    let rules = format!(
        "add table inet hole; add chain inet hole in {{ type filter hook prerouting priority -400; }}; \
         add rule inet hole in iifname \"eth0\" meta l4proto udp meta length > {HOLE} counter drop"
    );
    lab.exec("n2", &["nft", &rules])?.text("nft")?;
    let began = Instant::now();
    let mut now = full;
    let found = wait_until(FOUND_LIMIT, || {
        now = mtu(&lab)?;
        Ok(now <= less && now > less - PRECISION)
    })?;
    ensure!(
        found,
        "{FOUND_LIMIT:?} after packets above {HOLE} bytes began to vanish, the MTU to n2 is {now}"
    );
    let took = began.elapsed();
    let after = progress(&mut transfer)?;
    let flows = wait_until(FOUND_LIMIT, || Ok(progress(&mut transfer)?.bytes > after.bytes))?;
    ensure!(flows, "the transfer stands still at {} bytes ({} before)", after.bytes, before.bytes);
    println!(
        "packets above {HOLE} bytes vanish: MTU {full} became {now} in {} ms; longest pause of a transfer {} ms",
        took.as_millis(),
        progress(&mut transfer)?.longest_pause_ms
    );
    // A connection that begins now is right from the start, and the other direction is as it was.
    let report = lab.probe("client", &["--to", &pair.to()[0], "--count", "5"])?;
    ensure!(report.all_ok(), "{} of 5 ({})", report.ok, report.failures());
    let back = lab.status("n2")?.overlay.peers.first().and_then(|peer| peer.mtu);
    ensure!(back == Some(full), "the MTU to n1 is {back:?}");

    let doctor = lab.weft("n1", &["doctor"])?;
    let line = doctor.stdout.lines().find(|line| line.contains("peer n2")).unwrap_or_default().to_owned();
    ensure!(line.starts_with("note") && line.contains("found by probes"), "{}", doctor.stdout);
    ensure!(doctor.ok(), "weft doctor fails:\n{}{}", doctor.stdout, doctor.stderr);

    lab.exec("n2", &["nft", "delete table inet hole"])?.text("nft")?;
    let raised = wait_until(RAISED_LIMIT, || Ok(mtu(&lab)? == full))?;
    ensure!(raised, "{RAISED_LIMIT:?} after the way was whole again the MTU to n2 is {}", mtu(&lab)?);
    let between = progress(&mut transfer)?;
    let flows = wait_until(FOUND_LIMIT, || Ok(progress(&mut transfer)?.bytes > between.bytes))?;
    ensure!(flows, "the transfer stands still at {} bytes", between.bytes);
    // New pods on both sides take the whole way at once.
    lab.pod_add(&PodSpec::new("n1", "late"))?;
    let late = lab.probe("late", &["--to", &format!("{}:{PORT}", pair.server.ips[0]), "--count", "5"])?;
    ensure!(late.all_ok(), "{} of 5 ({})", late.ok, late.failures());
    lab.down()
}

#[test]
fn part_7_a_wire_that_gets_another_mtu_is_noticed_at_once() -> Result<()> {
    let Some(lab) = wireguard_lab("wiremtu", |_| {})? else { return Ok(()) };
    let pair = Pair::on(&lab, "n1", "n2")?;
    let _transfer = lab.stream("client", &pair.to()[0], Duration::from_secs(180))?;
    let full = mtu(&lab)?;
    for (wire, fits, limit) in [(1400, full - 100, NOTICED_LIMIT), (1500, full, WHOLE_LIMIT)] {
        lab.mtu("n2", wire)?;
        let began = Instant::now();
        let noticed = wait_until(limit, || {
            let back = lab.status("n2")?.overlay.peers.first().and_then(|peer| peer.mtu);
            Ok(mtu(&lab)? == fits && back == Some(fits))
        })?;
        ensure!(
            noticed,
            "{limit:?} after n2's wire took {wire} bytes, n1 says {} and not {fits}",
            mtu(&lab)?
        );
        println!("n2's wire takes {wire}: both know after {} ms", began.elapsed().as_millis());
    }
    lab.down()
}

/// What n1 believes fits through to n2.
fn mtu(lab: &Lab) -> Result<u32> {
    lab.status("n1")?.overlay.peers.first().and_then(|peer| peer.mtu).context("n1 knows no MTU to n2")
}
