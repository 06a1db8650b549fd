// SPDX-License-Identifier: Apache-2.0
//! Names and addresses of a lab: the only place that knows how they are made.

use crate::usage::{Usage, usage};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// Where every lab keeps its directory.
pub const LABS_DIR: &str = "/run/weft-lab";
/// Where iproute2 keeps named network namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// The host's BPF file system.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// The parent of every pin of every cluster.
pub const BPF_DIR: &str = "/sys/fs/bpf/weft";
/// The underlay of every lab, private inside its namespaces (RFC 1918 space).
pub(crate) const UNDERLAY_PREFIX_LEN: u8 = 24;
/// The same for IPv6, in labs that have it (RFC 4193 space).
pub(crate) const UNDERLAY6_PREFIX_LEN: u8 = 64;
/// The host that is no member: upstream DNS, TCP echo, the nodes' default gateway.
pub const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 254);
/// An address behind the outside host (RFC 5737 documentation range), what `*.example.test` answers.
pub const OUTSIDE_FAR_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// The outside host over IPv6, in labs that have it.
pub const OUTSIDE_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x254);
/// An address behind the outside host over IPv6 (RFC 3849 documentation range).
pub const OUTSIDE_FAR_IP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);
/// The underlay interface in every member's namespace.
pub const UNDERLAY_IF: &str = "eth0";
/// The interface towards the node, of a router that does NAT.
pub(crate) const NAT_INSIDE_IF: &str = "inside";
/// The bridge in `weft-<lab>-net`.
pub(crate) const BRIDGE: &str = "br0";
/// The interface of a pod.
pub(crate) const POD_IF: &str = "eth0";
/// More nodes than this do not fit the address plan (and no machine we know of wants them).
pub(crate) const NODES_MAX: u16 = 64;
/// Keeps `/run/weft-lab/<lab>/n64/run/netd.sock` well below the 107 bytes of a Unix socket path.
const LAB_NAME_MAX: usize = 32;
/// A DNS label, as Kubernetes demands of a pod's host name.
const POD_NAME_MAX: usize = 63;

/// The directory of a lab.
pub fn lab_dir(lab: &str) -> PathBuf {
    PathBuf::from(LABS_DIR).join(lab)
}

/// The namespace name of a member: `weft-<lab>-<member>`.
pub fn netns(lab: &str, member: &str) -> String {
    format!("weft-{lab}-{member}")
}

/// The path of a named network namespace.
pub fn netns_path(netns: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(netns)
}

/// The name of node number `index`, counted from 1.
pub(crate) fn node(index: u16) -> String {
    format!("n{index}")
}

/// The underlay address of node number `index`, counted from 1.
pub(crate) fn node_ip(index: u16) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 77, 10 + index.min(NODES_MAX) as u8)
}

/// The address that a node has when it had this one and moves: its own or another that is no other member's.
pub(crate) fn other_ip(index: u16, now: Ipv4Addr) -> Ipv4Addr {
    let home = node_ip(index);
    if now != home {
        return home;
    }
    let [a, b, c, octet] = home.octets();
    Ipv4Addr::new(a, b, c, octet + NODES_MAX as u8)
}

/// The router that node is behind in a lab with NAT, also its port in the bridge.
pub(crate) fn nat(node: &str) -> String {
    format!("{node}-nat")
}

/// The address of node number `index` behind its router, in a network of its own.
pub(crate) fn nat_ip(index: u16) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, index.min(NODES_MAX) as u8, 2)
}

/// The router's address towards a node with that address.
pub(crate) fn nat_gateway(ip: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = ip.octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// The IPv6 underlay address of a member: its last group reads like the last octet of the IPv4 address.
pub(crate) fn ip6_of(ip: Ipv4Addr) -> Ipv6Addr {
    let [.., octet] = ip.octets().map(u16::from);
    let digits = (octet / 100 * 0x100) | (octet / 10 % 10 * 0x10) | (octet % 10);
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, digits)
}

/// The underlay address of etcd member number `index`, counted from 1.
pub(crate) fn etcd_ip(index: u16) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 77, 1 + index.min(3) as u8)
}

/// Refuses lab names that cannot be part of namespace names and paths.
pub(crate) fn check_lab(name: &str) -> Result<(), Usage> {
    check_label("lab", name, LAB_NAME_MAX)
}

/// Refuses pod names that are no DNS label or that belong to a member of the lab.
pub(crate) fn check_pod<'a>(name: &str, mut members: impl Iterator<Item = &'a str>) -> Result<(), Usage> {
    check_label("pod", name, POD_NAME_MAX)?;
    let reserved = matches!(name, "net" | "outside") || name.starts_with("etcd");
    if reserved || members.any(|member| member == name || nat(member) == name) {
        return Err(usage(format!("pod name {name:?} belongs to a member of the lab: choose another")));
    }
    Ok(())
}

fn check_label(what: &str, name: &str, max: usize) -> Result<(), Usage> {
    let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = !name.is_empty()
        && name.len() <= max
        && name.bytes().all(|c| letters(c) || c == b'-')
        && name.bytes().next().is_some_and(letters)
        && name.bytes().next_back().is_some_and(letters);
    if good {
        return Ok(());
    }
    Err(usage(format!(
        "{what} name {name:?}: use 1 to {max} of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_odd_names_are_refused_for_pods() {
        let nodes = ["n1", "n2"];
        for bad in
            ["n1", "n2-nat", "net", "outside", "etcd1", "", "A", "-a", "a-", "a/b", "a.b", &"x".repeat(64)]
        {
            assert!(check_pod(bad, nodes.into_iter()).is_err(), "{bad:?} was accepted");
        }
        for good in ["b1", "web-0", "n3", "0"] {
            assert!(check_pod(good, nodes.into_iter()).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn addresses_of_members_never_meet() {
        let mut all: Vec<_> = (1..=NODES_MAX).map(node_ip).chain((1..=3).map(etcd_ip)).collect();
        all.extend((1..=NODES_MAX).map(|index| other_ip(index, node_ip(index))));
        all.push(OUTSIDE_IP);
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
        let mut all6: Vec<_> = all.into_iter().map(ip6_of).collect();
        all6.sort();
        all6.dedup();
        assert_eq!(all6.len(), count);
        assert_eq!(ip6_of(OUTSIDE_IP), OUTSIDE_IP6);
        assert_eq!(ip6_of(node_ip(1)).to_string(), "fd00:77::11");
    }

    #[test]
    fn a_node_that_moved_twice_is_where_it_was() {
        let there = other_ip(3, node_ip(3));
        assert_ne!(there, node_ip(3));
        assert_eq!(other_ip(3, there), node_ip(3));
    }
}
