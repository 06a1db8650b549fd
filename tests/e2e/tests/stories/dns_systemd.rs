// SPDX-License-Identifier: Apache-2.0
//! DNS questions while netd is away on a host where nothing but systemd's descriptor store holds its sockets.

use crate::dns_asking::asking;
use crate::dns_client::{Client, NODE_DNS, PATIENCE};
use crate::dns_records::svc;
use crate::have;
use crate::service_stage::{SOON, Stage, checked, service, spec};
use anyhow::{Context, Result, ensure};
use dns_server::hold::HolderClient;
use serde_json::json;
use std::fs;
use weft_lab::{sibling, wait_until};

/// What systemd does, as its manual pages have it: this machine has none that runs.
const MANAGER: &str = include_str!("dns_systemd.py");

#[test]
fn systemd_s_descriptor_store_keeps_questions_while_netd_is_killed() -> Result<()> {
    if !have("python3", "dnssystemd") {
        return Ok(());
    }
    // Nobody else is there who could answer meanwhile.
    let Some(mut stage) = Stage::of("dnssystemd", 1, "vxlan", &[])? else { return Ok(()) };
    stage.backend("n1", "b1", "web")?;
    stage.client("n1", "c1")?;
    let web = stage.service(&service("web", spec(json!({"selector": {"app": "web"}}))))?;
    let vip = web.vip(false)?.ip().to_string();

    // The lab's netd leaves, and its holder lets go. Another run directory has none.
    stage.lab.node_stop("n1")?;
    let config = stage.lab.state()?.node("n1")?.dir.join("netd.toml").display().to_string();
    let netd = sibling("netd")?.display().to_string();
    let folder = tempfile::tempdir()?;
    let (run, dir) = (folder.path().join("run").display().to_string(), folder.path().display().to_string());
    let holder = stage.lab.state()?.node("n1")?.dir.join("run/dns-holder.sock");
    HolderClient::new(&holder).hold(&[])?;
    let manager = stage
        .lab
        .spawn("n1", &["python3", "-c", MANAGER, &dir, &netd, "--config", &config, "--run-dir", &run])?;
    let kept = |what: &str| -> Result<usize> {
        Ok(manager.wait_line(PATIENCE).with_context(|| what.to_owned())?.parse()?)
    };
    ensure!(kept("the first start")? == 0, "nothing was stored yet");
    for server in NODE_DNS {
        // Until its sockets are there the kernel refuses.
        let client = Client::pod(&stage.lab, "c1", server)?;
        let says =
            || Ok(client.ask(&svc("web"), "A").is_ok_and(|answer| answer.data == [format!("A {vip}")]));
        ensure!(wait_until(SOON, says)?, "{server} does not answer: {:?}", manager.errors());
    }

    checked("netd killed: what was asked meanwhile is answered when it is back", {
        asking(&stage, &vip, |asked| {
            let away = folder.path().join("away");
            asked.pause_for(|| {
                fs::write(&away, "")?;
                let word = manager.wait_line(PATIENCE)?;
                ensure!(word == "killed", "{word}");
                Ok(())
            })?;
            ensure!(wait_until(PATIENCE, || Ok(!asked.all_answered()))?, "answered with netd dead");
            fs::remove_file(&away)?;
            // UDP for each worker and TCP, of both families.
            let sockets = kept("the second start")?;
            ensure!(sockets >= 4, "systemd had {sockets} descriptors");
            ensure!(
                wait_until(PATIENCE, || Ok(asked.all_answered()))?,
                "it does not catch up: {:?}",
                manager.errors()
            );
            Ok(())
        })
    })?;
    drop(manager);
    stage.lab.down()
}
