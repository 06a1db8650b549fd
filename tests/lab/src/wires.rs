// SPDX-License-Identifier: Apache-2.0
//! Changes of wires that are there: cut, another MTU, other offloads, another address.

use crate::interrupt::wait_until;
use crate::members::Node;
use crate::names::{self, NAT_INSIDE_IF, UNDERLAY_IF, UNDERLAY_PREFIX_LEN, UNDERLAY6_PREFIX_LEN};
use crate::place::in_netns;
use crate::run::{on_path, tool, tool_with_stdin};
use crate::state::State;
use crate::topology::{self, netns_flag};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::fmt::Display;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const CARRIER_LIMIT: Duration = Duration::from_secs(3);
/// What cuts large packets of TCP, and of UDP, behind the stack; off, they are cut before they go out.
const SEGMENTATION: [&str; 3] = ["tso", "gso", "tx-udp-segmentation"];

/// What the wire of a node does with large packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Offloads {
    /// A veth's own ways: packets of 64 KiB cross whole
    AsIs,
    /// As with a network card: packets are cut to the MTU when sent, and joined again when received
    NicLike,
    /// Packets are cut to the MTU when sent, and received one by one
    None,
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
                (vec![other.wire_ip()], other.underlay_ip6)
            }
        };
        for other in others {
            rules += &drop_rules("ip", &own.wire_ip(), &other);
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
        let port = node.bridge_port();
        tool("ip", &["-n", &net, "link", "set", &port, if cut { "down" } else { "up" }])?;
        if !cut {
            // The kernel tells the bridge of a carrier up to a second later; until then nothing passes.
            wait_until(CARRIER_LIMIT, || {
                let port = tool("ip", &["-n", &net, "-o", "link", "show", &port])?;
                Ok(port.contains("state UP"))
            })?;
        }
    }
    Ok(())
}

/// Gives the wire to a node another MTU, at every end.
pub(crate) fn set_mtu(lab: &str, node: &Node, mtu: u32) -> Result<()> {
    for (netns, device) in ends(lab, node) {
        tool("ip", &["-n", &netns, "link", "set", &device, "mtu", &mtu.to_string()])?;
    }
    Ok(())
}

/// Gives the wire to a node other offloads: what it sends, and what is sent to it.
pub(crate) fn set_offloads(lab: &str, node: &Node, offloads: Offloads) -> Result<()> {
    if !on_path("ethtool") {
        bail!("ethtool is not installed: apt-get install ethtool");
    }
    let cut = if offloads == Offloads::AsIs { "on" } else { "off" };
    for (netns, device) in ends(lab, node) {
        let words = SEGMENTATION.into_iter().flat_map(|feature| [feature, cut]);
        ethtool(&netns, &device, &words.collect::<Vec<_>>())?;
    }
    // What a veth does where nobody asked: joining costs more than it brings while packets cross whole.
    let join = if offloads == Offloads::NicLike { "on" } else { "off" };
    ethtool(&node.netns, UNDERLAY_IF, &["gro", join])
}

fn ethtool(netns: &str, device: &str, words: &[&str]) -> Result<()> {
    let enter = netns_flag(netns);
    let args = [&[&enter, "ethtool", "-K", device][..], words].concat();
    tool("nsenter", &args).map(drop)
}

/// Gives a node, or the router it is behind, other addresses than it had, without a moment in which it has none.
pub(crate) fn readdress(lab: &str, before: &Node, after: &Node) -> Result<()> {
    let netns = if before.nat.is_some() {
        names::netns(lab, &names::nat(&before.name))
    } else {
        before.netns.clone()
    };
    // Without it the kernel takes the new address away along with the old one.
    let path = format!("/proc/sys/net/ipv4/conf/{UNDERLAY_IF}/promote_secondaries");
    in_netns(&netns, || fs::write(&path, "1").with_context(|| path.clone()))?;
    let mut lines = String::new();
    for (verb, node) in [("add", after), ("del", before)] {
        lines += &format!("address {verb} {}/{UNDERLAY_PREFIX_LEN} dev {UNDERLAY_IF}\n", node.wire_ip());
    }
    if let (Some(before), Some(after)) = (before.underlay_ip6, after.underlay_ip6) {
        lines += &format!(
            "address add {after}/{UNDERLAY6_PREFIX_LEN} dev {UNDERLAY_IF} nodad\n\
             address del {before}/{UNDERLAY6_PREFIX_LEN} dev {UNDERLAY_IF}\n"
        );
    }
    topology::batch(&netns, &lines)
}

fn drop_rules(family: &str, one: &impl Display, other: &impl Display) -> String {
    format!(
        "    {family} saddr {one} {family} daddr {other} drop\n    {family} saddr {other} {family} daddr {one} drop\n"
    )
}

/// Every end of the wire from a node to the bridge: namespace and device.
fn ends(lab: &str, node: &Node) -> Vec<(String, String)> {
    let mut ends =
        vec![(node.netns.clone(), UNDERLAY_IF.to_owned()), (names::netns(lab, "net"), node.bridge_port())];
    if node.nat.is_some() {
        let router = names::netns(lab, &names::nat(&node.name));
        ends.extend([(router.clone(), NAT_INSIDE_IF.to_owned()), (router, UNDERLAY_IF.to_owned())]);
    }
    ends
}
