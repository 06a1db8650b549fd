// SPDX-License-Identifier: Apache-2.0
//! The text of our nft table: masquerade, what never leaves or enters by an uplink, and conntrack's exceptions.
//!
//! The rules hold while netd is dead. Named counters say what was dropped: `clear_out` (pod to pod in the clear),
//! `loopback_in` (a pod that speaks to or as the host's loopback), `outside_in` (a connection from outside to a pod),
//! `overlay_port` (a pod that speaks to the overlay's port or to that of the nodes' MTU probes, or anybody but a node to the
//! gate's or to that of direct server return), `spoofed_in` (a packet from an uplink with a pod's source address) and
//! `unchecked_in` (a packet from a pod's link that no program of ours has checked); `refused` says what was refused.
//!
//! Tunnels' inner packets come from our own devices, whose names have our prefix, and pass. A VXLAN packet that comes while
//! VXLAN is not up finds no socket of ours.
//!
//! The base chains run where everyone's run (raw, filter, srcnat; those of mapped ports: [`crate::ports`]). An accept in one
//! table does not end the others' say, a drop does: a host firewall that drops forwarded packets wins over this table.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::links::{IFB_PREFIX, LINK_PREFIX, WIREGUARD_DEVICES};
use crate::ports::{self, HostPort};

/// The kernel translates to ports from here on, unless told otherwise (`nf_nat_core.c`).
const PORT_MIN: u16 = 1_024;

/// Family and name of our table.
pub const TABLE: &str = "inet weft";

/// What the table depends on. The default does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftConfig {
    /// Pools of pod addresses; the nodes' overlay addresses lie in them too.
    pub pod_cidrs: Vec<IpNet>,
    /// Virtual addresses of services.
    pub service_cidrs: Vec<IpNet>,
    /// Further destinations that pods reach under their own address.
    pub no_masquerade_cidrs: Vec<IpNet>,
    /// Sources outside the cluster that may open connections to pods.
    pub trusted_cidrs: Vec<IpNet>,
    /// Addresses of the node's DNS, not tracked by conntrack.
    pub node_dns: Vec<IpAddr>,
    /// Ports of the host that lead to pods.
    pub host_ports: Vec<HostPort>,
    /// UDP ports of all that is up of the overlay (VXLAN's, both of WireGuard's), where pods must not send: a
    /// pod could forge another pod's packets there, or keep a tunnel busy with bad handshakes.
    pub overlay_ports: Vec<u16>,
    /// TCP and UDP ports of the host where services' packets arrive: the node ports, and those that services' flows are translated
    /// to. An answer from the world that came to one of these would be taken for such a packet.
    pub service_ports: Vec<RangeInclusive<u16>>,
    /// Those of the overlay's ports whose packets nobody proves to be a node's (VXLAN's): pods must not send there on other
    /// nodes either. To the others they may: a pod's own WireGuard, to a server anywhere, uses the same port.
    pub forgeable_ports: Vec<u16>,
    /// UDP port on the nodes' overlay addresses where they ask each other what fits through; 0 where they do not.
    pub probe_port: u16,
    /// The nodes' overlay addresses: of all that lies in the pools, only these speak to that port.
    pub node_overlays: Vec<IpAddr>,
    /// What names of our own links begin with.
    pub own_link_prefix: String,
    /// Bit of a packet's mark that the pods' programs set on what they have checked; without it nothing comes in from a
    /// pod's link. 0 where no program sets any.
    pub checked_mark: u32,
    /// Bit of the mark, together with that one, of packets to services that have nobody to answer: they are refused (TCP
    /// reset, ICMP port unreachable). 0 where no program sets it.
    pub refuse_mark: u32,
    /// UDP port on the nodes' overlay addresses where they hand packets for direct server return over; 0 where they do not.
    pub dsr_port: u16,
    /// Pods whose traffic with this node crosses uplinks in the clear by choice: those of nodes that the overlay `native`
    /// or `auto` reaches over the link. All others' is dropped there.
    pub clear_cidrs: Vec<IpNet>,
    /// The way of trusted hosts' packets between nodes ([`crate::gate`]), where there is one.
    pub gate: Option<GateEnds>,
}

/// Who may speak to the gate: its packets are as good as those that an uplink brings from a trusted host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateEnds {
    /// Its UDP port.
    pub port: u16,
    /// The other nodes' overlay addresses. They count where WireGuard brings them: it lets nobody else have them.
    pub sources: Vec<IpAddr>,
}

impl Default for NftConfig {
    fn default() -> Self {
        NftConfig {
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            no_masquerade_cidrs: Vec::new(),
            trusted_cidrs: Vec::new(),
            node_dns: Vec::new(),
            host_ports: Vec::new(),
            overlay_ports: Vec::new(),
            service_ports: Vec::new(),
            forgeable_ports: Vec::new(),
            probe_port: 0,
            node_overlays: Vec::new(),
            own_link_prefix: LINK_PREFIX.to_owned(),
            checked_mark: 0,
            refuse_mark: 0,
            dsr_port: 0,
            clear_cidrs: Vec::new(),
            gate: None,
        }
    }
}

/// The script for `nft -f -`: one transaction that replaces the whole table, whatever was there before. Equal
/// settings give equal text, so netd applies it only when it changed; counters begin anew then.
pub fn render(config: &NftConfig) -> String {
    let prefix = own_prefix(&config.own_link_prefix);
    let links = format!("\"{prefix}*\"");
    let mut text = String::new();
    // Declared first, so that deleting it never fails.
    let _ = writeln!(text, "table {TABLE} {{}}\ndelete table {TABLE}\n\ntable {TABLE} {{");
    for counter in
        ["clear_out", "loopback_in", "outside_in", "overlay_port", "refused", "spoofed_in", "unchecked_in"]
    {
        let _ = writeln!(text, "\tcounter {counter} {{}}");
    }
    set(&mut text, "pods", &config.pod_cidrs);
    set(
        &mut text,
        "inside",
        &[&config.pod_cidrs[..], &config.service_cidrs, &config.no_masquerade_cidrs].concat(),
    );
    set(&mut text, "clear", &config.clear_cidrs);
    let nodes: Vec<IpNet> = config.node_overlays.iter().copied().map(IpNet::from).collect();
    set(&mut text, "nodes", &nodes);
    set(&mut text, "trusted", &[&config.trusted_cidrs[..], &config.clear_cidrs].concat());
    if let Some(gate) = &config.gate {
        set(&mut text, "gates", &gate.sources.iter().copied().map(IpNet::from).collect::<Vec<_>>());
    }
    prerouting(&mut text, config, &prefix, &links);
    output(&mut text, config);
    input(&mut text, config, &links);
    forward(&mut text, config, &links);
    postrouting(&mut text, &links);
    ports::render(&mut text, &config.host_ports);
    masquerade(&mut text, config, &links);
    text.push_str("}\n");
    text
}

/// Packets as they arrive: what no program has checked ends here; those of the node's DNS pass conntrack by,
/// no uplink brings packets of a pod, and no pod reaches the host's loopback: the kernel refuses that itself,
/// but not on veths that were opened for mapped ports (route_localnet). Answers to translated connections
/// still have the address that they were translated to here.
fn prerouting(text: &mut String, config: &NftConfig, prefix: &str, links: &str) {
    let mut rules = refused(config.checked_mark, config.refuse_mark);
    rules.extend(checked(prefix, config.checked_mark));
    rules.extend(notrack(&config.node_dns));
    rules.extend(
        ["saddr", "daddr"]
            .map(|side| format!("iifname {links} ip {side} 127.0.0.0/8 counter name loopback_in drop")),
    );
    rules.extend(FAMILIES.map(|family| {
        let Family { ip, suffix, .. } = family;
        format!(
            "iifname != \"lo\" iifname != {links} {ip} saddr @pods_{suffix} {ip} saddr != @clear_{suffix} \
             counter name spoofed_in drop"
        )
    }));
    // What a pod sends there is not the tunnel's, and has to be translated.
    rules.extend(tunnel(&config.overlay_ports).map(|rule| format!("iifname != {links} {rule}")));
    rules.extend(config.gate.iter().flat_map(|gate| gate.of_nodes("notrack")));
    rules.extend(dsr(config.dsr_port, "saddr @", "notrack"));
    chain(text, "prerouting", "type filter hook prerouting priority raw", &rules);
}

/// Packets of this node's own processes: those of its DNS and of the tunnel pass conntrack by. A peer behind an address
/// translator has another port than the overlay's, ours is the source then.
fn output(text: &mut String, config: &NftConfig) {
    let mut rules = notrack(&config.node_dns);
    rules.extend(tunnel(&config.overlay_ports));
    rules.extend(ports(&config.overlay_ports).map(|ports| format!("udp sport {ports} notrack")));
    if let Some(gate) = &config.gate {
        let to_nodes =
            |Family { ip, suffix, .. }| format!("{ip} daddr @gates_{suffix} udp dport {} notrack", gate.port);
        rules.extend(FAMILIES.map(to_nodes));
    }
    rules.extend(dsr(config.dsr_port, "daddr @", "notrack"));
    chain(text, "output", "type filter hook output priority raw", &rules);
}

/// Packets to this node: pods do not speak the overlay's protocol, no pod of any node keeps netd busy with probes, and nobody
/// but nodes speaks the gate's. A pod's source address is its own: the program on its link sees to that. The gate's socket
/// takes packets to any address of the host, so here is where those from uplinks and from the host's own processes end.
fn input(text: &mut String, config: &NftConfig, links: &str) {
    let mut rules = Vec::new();
    if let Some(gate) = &config.gate {
        rules.extend(gate.of_nodes("accept"));
        rules.push(format!("udp dport {} counter name overlay_port drop", gate.port));
    }
    if let Some(ports) = ports(&config.overlay_ports) {
        rules.push(format!("iifname {links} udp dport {ports} counter name overlay_port drop"));
    }
    if config.probe_port != 0 {
        let port = config.probe_port;
        rules.extend(FAMILIES.map(|Family { ip, suffix, .. }| {
            format!(
                "udp dport {port} {ip} saddr @pods_{suffix} {ip} saddr != @nodes_{suffix} \
                 counter name overlay_port drop"
            )
        }));
    }
    // What it brings is as good as what an uplink brings.
    rules.extend(dsr(config.dsr_port, "saddr != @", "counter name overlay_port drop"));
    if !rules.is_empty() {
        chain(text, "input", "type filter hook input priority filter", &rules);
    }
}

impl GateEnds {
    /// For what other nodes sent through WireGuard.
    fn of_nodes(&self, verdict: &str) -> [String; 2] {
        let devices = WIREGUARD_DEVICES.map(|device| format!("\"{device}\"")).join(", ");
        FAMILIES.map(|Family { ip, suffix, .. }| {
            format!("iifname {{ {devices} }} {ip} saddr @gates_{suffix} udp dport {} {verdict}", self.port)
        })
    }
}

/// Packets through this node: pods do not speak the overlay's protocol to other nodes either, and connections from
/// outside reach pods only from trusted sources or where a port of the host was mapped.
fn forward(text: &mut String, config: &NftConfig, links: &str) {
    let mut rules = Vec::new();
    if let Some(ports) = ports(&config.forgeable_ports) {
        rules.push(format!(
            "iifname {links} oifname != {links} udp dport {ports} counter name overlay_port drop"
        ));
    }
    rules.push(format!("iifname {links} accept"));
    rules.push("ct state established,related accept".to_owned());
    rules.push("ct status dnat accept".to_owned());
    rules.extend(FAMILIES.map(|Family { ip, suffix, .. }| format!("{ip} saddr @trusted_{suffix} accept")));
    rules.extend(
        FAMILIES.map(|Family { ip, suffix, .. }| {
            format!("{ip} daddr @pods_{suffix} counter name outside_in drop")
        }),
    );
    chain(text, "forward", "type filter hook forward priority filter", &rules);
}

/// Packets as they leave, before masquerade: what goes from pod to pod never takes an uplink, but to pods that are reached
/// in the clear by choice. This holds while netd is dead, too.
fn postrouting(text: &mut String, links: &str) {
    let rules = FAMILIES.map(|Family { ip, suffix, .. }| {
        format!(
            "oifname != \"lo\" oifname != {links} {ip} saddr @pods_{suffix} {ip} daddr @pods_{suffix} \
             {ip} daddr != @clear_{suffix} counter name clear_out drop"
        )
    });
    chain(text, "postrouting", "type filter hook postrouting priority filter", &rules);
}

/// Pods reach the world under the node's address. Random ports, because two connections that race for one port
/// otherwise lose a packet (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
fn masquerade(text: &mut String, config: &NftConfig, links: &str) {
    let to_world = |family: &Family| {
        let Family { ip, suffix, .. } = family;
        format!(
            "oifname != \"lo\" oifname != {links} {ip} saddr @pods_{suffix} {ip} daddr != @inside_{suffix}"
        )
    };
    let mut rules = Vec::new();
    for verdict in &masquerades(config) {
        rules.extend(ports::masquerade(&config.host_ports, links, verdict));
        rules.extend(FAMILIES.map(|family| format!("{} {verdict}", to_world(&family))));
    }
    chain(text, "source_nat", "type nat hook postrouting priority srcnat", &rules);
}

/// How to masquerade, transport by transport: to none of the ports where packets are taken for something else than answers to
/// what was masqueraded. Those of services are the packet programs'; what comes to the tunnels' (UDP) is not tracked.
fn masquerades(config: &NftConfig) -> Vec<String> {
    let services = config.service_ports.iter().cloned();
    let tunnels = config.overlay_ports.iter().map(|port| *port..=*port);
    let transports: [(&str, Vec<RangeInclusive<u16>>); 2] =
        [("tcp", services.clone().collect()), ("udp", services.chain(tunnels).collect())];
    let ranged = |(transport, taken): (&str, Vec<RangeInclusive<u16>>)| {
        let (first, last) = free_ports(&taken)?;
        Some(format!("meta l4proto {transport} masquerade to :{first}-{last} fully-random"))
    };
    transports.into_iter().filter_map(ranged).chain(["masquerade fully-random".to_owned()]).collect()
}

/// Queries to the node's DNS and its answers, in either hook: pods' queries arrive and answers leave, and the node's
/// own queries do both.
fn notrack(node_dns: &[IpAddr]) -> Vec<String> {
    let rules = |address: &IpAddr| {
        let ip = if address.is_ipv4() { "ip" } else { "ip6" };
        [("daddr", "dport"), ("saddr", "sport")].map(|(addr, port)| {
            format!("{ip} {addr} {address} meta l4proto {{ tcp, udp }} th {port} 53 notrack")
        })
    };
    node_dns.iter().flat_map(rules).collect()
}

/// The tunnel's own packets: conntrack has nothing to say about them, and costs each of them a look-up.
fn tunnel(overlay_ports: &[u16]) -> Option<String> {
    Some(format!("udp dport {} notrack", ports(overlay_ports)?))
}

/// How the two families are written.
pub(crate) struct Family {
    pub(crate) ip: &'static str,
    pub(crate) nfproto: &'static str,
    pub(crate) suffix: &'static str,
}

impl Family {
    /// Whether the address is of this family.
    pub(crate) fn has(&self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self.suffix == "v4")
    }

    /// The type of its addresses in sets and maps.
    pub(crate) fn address_type(&self) -> String {
        format!("{}_addr", self.nfproto)
    }
}

pub(crate) const FAMILIES: [Family; 2] =
    [Family { ip: "ip", nfproto: "ipv4", suffix: "v4" }, Family { ip: "ip6", nfproto: "ipv6", suffix: "v6" }];

pub(crate) fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    let _ = writeln!(text, "\n\tchain {name} {{\n\t\t{hook}; policy accept;");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
}

/// One set for each family. Prefixes that overlap or touch are joined: nft refuses overlapping intervals.
fn set(text: &mut String, name: &str, cidrs: &[IpNet]) {
    let cidrs: Vec<IpNet> = cidrs.iter().map(IpNet::trunc).collect();
    let mut joined = IpNet::aggregate(&cidrs);
    joined.sort();
    for family in FAMILIES {
        let (suffix, kind) = (family.suffix, family.address_type());
        let members: Vec<String> =
            joined.iter().filter(|net| family.has(&net.addr())).map(IpNet::to_string).collect();
        let _ = write!(text, "\n\tset {name}_{suffix} {{\n\t\ttype {kind}; flags interval;\n");
        if !members.is_empty() {
            let _ = writeln!(text, "\t\telements = {{ {} }}", members.join(", "));
        }
        text.push_str("\t}\n");
    }
}

/// The widest range of unprivileged ports without any of these, first and last; `None` where there are none to avoid. The
/// kernel takes one range only.
fn free_ports(taken: &[RangeInclusive<u16>]) -> Option<(u16, u16)> {
    let mut taken: Vec<(u32, u32)> = taken
        .iter()
        .filter(|ports| !ports.is_empty() && *ports.end() >= PORT_MIN)
        .map(|ports| (u32::from(*ports.start()), u32::from(*ports.end())))
        .collect();
    if taken.is_empty() {
        return None;
    }
    taken.sort_unstable();
    let beyond = u32::from(u16::MAX) + 1;
    taken.push((beyond, beyond));
    // First port and number of ports.
    let (mut widest, mut start) = ((0, 0), u32::from(PORT_MIN));
    for (first, last) in taken {
        let ports = first.saturating_sub(start);
        if ports >= widest.1 {
            widest = (start, ports);
        }
        start = start.max(last + 1);
    }
    let (first, ports) = widest;
    if ports == 0 {
        return None;
    }
    Some((u16::try_from(first).ok()?, u16::try_from(first + ports - 1).ok()?))
}

fn ports(ports: &[u16]) -> Option<String> {
    let ports: BTreeSet<u16> = ports.iter().copied().collect();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    (!ports.is_empty()).then(|| format!("{{ {} }}", ports.join(", ")))
}

/// Packets of nodes, or not of nodes, at the port of direct server return.
fn dsr(port: u16, whose: &str, verdict: &str) -> Vec<String> {
    let rule = |Family { ip, suffix, .. }| format!("udp dport {port} {ip} {whose}nodes_{suffix} {verdict}");
    if port == 0 { Vec::new() } else { FAMILIES.map(rule).to_vec() }
}

/// What a program found nobody to answer for, on whatever link it came. In this hook, because the packet's destination may be
/// an address that leads nowhere. A program sets both bits; what the links of pods bring has lost other marks.
fn refused(checked: u32, refuse: u32) -> Vec<String> {
    if refuse == 0 {
        return Vec::new();
    }
    let both = checked | refuse;
    let marked = format!("meta mark & {both:#010x} == {both:#010x}");
    vec![
        format!("{marked} meta l4proto tcp counter name refused reject with tcp reset"),
        format!("{marked} counter name refused reject"),
    ]
}

/// A pod's link lets nothing out before its program is at work, nor after somebody removed it: the program marks what it
/// passes on. The mark ends here, whoever else uses marks never sees it. What our own other devices bring comes from no pod:
/// their names go on with a dot (the overlay's) or with what makes an IFB device's. A pod's packet that was held at an IFB
/// device comes from the pod's veth again, marked: the program sees it before the redirection does.
fn checked(prefix: &str, mark: u32) -> Vec<String> {
    if mark == 0 {
        return Vec::new();
    }
    let ifb = IFB_PREFIX.strip_prefix(LINK_PREFIX).unwrap_or(IFB_PREFIX);
    let pods = format!("iifname \"{prefix}*\" iifname != \"{prefix}.*\" iifname != \"{prefix}{ifb}*\"");
    let rest = !mark;
    vec![
        format!("{pods} meta mark & {mark:#010x} == 0 counter name unchecked_in drop"),
        format!("{pods} meta mark set meta mark & {rest:#010x}"),
    ]
}

/// What our links' names begin with. Nothing of it can leave the quotes; a prefix of which nothing is left counts as the
/// default one, since an empty pattern would match every uplink.
fn own_prefix(prefix: &str) -> String {
    let kept: String = prefix.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    if kept.is_empty() { LINK_PREFIX.to_owned() } else { kept }
}
