// SPDX-License-Identifier: Apache-2.0
//! Flags, environment and file, turned once into a checked [`Config`].

mod dns;
mod external;
mod services;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use netd_store::records::ClusterConfig;
use netd_wireguard::PresharedKey;
use thiserror::Error;

use crate::args::{
    Args, AttachKind, ExpediteKind, LogFormat, Options, OverlayKind, VxlanChecksumKind, WireguardKind,
};
use crate::desired;
use crate::mtu::PROBE_PORT;
use crate::psk;

#[cfg(test)]
pub(crate) use dns::checked_dns;
pub(crate) use dns::{DnsOptions, UpstreamOption, ZoneOptions};
#[cfg(test)]
pub(crate) use external::TsigKey;
pub(crate) use external::{Algorithm, DnsTable, ExternalOptions, owner_of};
pub(crate) use services::ServicesConfig;

/// Read when it exists and no other is named.
const DEFAULT_FILE: &str = "/etc/weft/netd.toml";
/// A cluster name is part of keys, paths and pins: longer ones make them unreadable.
const CLUSTER_NAME_MAX: usize = 63;
/// Routers forget a silent flow of UDP after 30 s (Linux' default); of 1,000 peers this makes 40 small packets a second.
const WIREGUARD_KEEPALIVE_SECS: u16 = 25;
/// WireGuard's two, and the gate's.
const WIREGUARD_PORTS: u16 = 3;
/// The API's socket in the run directory.
const SOCKET_FILE: &str = "netd.sock";
/// Where pods ask for names: link-local, so that no network of anybody's is in the way.
const DNS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);
/// The same over IPv6.
const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x53, 0, 0, 0, 0, 0, 0x53);
/// What a conflist may say: those versions that know lists and CHECK.
const CNI_CONF_VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// Everything netd was told, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub cluster: String,
    pub node_name: String,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub bpf_dir: PathBuf,
    pub cgroup_root: Option<PathBuf>,
    pub store: StoreConfig,
    pub overlay: OverlayKind,
    pub vxlan_tx_checksum: VxlanChecksumKind,
    pub wireguard_device: WireguardKind,
    pub wireguard_socket_dir: PathBuf,
    pub wireguard_psk: Option<PresharedKey>,
    /// The cluster's first ports, if it has none yet; `None`: nobody said.
    pub wireguard_port: Option<u16>,
    /// Seconds; 0: none.
    pub wireguard_keepalive_secs: u16,
    pub trusted_cidrs: Vec<IpNet>,
    pub underlay_address: Option<IpAddr>,
    /// How often a larger MTU is tried, in milliseconds; peers are not asked without.
    pub mtu_probe_ms: Option<u64>,
    pub pod_cidrs: Vec<IpNet>,
    /// One of each family at most, the primary one first.
    pub service_cidrs: Vec<IpNet>,
    pub services: ServicesConfig,
    pub given: Given,
    pub no_masquerade_cidrs: Vec<IpNet>,
    pub metrics_listen: SocketAddr,
    /// One of each family at most, IPv4 first.
    pub dns_addresses: Vec<IpAddr>,
    pub dns: DnsOptions,
    pub external_dns: Option<ExternalOptions>,
    pub datapath_attach: AttachKind,
    pub datapath_expedite: ExpediteKind,
    pub cool_down: Duration,
    pub lost_after: Duration,
    pub node_labels: BTreeMap<String, String>,
    pub drop_in: Option<DropInConfig>,
    pub cni_cache_dir: PathBuf,
    pub log_format: LogFormat,
    pub log_level: String,
}

/// What somebody said about the cluster's networks, and is no default: worth a word where the cluster has it otherwise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Given {
    pub pod_cidr: bool,
    pub service_cidr: bool,
}

/// The network config that netd writes for the container runtime.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DropInConfig {
    /// Where the runtime looks.
    pub dir: PathBuf,
    /// Its `cniVersion`.
    pub version: String,
    /// A JSON list of plugins that follow weft-cni.
    pub chain: Option<PathBuf>,
    /// netd's socket, for weft-cni.
    pub socket: PathBuf,
}

/// How to reach etcd; without endpoints the store is a file in the state directory.
#[derive(Clone, Debug)]
pub(crate) struct StoreConfig {
    pub endpoints: Vec<String>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<String>,
}

/// Why the configuration cannot be used; the text says where and what to do.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not valid: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("{option}: {reason}")]
    Value { option: &'static str, reason: String },
}

impl Config {
    /// Reads the file (if any), lays flags and environment over it, and checks every value.
    pub(crate) fn load(args: &Args) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => Options::default(),
        };
        Self::check(overlay_options(args.options.clone(), file))
    }

    fn check(o: Options) -> Result<Self, ConfigError> {
        let services = services::check(&o)?;
        let dns = dns::check(&o)?;
        let cluster = o.cluster.unwrap_or_else(|| "weft".into());
        check_name("cluster", &cluster)?;
        let external_dns = external::check(o.dns, &cluster)?;
        let node_name = match o.node_name {
            Some(name) => name,
            None => nix::unistd::gethostname()
                .map_err(|e| {
                    bad("node-name", format!("the host name cannot be read ({e}); give --node-name"))
                })?
                .to_string_lossy()
                .into_owned(),
        };
        check_name("node-name", &node_name)?;
        let given = Given { pod_cidr: o.pod_cidr.is_some(), service_cidr: o.service_cidr.is_some() };
        let pod_cidrs = check_pod_cidrs(o.pod_cidr)?;
        let service_cidrs = services::check_cidrs(o.service_cidr, &pod_cidrs)?;
        let state_dir = o.state_dir.unwrap_or_else(|| "/var/lib/weft".into());
        let run_dir = o.run_dir.unwrap_or_else(|| "/run/weft".into());
        let drop_in = check_drop_in(
            o.cni_conf_dir.filter(|dir| dir.as_os_str() != "none"),
            o.cni_conf_version,
            o.cni_chain,
            run_dir.join(SOCKET_FILE),
        )?;
        Ok(Self {
            cluster,
            node_name,
            state_dir,
            run_dir,
            bpf_dir: o.bpf_dir.unwrap_or_else(|| "/sys/fs/bpf/weft".into()),
            cgroup_root: o.cgroup_root,
            store: check_store(
                o.store_endpoints,
                [o.store_ca, o.store_cert, o.store_key],
                o.store_user,
                o.store_password_file,
            )?,
            overlay: o.overlay.unwrap_or(OverlayKind::Wireguard),
            vxlan_tx_checksum: o.vxlan_tx_checksum.unwrap_or(VxlanChecksumKind::Auto),
            wireguard_device: o.wireguard_device.unwrap_or(WireguardKind::Auto),
            wireguard_socket_dir: o.wireguard_socket_dir.unwrap_or_else(|| "/var/run/wireguard".into()),
            wireguard_psk: o.wireguard_psk_file.as_deref().map(psk::read).transpose()?,
            wireguard_port: o.wireguard_port.map(check_wireguard_port).transpose()?,
            wireguard_keepalive_secs: o.wireguard_keepalive_secs.unwrap_or(WIREGUARD_KEEPALIVE_SECS),
            trusted_cidrs: o.trusted_cidrs.unwrap_or_default(),
            underlay_address: o.underlay_address,
            mtu_probe_ms: match o.mtu_probe_secs {
                None => Some(netd_plan::mtu::RAISE_MS),
                Some(0) => None,
                Some(secs) => Some(u64::from(secs) * 1_000),
            },
            dns_addresses: check_dns_addresses(o.dns_address, &pod_cidrs)?,
            pod_cidrs,
            service_cidrs,
            services,
            given,
            no_masquerade_cidrs: o.no_masquerade_cidrs.unwrap_or_default(),
            metrics_listen: o.metrics_listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9157))),
            dns,
            external_dns,
            datapath_attach: o.datapath_attach.unwrap_or(AttachKind::Auto),
            datapath_expedite: o.datapath_expedite.unwrap_or(ExpediteKind::Auto),
            cool_down: Duration::from_secs(o.cool_down_secs.unwrap_or(30)),
            lost_after: o.lost_after_secs.map_or(ipam::reconcile::LOST_AGE_MIN, Duration::from_secs),
            node_labels: check_labels(o.node_labels.unwrap_or_default())?,
            drop_in,
            cni_cache_dir: o.cni_cache_dir.unwrap_or_else(|| "/var/lib/cni".into()),
            log_format: o.log_format.unwrap_or(LogFormat::Text),
            log_level: check_log_level(o.log_level.unwrap_or_else(|| "info".into()))?,
        })
    }

    /// The Unix socket of the API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_FILE)
    }
}

fn read_file(path: &Path) -> Result<Options, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    // toml's message names the line, the column and, for an unknown key, the keys that exist.
    toml::from_str(&text).map_err(|e| ConfigError::Parse {
        path: path.to_owned(),
        reason: e.to_string().trim_end().to_owned(),
    })
}

/// `over` wins over `under`, option by option. Destructured by name so that a new option cannot be forgotten.
fn overlay_options(over: Options, under: Options) -> Options {
    macro_rules! pick { ($($field:ident),* $(,)?) => {{
        let Options { $($field),* } = over;
        Options { $($field: $field.or(under.$field)),* }
    }}; }
    pick!(
        cluster,
        node_name,
        state_dir,
        run_dir,
        bpf_dir,
        cgroup_root,
        store_endpoints,
        store_ca,
        store_cert,
        store_key,
        store_user,
        store_password_file,
        overlay,
        vxlan_tx_checksum,
        wireguard_device,
        wireguard_socket_dir,
        wireguard_psk_file,
        wireguard_port,
        wireguard_keepalive_secs,
        trusted_cidrs,
        underlay_address,
        mtu_probe_secs,
        pod_cidr,
        service_cidr,
        node_port_range,
        node_port_addresses,
        service_devices,
        external_ips,
        fault_injection,
        service_frontends_max,
        service_backends_max,
        service_slots_max,
        service_connections_max,
        no_masquerade_cidrs,
        metrics_listen,
        dns_address,
        dns_upstreams,
        dns_stubs,
        dns_upstream_ca,
        dns_clients,
        dns_workers,
        dns_cache_mib,
        dns_tls_cert,
        dns_tls_key,
        dns_answers_per_second,
        dns_ttl_secs,
        dns_pod_names,
        dns_autopath,
        dns_zones,
        dns_skydns_prefix,
        dns_records,
        dns_links,
        dns_rewrites,
        dns,
        dns_query_log_every,
        datapath_attach,
        datapath_expedite,
        cool_down_secs,
        lost_after_secs,
        node_labels,
        cni_conf_dir,
        cni_conf_version,
        cni_chain,
        cni_cache_dir,
        log_format,
        log_level,
    )
}

fn check_store(
    endpoints: Option<Vec<String>>,
    [ca, cert, key]: [Option<PathBuf>; 3],
    user: Option<String>,
    password_file: Option<PathBuf>,
) -> Result<StoreConfig, ConfigError> {
    if cert.is_some() != key.is_some() {
        return Err(bad("store-cert", "a client certificate needs both --store-cert and --store-key".into()));
    }
    let endpoints = endpoints.unwrap_or_default();
    for url in &endpoints {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(bad(
                "store-endpoints",
                format!("{url}: a URL like http://10.0.0.1:2379 or https://… is needed"),
            ));
        }
    }
    let password = match (&user, password_file) {
        (Some(_), Some(path)) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|e| bad("store-password-file", format!("{}: {e}", path.display())))?;
            Some(text.trim_end_matches(['\n', '\r']).to_owned())
        }
        (None, None) => None,
        _ => return Err(bad("store-user", "needs both --store-user and --store-password-file".into())),
    };
    if endpoints.is_empty() && (ca.is_some() || cert.is_some() || user.is_some()) {
        return Err(bad("store-endpoints", "certificates and users are for etcd: give its URLs, too".into()));
    }
    Ok(StoreConfig { endpoints, ca, cert, key, user, password })
}

fn check_pod_cidrs(cidrs: Option<Vec<IpNet>>) -> Result<Vec<IpNet>, ConfigError> {
    let cidrs = cidrs.unwrap_or_else(|| vec![IpNet::V4(v4net([10, 244, 0, 0], 16))]);
    if cidrs.is_empty() {
        return Err(bad("pod-cidr", "at least one CIDR is needed".into()));
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        no_host_bits("pod-cidr", *cidr)?;
        if let Some(other) = cidrs.iter().take(index).find(|other| overlap(other, cidr)) {
            return Err(bad("pod-cidr", format!("{cidr} and {other} share addresses")));
        }
    }
    for pool in desired::initial_pools(&cidrs) {
        pool.validate().map_err(|error| bad("pod-cidr", error.to_string()))?;
    }
    Ok(cidrs)
}

fn no_host_bits(option: &'static str, cidr: IpNet) -> Result<(), ConfigError> {
    if cidr.addr() == cidr.network() {
        return Ok(());
    }
    Err(bad(option, format!("{cidr} has host bits set; did you mean {}?", cidr.trunc())))
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn check_dns_addresses(
    addresses: Option<Vec<IpAddr>>,
    pod_cidrs: &[IpNet],
) -> Result<Vec<IpAddr>, ConfigError> {
    let mut addresses = addresses.unwrap_or_else(|| {
        let v6 = pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6());
        [IpAddr::V4(DNS_V4)].into_iter().chain(v6.then_some(IpAddr::V6(DNS_V6))).collect()
    });
    addresses.sort_by_key(IpAddr::is_ipv6);
    if addresses.is_empty() || addresses.len() > 2 || addresses.iter().filter(|ip| ip.is_ipv4()).count() > 1 {
        return Err(bad("dns-address", "one address, or one of each family, is needed".into()));
    }
    Ok(addresses)
}

/// It and the two that follow are for WireGuard and the gate.
fn check_wireguard_port(first: u16) -> Result<u16, ConfigError> {
    let refused = |why: String| Err(bad("wireguard-port", format!("{first}: {why}")));
    let last = match first.checked_add(WIREGUARD_PORTS - 1) {
        Some(last) if first > 0 => last,
        _ => {
            return refused(format!(
                "1 to {} leaves the two ports that follow",
                u16::MAX - WIREGUARD_PORTS + 1
            ));
        }
    };
    let others = [(ClusterConfig::default().vxlan_port, "VXLAN's"), (PROBE_PORT, "that of netd's probes")];
    match others.into_iter().find(|(port, _)| (first..=last).contains(port)) {
        Some((port, whose)) => refused(format!("of the ports {first} to {last}, {port} is {whose}")),
        None => Ok(first),
    }
}

fn check_labels(items: Vec<String>) -> Result<BTreeMap<String, String>, ConfigError> {
    let split = |item: String| match item.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(bad("node-labels", format!("{item:?} is not KEY=VALUE"))),
    };
    items.into_iter().map(split).collect()
}

fn check_drop_in(
    dir: Option<PathBuf>,
    version: Option<String>,
    chain: Option<PathBuf>,
    socket: PathBuf,
) -> Result<Option<DropInConfig>, ConfigError> {
    let Some(dir) = dir else { return Ok(None) };
    let version = version.unwrap_or_else(|| "1.0.0".into());
    if !CNI_CONF_VERSIONS.contains(&version.as_str()) {
        let known = CNI_CONF_VERSIONS.join(", ");
        return Err(bad("cni-conf-version", format!("{version:?} is not one of {known}")));
    }
    Ok(Some(DropInConfig { dir, version, chain, socket }))
}

/// A level, or `target=level` items: anything else tracing would take for a target's name, and be silent.
fn check_log_level(text: String) -> Result<String, ConfigError> {
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"].contains(&word.to_ascii_lowercase().as_str())
    };
    let fine = text.split(',').all(|item| is_level(item.rsplit_once('=').map_or(item, |(_, level)| level)));
    if fine && tracing_subscriber::EnvFilter::try_new(&text).is_ok() {
        return Ok(text);
    }
    let reason = format!(
        "{text:?} is not a level (error, warn, info, debug, trace) or a filter like info,netd_store=debug"
    );
    Err(bad("log-level", reason))
}

fn check_name(option: &'static str, name: &str) -> Result<(), ConfigError> {
    let ok = !name.is_empty()
        && name.len() <= CLUSTER_NAME_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if ok {
        return Ok(());
    }
    Err(bad(
        option,
        format!(
            "{name:?}: letters, digits, '-', '_' and '.', a letter or digit first, at most {CLUSTER_NAME_MAX}"
        ),
    ))
}

pub(crate) fn bad(option: &'static str, reason: String) -> ConfigError {
    ConfigError::Value { option, reason }
}

fn v4net(octets: [u8; 4], prefix: u8) -> ipnet::Ipv4Net {
    // Constant prefixes of at most 32; clamped so that no panic path exists.
    ipnet::Ipv4Net::new_assert(Ipv4Addr::from(octets), prefix.min(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netd.toml");
        std::fs::write(&path, text).unwrap();
        let file = read_file(&path).map_err(|e| e.to_string())?;
        Config::check(overlay_options(Options::default(), file)).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = parse("node-name = \"n1\"").unwrap();
        assert_eq!(config.cluster, "weft");
        assert_eq!(config.pod_cidrs[0].to_string(), "10.244.0.0/16");
        assert_eq!(config.socket(), Path::new("/run/weft/netd.sock"));
        assert_eq!(config.cool_down, Duration::from_secs(30));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = parse("cluster = \"a\"\noverley = \"vxlan\"\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("overley"), "{error}");
    }

    #[test]
    fn bad_values_name_the_option() {
        for (text, option) in [
            ("pod-cidr = \"10.244.0.1/16\"", "pod-cidr"),
            ("pod-cidr = \"10.0.0.0/8\"", "service-cidr"),
            ("store-endpoints = [\"10.0.0.1:2379\"]", "store-endpoints"),
            ("store-cert = \"/x\"", "store-cert"),
            ("store-user = \"u\"", "store-user"),
            ("dns-upstreams = [\"one\"]", "dns-upstreams"),
            ("wireguard-port = 0", "1 to 65533"),
            ("wireguard-port = 65534", "1 to 65533"),
            ("wireguard-port = 51817", "wireguard-port: 51817: of the ports 51817 to 51819, 51819 is"),
            ("wireguard-port = 4788", "4789 is VXLAN's"),
            ("cluster = \"../x\"", "cluster"),
            ("log-level = \"loud\"", "log-level"),
            ("service-cidr = [\"10.96.0.0/16\", \"10.97.0.0/16\"]", "service-cidr"),
            ("service-cidr = \"10.96.0.0/30\"", "service-cidr"),
            ("node-port-range = \"32767-30000\"", "node-port-range"),
            ("node-port-range = \"80-90\"", "node-port-range"),
            ("service-devices = [\"eth0\", \"a/b\"]", "service-devices"),
            ("service-slots-max = 1000", "service-slots-max"),
        ] {
            let error = parse(&format!("node-name = \"n1\"\n{text}")).unwrap_err();
            assert!(error.contains(option), "{text}: {error}");
        }
    }

    #[test]
    fn services_have_the_families_that_pods_have() {
        let cidrs = |text: &str| {
            let cluster = desired::initial_config(&parse(&format!("node-name = \"n1\"\n{text}")).unwrap());
            let text = |ips: Vec<IpAddr>| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
            (cluster.service_cidrs().len(), text(cluster.dns_vips()))
        };
        assert_eq!(cidrs(""), (1, "10.96.0.10".into()));
        assert_eq!(
            cidrs("pod-cidr = [\"fd00:1::/56\", \"10.250.0.0/16\"]"),
            (2, "10.96.0.10 fd00:10:96::a".into())
        );
        assert_eq!(cidrs("pod-cidr = \"fd00:1::/56\""), (1, "fd00:10:96::a".into()));
        let six_first = "service-cidr = [\"fd00:2::/112\", \"10.97.0.0/16\"]\nexternal-ips = true\nservice-devices = \"none\"";
        assert_eq!(cidrs(six_first), (2, "fd00:2::a 10.97.0.10".into()));
        let services = parse(&format!("node-name = \"n1\"\n{six_first}")).unwrap().services;
        assert!(services.external_ips && services.devices == Some(Vec::new()));
        assert!(!services.fault_injection, "nobody asked for that");
        assert!(parse("node-name = \"n1\"\nfault-injection = true").unwrap().services.fault_injection);
    }

    #[test]
    fn each_pod_cidr_becomes_a_pool_of_its_own() {
        let text = "node-name = \"n1\"\npod-cidr = [\"10.250.0.0/16\", \"10.251.0.0/16\", \"fd00:1::/56\", \"10.252.0.0/16\"]";
        let pools = desired::initial_config(&parse(text).unwrap()).pools;
        let named: Vec<_> = pools.iter().map(|pool| (pool.name.as_str(), pool.cidr.to_string())).collect();
        let wanted = [
            ("default", "10.250.0.0/16"),
            ("default-2", "10.251.0.0/16"),
            ("default-v6", "fd00:1::/56"),
            ("default-3", "10.252.0.0/16"),
        ];
        assert_eq!(named, wanted.map(|(name, cidr)| (name, cidr.to_owned())));
    }

    #[test]
    fn what_the_cluster_has_otherwise_is_told_unless_it_is_a_default() {
        let cluster =
            desired::initial_config(&parse("node-name = \"n1\"\npod-cidr = \"10.250.0.0/16\"").unwrap());
        let pools = ["10.250.0.0/16".parse().unwrap()];
        let told = |text: &str| {
            desired::not_in_force(&parse(&format!("node-name = \"n1\"\n{text}")).unwrap(), &cluster, &pools)
        };
        assert_eq!(told(""), Vec::<String>::new());
        assert_eq!(told("pod-cidr = \"10.250.0.0/16\""), Vec::<String>::new());
        assert_eq!(told("wireguard-port = 51820"), Vec::<String>::new());
        let said = told("wireguard-port = 5555");
        assert!(said[0].contains("wireguard-port is 5555") && said[0].contains("keeps 51820"), "{said:?}");
        let first = desired::initial_config(&parse("node-name = \"n1\"\nwireguard-port = 5555").unwrap());
        assert_eq!((first.wireguard_port, cluster.wireguard_port), (5555, 51820));
        let said = told("pod-cidr = \"10.249.0.0/16\"\nservice-cidr = \"10.97.0.0/16\"");
        assert!(
            said[0].contains("10.249.0.0/16") && said[0].contains("the cluster has 10.250.0.0/16"),
            "{said:?}"
        );
        assert!(said[1].contains("10.97.0.0/16") && said[1].contains("10.96.0.0/16"), "{said:?}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = Options { cluster: Some("flag".into()), ..Options::default() };
        let file =
            Options { cluster: Some("file".into()), node_name: Some("n".into()), ..Options::default() };
        let config = Config::check(overlay_options(flags, file)).unwrap();
        assert_eq!((config.cluster.as_str(), config.node_name.as_str()), ("flag", "n"));
    }
}
