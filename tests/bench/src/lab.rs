// SPDX-License-Identifier: Apache-2.0
//! The Weft side of every row: labs of two nodes, driven through weft-lab as a user would.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A lab of the bench's own; a lab of the user's goes on beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lab {
    name: &'static str,
    overlay: &'static str,
    nodes: u8,
}

/// The one that rows of the overlay, of plugins and of node ports run in.
pub(crate) const VXLAN: Lab = Lab { name: "bench", overlay: "vxlan", nodes: 2 };
/// The encrypted overlay as users have it.
pub(crate) const WIREGUARD: Lab = Lab { name: "bench-wg", overlay: "wireguard", nodes: 2 };
/// Many services: one node has enough to do with them.
pub(crate) const SERVICES: Lab = Lab { name: "bench-svc", overlay: "vxlan", nodes: 1 };

/// Names: every server is on its node.
pub(crate) const DNS: Lab = Lab { name: "bench-dns", overlay: "vxlan", nodes: 1 };

fn program() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("weft-lab");
    if !beside.exists() {
        bail!("{} is missing: run `make build`", beside.display());
    }
    Ok(beside)
}

impl Lab {
    fn weft_lab(self, args: &[&str]) -> Result<Vec<u8>> {
        let out = Command::new(program()?)
            .args(["--name", self.name])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("cannot run weft-lab")?;
        if !out.status.success() {
            bail!("weft-lab {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(out.stdout)
    }

    /// Brings it up.
    pub(crate) fn up(self) -> Result<()> {
        self.up_with(&[])
    }

    /// The same with more arguments.
    pub(crate) fn up_with(self, more: &[&str]) -> Result<()> {
        self.down();
        let nodes = self.nodes.to_string();
        self.weft_lab(&[&["up", "--nodes", &nodes, "--overlay", self.overlay], more].concat()).map(drop)
    }

    /// Its name, which is also its cluster's.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// What it consists of.
    pub(crate) fn show(self) -> Result<Value> {
        serde_json::from_slice(&self.weft_lab(&["show", "--json"])?).context("weft-lab show: no JSON")
    }

    /// The network namespace of one of its pods: whoever enters it by this alone is in none of the lab's control groups.
    pub(crate) fn pod_netns(self, name: &str) -> String {
        format!("weft-{}-{name}", self.name)
    }

    /// Takes it down; none is fine.
    pub(crate) fn down(self) {
        let _ = self.weft_lab(&["down"]);
    }

    /// Adds a pod labelled `app=LABEL` and returns its address.
    pub(crate) fn pod(self, node: &str, name: &str, label: &str) -> Result<IpAddr> {
        self.weft_lab(&["pod", "add", node, name, "--label", &format!("app={label}")])?;
        let shown = self.show()?;
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
    pub(crate) fn node(self, name: &str) -> Result<(String, Value)> {
        let shown = self.show()?;
        let nodes = shown["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let node = nodes.iter().find(|node| node["name"] == name);
        let node = node.with_context(|| format!("weft-lab shows no node {name}"))?;
        let netns = node["netns"].as_str().context("a node without a namespace")?;
        Ok((netns.to_owned(), node["cni_config"].clone()))
    }

    /// Applies objects and waits until both nodes have programmed them.
    pub(crate) fn apply(self, objects: &str) -> Result<()> {
        let file = std::env::temp_dir().join(format!("weft-bench-{}.yaml", std::process::id()));
        std::fs::write(&file, objects)?;
        let outcome = self.weft_lab(&["apply", "-f", &file.to_string_lossy(), "--timeout", "120s"]);
        let _ = std::fs::remove_file(&file);
        outcome.map(drop)
    }

    /// A command that runs what is appended to it inside a pod.
    pub(crate) fn exec(self, pod: &str) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.args(["--name", self.name, "exec", pod, "--"]);
        Ok(command)
    }

    /// The tunnel processes of all nodes; none where the kernel has the device.
    pub(crate) fn tunnels(self) -> Result<Vec<u32>> {
        let shown = self.show()?;
        let nodes = shown["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let netns: Vec<PathBuf> = nodes
            .iter()
            .filter_map(|node| node["netns"].as_str())
            .map(|netns| PathBuf::from("/run/netns").join(netns))
            .collect();
        let inode = |path: PathBuf| std::fs::metadata(path).map(|meta| meta.ino()).ok();
        let nodes: Vec<u64> = netns.into_iter().filter_map(inode).collect();
        let all = std::fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let of_a_node = |pid: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "weft-wireguard"
                && inode(format!("/proc/{pid}/ns/net").into()).is_some_and(|netns| nodes.contains(&netns))
        };
        Ok(all.filter(of_a_node).collect())
    }
}
