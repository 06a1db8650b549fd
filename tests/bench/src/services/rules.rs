// SPDX-License-Identifier: Apache-2.0
//! What others are told of many services: nftables and iptables in the shape in which kube-proxy writes them, HAProxy in TCP
//! mode. Text only.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// A service with two backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub name: String,
    pub vip: Ipv4Addr,
    /// (port, the backends' port).
    pub ports: Vec<(u16, u16)>,
    pub backends: [Ipv4Addr; 2],
}

/// Addresses of pods; who else asks is masqueraded.
const PODS: &str = "10.201.0.0/16";
/// Elements of one line.
const ELEMENTS: usize = 500;

/// nftables: a map from address and port to a chain for each service, in it one for each endpoint.
pub(super) fn nftables(wishes: &[Wish]) -> String {
    let (mut chains, mut rules, mut elements, mut addresses) =
        (String::new(), String::new(), Vec::new(), Vec::new());
    for (number, wish) in wishes.iter().enumerate() {
        addresses.push(wish.vip.to_string());
        for (port, target) in &wish.ports {
            let chain = format!("service-{number:08X}-default/{}/tcp/p{port}", wish.name);
            let endpoints = wish
                .backends
                .map(|ip| format!("endpoint-{number:08X}-default/{}/tcp/p{port}__{ip}/{target}", wish.name));
            let _ = writeln!(chains, "add chain ip kube-proxy {chain}");
            let _ = writeln!(
                rules,
                "add rule ip kube-proxy {chain} ip daddr {} tcp dport {port} ip saddr != {PODS} jump mark-for-masquerade\n\
                 add rule ip kube-proxy {chain} numgen random mod 2 vmap {{ 0 : goto {}, 1 : goto {} }}",
                wish.vip, endpoints[0], endpoints[1]
            );
            for (endpoint, ip) in endpoints.iter().zip(wish.backends) {
                let _ = writeln!(chains, "add chain ip kube-proxy {endpoint}");
                let _ = writeln!(
                    rules,
                    "add rule ip kube-proxy {endpoint} ip saddr {ip} jump mark-for-masquerade\n\
                     add rule ip kube-proxy {endpoint} meta l4proto tcp dnat to {ip}:{target}"
                );
            }
            elements.push(format!("{} . tcp . {port} : goto {chain}", wish.vip));
        }
    }
    let mut text = format!("{NFTABLES_BASE}{chains}{rules}");
    for (set, all) in [("service-ips", &elements), ("cluster-ips", &addresses)] {
        for part in all.chunks(ELEMENTS) {
            let _ = writeln!(text, "add element ip kube-proxy {set} {{ {} }}", part.join(", "));
        }
    }
    text
}

/// Everything that is there without services; what was there before goes.
const NFTABLES_BASE: &str = "\
add table ip kube-proxy
delete table ip kube-proxy
add table ip kube-proxy
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
add set ip kube-proxy cluster-ips { type ipv4_addr; }
add chain ip kube-proxy filter-prerouting { type filter hook prerouting priority -110; policy accept; }
add chain ip kube-proxy filter-forward { type filter hook forward priority -110; policy accept; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat; policy accept; }
add chain ip kube-proxy nat-output { type nat hook output priority -100; policy accept; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority srcnat; policy accept; }
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add rule ip kube-proxy filter-prerouting ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
";

/// nftables: one node port that leads to one backend, with masquerade, as from outside with policy Cluster.
pub(super) fn nftables_node_port(port: u16, backend: Ipv4Addr, target: u16) -> String {
    format!(
        "{NFTABLES_BASE}\
         add map ip kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         add chain ip kube-proxy external-1\n\
         add chain ip kube-proxy service-1\n\
         add chain ip kube-proxy endpoint-1\n\
         add rule ip kube-proxy services fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports\n\
         add rule ip kube-proxy external-1 jump mark-for-masquerade\n\
         add rule ip kube-proxy external-1 goto service-1\n\
         add rule ip kube-proxy service-1 numgen random mod 1 vmap {{ 0 : goto endpoint-1 }}\n\
         add rule ip kube-proxy endpoint-1 meta l4proto tcp dnat to {backend}:{target}\n\
         add element ip kube-proxy service-nodeports {{ tcp . {port} : goto external-1 }}\n"
    )
}

/// iptables: a list with a rule for each service, each with a chain, in it one for each endpoint. For `iptables-restore`.
pub(super) fn iptables(wishes: &[Wish]) -> String {
    let (mut chains, mut list, mut rules) = (String::new(), String::new(), String::new());
    for (number, wish) in wishes.iter().enumerate() {
        for (port, target) in &wish.ports {
            // At most 28 characters.
            let id = format!("{number:06X}{port:05}");
            let (service, what) = (format!("KUBE-SVC-{id}"), format!("\"default/{}:p{port}\"", wish.name));
            let _ = writeln!(chains, ":{service} - [0:0]");
            let _ = writeln!(
                list,
                "-A KUBE-SERVICES -d {}/32 -p tcp -m comment --comment {what} -m tcp --dport {port} -j {service}",
                wish.vip
            );
            let _ = writeln!(
                rules,
                "-A {service} ! -s {PODS} -d {}/32 -p tcp -m comment --comment {what} -m tcp --dport {port} -j KUBE-MARK-MASQ",
                wish.vip
            );
            for (at, ip) in wish.backends.iter().enumerate() {
                let endpoint = format!("KUBE-SEP-{id}{at}");
                let half = if at == 0 { "-m statistic --mode random --probability 0.5 " } else { "" };
                let _ = writeln!(chains, ":{endpoint} - [0:0]");
                let _ = writeln!(rules, "-A {service} -m comment --comment {what} {half}-j {endpoint}");
                let _ = writeln!(
                    rules,
                    "-A {endpoint} -s {ip}/32 -m comment --comment {what} -j KUBE-MARK-MASQ\n\
                     -A {endpoint} -p tcp -m comment --comment {what} -m tcp -j DNAT --to-destination {ip}:{target}"
                );
            }
        }
    }
    format!(
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {list}{rules}COMMIT\n"
    )
}

/// HAProxy: a listener for each port of each service.
pub(super) fn haproxy(wishes: &[Wish]) -> String {
    // It counts the files that it needs, and asks for so many; few connections leave room for many listeners.
    let mut text = String::from(
        "global\n  nbthread 1\n  maxconn 500\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n",
    );
    for wish in wishes {
        for (port, target) in &wish.ports {
            let _ = writeln!(text, "listen {}-{port}\n  bind {}:{port}", wish.name, wish.vip);
            for (at, ip) in wish.backends.iter().enumerate() {
                let _ = writeln!(text, "  server s{at} {ip}:{target}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Vec<Wish> {
        let wish = |name: &str, last| Wish {
            name: name.to_owned(),
            vip: Ipv4Addr::new(10, 96, 0, last),
            ports: vec![(80, 7000), (81, 7001)],
            backends: [Ipv4Addr::new(10, 201, 1, 3), Ipv4Addr::new(10, 201, 1, 4)],
        };
        vec![wish("a", 1), wish("b", 2)]
    }

    #[test]
    fn every_service_is_in_every_shape_once() {
        let (nft, iptables, haproxy) = (nftables(&two()), iptables(&two()), haproxy(&two()));
        assert_eq!(nft.matches(" : goto service-").count(), 4);
        assert_eq!(nft.matches(" dnat to 10.201.1.").count(), 8);
        assert_eq!(iptables.matches("-A KUBE-SERVICES -d 10.96.0.").count(), 4);
        assert_eq!(iptables.matches("-j DNAT").count(), 8);
        assert_eq!(iptables.matches("--probability 0.5").count(), 4);
        assert_eq!(haproxy.matches("  bind 10.96.0.").count(), 4);
        let chains = iptables.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
        assert!(chains.into_iter().all(|name| name.len() <= 28), "the kernel takes no longer names");
    }
}
