// SPDX-License-Identifier: Apache-2.0
//! The ways from pod to pod that are compared.

use std::net::{IpAddr, SocketAddr};
use std::path::Path as FilePath;

use anyhow::{Context, Result};

use super::wireguard::{self, Program};
use super::{ground, others};
use crate::lab::{self, Lab};
use crate::worker::Place;

/// The port of a path's answering server; those of streams and counts follow.
pub(super) const PORT: u16 = 7000;
/// A kernel's limit for one send is 65,507 bytes; a segment is the tunnel's MTU and WireGuard's 32 bytes.
const SEND_MAX: u32 = 65_507;
/// Peers beside the real one: a thousand with it.
pub(super) const STRANGERS: u32 = 999;

/// What is between two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Plain,
    Vxlan,
    WeftVxlan,
    Weft,
    WeftNoCipher,
    WeftJumbo,
    WeftManyPeers,
    WeftProduct,
    Gotatun,
    Boringtun,
    WireguardGo,
    Tinc,
    Nebula,
}

/// A way that is up.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub kind: Kind,
    pub from: Place,
    pub to: IpAddr,
    /// The tunnel's processes on both nodes; none for what the kernel does.
    pub pids: Vec<u32>,
}

impl Path {
    pub(super) fn target(&self, offset: u16) -> SocketAddr {
        SocketAddr::new(self.to, PORT + offset)
    }
}

impl Kind {
    pub(super) const ALL: [Self; 13] = [
        Self::Plain,
        Self::Vxlan,
        Self::WeftVxlan,
        Self::Weft,
        Self::WeftNoCipher,
        Self::WeftProduct,
        Self::Gotatun,
        Self::Boringtun,
        Self::WireguardGo,
        Self::Tinc,
        Self::Nebula,
        Self::WeftManyPeers,
        Self::WeftJumbo,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain veth",
            Self::Vxlan => "kernel VXLAN",
            Self::WeftVxlan => "Weft vxlan",
            Self::Weft => "Weft wireguard",
            Self::WeftNoCipher => "Weft, cipher off",
            Self::WeftJumbo => "Weft wireguard, MTU 8920",
            Self::WeftManyPeers => "Weft wireguard, 1,000 peers",
            Self::WeftProduct => "Weft wireguard, whole product",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun-cli",
            Self::WireguardGo => "wireguard-go",
            Self::Tinc => "tinc",
            Self::Nebula => "nebula",
        }
    }

    /// What no goal divides by takes part in fewer rounds of a run of everything.
    pub(super) fn is_minor(self) -> bool {
        matches!(
            self,
            Self::WeftVxlan
                | Self::WeftProduct
                | Self::Boringtun
                | Self::WireguardGo
                | Self::Tinc
                | Self::Nebula
        )
    }

    /// What `make bench` does not build.
    pub(super) fn may_be_missing(self) -> bool {
        matches!(
            self,
            Self::Gotatun
                | Self::Boringtun
                | Self::WireguardGo
                | Self::Tinc
                | Self::Nebula
                | Self::WeftNoCipher
        )
    }

    /// MTU of the tunnel and the pods: what is left of the underlay's 1,500.
    fn mtu(self) -> u32 {
        match self {
            Self::Plain => 1500,
            Self::Vxlan | Self::WeftVxlan => 1450,
            Self::WeftJumbo => 8920,
            // It finds its own path MTU; this fits below.
            Self::Tinc => 1400,
            _ => 1420,
        }
    }

    fn program(self) -> Option<Program> {
        match self {
            Self::Weft | Self::WeftJumbo | Self::WeftManyPeers => Some(Program::Weft),
            Self::WeftNoCipher => Some(Program::WeftNoCipher),
            Self::Gotatun => Some(Program::Gotatun),
            Self::Boringtun => Some(Program::Boringtun),
            Self::WireguardGo => Some(Program::WireguardGo),
            _ => None,
        }
    }

    /// Why this way cannot be here; none if it can.
    pub(super) fn missing(self) -> Option<&'static str> {
        let there = match (self, self.program()) {
            (_, Some(program)) => program.file().is_some() && wireguard::installed("wg").is_some(),
            (Self::Tinc, None) => wireguard::installed("tincd").is_some(),
            (Self::Nebula, None) => wireguard::installed("nebula").is_some(),
            _ => true,
        };
        let build = "weft-wireguard is not built";
        let install = "not installed: `make bench-deps`";
        let is_weft = matches!(self.program(), Some(Program::Weft | Program::WeftNoCipher));
        (!there).then_some(if is_weft { build } else { install })
    }

    /// The number of a way that is made on the bench's own ground.
    pub(super) fn number(self) -> u8 {
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or_default() as u8
    }

    /// Makes it, with pods and a server in the far one.
    pub(super) fn create(self, folder: &FilePath) -> Result<Path> {
        match self {
            Self::WeftVxlan => self.of_a_lab(lab::VXLAN).context("a lab with VXLAN"),
            Self::WeftProduct => self.of_a_lab(lab::WIREGUARD).context("a lab with WireGuard"),
            _ => self.on_the_ground(folder),
        }
    }

    /// As a user has it: netd, pods by the plugin, the eBPF programs on their links.
    fn of_a_lab(self, lab: Lab) -> Result<Path> {
        lab.up()?;
        lab.pod("n1", "p1", "client")?;
        let to = lab.pod("n2", "p2", "far")?;
        Place::Pod(lab, "p2").server(to, PORT)?;
        Ok(Path { kind: self, from: Place::Pod(lab, "p1"), to, pids: lab.tunnels()? })
    }

    fn on_the_ground(self, folder: &FilePath) -> Result<Path> {
        let (path, mtu) = (self.number(), self.mtu());
        // As Weft's plugin does for pods of a node whose device is in user space.
        let is_weft = matches!(self.program(), Some(Program::Weft | Program::WeftNoCipher));
        ground::add_pods(path, mtu, is_weft.then_some(SEND_MAX / (mtu + 32)))?;
        let strangers = if self == Self::WeftManyPeers { STRANGERS } else { 1 };
        let made = match (self, self.program()) {
            (_, Some(program)) => wireguard::start(program, path, mtu, strangers, folder),
            (Self::Tinc, None) => others::tinc(path, mtu, folder),
            (Self::Nebula, None) => others::nebula(path, mtu, folder),
            (Self::Vxlan, None) => others::vxlan(path, mtu).map(|()| Vec::new()),
            (_, None) => others::plain(path).map(|()| Vec::new()),
        };
        let pids = made.with_context(|| self.name())?;
        let to: IpAddr = ground::pod_ip(path, 1).parse()?;
        Place::Bare(ground::pod(path, 1)).server(to, PORT)?;
        Ok(Path { kind: self, from: Place::Bare(ground::pod(path, 0)), to, pids })
    }
}
