// SPDX-License-Identifier: Apache-2.0
//! Ports of the host that lead to pods (capability portMappings), as part of the nft table.
//!
//! A connection to a mapped port is translated to the pod as it arrives, or as a process of this node opens it. What it is
//! translated to stands in maps, so the number of mapped ports costs a packet nothing. The client's address stays, but for
//! two clients that the pod could not answer: the pod itself, and 127.0.0.0/8. `::1` is not translated: no IPv6 packet with
//! a loopback address ever leaves a host, whatever is done to it, so a connection there is refused at once instead.
//!
//! Our chains run at priority -101 and the host's own (iptables' nat table, Docker, the reference portmap plugin) at
//! -100: of two that want one port, ours has it. Packets that somebody translated before us (priority below -101) are left
//! as they are: the kernel translates a connection once. A socket of the host on a mapped port hears nothing from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::IpAddr;

use crate::nft::{FAMILIES, Family, chain};

/// Just before NF_IP_PRI_NAT_DST (-100), where others translate; `linux/netfilter_ipv4.h`.
const PRIORITY: i32 = -101;

/// One port of the host and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The host's address; `None` (or the unspecified address) for all of them, loopback among them. One that is not on a
    /// link of the host takes effect when it comes: a mapping never takes what is somebody else's.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The transport.
    pub protocol: PortProtocol,
    /// The pod's address. Where it is of another family than `host_ip`, or that is `::1`, the mapping says nothing.
    pub pod: IpAddr,
    /// The pod's port.
    pub pod_port: u16,
}

/// Transports that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortProtocol {
    /// SCTP (RFC 9260)
    Sctp,
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The maps and chains that translate destinations; nothing where no port is mapped.
pub(crate) fn render(text: &mut String, ports: &[HostPort]) {
    if ports.is_empty() {
        return;
    }
    for family in FAMILIES {
        maps(text, &family, ports);
    }
    let lookups = FAMILIES.iter().flat_map(|Family { ip, nfproto, suffix }| {
        let but = if *ip == "ip6" { "ip6 daddr != ::1 " } else { "" };
        [
            format!(
                "meta nfproto {nfproto} {but}fib daddr type local dnat {ip} to {ip} daddr . meta l4proto . th dport map @host_ip_ports_{suffix}"
            ),
            format!(
                "meta nfproto {nfproto} {but}fib daddr type local dnat {ip} to meta l4proto . th dport map @host_ports_{suffix}"
            ),
        ]
    });
    let _ = writeln!(text, "\n\tchain host_ports {{");
    for rule in lookups {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
    for hook in ["prerouting", "output"] {
        let head = format!("type nat hook {hook} priority {PRIORITY}");
        chain(text, &format!("{hook}_ports"), &head, &["jump host_ports".to_owned()]);
    }
}

/// Rules of the source NAT chain for the two kinds of clients that a pod cannot answer; `verdict` says how, and for which
/// transport.
pub(crate) fn masquerade(ports: &[HostPort], links: &str, verdict: &str) -> Vec<String> {
    if ports.is_empty() {
        return Vec::new();
    }
    let hairpin = FAMILIES.iter().map(|Family { ip, suffix, .. }| {
        format!("ct status dnat {ip} saddr . {ip} daddr @host_port_pods_{suffix} {verdict}")
    });
    let from_loopback = format!("oifname {links} ct status dnat ip saddr 127.0.0.0/8 {verdict}");
    hairpin.chain([from_loopback]).collect()
}

fn maps(text: &mut String, family: &Family, ports: &[HostPort]) {
    let Family { suffix, .. } = family;
    let address = family.address_type();
    let (mut anywhere, mut on_address) = (BTreeMap::new(), BTreeMap::new());
    let mut pods = BTreeSet::new();
    let ordered: BTreeSet<&HostPort> = ports.iter().filter(|port| family.has(&port.pod)).collect();
    for port in ordered {
        let key = format!("{} . {}", port.protocol, port.host_port);
        let target = format!("{} . {}", port.pod, port.pod_port);
        // nft refuses a second value for a key: the first stands.
        match port.host_ip.filter(|ip| !ip.is_unspecified()) {
            Some(IpAddr::V6(ip)) if ip.is_loopback() => continue,
            None if port.host_ip.is_none_or(|ip| family.has(&ip)) => {
                anywhere.entry(key).or_insert(target);
            }
            Some(ip) if family.has(&ip) => {
                on_address.entry(format!("{ip} . {key}")).or_insert(target);
            }
            _ => continue,
        }
        pods.insert(format!("{0} . {0}", port.pod));
    }
    let port = "inet_proto . inet_service";
    let target = format!("{address} . inet_service");
    map(text, &format!("host_ports_{suffix}"), &format!("{port} : {target}"), &anywhere);
    let key = format!("{address} . {port}");
    map(text, &format!("host_ip_ports_{suffix}"), &format!("{key} : {target}"), &on_address);
    let members: Vec<String> = pods.into_iter().collect();
    block(text, "set", &format!("host_port_pods_{suffix}"), &format!("{address} . {address}"), &members);
}

fn map(text: &mut String, name: &str, kind: &str, entries: &BTreeMap<String, String>) {
    let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key} : {value}")).collect();
    block(text, "map", name, kind, &entries);
}

fn block(text: &mut String, what: &str, name: &str, kind: &str, elements: &[String]) {
    let _ = writeln!(text, "\n\t{what} {name} {{\n\t\ttype {kind}");
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
    }
    text.push_str("\t}\n");
}
