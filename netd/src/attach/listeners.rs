// SPDX-License-Identifier: Apache-2.0
//! Ports of the host that the host itself listens on: a mapping takes every packet before a socket hears of it, so a mapped
//! port 22 would cut the operator off, and netd's own metrics port its readiness.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

use netd_api::{ApiError, Code, PortMapping, PortProtocol};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

use crate::config::Config;
use crate::desired::DNS_PORT;

/// A runtime that holds the ports of its containers itself, so that nobody else takes them: podman's monitor.
const RESERVES_FOR_ITS_CONTAINER: &str = "conmon";
/// TCP_LISTEN (net/tcp_states.h), as /proc/net/tcp has it.
const LISTEN: &str = "0A";

/// Refuses a mapping of a port that something on this host listens on; code 102.
///
/// `tunnels`: UDP ports that are the overlay's, also the one that WireGuard's next key is going to listen on.
pub(super) fn refuse_listening(
    config: &Config,
    tunnels: &[u16],
    wanted: &[PortMapping],
) -> Result<(), ApiError> {
    for mapping in wanted {
        if mapping.protocol == PortProtocol::Udp && tunnels.contains(&mapping.host_port) {
            return Err(taken(mapping, "it is the overlay's"));
        }
        if let Some(who) = own_listener(config, mapping) {
            return Err(taken(mapping, &format!("netd itself listens there ({who})")));
        }
        // The node's DNS servers have addresses of their own, which no mapping reaches.
        if mapping.host_port == DNS_PORT || !is_bound(mapping) {
            continue;
        }
        let holders = holders(mapping.host_port, mapping.protocol);
        if !holders.is_empty() && holders.iter().all(|(_, name)| name == RESERVES_FOR_ITS_CONTAINER) {
            continue;
        }
        let names: Vec<String> = holders.iter().map(|(pid, name)| format!("{name}, process {pid}")).collect();
        let who = if names.is_empty() {
            "the kernel, or a process out of sight".to_owned()
        } else {
            names.join("; ")
        };
        return Err(taken(mapping, &format!("this host listens there ({who})")));
    }
    Ok(())
}

fn taken(mapping: &PortMapping, why: &str) -> ApiError {
    let host = mapping.host_ip.map_or_else(|| "any address".to_owned(), |ip| ip.to_string());
    ApiError::conflict(format!(
        "host port {}/{} on {host}: {why}, and would hear nothing any more; choose another port, or one address with hostIP",
        mapping.host_port, mapping.protocol
    ))
    .with_code(Code::PORT_IN_USE)
}

/// What of netd's own a mapping would cover.
fn own_listener(config: &Config, mapping: &PortMapping) -> Option<&'static str> {
    let covers = |at: SocketAddr| {
        let address = match mapping.host_ip {
            Some(ip) if !ip.is_unspecified() => ip == at.ip() || at.ip().is_unspecified(),
            Some(any) => any.is_ipv4() == at.is_ipv4(),
            None => true,
        };
        address && mapping.host_port == at.port()
    };
    if mapping.protocol == PortProtocol::Tcp && covers(config.metrics_listen) {
        return Some("metrics-listen");
    }
    let dns = |ip: &&IpAddr| mapping.host_ip == Some(**ip) && mapping.host_port == DNS_PORT;
    config.dns_addresses.iter().find(dns).map(|_| "dns-address")
}

/// Whether a socket of this host has the port: then nobody else can bind it. Nothing is listened on, so no client ever sees
/// this look.
fn is_bound(mapping: &PortMapping) -> bool {
    let kind = match mapping.protocol {
        // The kernel may lack it, and nobody listens on it then.
        PortProtocol::Sctp => return false,
        PortProtocol::Tcp => SockType::Stream,
        PortProtocol::Udp => SockType::Datagram,
    };
    let every = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let wanted = mapping.host_ip.map_or_else(|| every.to_vec(), |ip| vec![ip]);
    wanted
        .into_iter()
        .any(|ip| try_bind(SocketAddr::new(ip, mapping.host_port), kind) == Err(Errno::EADDRINUSE))
}

fn try_bind(at: SocketAddr, kind: SockType) -> Result<(), Errno> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let probe = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if kind == SockType::Stream {
        // Connections that are over do not count; who listens does all the same.
        setsockopt(&probe, sockopt::ReuseAddr, &true)?;
    }
    if !at.is_ipv4() {
        setsockopt(&probe, sockopt::Ipv6V6Only, &true)?;
    }
    bind(probe.as_raw_fd(), &SockaddrStorage::from(at))
}

/// The processes that have the port, as (PID, name); for words, so whatever cannot be read is passed over.
fn holders(port: u16, protocol: PortProtocol) -> BTreeSet<(u32, String)> {
    let (table, state) = match protocol {
        PortProtocol::Sctp => return BTreeSet::new(),
        PortProtocol::Tcp => ("tcp", Some(LISTEN)),
        PortProtocol::Udp => ("udp", None),
    };
    let files = [table.to_owned(), format!("{table}6")];
    let inodes: BTreeSet<String> = files
        .iter()
        .filter_map(|file| fs::read_to_string(Path::new("/proc/self/net").join(file)).ok())
        .flat_map(|text| inodes(&text, port, state))
        .collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .filter(|(_, path)| has_socket(path, &inodes))
        .map(|(pid, path)| (pid, fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned()))
        .collect()
}

fn has_socket(process: &Path, inodes: &BTreeSet<String>) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.contains(inode))
    })
}

/// Inodes of the sockets on a port, of a table of /proc/net: local address, remote address, state, …, inode at the tenth place.
fn inodes(table: &str, port: u16, state: Option<&str>) -> Vec<String> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        let fits = local == port && state.is_none_or(|state| fields.get(3) == Some(&state));
        fits.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    fn mapping(host_ip: Option<&str>, host_port: u16, protocol: PortProtocol) -> PortMapping {
        PortMapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 80,
            protocol,
        }
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_found_with_who_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_bound(&mapping(None, port, PortProtocol::Tcp)));
        assert!(is_bound(&mapping(Some("127.0.0.1"), port, PortProtocol::Tcp)));
        assert!(
            !is_bound(&mapping(Some("127.0.0.2"), port, PortProtocol::Tcp)),
            "another address of the host"
        );
        assert!(!is_bound(&mapping(Some("192.0.2.77"), port, PortProtocol::Tcp)), "no address of the host");
        let found = holders(port, PortProtocol::Tcp);
        assert!(found.iter().any(|(pid, _)| *pid == std::process::id()), "{found:?}");
        // A look leaves nothing behind.
        assert!(is_bound(&mapping(None, port, PortProtocol::Tcp)));
        drop(listener);
        assert!(!is_bound(&mapping(None, port, PortProtocol::Tcp)));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(is_bound(&mapping(None, port, PortProtocol::Udp)));
        assert!(holders(port, PortProtocol::Udp).iter().any(|(pid, _)| *pid == std::process::id()));
    }

    #[test]
    fn a_line_of_the_kernel_s_table_has_port_state_and_inode() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:23C5 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n   \
                     1: 0100007F:23C5 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1\n\
                     half\n";
        assert_eq!(inodes(table, 9157, Some(LISTEN)), ["4711"]);
        assert_eq!(inodes(table, 9157, None), ["4711", "4712"]);
        assert_eq!(inodes(table, 80, None), Vec::<String>::new());
    }
}
