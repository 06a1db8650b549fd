// SPDX-License-Identifier: Apache-2.0
//! The encrypted overlay, part 10: IPv6 and both families, of pods and of the underlay.

use crate::wireguard::{GREETING, Pair, TUNNEL, connect, reach, silent, transfer, wireguard_lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{Families, Lab};

/// Of a WireGuard packet: outer IP, UDP, type, receiver, counter, tag.
const OVERHEAD_V4: u64 = 20 + 8 + 16 + 16;
const OVERHEAD_V6: u64 = OVERHEAD_V4 + 20;

#[test]
fn part_10_pods_of_both_families_over_an_ipv6_underlay() -> Result<()> {
    story(Families::Dual, Families::V6)
}

#[test]
fn part_10_pods_with_ipv6_only_over_an_ipv6_underlay() -> Result<()> {
    story(Families::V6, Families::V6)
}

#[test]
fn part_10_pods_with_ipv6_only_over_an_ipv4_underlay() -> Result<()> {
    story(Families::V6, Families::V4)
}

#[test]
fn part_10_pods_of_both_families_over_an_ipv4_underlay() -> Result<()> {
    story(Families::Dual, Families::V4)
}

fn story(families: Families, underlay: Families) -> Result<()> {
    let Some(lab) = wireguard_lab("families", |options| {
        options.families = families;
        options.underlay = underlay;
    })?
    else {
        return Ok(());
    };
    let (witness, capture) = (lab.witness()?, lab.capture("")?);
    let pair = Pair::on(&lab, "n1", "n2")?;
    ensure!(pair.to().len() == families.pod_cidrs().len(), "{:?}", pair.server.ips);
    for to in pair.to() {
        connect(&lab, "client", &to)?;
        connect(&lab, "n1", &to)?;
        transfer(&lab, &to)?;
    }
    let packets = capture.stop()?;
    let (by4, by6) =
        (packets.count(&format!("ip and {TUNNEL}"))?, packets.count(&format!("ip6 and {TUNNEL}"))?);
    let (by, not_by, overhead) = match underlay {
        Families::V6 => (by6, by4, OVERHEAD_V6),
        Families::Dual | Families::V4 => (by4, by6, OVERHEAD_V4),
    };
    ensure!(by > 0 && not_by == 0, "{by4} packets over IPv4 and {by6} over IPv6, underlay {underlay:?}");
    ensure!(packets.holding(GREETING.as_bytes())? == 0, "the greeting can be read on the underlay");
    let mtu = mtu(&lab, "client")?;
    ensure!(mtu == 1500 - overhead, "the pods' MTU is {mtu}");

    lab.tunnel_kill("n1")?;
    for to in pair.to() {
        silent(&lab, "client", &to)?;
        silent(&lab, "n1", &to)?;
    }
    lab.tunnel_start("n1")?;
    for to in pair.to() {
        reach(&lab, "client", &to)?;
    }
    let clear = witness.stop()?;
    ensure!(clear.packets == 0, "{} packets in the clear:\n{}", clear.packets, clear.lines);
    lab.down()
}

fn mtu(lab: &Lab, pod: &str) -> Result<u64> {
    let link: Vec<Value> = lab.exec(pod, &["ip", "-j", "link", "show", "eth0"])?.json("ip link")?;
    link[0]["mtu"].as_u64().context("no MTU")
}
