// SPDX-License-Identifier: Apache-2.0
//! Limits of a pod's traffic (capability bandwidth), measured, and out of the pod's reach.

use crate::rate::assert_rate;
use crate::{have, lab_with};
use anyhow::{Result, ensure};
use std::net::IpAddr;
use weft_lab::{Families, Lab, PodSpec, UpOptions};

/// Bits per second, to the pod and from it; a busy machine has to be faster.
const INGRESS: u64 = 16_000_000;
const EGRESS: u64 = 8_000_000;
const TOLERANCE: f64 = 0.20;

#[test]
fn both_directions_are_limited_and_the_pod_cannot_change_that() -> Result<()> {
    if !have("tc", "bandwidth") {
        return Ok(());
    }
    let options =
        UpOptions { nodes: 2, families: Families::Dual, ..UpOptions::new(&Lab::unique_name("bandwidth")) };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    let before = shaping(&lab)?;
    let slow = lab.pod_add(&PodSpec::new("n1", "slow").bandwidth(INGRESS, EGRESS))?;
    let near = lab.pod_add(&PodSpec::new("n1", "near"))?;
    let far = lab.pod_add(&PodSpec::new("n2", "far"))?;
    let to_pod = |from: &str, ip: IpAddr| assert_rate(&lab, from, ("slow", ip), INGRESS as f64, TOLERANCE);
    let from_pod = |to: &str, ip: IpAddr| assert_rate(&lab, "slow", (to, ip), EGRESS as f64, TOLERANCE);
    let [v4, v6] = slow.ips[..] else { panic!("{:?}", slow.ips) };

    // From pod to pod on one node, and across nodes.
    to_pod("near", v4)?;
    to_pod("far", v6)?;
    from_pod("near", near.ips[1])?;
    from_pod("far", far.ips[0])?;
    lab.pod_check("n1", "slow")?;

    // Root in the pod finds nothing that it could remove.
    for command in [
        "tc qdisc del dev eth0 root",
        "tc qdisc replace dev eth0 root pfifo limit 10000",
        "tc qdisc add dev eth0 clsact",
    ] {
        let _ = lab.exec("slow", &["sh", "-c", command])?;
    }
    let seen = lab.exec("slow", &["sh", "-ec", "tc qdisc show; ip -o link show"])?.text("tc")?;
    ensure!(!seen.contains("tbf") && !seen.contains("ifb"), "the pod sees its limit: {seen}");
    from_pod("near", near.ips[0])?;

    // The limits are the kernel's: they need no netd, and the next one leaves them in place.
    lab.node_kill("n1")?;
    from_pod("near", near.ips[0])?;
    let kept = shaping(&lab)?;
    lab.node_start("n1")?;
    assert_eq!(shaping(&lab)?, kept);
    to_pod("near", v4)?;

    lab.pod_rm("n1", "slow")?;
    assert_eq!(shaping(&lab)?, before, "the deleted pod left a queue or a device");
    lab.down()
}

/// Queues and IFB devices of n1.
fn shaping(lab: &Lab) -> Result<Vec<String>> {
    let script = "tc qdisc show | grep tbf; ip -o link show type ifb | cut -d: -f2; true";
    let text = lab.exec("n1", &["sh", "-c", script])?.text("tc")?;
    let mut found: Vec<_> = text.lines().map(str::to_owned).collect();
    found.sort();
    Ok(found)
}
