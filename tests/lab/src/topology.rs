// SPDX-License-Identifier: Apache-2.0
//! Network namespaces and the underlay: one bridge in `weft-<lab>-net`, a veth from it to every member.
//!
//! Nothing is made in the root namespace: each veth is born with both ends in place.

use crate::names::{
    self, BRIDGE, OUTSIDE_FAR_IP, OUTSIDE_FAR_IP6, OUTSIDE_IP, OUTSIDE_IP6, UNDERLAY_IF, UNDERLAY_PREFIX_LEN,
    UNDERLAY6_PREFIX_LEN,
};
use crate::run::{tool, tool_with_stdin};
use crate::state;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};

/// How a member hangs on the bridge.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wire {
    /// Its underlay address.
    pub(crate) ip: Ipv4Addr,
    /// Its IPv6 underlay address.
    pub(crate) ip6: Option<Ipv6Addr>,
    /// Of both ends, in bytes; none is Ethernet's 1500.
    pub(crate) mtu: Option<u32>,
}

/// Makes a network namespace of a lab, written down first, with its loopback up.
pub(crate) fn add_netns(lab: &str, netns: &str) -> Result<()> {
    if names::netns_path(netns).exists() {
        bail!(
            "network namespace {netns} exists already, made by somebody else: remove it or name the lab otherwise"
        );
    }
    state::edit(lab, |state| Ok(state.netns.insert(netns.to_owned())))?;
    // Two first callers of `ip netns add` at once may mount /run/netns twice.
    let _once =
        Flock::lock(File::open(names::LABS_DIR)?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    tool("ip", &["netns", "add", netns])?;
    tool("ip", &["-n", netns, "link", "set", "lo", "up"])?;
    Ok(())
}

/// Removes a network namespace of a lab and forgets it. An absent one is fine.
pub(crate) fn remove_netns(lab: &str, netns: &str) -> Result<()> {
    delete_netns(netns)?;
    state::edit(lab, |state| Ok(state.netns.remove(netns)))?;
    Ok(())
}

/// Removes a network namespace. An absent one is fine.
pub(crate) fn delete_netns(netns: &str) -> Result<()> {
    if names::netns_path(netns).exists() {
        tool("ip", &["netns", "delete", netns])?;
    }
    Ok(())
}

/// Makes the bridge.
pub(crate) fn add_underlay(lab: &str) -> Result<()> {
    let net = names::netns(lab, "net");
    add_netns(lab, &net)?;
    // The bridge needs no address of its own, and router solicitations would only blur captures.
    crate::place::in_netns(&net, || {
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        Ok(())
    })?;
    batch(&net, &format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} up\n"))
}

/// Makes a member's namespace and joins it to the bridge. The port in the bridge has the member's name.
pub(crate) fn add_member(lab: &str, member: &str, wire: &Wire) -> Result<()> {
    let Wire { ip, ip6, mtu } = *wire;
    let mtu = mtu_words(mtu);
    let (net, netns) = (names::netns(lab, "net"), names::netns(lab, member));
    add_netns(lab, &netns)?;
    batch(
        &net,
        &format!(
            "link add {member} {mtu} type veth peer name {UNDERLAY_IF} {mtu} netns {netns}\n\
             link set {member} master {BRIDGE}\n\
             link set {member} up\n"
        ),
    )?;
    let outside = ip == OUTSIDE_IP;
    let mut lines = format!("address add {ip}/{UNDERLAY_PREFIX_LEN} dev {UNDERLAY_IF}\n");
    if let Some(ip6) = ip6 {
        usable_at_once(&netns)?;
        lines += &format!("address add {ip6}/{UNDERLAY6_PREFIX_LEN} dev {UNDERLAY_IF} nodad\n");
    }
    lines += &format!("link set {UNDERLAY_IF} up\n");
    lines += &match outside {
        true => format!("address add {OUTSIDE_FAR_IP}/32 dev lo\n"),
        false => format!("route add default via {OUTSIDE_IP}\n"),
    };
    if ip6.is_some() {
        lines += &match outside {
            true => format!("address add {OUTSIDE_FAR_IP6}/128 dev lo nodad\n"),
            false => format!("route add default via {OUTSIDE_IP6}\n"),
        };
    }
    batch(&netns, &lines)
}

/// Lets the link-local address of the underlay interface skip the second of duplicate address detection.
fn usable_at_once(netns: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{UNDERLAY_IF}/dad_transmits");
    crate::place::in_netns(netns, || {
        fs::write(&path, "0").with_context(|| format!("{path}: does the kernel have IPv6?"))
    })
}

/// The argument by which nsenter enters a network namespace (and nothing else: /sys stays as it is).
pub(crate) fn netns_flag(netns: &str) -> String {
    format!("--net={}", names::netns_path(netns).display())
}

/// How `ip link add` is told an MTU.
pub(crate) fn mtu_words(mtu: Option<u32>) -> String {
    mtu.map(|mtu| format!("mtu {mtu}")).unwrap_or_default()
}

/// Runs lines of `ip` in a namespace.
pub(crate) fn batch(netns: &str, lines: &str) -> Result<()> {
    tool_with_stdin("ip", &["-n", netns, "-batch", "-"], lines.as_bytes())
        .with_context(|| format!("wiring {netns}"))
        .map(drop)
}
