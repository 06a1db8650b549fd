// SPDX-License-Identifier: Apache-2.0
//! The conformance runner on the real weft-cni in a node: every row passes, and nothing is left.

use crate::lab_with;
use anyhow::Result;
use serde_json::Value;
use std::process::Command;
use std::time::Duration;
use weft_lab::{Families, Lab, UpOptions, output, sibling, wait_until};

/// The whole checklist takes half a minute on a quiet machine.
const LIMIT: Duration = Duration::from_secs(480);

/// A veth is no device of the host's; nobody can ask weft-cni for one.
const NOT_APPLICABLE: [&str; 2] = ["cap.device-id", "cap.infiniband-guid"];

#[test]
fn weft_cni_keeps_every_sentence_of_cni_1_1() -> Result<()> {
    let mut options =
        UpOptions { nodes: 1, families: Families::Dual, ..UpOptions::new(&Lab::unique_name("conf")) };
    // Rows that want a freed address again wait for it.
    options.netd_args = vec!["--cool-down-secs".into(), "2".into()];
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    let show = lab.show()?;
    let node = &show.nodes[0];
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("weft.json");
    std::fs::write(&config, node.cni_config.to_string())?;
    // A socket that nobody listens at, in a folder of its own: a DEL leaves its wish beside it.
    let broken = format!("socket={}", folder.path().join("netd.sock").display());
    let mut runner = Command::new(sibling("weft-conformance")?);
    runner
        .arg("--plugin")
        .arg(sibling("weft-cni")?)
        .arg("--config")
        .arg(&config)
        .args(["--exec-prefix", &format!("nsenter --net=/run/netns/{}", node.netns)])
        .args(["--netns-prefix", lab.name(), "--broken", &broken, "--json"]);
    let out = output(&mut runner, b"", LIMIT)?;
    let report: Value = serde_json::from_str(&out.stdout).unwrap_or_default();
    let rows = report["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let failed: Vec<String> =
        having(rows, "FAIL").map(|row| format!("{}: {}", row["name"], row["why"])).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let other: Vec<&str> = having(rows, "n/a").filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(other, NOT_APPLICABLE, "rows that do not apply");
    assert!(rows.len() > 100 && out.ok(), "{:?}: {}{}", out.code, out.stdout, out.stderr);

    // The runner takes back whatever it made.
    let clean = wait_until(Duration::from_secs(5), || Ok(lab.status("n1")?.pods == 0))?;
    assert!(clean, "netd still counts {} pods", lab.status("n1")?.pods);
    let links = lab.exec("n1", &["ip", "-o", "link", "show", "type", "veth"])?.text("ip link")?;
    let left: Vec<&str> = links.lines().filter(|line| line.contains(": weft")).collect();
    assert!(left.is_empty(), "{left:?}");
    lab.down()
}

fn having<'r>(rows: &'r [Value], verdict: &'r str) -> impl Iterator<Item = &'r Value> {
    rows.iter().filter(move |row| row["verdict"] == verdict)
}
