// SPDX-License-Identifier: Apache-2.0
//! Two nodes joined by a wire and a real VXLAN, a pod each, and an nft table in each node that counts what its stack sees.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use ebpf_loader::{AttachMode, Attached, Datapath, PodAttachment};

use crate::{
    client::by_tcp,
    lab::{Lab, Netns, in_lab, ip, serve_at},
};

pub(crate) const DEVICE: &str = "weft.vxlan";
pub(crate) const UPLINK_MTU: u32 = 1500;
/// 50 bytes less, which VXLAN adds over IPv4 (RFC 7348).
pub(crate) const OVERLAY_MTU: u32 = UPLINK_MTU - 50;
/// IPv4 and ICMP echo headers: what ping adds to its payload.
pub(crate) const PING_HEADERS: u32 = 28;
/// Many times a socket buffer, so that segmentation offload takes place.
pub(crate) const BULK_BYTES: usize = 8 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// An address in a block that no node has.
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 244, 99, 9);

/// Counts at the forward hook, what arrives for [`NOBODY`], and what the underlay had to cut in pieces.
const WITNESS: &str = "table inet witness {
    counter forwarded {}
    counter stray {}
    counter fragments {}
    chain forward { type filter hook forward priority 0; ip saddr 10.244.0.0/16 counter name forwarded; }
    chain prerouting { type filter hook prerouting priority 0
        ip daddr 10.244.99.0/24 counter name stray
        iifname uplink ip frag-off & 0x3fff != 0 counter name fragments
    }
}";

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
                uplink(own)
            ));
            ip(&format!("link set {DEVICE} up"));
            ip(&format!("address add {}/32 dev {DEVICE}", overlay(own)));
            ip(&format!("neighbour add {} lladdr {} dev {DEVICE} nud permanent", overlay(peer), vtep(peer)));
            tool("bridge", &format!("fdb append {} dev {DEVICE} dst {}", vtep(peer), uplink(peer)));
            let via = overlay(peer);
            ip(&format!("route add 10.244.{peer}.0/24 via {via} dev {DEVICE} onlink src {}", overlay(own)));
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
        self.netns.run(|| counter("forwarded"))
    }

    /// Packets for [`NOBODY`] that arrived.
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
            ip(&format!("address add {}/24 dev uplink", uplink(node.number)));
            ip("link set uplink up");
            // What no other route knows goes to the other node: what leaks is seen there.
            ip(&format!("route add default via {}", uplink(node.peer())));
        });
        node.add_overlay();
    }
    let (server, bulk) = (address(&two, 8080), address(&two, 8081));
    two.pod.run(move || {
        serve_at(server, "two");
        serve_bulk(bulk);
    });
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
    let address = Ipv4Addr::new(10, 244, number, 5);
    ip(&format!(
        "link add {host_ifname} mtu {OVERLAY_MTU} address {} type veth peer name eth0 mtu {OVERLAY_MTU} address {} netns {}",
        text(host_mac),
        text(mac),
        path(pod)
    ));
    ip(&format!("link set {host_ifname} up"));
    ip(&format!("route add {address}/32 dev {host_ifname}"));
    ip(&format!("neighbour add {address} lladdr {} dev {host_ifname} nud permanent", text(mac)));
    pod.run(|| {
        ip("link set eth0 up");
        ip(&format!("address add {address}/32 dev eth0"));
        ip("route add default via 169.254.1.1 dev eth0 onlink");
        ip(&format!("neighbour add 169.254.1.1 lladdr {} dev eth0 nud permanent", text(host_mac)));
    });
    let host_index = nix::net::if_::if_nametoindex(host_ifname.as_str()).unwrap();
    PodAttachment { host_ifname, host_index, ip: address, mac, host_mac, redirect: true }
}

pub(crate) fn uplink(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// A node's own address in the overlay: the first of its block.
pub(crate) fn overlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number, 0)
}

fn vtep(number: u8) -> String {
    text([2, 0, 0, 0, 3, number])
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn path(netns: &Netns) -> String {
    netns.path().display().to_string()
}

fn address(node: &Node, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(node.attachment.ip, port)
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
fn serve_bulk(address: SocketAddrV4) {
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
fn asks(one: &Node, two: &Node) -> Option<String> {
    let to = SocketAddr::V4(address(two, 8080));
    one.pod.run(move || by_tcp(to)).ok().map(|(_, said)| said)
}

/// A transfer of [`BULK_BYTES`]; how many arrived.
pub(crate) fn sends_bulk(one: &Node, two: &Node) -> usize {
    let to = SocketAddr::V4(address(two, 8081));
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
pub(crate) fn ping(from: &Node, to: Ipv4Addr, options: &str) -> (bool, String) {
    from.pod.run(|| {
        // What an earlier ICMP error said about the path.
        ip("route flush cache");
        let arguments = format!("-n -c1 -W2 {options} {to}");
        let output = Command::new("ping").args(arguments.split_whitespace()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    })
}

/// Small and large, in both directions.
pub(crate) fn works(one: &Node, two: &Node) {
    assert_eq!(asks(one, two).as_deref(), Some("two"));
    assert_eq!(sends_bulk(one, two), BULK_BYTES);
    for (from, to) in [(one, two), (two, one)] {
        // In one packet, in one as long as the MTU, in fragments.
        for options in
            ["-s 56".to_owned(), format!("-M do -s {}", OVERLAY_MTU - PING_HEADERS), "-s 5000".into()]
        {
            let (answered, said) = ping(from, to.attachment.ip, &options);
            assert!(answered, "ping {options}: {said}");
            // Each of the two nodes counted the answer's TTL down by one.
            assert!(said.contains("ttl=62"), "ping {options}: {said}");
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
