// SPDX-License-Identifier: Apache-2.0
//! What Weft is compared with, each on a node of its own with a client and two backends: veth and routes alone, nftables,
//! iptables, HAProxy. The same namespaces, veths and MTUs as in the lab.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::path::{Kind, PORT, Path as Way};
use super::rules::{self, Wish};
use super::{OURS, VIP, other};
use crate::tunnel::installed;
use crate::worker::{self, Place};
use crate::{bare, netns};

/// Every namespace of these rows begins so; the prefix is the bench's own.
pub(super) const OWN: &str = "weftbench-s";
/// The node's own address; client and backends.
const OVERLAY: &str = "10.201.1.1/32";
const CLIENT: &str = "10.201.1.2";
const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 201, 1, 3), Ipv4Addr::new(10, 201, 1, 4)];
/// Every service's address, ours and others'.
const VIPS: &str = "10.96.0.0/16";

/// One of them.
#[derive(Debug)]
pub(super) struct Peer {
    kind: Kind,
    /// Files of this run.
    folder: PathBuf,
    haproxy: Option<u32>,
}

impl Peer {
    /// Why it cannot be here; none if it can.
    pub(super) fn missing(kind: Kind) -> Option<String> {
        let program = program(kind)?;
        installed(program).is_none().then(|| format!("{program} is not installed: `make bench-deps`"))
    }

    /// Makes the node, its pods and their servers.
    pub(super) fn create(kind: Kind, folder: &Path) -> Result<Self> {
        let node = name(kind, "n");
        for netns in [node.clone(), name(kind, "c"), name(kind, "a"), name(kind, "b")] {
            bare::ip(None, &["netns", "add", &netns])?;
            bare::ip(Some(&netns), &["link", "set", "lo", "up"])?;
        }
        bare::forward(&node)?;
        // What a proxy asks with, and masquerade.
        bare::ip(Some(&node), &["addr", "add", OVERLAY, "dev", "lo"])?;
        bare::wire_pod(&name(kind, "c"), &node, CLIENT)?;
        for (letter, ip) in ["a", "b"].into_iter().zip(BACKENDS) {
            let pod = name(kind, letter);
            bare::wire_pod(&pod, &node, &ip.to_string())?;
            Place::Bare(pod).server(ip.into(), PORT)?;
        }
        if kind == Kind::Haproxy {
            // It listens on services' addresses: they are the node's own.
            bare::ip(Some(&node), &["route", "add", "local", VIPS, "dev", "lo"])?;
        }
        Ok(Self { kind, folder: folder.to_owned(), haproxy: None })
    }

    /// The way through it.
    pub(super) fn path(&self) -> Way {
        let (to, ports) = match self.kind {
            Kind::Direct => (IpAddr::V4(BACKENDS[0]), [PORT, PORT + 1]),
            _ => (VIP.into(), OURS.map(|(port, _)| port)),
        };
        Way { kind: self.kind, from: Place::Bare(name(self.kind, "c")), to, ports }
    }

    /// Installs so many services, ours in the middle; seconds that it took.
    pub(super) fn install(&mut self, count: usize) -> Result<f64> {
        let mut wishes: Vec<Wish> = (0..count.saturating_sub(1)).map(other).collect();
        let ours = Wish { name: "bench".to_owned(), vip: VIP, ports: OURS.to_vec(), backends: BACKENDS };
        wishes.insert(wishes.len() / 2, ours);
        let text = match self.kind {
            Kind::Nftables => rules::nftables(&wishes),
            Kind::Iptables => rules::iptables(&wishes),
            Kind::Haproxy => rules::haproxy(&wishes),
            _ => return Ok(0.0),
        };
        let file = self.folder.join(name(self.kind, "rules"));
        std::fs::write(&file, text)?;
        let start = Instant::now();
        self.load(&file).with_context(|| format!("{} with {count} services", self.kind.name()))?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn load(&mut self, file: &Path) -> Result<()> {
        let node = name(self.kind, "n");
        let mut command = match self.kind {
            Kind::Iptables => netns::command(&node, "iptables-restore"),
            Kind::Haproxy => netns::command(&node, "haproxy"),
            _ => netns::command(&node, "nft"),
        };
        match self.kind {
            Kind::Iptables => command.arg(file),
            Kind::Haproxy => command.args(["-db", "-q", "-f"]).arg(file),
            _ => command.arg("-f").arg(file),
        };
        if self.kind == Kind::Haproxy {
            // Both may listen at once for a moment; the caller waits for the first answer.
            let started = worker::adopt(command.spawn().context("cannot run haproxy")?);
            if let Some(before) = self.haproxy.replace(started) {
                kill(Pid::from_raw(i32::try_from(before)?), Signal::SIGTERM).context("ending haproxy")?;
            }
            return Ok(());
        }
        let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
        if !out.status.success() {
            let text = String::from_utf8_lossy(&out.stderr);
            bail!("{command:?}: {}", text.lines().take(5).collect::<Vec<_>>().join("; "));
        }
        Ok(())
    }
}

/// What a way needs beside the kernel.
fn program(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Nftables => Some("nft"),
        Kind::Iptables => Some("iptables-restore"),
        Kind::Haproxy => Some("haproxy"),
        _ => None,
    }
}

/// Versions, for the report.
pub(super) fn versions() -> Vec<String> {
    let first_line = |program: &str| {
        let out = Command::new(program).arg("--version").output().ok()?;
        String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_owned)
    };
    ["nft", "iptables", "haproxy"].into_iter().filter_map(first_line).collect()
}

fn name(kind: Kind, part: &str) -> String {
    format!("{OWN}-{}-{part}", kind.short())
}
