// SPDX-License-Identifier: Apache-2.0
//! Two nodes joined by a wire and a real VXLAN, a pod each, and an nft table in each node that counts what its stack sees.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use ebpf_loader::{AttachMode, Attached, Datapath, PodAttachment};

use crate::{
    client::by_tcp,
    lab::{Lab, Netns, in_lab, ip, serve_at},
    pod::{self, host_net, text},
};

pub(crate) const DEVICE: &str = "weft.vxlan";
pub(crate) const UPLINK_MTU: u32 = 1500;
/// 50 bytes less, which VXLAN adds over IPv4 (RFC 7348).
pub(crate) const OVERLAY_MTU: u32 = UPLINK_MTU - 50;
/// Many times a socket buffer, so that segmentation offload takes place.
pub(crate) const BULK_BYTES: usize = 8 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses in blocks that no node has.
pub(crate) const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 244, 99, 9)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0x99, 0, 0, 0, 9)),
];

/// Counts at the forward hook, what arrives for [`NOBODY`] or outside of the tunnel, and what the underlay had to cut in pieces.
const WITNESS: &str = "table inet witness {
    counter forwarded {}
    counter forwarded6 {}
    counter stray {}
    counter fragments {}
    chain forward { type filter hook forward priority 0
        ip saddr 10.244.0.0/16 counter name forwarded
        ip6 saddr fd00:10:244::/56 counter name forwarded6
    }
    chain prerouting { type filter hook prerouting priority 0
        ip daddr 10.244.99.0/24 counter name stray
        ip6 daddr fd00:10:244:99::/64 counter name stray
        iifname uplink ip saddr 10.244.0.0/16 counter name stray
        iifname uplink ip6 saddr fd00:10:244::/56 counter name stray
        iifname uplink ip frag-off & 0x3fff != 0 counter name fragments
    }
}";

/// Every pod and node has an address of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// IP and ICMP echo headers: what ping adds to its payload.
    pub(crate) const fn ping_headers(self) -> u32 {
        match self {
            Self::V4 => 28,
            Self::V6 => 48,
        }
    }
}

/// A node as netd sets it up: uplink, overlay device, routes, one pod.
pub(crate) struct Node {
    number: u8,
    pub(crate) netns: Netns,
    pub(crate) pod: Netns,
    pub(crate) attachment: PodAttachment,
    pub(crate) datapath: Datapath,
}

impl Node {
    fn new(lab: &Lab, mode: AttachMode, number: u8) -> Self {
        let (netns, pod) = (Netns::new(), Netns::new());
        let attachment = netns.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            nft_witness();
            // The fail-closed route under all blocks.
            ip("route add unreachable 10.244.0.0/16 metric 1000000");
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
            // Its links ask for neighbours at once, and not when it is certain that nobody else has their addresses.
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
            ip("route add unreachable fd00:10:244::/56 metric 1000000");
            wire(&pod, number)
        });
        let datapath = lab.open_at(&format!("n{number}"), &lab.cgroup, mode);
        Self { number, netns, pod, attachment, datapath }
    }

    /// The overlay device, and all that leads to the other node's block.
    pub(crate) fn add_overlay(&self) {
        let (own, peer) = (self.number, self.peer());
        self.netns.run(|| {
            ip(&format!(
                "link add {DEVICE} mtu {OVERLAY_MTU} address {} type vxlan id 4242 dstport 4789 local {} nolearning",
                vtep(own),
                uplink(own, Family::V4)
            ));
            ip(&format!("link set {DEVICE} up"));
            for family in FAMILIES {
                let (own, via) = (overlay(own, family), overlay(peer, family));
                ip(&format!("address add {} dev {DEVICE} {}", host_net(own), nodad(family)));
                ip(&format!("neighbour add {via} lladdr {} dev {DEVICE} nud permanent", vtep(peer)));
                ip(&format!("route add {} via {via} dev {DEVICE} onlink src {own}", block(peer, family)));
            }
            tool("bridge", &format!("fdb append {} dev {DEVICE} dst {}", vtep(peer), uplink(peer, Family::V4)));
        });
    }

    pub(crate) fn remove_overlay(&self) {
        self.netns.run(|| ip(&format!("link delete {DEVICE}")));
    }

    pub(crate) fn attach_overlay(&mut self) -> Attached {
        let Self { netns, datapath, .. } = self;
        netns.run(|| datapath.attach_overlay(DEVICE)).unwrap()
    }

    pub(crate) fn detach_overlay(&mut self) {
        let Self { netns, datapath, .. } = self;
        netns.run(|| datapath.detach_overlay()).unwrap();
    }

    pub(crate) fn attach_pod(&mut self, redirect: bool) {
        let Self { netns, datapath, attachment, .. } = self;
        attachment.redirect = redirect;
        netns.run(|| datapath.attach_pod(attachment)).unwrap();
    }

    /// Index of the overlay device now.
    pub(crate) fn device_index(&self) -> u32 {
        self.netns.run(|| nix::net::if_::if_nametoindex(DEVICE)).unwrap()
    }

    /// Packets of pods that the node's stack has forwarded.
    pub(crate) fn forwarded(&self) -> u64 {
        FAMILIES.into_iter().map(|family| self.forwarded_in(family)).sum()
    }

    /// Those of one family.
    pub(crate) fn forwarded_in(&self, family: Family) -> u64 {
        let name = if family == Family::V4 { "forwarded" } else { "forwarded6" };
        self.netns.run(|| counter(name))
    }

    /// Packets for [`NOBODY`] that arrived, and packets of pods outside of the tunnel.
    pub(crate) fn stray(&self) -> u64 {
        self.netns.run(|| counter("stray"))
    }

    /// Fragments that came over the uplink.
    pub(crate) fn fragments(&self) -> u64 {
        self.netns.run(|| counter("fragments"))
    }

    /// Our filters on the overlay device, as tc(8) lists them.
    pub(crate) fn filters(&self) -> usize {
        let text = self.netns.run(|| tool("tc", &format!("filter show dev {DEVICE} ingress")));
        text.lines().filter(|line| line.contains("weft_overlay")).count()
    }

    /// Its pod's.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        pod_address(self.number, family)
    }

    fn peer(&self) -> u8 {
        3 - self.number
    }
}

/// Two nodes with their overlay, and a server in the second one's pod. Nothing is attached yet.
fn nodes(lab: &Lab, mode: AttachMode) -> (Node, Node) {
    let (one, two) = (Node::new(lab, mode, 1), Node::new(lab, mode, 2));
    one.netns.run(|| ip(&format!("link add uplink type veth peer name uplink netns {}", path(&two.netns))));
    for node in [&one, &two] {
        node.netns.run(|| {
            ip("link set uplink up");
            for family in FAMILIES {
                let (own, peer) = (uplink(node.number, family), uplink(node.peer(), family));
                let prefix = if own.is_ipv6() { 64 } else { 24 };
                ip(&format!("address add {own}/{prefix} dev uplink {}", nodad(family)));
                // What no other route knows goes to the other node: what leaks is seen there.
                ip(&format!("route add default via {peer}"));
            }
        });
        node.add_overlay();
    }
    for family in FAMILIES {
        let (server, bulk) = (address(&two, family, 8080), address(&two, family, 8081));
        two.pod.run(move || {
            serve_at(server, "two");
            serve_bulk(bulk);
        });
    }
    (one, two)
}

/// The same with everything attached.
pub(crate) fn fast_nodes(lab: &Lab, mode: AttachMode) -> (Node, Node) {
    let (mut one, mut two) = nodes(lab, mode);
    for node in [&mut one, &mut two] {
        node.attach_pod(true);
        assert_eq!(node.attach_overlay(), Attached::Created);
    }
    (one, two)
}

/// A pod as weft-cni wires it, in the calling thread's netns.
fn wire(pod: &Netns, number: u8) -> PodAttachment {
    let (host_mac, mac) = ([2, 0, 0, 0, 1, number], [2, 0, 0, 0, 2, number]);
    let host_ifname = format!("wefttest{number}");
    let addresses = FAMILIES.map(|family| pod_address(number, family));
    ip(&format!(
        "link add {host_ifname} mtu {OVERLAY_MTU} address {} type veth peer name eth0 mtu {OVERLAY_MTU} address {} netns {}",
        text(host_mac),
        text(mac),
        path(pod)
    ));
    ip(&format!("link set {host_ifname} up"));
    ip(&format!("address add fe80::1/64 dev {host_ifname} nodad"));
    pod.run(|| ip("link set eth0 up"));
    for (family, address) in FAMILIES.into_iter().zip(addresses) {
        ip(&format!("route add {} dev {host_ifname}", host_net(address)));
        ip(&format!("neighbour add {address} lladdr {} dev {host_ifname} nud permanent", text(mac)));
        let gateway = if family == Family::V4 { "169.254.1.1" } else { "fe80::1" };
        pod.run(|| {
            ip(&format!("address add {} dev eth0 {}", host_net(address), nodad(family)));
            ip(&format!("route add default via {gateway} dev eth0 onlink"));
            ip(&format!("neighbour add {gateway} lladdr {} dev eth0 nud permanent", text(host_mac)));
        });
    }
    let host_index = nix::net::if_::if_nametoindex(host_ifname.as_str()).unwrap();
    PodAttachment { host_ifname, host_index, addresses: addresses.to_vec(), mac, host_mac, redirect: true }
}

pub(crate) fn uplink(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// A node's own address in the overlay: the first of its block.
pub(crate) fn overlay(number: u8, family: Family) -> IpAddr {
    in_block(number, family, 0)
}

fn pod_address(number: u8, family: Family) -> IpAddr {
    in_block(number, family, 5)
}

fn in_block(number: u8, family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, number, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, last.into()).into(),
    }
}

fn block(number: u8, family: Family) -> String {
    format!("{}/{}", overlay(number, family), if family == Family::V4 { 24 } else { 64 })
}

pub(crate) fn nodad(family: Family) -> &'static str {
    if family == Family::V4 { "" } else { "nodad" }
}

fn vtep(number: u8) -> String {
    text([2, 0, 0, 0, 3, number])
}

fn path(netns: &Netns) -> String {
    netns.path().display().to_string()
}

fn address(node: &Node, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(node.address(family), port)
}

/// One command in the calling thread's netns; what it printed.
fn tool(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft_witness() {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(WITNESS.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
}

fn counter(name: &str) -> u64 {
    let text = tool("nft", &format!("list counter inet witness {name}"));
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.unwrap().parse().unwrap()
}

/// Reads to the end, then says how many bytes came.
fn serve_bulk(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            let _ = stream.write_all(bytes.len().to_string().as_bytes());
        }
    });
}

/// What the second pod's server tells the first pod.
fn asks(one: &Node, two: &Node, family: Family) -> Option<String> {
    let to = address(two, family, 8080);
    one.pod.run(move || by_tcp(to)).ok().map(|(_, said)| said)
}

/// A transfer of [`BULK_BYTES`]; how many arrived.
pub(crate) fn sends_bulk(one: &Node, two: &Node, family: Family) -> usize {
    let to = address(two, family, 8081);
    one.pod.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&vec![7; BULK_BYTES]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said.parse().unwrap()
    })
}

/// One ping from a pod: whether an answer came, and what ping printed.
pub(crate) fn ping(from: &Node, to: IpAddr, options: &str) -> (bool, String) {
    from.pod.run(|| {
        // What an earlier ICMP error said about the path.
        ip("route flush cache");
        ip("-6 route flush cache");
        pod::ping(to, options)
    })
}

/// Small and large, in both directions and families.
pub(crate) fn works(one: &Node, two: &Node) {
    for family in FAMILIES {
        assert_eq!(asks(one, two, family).as_deref(), Some("two"), "{family:?}");
        assert_eq!(sends_bulk(one, two, family), BULK_BYTES, "{family:?}");
        for (from, to) in [(one, two), (two, one)] {
            // In one packet, in one as long as the MTU, in fragments.
            let longest = OVERLAY_MTU - family.ping_headers();
            for options in ["-s 56".to_owned(), format!("-M do -s {longest}"), "-s 5000".into()] {
                let (answered, said) = ping(from, to.address(family), &options);
                assert!(answered, "{family:?}: ping {options}: {said}");
                // Each of the two nodes counted the answer's TTL down by one.
                assert!(said.contains("ttl=62"), "{family:?}: ping {options}: {said}");
            }
        }
    }
}

/// Runs a story in each attach mode that the kernel has.
pub(crate) fn in_each_mode(story: impl Fn(&Lab, AttachMode) + Copy + Send + 'static) {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        in_lab(move |lab| {
            if mode == AttachMode::Tcx && !lab.features.tcx {
                eprintln!("SKIP: this kernel has no TCX");
                return;
            }
            if !nft_is_there() {
                eprintln!("SKIP: nft is not installed, or the kernel has no nf_tables");
                return;
            }
            story(lab, mode);
        });
    }
}

pub(crate) fn nft_is_there() -> bool {
    Command::new("nft").args(["list", "tables"]).output().is_ok_and(|output| output.status.success())
}
