// SPDX-License-Identifier: Apache-2.0
//! Bringing a lab up, step by step; whatever fails, everything is taken down again.

use crate::families::{Families, StoreKind};
use crate::members::{EtcdMember, Node, Outside};
use crate::overlay::{DEFAULT_OVERLAY, needs_tunnel};
use crate::patience::slow;
use crate::process::Process;
use crate::run::{on_path, sibling};
use crate::state::{self, State};
use crate::topology::Wire;
use crate::{cgroup, etcd, faults, interrupt, names, nat, node, outside, teardown, topology, usage};
use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Uid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::time::Instant;

/// Tools the lab runs, with the Debian packages that hold them.
const TOOLS: [(&str, &str); 4] =
    [("etcd", "etcd-server"), ("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")];

/// What lab to bring up.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The lab's name.
    pub name: String,
    /// Number of nodes.
    pub nodes: u16,
    /// Address families of pods.
    pub families: Families,
    /// Where the cluster's state lies. A file holds one node.
    pub store: StoreKind,
    /// Number of etcd members: 1 or 3.
    pub etcd_members: u16,
    /// Overlay backend: `wireguard`, `vxlan`, `native` or `auto`.
    pub overlay: String,
    /// Whether each node has a weft-wireguard also where the overlay needs none: for a change of the overlay online.
    pub tunnel: bool,
    /// More arguments for every weft-wireguard.
    pub tunnel_args: Vec<String>,
    /// Address families of the underlay. `V6`: nodes talk to each other over IPv6. IPv4 is always there, for etcd.
    pub underlay: Families,
    /// MTU of every wire of the underlay, in bytes; none is Ethernet's 1500.
    pub underlay_mtu: Option<u32>,
    /// Nodes behind a router that does NAT: `n3`.
    pub nat: Vec<String>,
    /// The cluster's name, where it is not the lab's.
    pub cluster: Option<String>,
    /// More arguments for every netd.
    pub netd_args: Vec<String>,
    /// Whether the calling process takes the lab down when it ends.
    pub owned: bool,
}

impl UpOptions {
    /// Three nodes, IPv4, one etcd member, the default overlay.
    pub fn new(name: &str) -> UpOptions {
        UpOptions {
            name: name.into(),
            nodes: 3,
            families: Families::V4,
            store: StoreKind::Etcd,
            etcd_members: 1,
            overlay: DEFAULT_OVERLAY.as_str().into(),
            tunnel: false,
            tunnel_args: Vec::new(),
            underlay: Families::V4,
            underlay_mtu: None,
            nat: Vec::new(),
            cluster: None,
            netd_args: Vec::new(),
            owned: false,
        }
    }

    /// One node whose store is a file: a lab without etcd.
    pub fn alone(name: &str) -> UpOptions {
        UpOptions { nodes: 1, store: StoreKind::File, ..UpOptions::new(name) }
    }

    fn needs_tunnel(&self) -> bool {
        self.tunnel || needs_tunnel(&self.overlay)
    }

    fn underlay_v6(&self) -> bool {
        self.families.v6() || self.underlay.v6()
    }
}

/// Brings a lab up; returns when every node is ready. On failure nothing is left.
pub fn up(options: &UpOptions) -> Result<()> {
    check(options)?;
    reserve(options)?;
    let result = build(options);
    if result.is_err() {
        // The lock of the directory is ours no longer here; a failed clean-up is said, the cause stays first.
        if let Err(error) = teardown::down(&options.name) {
            return result.with_context(|| format!("and the clean-up failed: {error:#}"));
        }
    }
    result
}

fn check(options: &UpOptions) -> Result<()> {
    names::check_lab(&options.name)?;
    if options.nodes == 0 || options.nodes > names::NODES_MAX {
        return Err(usage::usage(format!("--nodes: 1 to {}", names::NODES_MAX)).into());
    }
    if options.store == StoreKind::File && options.nodes > 1 {
        return Err(usage::usage("--store file: a file holds the state of one host, so --nodes 1").into());
    }
    if options.store == StoreKind::File && options.etcd_members > 1 {
        return Err(usage::usage("--store file: there is no etcd, so no --etcd-members").into());
    }
    if let Some(mtu) = options.underlay_mtu {
        faults::check_mtu(mtu)?;
    }
    if let Some(unknown) =
        options.nat.iter().find(|name| !(1..=options.nodes).any(|index| names::node(index) == **name))
    {
        return Err(usage::usage(format!("--nat {unknown}: no such node")).into());
    }
    if !options.nat.is_empty() && options.underlay_v6() {
        return Err(usage::usage("--nat: the underlay must have IPv4 only").into());
    }
    if !Uid::effective().is_root() {
        bail!("a lab makes network namespaces and control groups: run weft-lab as root");
    }
    for (tool, package) in TOOLS {
        let needed = tool != "etcd" || options.store == StoreKind::Etcd;
        if needed && !on_path(tool) {
            bail!("{tool} is not installed: apt-get install {package}");
        }
    }
    for program in ["netd", "weft-cni", "weft", "weft-lab"] {
        sibling(program)?;
    }
    if options.needs_tunnel() {
        sibling("weft-wireguard")?;
    }
    cgroup::v2_mount().map(drop)
}

/// Makes the lab's directory with its first state. What a killed owner left under this name goes first.
fn reserve(options: &UpOptions) -> Result<()> {
    teardown::remove_orphans();
    let dir = names::lab_dir(&options.name);
    // Twice: the last lab's `down` may remove the parent just in between.
    let create = || fs::create_dir_all(names::LABS_DIR).and_then(|()| fs::create_dir(&dir));
    let again = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => create(),
        _ => Err(error),
    };
    create().or_else(again).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            anyhow!("lab {0} exists already: weft-lab down --name {0}", options.name)
        }
        _ => anyhow!("{}: {error}", dir.display()),
    })?;
    let lab_cgroup = cgroup::lab(&options.name)?;
    let ip6 = |ip| options.underlay_v6().then(|| names::ip6_of(ip));
    let nodes = (1..=options.nodes).map(|index| {
        let name = names::node(index);
        let nat = options.nat.contains(&name);
        Node {
            netns: names::netns(&options.name, &name),
            dir: dir.join(&name),
            cgroup: lab_cgroup.join(&name),
            underlay_ip: if nat { names::nat_ip(index) } else { names::node_ip(index) },
            underlay_ip6: ip6(names::node_ip(index)),
            nat: nat.then(|| names::node_ip(index)),
            process: None,
            tunnel: None,
            holder: None,
            name,
        }
    });
    let members = if options.store == StoreKind::Etcd { options.etcd_members } else { 0 };
    let etcd = (1..=members).map(|index| EtcdMember {
        name: format!("etcd{index}"),
        ip: names::etcd_ip(index),
        process: None,
    });
    State {
        name: options.name.clone(),
        cluster: options.cluster.clone().unwrap_or_else(|| options.name.clone()),
        // While `up` works it owns the lab: should it be killed, the next one cleans up.
        owner: Process::own(),
        complete: false,
        families: options.families,
        store: options.store,
        overlay: options.overlay.clone(),
        netd_args: options.netd_args.clone(),
        tunnel: options.needs_tunnel(),
        tunnel_args: options.tunnel_args.clone(),
        underlay: options.underlay,
        netns: BTreeSet::new(),
        etcd: etcd.collect(),
        outside: Outside {
            netns: names::netns(&options.name, "outside"),
            ip: names::OUTSIDE_IP,
            ip6: ip6(names::OUTSIDE_IP),
            process: None,
        },
        nodes: nodes.collect(),
        pods: BTreeMap::new(),
        partitions: BTreeSet::new(),
    }
    .create()
}

fn build(options: &UpOptions) -> Result<()> {
    let lab = options.name.as_str();
    let _alone = state::hold(lab, true)?;
    let started = Instant::now();
    let state = State::read(lab)?;
    mount_bpffs()?;
    topology::add_underlay(lab)?;
    let mtu = options.underlay_mtu;
    for member in &state.etcd {
        topology::add_member(lab, &member.name, &Wire { ip: member.ip, ip6: None, mtu })?;
    }
    topology::add_member(lab, "outside", &Wire { ip: state.outside.ip, ip6: state.outside.ip6, mtu })?;
    for node in &state.nodes {
        interrupt::check()?;
        match node.nat {
            Some(public) => nat::add(lab, node, public, mtu)?,
            None => {
                let wire = Wire { ip: node.underlay_ip, ip6: node.underlay_ip6, mtu };
                topology::add_member(lab, &node.name, &wire)?;
            }
        }
        node::prepare(&state, node)?;
    }
    etcd::start(lab)?;
    outside::start(lab)?;
    for node in &state.nodes {
        node::start(lab, &node.name)?;
    }
    for node in &state.nodes {
        node::wait_ready(lab, &node.name, node::READY_LIMIT.saturating_sub(started.elapsed() / slow()))?;
    }
    for node in &state.nodes {
        node::wait_known(&state, node, node::READY_LIMIT.saturating_sub(started.elapsed() / slow()))?;
    }
    state::edit(lab, |state| {
        state.complete = true;
        if !options.owned {
            state.owner = None;
        }
        Ok(())
    })
}

/// Pins need a BPF file system; a host without systemd may not have mounted it.
fn mount_bpffs() -> Result<()> {
    let kind =
        statfs(names::BPFFS).with_context(|| format!("{}: does the kernel have BPF?", names::BPFFS))?;
    if kind.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), names::BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("mounting the BPF file system on {}", names::BPFFS))
}
