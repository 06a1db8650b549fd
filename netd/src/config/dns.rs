// SPDX-License-Identifier: Apache-2.0
//! What was said about the DNS server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use dns_zone::{
    LinkSpec, Name, PodNames, RecordSpec, RewriteSpec, SKYDNS_PREFIX, TTL_SECS_DEFAULT, TTL_SECS_MAX,
};
use ipnet::IpNet;

use super::{ConfigError, bad};
use crate::args::{Options, PodNamesKind};

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
    pub zone: ZoneOptions,
}

/// What is answered beside services.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ZoneOptions {
    pub ttl_secs: u32,
    pub pod_names: PodNames,
    pub autopath: bool,
    /// Ours alone, for the records below.
    pub zones: Vec<Name>,
    /// Where SkyDNS records lie in etcd; `None`: they are not read.
    pub skydns_prefix: Option<String>,
    /// Somebody said so: it is worth a word where they cannot be read.
    pub skydns_wanted: bool,
    /// As the file has them: those that are wrong are reported and skipped, as in the store.
    pub records: Vec<RecordSpec>,
    pub links: Vec<LinkSpec>,
    pub rewrites: Vec<RewriteSpec>,
}

impl Default for ZoneOptions {
    fn default() -> Self {
        Self {
            ttl_secs: TTL_SECS_DEFAULT,
            pod_names: PodNames::Verified,
            // Pods' search path is our own three domains; see `attach`.
            autopath: true,
            zones: Vec::new(),
            skydns_prefix: None,
            skydns_wanted: false,
            records: Vec::new(),
            links: Vec::new(),
            rewrites: Vec::new(),
        }
    }
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
        zone: zone(o)?,
    })
}

fn zone(o: &Options) -> Result<ZoneOptions, ConfigError> {
    let default = ZoneOptions::default();
    let zones = o.dns_zones.iter().flatten().map(|text| match Name::parse(text) {
        Ok(name) if name != Name::root() => Ok(name),
        Ok(_) => Err(bad("dns-zones", "the root is everything; name the zones that are yours alone".into())),
        Err(error) => Err(bad("dns-zones", format!("{text}: {error}"))),
    });
    let has_etcd = o.store_endpoints.as_ref().is_some_and(|endpoints| !endpoints.is_empty());
    Ok(ZoneOptions {
        ttl_secs: at_most("dns-ttl-secs", o.dns_ttl_secs.unwrap_or(default.ttl_secs), TTL_SECS_MAX)?,
        pod_names: match o.dns_pod_names {
            None => default.pod_names,
            Some(PodNamesKind::Disabled) => PodNames::Disabled,
            Some(PodNamesKind::Insecure) => PodNames::Insecure,
            Some(PodNamesKind::Verified) => PodNames::Verified,
        },
        autopath: o.dns_autopath.unwrap_or(default.autopath),
        zones: zones.collect::<Result<_, _>>()?,
        skydns_prefix: skydns_prefix(o.dns_skydns_prefix.as_deref(), has_etcd)?,
        skydns_wanted: o.dns_skydns_prefix.is_some(),
        records: o.dns_records.clone().unwrap_or_default(),
        links: o.dns_links.clone().unwrap_or_default(),
        rewrites: o.dns_rewrites.clone().unwrap_or_default(),
    })
}

/// Without a `/` at its end.
fn skydns_prefix(text: Option<&str>, has_etcd: bool) -> Result<Option<String>, ConfigError> {
    let prefix = match text {
        None => return Ok(has_etcd.then(|| SKYDNS_PREFIX.to_owned())),
        Some("none") => return Ok(None),
        Some(text) => text.trim_end_matches('/'),
    };
    if !has_etcd {
        return Err(bad(
            "dns-skydns-prefix",
            "SkyDNS records lie in etcd: give --store-endpoints, too".into(),
        ));
    }
    if !prefix.starts_with('/') || prefix == "/weft" || prefix.starts_with("/weft/") {
        let reason = "a path such as /skydns is needed, and none of Weft's own; `none` reads no such records";
        return Err(bad("dns-skydns-prefix", format!("{prefix:?}: {reason}")));
    }
    Ok(Some(prefix.to_owned()))
}

/// `ZONE=SERVER`, several of one zone in their order.
fn stubs(list: &[String]) -> Result<BTreeMap<String, Vec<UpstreamOption>>, ConfigError> {
    let mut stubs: BTreeMap<String, Vec<UpstreamOption>> = BTreeMap::new();
    for text in list {
        let (zone, server) = text.split_once('=').ok_or_else(|| {
            bad("dns-stubs", format!("{text}: ZONE=IP is needed, such as corp.example=192.0.2.53"))
        })?;
        if let Err(error) = Name::parse(zone) {
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

/// As a file says it, for tests of others.
#[cfg(test)]
pub(crate) fn checked_dns(text: &str) -> DnsOptions {
    check(&toml::from_str(text).unwrap()).unwrap()
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
    fn skydns_is_read_where_there_is_etcd_unless_told_otherwise() {
        assert_eq!(skydns_prefix(None, true).unwrap().as_deref(), Some("/skydns"));
        assert_eq!(skydns_prefix(None, false).unwrap(), None);
        assert_eq!(skydns_prefix(Some("none"), true).unwrap(), None);
        assert_eq!(skydns_prefix(Some("/dns/"), true).unwrap().as_deref(), Some("/dns"));
        for (text, has_etcd) in [
            ("/skydns", false),
            ("skydns", true),
            ("/", true),
            ("/weft", true),
            ("/weft/", true),
            ("/weft/v1/weft/dns", true),
        ] {
            assert!(skydns_prefix(Some(text), has_etcd).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_zone_answers_is_checked() {
        let zone = |options: Options| check(&options).map(|options| options.zone);
        assert_eq!(zone(Options::default()).unwrap(), ZoneOptions::default());
        let told = |options: Options| zone(options).unwrap_err().to_string();
        let ttl = Options { dns_ttl_secs: Some(3_601), ..Options::default() };
        assert!(told(ttl).starts_with("dns-ttl-secs"));
        for wrong in [".", "a..b"] {
            let zones = Options { dns_zones: Some(vec![wrong.into()]), ..Options::default() };
            assert!(told(zones).starts_with("dns-zones"), "{wrong}");
        }
    }

    #[test]
    fn records_stand_in_the_file_as_tables() {
        let text = r#"
            dns-pod-names = "insecure"
            dns-autopath = false
            dns-zones = ["home.example"]
            [[dns-records]]
            name = "printer.home.example"
            type = "A"
            data = "192.0.2.7"
            ttl-secs = 60
            [[dns-links]]
            name = "db"
            to = "prod/postgres"
            clients = "app=shop"
            [[dns-rewrites]]
            from = "*.old.example"
            to = "new.example"
        "#;
        let zone = check(&toml::from_str(text).unwrap()).unwrap().zone;
        assert_eq!((zone.pod_names, zone.autopath, zone.zones.len()), (PodNames::Insecure, false, 1));
        assert_eq!((zone.records[0].ttl_secs, zone.records[0].data.as_str()), (Some(60), "192.0.2.7"));
        assert_eq!(zone.links[0].clients.as_deref(), Some("app=shop"));
        assert_eq!(zone.rewrites[0].from, "*.old.example");
        let unknown = "[[dns-records]]\nname = \"a\"\ntype = \"A\"\ndata = \"192.0.2.7\"\nttl = 5";
        assert!(toml::from_str::<Options>(unknown).is_err());
    }

    #[test]
    fn half_of_tls_is_none() {
        let options = Options { dns_tls_cert: Some("/x".into()), ..Options::default() };
        assert!(check(&options).unwrap_err().to_string().contains("dns-tls-cert"));
    }
}
