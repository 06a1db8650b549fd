// SPDX-License-Identifier: Apache-2.0
//! An overlay device without Ethernet headers: a TUN, and behind it somebody who sends each packet back to its sender.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::fd::AsRawFd as _,
    thread,
};

use ebpf_abi::{
    Counter, SCOPE_EXTERNAL,
    node::{ADDRESS_NODE_PORT, ADDRESS_OWN},
};
use ebpf_loader::{AttachMode, Hook};

use super::{
    client::datagrams,
    service::{Frontend, config, serve},
};
use crate::{
    lab::{Netns, in_lab, ip},
    pod::{v4, v6},
};

const DEVICE: &str = "tun0";
/// linux/if_tun.h: packets without an Ethernet header, and without one of the driver's own.
const IFF_TUN: libc::c_short = 1;
const IFF_NO_PI: libc::c_short = 0x1000;

#[test]
fn a_client_outside_reaches_a_backend_behind_a_tunnel_without_ethernet_headers() {
    in_lab(|lab| {
        let outside = Netns::new();
        ip(&format!("link add world type veth peer name w1 netns {}", outside.path().display()));
        ip("link set world up");
        outside.run(|| ip("link set w1 up"));
        for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
        }
        let mirror = open_tun();
        ip(&format!("link set {DEVICE} mtu 1400 up"));
        thread::spawn(move || reflect(mirror));
        for (node, client, overlay, block) in [
            ("198.51.1.1/24", "198.51.1.9/24", v4(250), "10.244.2.0/24"),
            ("2001:db8:1::1/64", "2001:db8:1::9/64", v6(250), "fd00:10:244:2::/64"),
        ] {
            let nodad = if overlay.is_ipv6() { "nodad" } else { "" };
            ip(&format!("address add {node} dev world {nodad}"));
            ip(&format!("address add {overlay} dev lo"));
            ip(&format!("route add {block} dev {DEVICE}"));
            outside.run(|| ip(&format!("address add {client} dev w1 {nodad}")));
        }
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_devices(Hook::Uplink, &["world"]).unwrap();
        datapath.attach_devices(Hook::Tunnel, &[DEVICE]).unwrap();
        datapath.write_config(&config(v4(250), v6(250))).unwrap();
        let at: [SocketAddr; 2] =
            ["198.51.1.1:30080", "[2001:db8:1::1]:30080"].map(|address| address.parse().unwrap());
        let own = at.map(|at| (at.ip(), ADDRESS_OWN | ADDRESS_NODE_PORT));
        datapath.write_node_addresses(&BTreeMap::from(own)).unwrap();
        let backends: [SocketAddr; 2] =
            ["10.244.2.5:8080", "[fd00:10:244:2::5]:8080"].map(|address| address.parse().unwrap());
        let frontends: Vec<_> = at
            .into_iter()
            .zip(backends)
            .map(|(at, backend)| Frontend {
                at,
                scope: SCOPE_EXTERNAL,
                flags: 0,
                backends: vec![(backend, 2, false)],
            })
            .collect();
        serve(&mut datapath, &frontends);
        outside.run(|| {
            for at in at {
                let socket = datagrams(0, at);
                for bytes in [1, 700, 1_300] {
                    let question = vec![7; bytes];
                    socket.send(&question).unwrap();
                    let mut answer = vec![0; 2_000];
                    let length = socket.recv(&mut answer).unwrap();
                    assert_eq!(answer[..length], question, "{at}");
                }
            }
        });
        assert_eq!(datapath.packet_counters().unwrap()[&Counter::NoRoute], 0);
    });
}

/// Swaps addresses and ports: no checksum changes by that.
fn reflect(mut tun: File) {
    let mut packet = [0; 2_048];
    while let Ok(bytes) = tun.read(&mut packet) {
        let (addresses, length, ports) = match packet[0] >> 4 {
            4 if packet[9] == 17 => (12, 4, 20),
            6 if packet[6] == 17 => (8, 16, 40),
            _ => continue,
        };
        for (at, length) in [(addresses, length), (ports, 2)] {
            let (left, right) = packet[at..at + 2 * length].split_at_mut(length);
            left.swap_with_slice(right);
        }
        if tun.write_all(&packet[..bytes]).is_err() {
            return;
        }
    }
}

/// Makes the device in the calling thread's netns.
fn open_tun() -> File {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // struct ifreq (linux/if.h): the name, and the flags in what follows.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    request.name[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    #[allow(unsafe_code, reason = "an ioctl that nix has no function for")]
    // SAFETY: TUNSETIFF reads and writes a struct ifreq, which this is.
    let failed = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    tun
}
