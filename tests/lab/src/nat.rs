// SPDX-License-Identifier: Apache-2.0
//! A node behind a NAT: a router of its own between it and the bridge. Nobody reaches the node unless it spoke first, and
//! what it sends comes from the router's address and another port.

use crate::members::Node;
use crate::names::{self, NAT_INSIDE_IF, UNDERLAY_IF, UNDERLAY_PREFIX_LEN};
use crate::place::in_netns;
use crate::run::tool_with_stdin;
use crate::topology::{self, Wire, netns_flag};
use anyhow::{Context, Result};
use std::fs;
use std::net::Ipv4Addr;

/// `random`: the port that the node chose says nothing about the one that others see.
const RULES: &str = "\
table ip nat {
  chain out {
    type nat hook postrouting priority srcnat
    oifname \"eth0\" masquerade random
  }
  chain unasked {
    type filter hook input priority filter
    iifname \"eth0\" ct state new meta l4proto { tcp, udp } drop
  }
  chain through {
    type filter hook forward priority filter
    iifname \"eth0\" ct state new drop
  }
}
";

/// Makes the router with a public address, and the node's namespace behind it.
pub(crate) fn add(lab: &str, node: &Node, public: Ipv4Addr, mtu: Option<u32>) -> Result<()> {
    let member = names::nat(&node.name);
    let router = names::netns(lab, &member);
    topology::add_member(lab, &member, &Wire { ip: public, ip6: None, mtu })?;
    topology::add_netns(lab, &node.netns)?;
    let gateway = names::nat_gateway(node.underlay_ip);
    let mtu = topology::mtu_words(mtu);
    topology::batch(
        &router,
        &format!(
            "link add {NAT_INSIDE_IF} {mtu} type veth peer name {UNDERLAY_IF} {mtu} netns {}\n\
             address add {gateway}/{UNDERLAY_PREFIX_LEN} dev {NAT_INSIDE_IF}\n\
             link set {NAT_INSIDE_IF} up\n",
            node.netns
        ),
    )?;
    in_netns(&router, || fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward"))?;
    tool_with_stdin("nsenter", &[&netns_flag(&router), "nft", "-f", "-"], RULES.as_bytes())?;
    topology::batch(
        &node.netns,
        &format!(
            "address add {}/{UNDERLAY_PREFIX_LEN} dev {UNDERLAY_IF}\n\
             link set {UNDERLAY_IF} up\n\
             route add default via {gateway}\n",
            node.underlay_ip
        ),
    )
}
