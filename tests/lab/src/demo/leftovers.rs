// SPDX-License-Identifier: Apache-2.0
//! Whether a lab left anything on the machine.

use crate::cgroup;
use crate::mounts::WIREGUARD_DIR;
use crate::names::{self, BPF_DIR, BRIDGE, NETNS_DIR};
use crate::run::tool;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The machine before the lab.
#[derive(Debug)]
pub(super) struct Before {
    lab: String,
    links: BTreeSet<String>,
    tables: BTreeSet<String>,
    /// Whether the host has the folder over which nodes see their own.
    wireguard_dir: bool,
}

impl Before {
    pub(super) fn look(lab: &str) -> Result<Before> {
        let wireguard_dir = Path::new(WIREGUARD_DIR).exists();
        Ok(Before { lab: lab.into(), links: links()?, tables: nft_tables(), wireguard_dir })
    }

    /// Compares with the machine now; the error names everything that is left.
    pub(super) fn compare(&self) -> Result<String> {
        let prefix = names::netns(&self.lab, "");
        let mut left = Vec::new();
        let mut note = |kind: &str, what: Vec<String>| {
            left.extend(what.into_iter().map(|what| format!("{kind} {what}")));
        };
        let netns = entries(Path::new(NETNS_DIR));
        note("namespace", netns.into_iter().filter(|name| name.starts_with(&prefix)).collect());
        note("link", links()?.difference(&self.links).cloned().collect());
        note("nft table", nft_tables().difference(&self.tables).cloned().collect());
        note("process", processes(&self.lab));
        let paths = [cgroup::lab(&self.lab)?, names::lab_dir(&self.lab), Path::new(BPF_DIR).join(&self.lab)];
        note(
            "path",
            paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()).collect(),
        );
        if !self.wireguard_dir && Path::new(WIREGUARD_DIR).exists() {
            left.push(format!("path {WIREGUARD_DIR}"));
        }
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok("0 namespaces, links, nft tables, processes, control groups, pins and files".into())
    }
}

/// Links of the root namespace whose names a lab or a netd could have given.
fn links() -> Result<BTreeSet<String>> {
    let text = tool("ip", &["-o", "link", "show"])?;
    let names = text.lines().filter_map(|line| line.split(": ").nth(1));
    let ours = |name: &&str| {
        let name = name.split('@').next().unwrap_or(name);
        let member = name.strip_prefix('n').or(name.strip_prefix("etcd"));
        name.starts_with("weft")
            || matches!(name, BRIDGE | "outside")
            || member.is_some_and(|number| number.parse::<u16>().is_ok())
    };
    Ok(names.filter(ours).map(Into::into).collect())
}

/// Our nft tables in the root namespace.
fn nft_tables() -> BTreeSet<String> {
    let text = tool("nft", &["list", "tables"]).unwrap_or_default();
    text.lines()
        .filter(|table| table.contains("weft") || table.contains("partitions"))
        .map(Into::into)
        .collect()
}

/// Processes whose command line names the lab's directory or one of its namespaces.
fn processes(lab: &str) -> Vec<String> {
    let marks = [format!("{}/", names::lab_dir(lab).display()), names::netns(lab, "")];
    let own = std::process::id().to_string();
    let pids =
        entries(Path::new("/proc")).into_iter().filter(|name| name.parse::<u32>().is_ok() && *name != own);
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        marks.iter().any(|mark| line.contains(mark)).then(|| format!("{pid} ({})", line.trim()))
    })
    .collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
