// SPDX-License-Identifier: Apache-2.0
//! Promises about names.

use super::stage::{CLIENTS, Stage, only};
use crate::names::OUTSIDE_FAR_IP;
use crate::outside::ECHO_PORT;
use anyhow::{Result, ensure};

/// The service's name in full.
pub(super) const NAME: &str = "web.default.svc.cluster.local";
/// The cluster's DNS service.
const DNS_VIP: &str = "10.96.0.10:53";
const OUTSIDE_NAME: &str = "www.example.test";

pub(super) fn records(stage: &Stage<'_>) -> Result<String> {
    let vip = stage.vip.to_string();
    for client in CLIENTS {
        let a = stage.lab.query(client, &[NAME, "A"])?;
        ensure!(a.data == [vip.clone()], "A from {client}: {} {:?}, not {vip}", a.code, a.answers);
    }
    let srv = stage.lab.query("c1", &[&format!("_http._tcp.{NAME}"), "SRV"])?;
    let wanted = format!(" 80 {NAME}.");
    ensure!(srv.data.len() == 1 && srv.data[0].ends_with(&wanted), "SRV: {} {:?}", srv.code, srv.answers);
    // The second server of a pod's resolv.conf.
    let over_vip = stage.lab.query("c2", &[NAME, "A", "--server", DNS_VIP])?;
    ensure!(over_vip.data == [vip.clone()], "A over {DNS_VIP}: {} {:?}", over_vip.code, over_vip.answers);
    let absent = stage.lab.query("c1", &["nobody.default.svc.cluster.local", "A"])?;
    ensure!(absent.code == "Non-Existent Domain", "an absent service's name: {}", absent.code);
    Ok(format!("{NAME} is {vip} in 3 pods; SRV {}; asked {} and {DNS_VIP}", srv.data[0], srv.server))
}

pub(super) fn connect(stage: &Stage<'_>) -> Result<String> {
    let mut count = 0;
    for (client, name) in CLIENTS.into_iter().zip(["web", "web.default.svc", NAME]) {
        let report = stage.connect(client, &format!("{name}:80"), 10)?;
        only(&report.peers, &stage.vip(80), &format!("{name} in {client} is"))?;
        count += report.ok;
    }
    Ok(format!("{count} connections by web, web.default.svc and {NAME}"))
}

pub(super) fn forwarded(stage: &Stage<'_>) -> Result<String> {
    let far = OUTSIDE_FAR_IP.to_string();
    for client in CLIENTS {
        let answer = stage.lab.query(client, &[OUTSIDE_NAME, "A"])?;
        ensure!(
            answer.data == [far.clone()],
            "{OUTSIDE_NAME} from {client}: {} {:?}",
            answer.code,
            answer.answers
        );
    }
    let report = stage.connect("c1", &format!("{OUTSIDE_NAME}:{ECHO_PORT}"), 5)?;
    only(
        &report.seen_as,
        &stage.lab.state()?.node(stage.node_of("c1")?)?.underlay_ip.to_string(),
        "seen outside as",
    )?;
    let absent = stage.lab.query("c1", &["nobody.example.org", "A"])?;
    ensure!(absent.code == "Non-Existent Domain", "an absent outside name: {}", absent.code);
    Ok(format!("{OUTSIDE_NAME} is {far} in 3 pods, 5 connections by it; NXDOMAIN is passed on too"))
}
