// SPDX-License-Identifier: Apache-2.0
//! The Weft side of every row: a lab of two nodes, driven through weft-lab as a user would.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The lab's name; its own, so that a lab of the user's goes on beside it.
const NAME: &str = "bench";

fn program() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("weft-lab");
    if !beside.exists() {
        bail!("{} is missing: run `make build`", beside.display());
    }
    Ok(beside)
}

fn weft_lab(args: &[&str]) -> Result<Vec<u8>> {
    let out = Command::new(program()?)
        .args(["--name", NAME])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run weft-lab")?;
    if !out.status.success() {
        bail!("weft-lab {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}

/// Brings the lab up: two nodes, VXLAN.
pub(crate) fn up() -> Result<()> {
    down();
    weft_lab(&["up", "--nodes", "2", "--overlay", "vxlan"]).map(drop)
}

/// Takes the lab down; none is fine.
pub(crate) fn down() {
    let _ = weft_lab(&["down"]);
}

/// Adds a pod labelled `app=LABEL` and returns its address.
pub(crate) fn pod(node: &str, name: &str, label: &str) -> Result<IpAddr> {
    weft_lab(&["pod", "add", node, name, "--label", &format!("app={label}")])?;
    let shown: Value = serde_json::from_slice(&weft_lab(&["show", "--json"])?)?;
    shown["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == name)
        .and_then(|p| p["ips"][0].as_str())
        .with_context(|| format!("weft-lab shows no address for the pod {name}"))?
        .parse()
        .context("not an address")
}

/// A node's network namespace, and what weft-cni gets on standard input there.
pub(crate) fn node(name: &str) -> Result<(String, Value)> {
    let shown: Value = serde_json::from_slice(&weft_lab(&["show", "--json"])?)?;
    let nodes = shown["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let node = nodes.iter().find(|node| node["name"] == name);
    let node = node.with_context(|| format!("weft-lab shows no node {name}"))?;
    let netns = node["netns"].as_str().context("a node without a namespace")?;
    Ok((netns.to_owned(), node["cni_config"].clone()))
}

/// Applies objects and waits until both nodes have programmed them.
pub(crate) fn apply(objects: &str) -> Result<()> {
    let file = std::env::temp_dir().join(format!("weft-bench-{}.yaml", std::process::id()));
    std::fs::write(&file, objects)?;
    let outcome = weft_lab(&["apply", "-f", &file.to_string_lossy(), "--timeout", "120s"]);
    let _ = std::fs::remove_file(&file);
    outcome.map(drop)
}

/// A command that runs what is appended to it inside a pod.
pub(crate) fn exec(pod: &str) -> Result<Command> {
    let mut command = Command::new(program()?);
    command.args(["--name", NAME, "exec", pod, "--"]);
    Ok(command)
}
