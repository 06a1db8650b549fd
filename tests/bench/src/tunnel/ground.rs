// SPDX-License-Identifier: Apache-2.0
//! Where the tunnels run: two namespaces as nodes with a veth between them, whose offloads can be set; and for each path a
//! pod on either node, whose route leads into that path's device. All paths are up at once and take turns.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns;

/// The nodes; the prefix is the bench's own.
pub(super) const NODES: [&str; 2] = ["weftbench-ta", "weftbench-tb"];
/// Every namespace of these rows begins so.
const OWN: &str = "weftbench-t";
/// The underlay's addresses.
pub(super) const UNDERLAY: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// A tunnel program that has made no device by then has failed.
const START_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// What the wire between the nodes is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Underlay {
    /// veth as it is: a super-packet crosses whole.
    Veth,
    /// As a network card: packets are cut to the MTU on the way out, and joined on the way in.
    Nic,
    /// Cut on the way out, and never joined.
    NoOffload,
}

impl Underlay {
    pub(super) const ALL: [Self; 3] = [Self::Veth, Self::Nic, Self::NoOffload];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Nic => "nic",
            Self::NoOffload => "no-offload",
        }
    }

    /// Of the veth between the nodes, both ends.
    fn offloads(self) -> [(&'static str, bool); 4] {
        let cut = self != Self::Veth;
        [("tso", !cut), ("gso", !cut), ("tx-udp-segmentation", !cut), ("gro", self == Self::Nic)]
    }

    /// As text, for the report.
    pub(super) fn described(self) -> String {
        let on = |on| if on { "on" } else { "off" };
        self.offloads().map(|(name, is)| format!("{name} {}", on(is))).join(", ")
    }

    /// Makes the wire so.
    pub(super) fn set(self) -> Result<()> {
        for node in NODES {
            let mut command = inside(node, "ethtool");
            command.args(["-K", "eth0"]);
            for (name, on) in self.offloads() {
                command.args([name, if on { "on" } else { "off" }]);
            }
            must(&mut command)?;
        }
        Ok(())
    }
}

/// Builds the nodes; a rest of an earlier run is removed first.
pub(super) fn create() -> Result<()> {
    remove();
    for node in NODES {
        ip(None, &["netns", "add", node])?;
        ip(Some(node), &["link", "set", "lo", "up"])?;
        for setting in
            ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"]
        {
            must(inside(node, "sysctl").args(["-q", "-w", setting]))?;
        }
    }
    ip(Some(NODES[0]), &["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", NODES[1]])?;
    for (node, address) in NODES.iter().zip(UNDERLAY) {
        ip(Some(node), &["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(Some(node), &["link", "set", "eth0", "up"])?;
    }
    Ok(())
}

/// The underlay's MTU, both ends.
pub(super) fn set_mtu(mtu: u32) -> Result<()> {
    NODES.iter().try_for_each(|node| ip(Some(node), &["link", "set", "eth0", "mtu", &mtu.to_string()]))
}

/// A path's pod on a node.
pub(super) fn pod(path: u8, side: usize) -> String {
    format!("{OWN}{path}{}", ["a", "b"][side])
}

/// Its address.
pub(super) fn pod_ip(path: u8, side: usize) -> String {
    format!("10.210.{}.2", subnet(path, side))
}

/// The pods of a path on a node, as a prefix.
pub(super) fn pods(path: u8, side: usize) -> String {
    format!("10.210.{}.0/24", subnet(path, side))
}

fn subnet(path: u8, side: usize) -> usize {
    usize::from(path) * 2 + side
}

/// Makes both pods of a path. `segments_max`: what a pod's super-packet may hold (Weft's plugin sets it), else the kernel's.
pub(super) fn add_pods(path: u8, mtu: u32, segments_max: Option<u32>) -> Result<()> {
    for (side, node) in NODES.iter().enumerate() {
        let (pod, host, mtu) = (pod(path, side), format!("h{path}"), mtu.to_string());
        let gateway = format!("10.210.{}.1", subnet(path, side));
        ip(None, &["netns", "add", &pod])?;
        ip(Some(&pod), &["link", "set", "lo", "up"])?;
        let veth = ["link", "add", &host, "mtu", &mtu, "type", "veth", "peer", "name", "eth0", "mtu", &mtu];
        ip(Some(node), &[veth.as_slice(), &["netns", &pod]].concat())?;
        ip(Some(node), &["addr", "add", &format!("{gateway}/24"), "dev", &host])?;
        ip(Some(node), &["link", "set", &host, "up"])?;
        ip(Some(&pod), &["addr", "add", &format!("{}/24", pod_ip(path, side)), "dev", "eth0"])?;
        ip(Some(&pod), &["link", "set", "eth0", "up"])?;
        ip(Some(&pod), &["route", "add", "default", "via", &gateway])?;
        if let Some(segments) = segments_max {
            ip(Some(&pod), &["link", "set", "eth0", "gso_max_segs", &segments.to_string()])?;
        }
    }
    Ok(())
}

/// A route of a node to the other node's pods of a path.
pub(super) fn route(path: u8, side: usize, way: &[&str]) -> Result<()> {
    ip(Some(NODES[side]), &[&["route", "replace", &pods(path, 1 - side)], way].concat())
}

/// A program in a namespace; arguments are to be added. It keeps the process's id: nothing forks on the way.
pub(super) fn inside(netns: &str, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program.as_ref());
    command.stdin(Stdio::null());
    command
}

/// Waits until something is there.
pub(super) fn within(what: &str, mut there: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !there() {
        if start.elapsed() > START_LIMIT {
            bail!("{what}: not within {} s", START_LIMIT.as_secs());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Whether a node has a link.
pub(super) fn has_link(side: usize, link: &str) -> bool {
    ip(Some(NODES[side]), &["link", "show", link]).is_ok()
}

pub(super) fn ip(netns: Option<&str>, args: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    must(command.args(args))
}

pub(super) fn must(command: &mut Command) -> Result<()> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Removes every namespace of these rows; none is fine.
pub(super) fn remove() {
    netns::remove_all(OWN);
}
