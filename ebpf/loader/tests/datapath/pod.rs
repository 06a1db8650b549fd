// SPDX-License-Identifier: Apache-2.0
//! A pod as weft-cni wires it: veth, /32 and /128, gateways 169.254.1.1 and fe80::1 with permanent neighbours.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ebpf_abi::DropReason;
use ebpf_loader::{Datapath, PodAttachment};

use crate::{
    client::by_tcp,
    lab::{Netns, ip, serve_at},
};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(5);

/// Both are in the netns of the calling test's lab ("the host").
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) attachment: PodAttachment,
}

impl Pod {
    /// IPv4 only.
    pub(crate) fn new(number: u8) -> Self {
        Self::with(number, &[v4(number)])
    }

    /// IPv4 and IPv6.
    pub(crate) fn dual(number: u8) -> Self {
        Self::with(number, &[v4(number), v6(number)])
    }

    /// IPv6 only.
    pub(crate) fn ipv6(number: u8) -> Self {
        Self::with(number, &[v6(number)])
    }

    fn with(number: u8, addresses: &[IpAddr]) -> Self {
        let netns = Netns::new();
        let (host_mac, mac) = ([2, 0, 0, 0, 1, number], [2, 0, 0, 0, 2, number]);
        let host_ifname = format!("wefttest{number}");
        ip(&format!(
            "link add {host_ifname} address {} type veth peer name eth0 address {} netns {}",
            text(host_mac),
            text(mac),
            netns.path().display()
        ));
        ip(&format!("link set {host_ifname} up"));
        ip("address replace 169.254.1.1/32 dev lo");
        ip(&format!("address add fe80::1/64 dev {host_ifname} nodad"));
        netns.run(|| ip("link set eth0 up"));
        let host_index = nix::net::if_::if_nametoindex(host_ifname.as_str()).unwrap();
        let attachment = PodAttachment {
            host_ifname,
            host_index,
            addresses: addresses.to_vec(),
            mac,
            host_mac,
            redirect: true,
        };
        let pod = Self { netns, attachment };
        for address in addresses {
            pod.add_address(*address);
        }
        for (gateway, options) in [("169.254.1.1", "onlink"), ("fe80::1", "")] {
            if addresses.iter().any(|address| address.is_ipv6() == gateway.contains(':')) {
                pod.netns.run(|| {
                    ip(&format!("route add default via {gateway} dev eth0 {options}"));
                    ip(&format!(
                        "neighbour replace {gateway} lladdr {} dev eth0 nud permanent",
                        text(host_mac)
                    ));
                });
            }
        }
        pod
    }

    /// On eth0; the programs do not learn of it.
    pub(crate) fn add_address(&self, address: IpAddr) {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        self.netns.run(|| ip(&format!("address add {} dev eth0 {nodad}", host_net(address))));
    }

    /// Its first address.
    pub(crate) fn address(&self) -> IpAddr {
        self.attachment.addresses[0]
    }

    /// Its link-local address.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        Ipv6Addr::from(ebpf_abi::pod_address::link_local(self.attachment.mac))
    }

    /// Says its name at each of its addresses.
    pub(crate) fn serve(&self, name: &'static str) {
        for address in self.attachment.addresses.clone() {
            self.serve_at(address, name);
        }
    }

    pub(crate) fn serve_at(&self, address: IpAddr, name: &'static str) {
        self.netns.run(move || serve_at(SocketAddr::new(address, PORT), name));
    }

    /// What the other says at its first address.
    pub(crate) fn asks(&self, other: &Self) -> Option<String> {
        self.asks_at(other.address())
    }

    /// What is said at an address.
    pub(crate) fn asks_at(&self, address: IpAddr) -> Option<String> {
        let to = SocketAddr::new(address, PORT);
        self.netns.run(move || by_tcp(to)).ok().map(|(_, said)| said)
    }

    /// Sends a datagram to the gateway of the family from this address.
    pub(crate) fn sends_from(&self, source: IpAddr) {
        self.netns.run(move || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            let to: SocketAddr = match source {
                IpAddr::V4(_) => "169.254.1.1:9".parse().unwrap(),
                IpAddr::V6(_) => format!("[fe80::1%{index}]:9").parse().unwrap(),
            };
            let _ = socket.send_to(b"!", to);
        });
    }

    /// One ping: whether an answer came, and what ping printed.
    pub(crate) fn pings(&self, to: IpAddr, options: &str) -> (bool, String) {
        self.netns.run(|| ping(to, options))
    }
}

/// The address of the pod with this number.
pub(crate) fn v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 0, number).into()
}

/// The same in IPv6.
pub(crate) fn v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number.into()).into()
}

/// An address and the prefix length that stands for it alone.
pub(crate) fn host_net(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv6() { 128 } else { 32 })
}

pub(crate) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// One ping in the calling thread's netns.
pub(crate) fn ping(to: IpAddr, options: &str) -> (bool, String) {
    let arguments = format!("-n -c1 -W2 {options} {to}");
    let output = Command::new("ping").args(arguments.split_whitespace()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Routes through the host's stack in the lab's netns, for packets that are not redirected.
pub(crate) fn forward(pods: &[&Pod]) {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    for pod in pods {
        let PodAttachment { host_ifname, addresses, mac, .. } = &pod.attachment;
        for address in addresses {
            ip(&format!("route replace {} dev {host_ifname}", host_net(*address)));
            ip(&format!("neighbour replace {address} lladdr {} dev {host_ifname} nud permanent", text(*mac)));
        }
    }
}

/// Packets that the host's stack has forwarded, of either family.
pub(crate) fn forwarded() -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let column = names.split(' ').position(|name| name == "ForwDatagrams").unwrap();
    let v4: u64 = values.split(' ').nth(column).unwrap().parse().unwrap();
    let table = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let line = table.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams")).unwrap();
    v4 + line.trim().parse::<u64>().unwrap()
}

pub(crate) fn count(datapath: &Datapath, reason: DropReason) -> u64 {
    datapath.drops().unwrap()[&reason]
}

/// Waits for a counter: packets are sent by other threads.
pub(crate) fn counts_up(datapath: &Datapath, reason: DropReason, from: u64) {
    waits_for(
        || count(datapath, reason) > from,
        || format!("{reason} stays at {from}: {:?}", datapath.drops()),
    );
}

/// Waits until something holds.
pub(crate) fn waits_for(holds: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{}", otherwise());
        thread::sleep(Duration::from_millis(10));
    }
}
