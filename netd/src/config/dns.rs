// SPDX-License-Identifier: Apache-2.0
//! What was said about the DNS server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::{ConfigError, bad};
use crate::args::Options;

/// The port of DNS.
const PORT: u16 = 53;
/// The port of DNS over TLS (RFC 7858).
const TLS_PORT: u16 = 853;
/// Who vouches for name servers over TLS, where nobody said otherwise: the system's.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Bytes of the cache of foreign names in MiB, by default: some 30,000 answers.
const CACHE_MIB: u32 = 16;
/// More than any node's names need.
const CACHE_MIB_MAX: u32 = 4_096;
/// A thread for each core of the largest machine.
const WORKERS_MAX: u32 = 256;

/// How this node's DNS is served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DnsOptions {
    /// `None`: those of /etc/resolv.conf.
    pub upstreams: Option<Vec<UpstreamOption>>,
    /// Zones with name servers of their own.
    pub stubs: BTreeMap<String, Vec<UpstreamOption>>,
    /// PEM of those who vouch for name servers over TLS.
    pub upstream_ca: PathBuf,
    /// Who may ask beside pods and nodes.
    pub clients: Vec<IpNet>,
    /// Threads for each address; 0: one for each core.
    pub workers: usize,
    pub cache_bytes: usize,
    /// Certificate chain and key, for clients over TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// UDP answers a second to one network of clients.
    pub answers_per_second: Option<u32>,
    /// One question of so many is logged; 0: none.
    pub query_log_every: u32,
}

/// A name server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UpstreamOption {
    pub address: SocketAddr,
    /// Over TLS, and what its certificate must be for.
    pub tls_name: Option<String>,
}

/// Checks all but the addresses we answer on.
pub(super) fn check(o: &Options) -> Result<DnsOptions, ConfigError> {
    let tls = match (&o.dns_tls_cert, &o.dns_tls_key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        _ => {
            return Err(bad(
                "dns-tls-cert",
                "DNS over TLS needs both --dns-tls-cert and --dns-tls-key".into(),
            ));
        }
    };
    let upstreams = o.dns_upstreams.as_deref();
    let upstreams = upstreams.map(|list| list.iter().map(|text| upstream("dns-upstreams", text)).collect());
    Ok(DnsOptions {
        upstreams: upstreams.transpose()?,
        stubs: stubs(o.dns_stubs.as_deref().unwrap_or_default())?,
        upstream_ca: o.dns_upstream_ca.clone().unwrap_or_else(|| SYSTEM_ROOTS.into()),
        clients: o.dns_clients.clone().unwrap_or_default(),
        workers: at_most("dns-workers", o.dns_workers.unwrap_or(0), WORKERS_MAX)? as usize,
        cache_bytes: (at_most("dns-cache-mib", o.dns_cache_mib.unwrap_or(CACHE_MIB), CACHE_MIB_MAX)?
            as usize)
            << 20,
        tls,
        answers_per_second: o.dns_answers_per_second.filter(|rate| *rate > 0),
        query_log_every: o.dns_query_log_every.unwrap_or(0),
    })
}

/// `ZONE=SERVER`, several of one zone in their order.
fn stubs(list: &[String]) -> Result<BTreeMap<String, Vec<UpstreamOption>>, ConfigError> {
    let mut stubs: BTreeMap<String, Vec<UpstreamOption>> = BTreeMap::new();
    for text in list {
        let (zone, server) = text.split_once('=').ok_or_else(|| {
            bad("dns-stubs", format!("{text}: ZONE=IP is needed, such as corp.example=192.0.2.53"))
        })?;
        if let Err(error) = dns_zone::Name::parse(zone) {
            return Err(bad("dns-stubs", format!("{text}: {error}")));
        }
        let zone = zone.trim_end_matches('.').to_ascii_lowercase();
        stubs.entry(zone).or_default().push(upstream("dns-stubs", server)?);
    }
    Ok(stubs)
}

/// `IP`, `IP:PORT`, either with `#NAME` for TLS.
fn upstream(option: &'static str, text: &str) -> Result<UpstreamOption, ConfigError> {
    let (address, tls_name) = match text.split_once('#') {
        Some((address, name)) if !name.is_empty() => (address, Some(name.to_owned())),
        Some(_) => return Err(bad(option, format!("{text}: the server's name is missing behind the #"))),
        None => (text, None),
    };
    let port = if tls_name.is_some() { TLS_PORT } else { PORT };
    let address = address
        .parse::<SocketAddr>()
        .or_else(|_| address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)))
        .map_err(|_| bad(option, format!("{text}: not an address, nor an address with a port")))?;
    Ok(UpstreamOption { address, tls_name })
}

fn at_most(option: &'static str, value: u32, max: u32) -> Result<u32, ConfigError> {
    if value > max { Err(bad(option, format!("{value} is more than {max}"))) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_have_a_port_and_perhaps_a_name() {
        let shown = |text: &str| upstream("dns-upstreams", text).map(|u| (u.address.to_string(), u.tls_name));
        assert_eq!(shown("192.0.2.53").unwrap(), ("192.0.2.53:53".into(), None));
        assert_eq!(shown("192.0.2.53:5353").unwrap(), ("192.0.2.53:5353".into(), None));
        assert_eq!(
            shown("2001:db8::53#dns.test").unwrap(),
            ("[2001:db8::53]:853".into(), Some("dns.test".into()))
        );
        assert_eq!(shown("[::1]:8853#dns.test").unwrap().0, "[::1]:8853");
        assert!(shown("192.0.2.53#").unwrap_err().to_string().contains("dns-upstreams"));
    }

    #[test]
    fn a_zone_may_have_several_servers() {
        let list =
            ["Corp.Example.=192.0.2.1", "corp.example=192.0.2.2:54", "other=192.0.2.3"].map(str::to_owned);
        let stubs = stubs(&list).unwrap();
        assert_eq!(stubs.keys().collect::<Vec<_>>(), ["corp.example", "other"]);
        assert_eq!(stubs["corp.example"].len(), 2);
        assert!(super::stubs(&["a..b=192.0.2.1".to_owned()]).is_err());
        assert!(super::stubs(&["192.0.2.1".to_owned()]).is_err());
    }

    #[test]
    fn half_of_tls_is_none() {
        let options = Options { dns_tls_cert: Some("/x".into()), ..Options::default() };
        assert!(check(&options).unwrap_err().to_string().contains("dns-tls-cert"));
    }
}
