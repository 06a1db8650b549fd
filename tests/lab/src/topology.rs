// SPDX-License-Identifier: Apache-2.0
//! Network namespaces and the underlay: one bridge in `weft-<lab>-net`, a veth from it to every member.
//!
//! Nothing is made in the root namespace: each veth is born with both ends in place.

use crate::interrupt::wait_until;
use crate::names::{
    self, BRIDGE, OUTSIDE_FAR_IP, OUTSIDE_FAR_IP6, OUTSIDE_IP, OUTSIDE_IP6, UNDERLAY_IF, UNDERLAY_PREFIX_LEN,
    UNDERLAY6_PREFIX_LEN,
};
use crate::run::{tool, tool_with_stdin};
use crate::state::{self, State};
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fmt::Display;
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const CARRIER_LIMIT: Duration = Duration::from_secs(3);

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
pub(crate) fn add_member(lab: &str, member: &str, ip: Ipv4Addr, ip6: Option<Ipv6Addr>) -> Result<()> {
    let (net, netns) = (names::netns(lab, "net"), names::netns(lab, member));
    add_netns(lab, &netns)?;
    batch(
        &net,
        &format!(
            "link add {member} type veth peer name {UNDERLAY_IF} netns {netns}\n\
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

/// Cuts exactly the connections that the state lists, on the bridge: links for `all`, rules for the rest.
pub(crate) fn apply_partitions(state: &State) -> Result<()> {
    let net = names::netns(&state.name, "net");
    let mut rules = String::new();
    for (node, from) in &state.partitions {
        let own = state.node(node)?;
        let (others, others6): (Vec<Ipv4Addr>, Option<Ipv6Addr>) = match from.as_str() {
            "all" => continue,
            "store" => (state.etcd.iter().map(|member| member.ip).collect(), None),
            other => {
                let other = state.node(other)?;
                (vec![other.underlay_ip], other.underlay_ip6)
            }
        };
        for other in others {
            rules += &drop_rules("ip", &own.underlay_ip, &other);
        }
        if let (Some(own), Some(other)) = (own.underlay_ip6, others6) {
            rules += &drop_rules("ip6", &own, &other);
        }
    }
    // Declared before it is deleted, so that the first call does not fail.
    let script = format!(
        "table bridge partitions\ndelete table bridge partitions\ntable bridge partitions {{\n  \
         chain forward {{\n    type filter hook forward priority 0; policy accept;\n{rules}  }}\n}}\n"
    );
    tool_with_stdin("nsenter", &[&netns_flag(&net), "nft", "-f", "-"], script.as_bytes())?;
    for node in &state.nodes {
        let cut = state.partitions.contains(&(node.name.clone(), "all".into()));
        tool("ip", &["-n", &net, "link", "set", &node.name, if cut { "down" } else { "up" }])?;
        if !cut {
            // The kernel tells the bridge of a carrier up to a second later; until then nothing passes.
            wait_until(CARRIER_LIMIT, || {
                let port = tool("ip", &["-n", &net, "-o", "link", "show", &node.name])?;
                Ok(port.contains("state UP"))
            })?;
        }
    }
    Ok(())
}

fn drop_rules(family: &str, one: &impl Display, other: &impl Display) -> String {
    format!(
        "    {family} saddr {one} {family} daddr {other} drop\n    {family} saddr {other} {family} daddr {one} drop\n"
    )
}

/// Gives the wire to a node another MTU, at both ends.
pub(crate) fn set_mtu(lab: &str, node: &str, mtu: u32) -> Result<()> {
    let mtu = mtu.to_string();
    tool("ip", &["-n", &names::netns(lab, node), "link", "set", UNDERLAY_IF, "mtu", &mtu])?;
    tool("ip", &["-n", &names::netns(lab, "net"), "link", "set", node, "mtu", &mtu])?;
    Ok(())
}

/// The argument by which nsenter enters a network namespace (and nothing else: /sys stays as it is).
pub(crate) fn netns_flag(netns: &str) -> String {
    format!("--net={}", names::netns_path(netns).display())
}

fn batch(netns: &str, lines: &str) -> Result<()> {
    tool_with_stdin("ip", &["-n", netns, "-batch", "-"], lines.as_bytes())
        .with_context(|| format!("wiring {netns}"))
        .map(drop)
}
