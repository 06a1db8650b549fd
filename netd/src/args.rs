// SPDX-License-Identifier: Apache-2.0
//! Flags and environment. Each option also stands in the configuration file under the same name; flags win over the
//! environment, the environment over the file, the file over the defaults (config.rs).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use dns_zone::{LinkSpec, RecordSpec, RewriteSpec};
use serde::Deserialize;

use crate::config::DnsTable;

/// Weft's node daemon.
#[derive(Debug, Parser)]
#[command(name = "netd", version = crate::status::VERSION, about, max_term_width = 110)]
pub(crate) struct Args {
    /// Configuration file (TOML). Read when it exists; must exist when given.
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Read flags, environment, configuration file and the files it names as a start would, say `configuration: ok` or what
    /// is wrong (exit code 2), and end. Nothing is opened, bound or changed.
    #[arg(long)]
    pub check: bool,
    /// Options that the file may hold too.
    #[command(flatten)]
    pub options: Options,
    /// What to do; without a command netd runs as the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// netd's other jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Remove every kernel object, pin and host setting that this node's netd made, then exit. Pods lose their network.
    Clean,
    /// Hold the DNS server's sockets while netd restarts, so that questions wait instead of being lost. For hosts
    /// without systemd, which does the same; runs until it is killed, and needs no restart with netd.
    HoldSockets,
}

/// Each option, as given: nothing where the user said nothing.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Options {
    /// Cluster name: part of every store key and pin [default: weft].
    #[arg(long, env = "WEFT_CLUSTER", global = true)]
    pub cluster: Option<String>,
    /// Name of this node [default: the host name].
    #[arg(long, env = "WEFT_NODE_NAME", global = true)]
    pub node_name: Option<String>,
    /// Durable state: identity, address journal, last-known-good snapshot [default: /var/lib/weft].
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Socket and other state of this boot [default: /run/weft].
    #[arg(long, env = "WEFT_RUN_DIR", value_name = "DIR", global = true)]
    pub run_dir: Option<PathBuf>,
    /// Where programs, maps and links are pinned, on a bpffs [default: /sys/fs/bpf/weft].
    #[arg(long, env = "WEFT_BPF_DIR", value_name = "DIR", global = true)]
    pub bpf_dir: Option<PathBuf>,
    /// The cgroup (v2) whose processes reach services; never attached above it [default: the v2 mount].
    #[arg(long, env = "WEFT_CGROUP_ROOT", value_name = "DIR", global = true)]
    pub cgroup_root: Option<PathBuf>,
    /// etcd client URLs, comma-separated [default: none: a store in the state directory, for one host without etcd].
    #[arg(long, env = "WEFT_STORE_ENDPOINTS", value_delimiter = ',', value_name = "URL", global = true)]
    pub store_endpoints: Option<Vec<String>>,
    /// CA that signs etcd's server certificate (PEM).
    #[arg(long, env = "WEFT_STORE_CA", value_name = "FILE", global = true)]
    pub store_ca: Option<PathBuf>,
    /// Client certificate for etcd (PEM); needs --store-key.
    #[arg(long, env = "WEFT_STORE_CERT", value_name = "FILE", global = true)]
    pub store_cert: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    #[arg(long, env = "WEFT_STORE_KEY", value_name = "FILE", global = true)]
    pub store_key: Option<PathBuf>,
    /// etcd user; needs --store-password-file.
    #[arg(long, env = "WEFT_STORE_USER", global = true)]
    pub store_user: Option<String>,
    /// File that holds the etcd user's password (a newline at its end is dropped).
    #[arg(long, env = "WEFT_STORE_PASSWORD_FILE", value_name = "FILE", global = true)]
    pub store_password_file: Option<PathBuf>,
    /// How pods of different nodes reach each other. Used when the cluster has no configuration in the store
    /// yet; `weft config set` changes it [default: wireguard].
    #[arg(long, env = "WEFT_OVERLAY", global = true)]
    pub overlay: Option<OverlayKind>,
    /// Where WireGuard runs: in the kernel where it can, else in weft-wireguard [default: auto].
    #[arg(long, env = "WEFT_WIREGUARD_DEVICE", global = true)]
    pub wireguard_device: Option<WireguardKind>,
    /// Where weft-wireguard has its control sockets [default: /var/run/wireguard].
    #[arg(long, env = "WEFT_WIREGUARD_SOCKET_DIR", value_name = "DIR", global = true)]
    pub wireguard_socket_dir: Option<PathBuf>,
    /// Who computes checksums of packets inside VXLAN: the network card where it offers that, until it is
    /// found to spoil them, or always the kernel [default: auto].
    #[arg(long, env = "WEFT_VXLAN_TX_CHECKSUM", global = true)]
    pub vxlan_tx_checksum: Option<VxlanChecksumKind>,
    /// A secret that all nodes share (32 bytes in base64, as `wg genpsk` makes it), for WireGuard beside the keys.
    #[arg(long, env = "WEFT_WIREGUARD_PSK_FILE", value_name = "FILE", global = true)]
    pub wireguard_psk_file: Option<PathBuf>,
    /// First of the UDP ports of WireGuard: keys that follow one another alternate between it and the next, the one
    /// after carries what trusted hosts send. Used when the cluster has no configuration in the store yet
    /// [default: 51820].
    #[arg(long, env = "WEFT_WIREGUARD_PORT", global = true)]
    pub wireguard_port: Option<u16>,
    /// Seconds of silence after which a packet goes to each WireGuard peer, so that a router on the way (NAT)
    /// does not forget this node and a peer learns where it moved to; 0: never [default: 25].
    #[arg(long, env = "WEFT_WIREGUARD_KEEPALIVE_SECS", value_name = "SECS", global = true)]
    pub wireguard_keepalive_secs: Option<u16>,
    /// Hosts outside the cluster that may open connections to pods, comma-separated. Used when the cluster
    /// has no configuration in the store yet; `weft config set` changes it [default: none].
    #[arg(long, env = "WEFT_TRUSTED_CIDRS", value_delimiter = ',', value_name = "CIDR", global = true)]
    #[serde(default, deserialize_with = "one_or_many")]
    pub trusted_cidrs: Option<Vec<ipnet::IpNet>>,
    /// This node's address on the underlay [default: the one towards the store, else of the default route].
    #[arg(long, env = "WEFT_UNDERLAY_ADDRESS", value_name = "IP", global = true)]
    pub underlay_address: Option<IpAddr>,
    /// How often a larger MTU is tried on the way to a peer where less was found to fit, in seconds; 0: what
    /// fits is never asked of peers, only computed [default: 600].
    #[arg(long, env = "WEFT_MTU_PROBE_SECS", value_name = "SECS", global = true)]
    pub mtu_probe_secs: Option<u32>,
    /// Pod CIDRs, comma-separated; IPv4, IPv6 or both. Used when the cluster has no configuration in the
    /// store yet [default: 10.244.0.0/16].
    #[arg(long, env = "WEFT_POD_CIDR", value_delimiter = ',', value_name = "CIDR", global = true)]
    #[serde(default, deserialize_with = "one_or_many")]
    pub pod_cidr: Option<Vec<ipnet::IpNet>>,
    /// Service CIDRs, one of each family at most, the primary one first, comma-separated. Used when the cluster has
    /// no configuration in the store yet [default: 10.96.0.0/16 and fd00:10:96::/112, as far as pods have the family].
    #[arg(long, env = "WEFT_SERVICE_CIDR", value_delimiter = ',', value_name = "CIDR", global = true)]
    #[serde(default, deserialize_with = "one_or_many")]
    pub service_cidr: Option<Vec<ipnet::IpNet>>,
    /// Ports that services of type NodePort and LoadBalancer get on every node. Used when the cluster has no
    /// configuration in the store yet [default: 30000-32767].
    #[arg(long, env = "WEFT_NODE_PORT_RANGE", value_name = "FIRST-LAST", global = true)]
    pub node_port_range: Option<String>,
    /// This node's addresses that answer node ports, as prefixes, comma-separated [default: all of its addresses].
    #[arg(long, env = "WEFT_NODE_PORT_ADDRESSES", value_delimiter = ',', value_name = "CIDR", global = true)]
    #[serde(default, deserialize_with = "one_or_many")]
    pub node_port_addresses: Option<Vec<ipnet::IpNet>>,
    /// Devices by which the world reaches this node's services (node ports, load balancers' and external
    /// addresses), comma-separated; `none` for no device [default: the underlay's device].
    #[arg(long, env = "WEFT_SERVICE_DEVICES", value_delimiter = ',', value_name = "DEVICE", global = true)]
    #[serde(default, deserialize_with = "one_or_many")]
    pub service_devices: Option<Vec<String>>,
    /// Whether services' spec.externalIPs are served: whoever may write a service can draw such an address's
    /// traffic to its pods [default: false].
    #[arg(long, env = "WEFT_EXTERNAL_IPS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", global = true)]
    pub external_ips: Option<bool>,
    /// Whether services' annotation weft.dev/fault has an effect: whoever may write a service can then have connections
    /// to it refused or dropped, to test how its clients bear that [default: false].
    #[arg(long, env = "WEFT_FAULT_INJECTION", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", global = true)]
    pub fault_injection: Option<bool>,
    /// Frontends (address, port, protocol) that fit into the maps of this node [default: 131072].
    #[arg(long, env = "WEFT_SERVICE_FRONTENDS_MAX", value_name = "NUMBER", global = true)]
    pub service_frontends_max: Option<u32>,
    /// Backends (address, port, protocol) that fit into the maps of this node [default: 131072].
    #[arg(long, env = "WEFT_SERVICE_BACKENDS_MAX", value_name = "NUMBER", global = true)]
    pub service_backends_max: Option<u32>,
    /// Places that frontends choose their backends from; a service that hashes needs about a hundred for each of
    /// its backends [default: 1048576].
    #[arg(long, env = "WEFT_SERVICE_SLOTS_MAX", value_name = "NUMBER", global = true)]
    pub service_slots_max: Option<u32>,
    /// Connections through services that are remembered, by their client's socket and by packets each; the oldest
    /// go first [default: by memory; 262144 for 8 GiB].
    #[arg(long, env = "WEFT_SERVICE_CONNECTIONS_MAX", value_name = "NUMBER", global = true)]
    pub service_connections_max: Option<u32>,
    /// Destinations outside the pod and service CIDRs that pods reach with their own address, comma-separated.
    #[arg(long, env = "WEFT_NO_MASQUERADE_CIDRS", value_delimiter = ',', value_name = "CIDR", global = true)]
    pub no_masquerade_cidrs: Option<Vec<ipnet::IpNet>>,
    /// Where metrics, /healthz and /readyz are served [default: 127.0.0.1:9157].
    #[arg(long, env = "WEFT_METRICS_LISTEN", value_name = "IP:PORT", global = true)]
    pub metrics_listen: Option<SocketAddr>,
    /// This node's DNS addresses for its pods, one of each family, comma-separated [default: 169.254.53.53,
    /// and fd00:53::53 with an IPv6 pod CIDR].
    #[arg(long, env = "WEFT_DNS_ADDRESS", value_delimiter = ',', value_name = "IP", global = true)]
    #[serde(default, deserialize_with = "one_or_many")]
    pub dns_address: Option<Vec<IpAddr>>,
    /// DNS servers for names outside the zone, comma-separated `IP[:PORT]`, or `IP[:PORT]#NAME` over TLS with NAME
    /// in the certificate; three at most [default: those of /etc/resolv.conf].
    #[arg(
        long,
        env = "WEFT_DNS_UPSTREAMS",
        value_delimiter = ',',
        value_name = "IP[:PORT][#NAME]",
        global = true
    )]
    pub dns_upstreams: Option<Vec<String>>,
    /// Zones with DNS servers of their own, comma-separated `ZONE=IP[:PORT][#NAME]`; a zone may come up to three
    /// times [default: none].
    #[arg(long, env = "WEFT_DNS_STUBS", value_delimiter = ',', value_name = "ZONE=IP", global = true)]
    pub dns_stubs: Option<Vec<String>>,
    /// Certificates of those who vouch for DNS servers over TLS (PEM) [default:
    /// /etc/ssl/certs/ca-certificates.crt].
    #[arg(long, env = "WEFT_DNS_UPSTREAM_CA", value_name = "FILE", global = true)]
    pub dns_upstream_ca: Option<PathBuf>,
    /// Networks that may ask this node's DNS beside pods and nodes, comma-separated; 0.0.0.0/0 makes it an open
    /// resolver [default: none].
    #[arg(long, env = "WEFT_DNS_CLIENTS", value_delimiter = ',', value_name = "CIDR", global = true)]
    #[serde(default, deserialize_with = "one_or_many")]
    pub dns_clients: Option<Vec<ipnet::IpNet>>,
    /// Threads that answer DNS over UDP, for each address [default: 0, one for each core, but at most 8].
    #[arg(long, env = "WEFT_DNS_WORKERS", value_name = "N", global = true)]
    pub dns_workers: Option<u32>,
    /// Room for DNS answers about names outside the zone, in MiB [default: 16].
    #[arg(long, env = "WEFT_DNS_CACHE_MIB", value_name = "MIB", global = true)]
    pub dns_cache_mib: Option<u32>,
    /// Certificate chain for DNS over TLS (PEM), served at port 853; needs --dns-tls-key.
    #[arg(long, env = "WEFT_DNS_TLS_CERT", value_name = "FILE", global = true)]
    pub dns_tls_cert: Option<PathBuf>,
    /// Key of that certificate (PEM).
    #[arg(long, env = "WEFT_DNS_TLS_KEY", value_name = "FILE", global = true)]
    pub dns_tls_key: Option<PathBuf>,
    /// DNS answers a second over UDP to each client by itself (IPv6: to its /64); past it every second question gets an
    /// empty answer with TC, which asks for TCP, the others none [default: 0, no limit].
    #[arg(long, env = "WEFT_DNS_ANSWERS_PER_SECOND", value_name = "N", global = true)]
    pub dns_answers_per_second: Option<u32>,
    /// TTL of the cluster's names in seconds, at most 3600 [default: 5].
    #[arg(long, env = "WEFT_DNS_TTL_SECS", value_name = "SECS", global = true)]
    pub dns_ttl_secs: Option<u32>,
    /// Names of pods made of their addresses (10-244-0-7.NAMESPACE.pod.ZONE): none, those of pods that are there, or
    /// any address [default: verified].
    #[arg(long, env = "WEFT_DNS_POD_NAMES", global = true)]
    pub dns_pod_names: Option<PodNamesKind>,
    /// Whether the first question of a pod's search path is answered with what one of the later ones would find
    /// [default: true].
    #[arg(long, env = "WEFT_DNS_AUTOPATH", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", global = true)]
    pub dns_autopath: Option<bool>,
    /// Further zones that are answered here and nowhere else, from records of one's own and SkyDNS', comma-separated
    /// [default: none].
    #[arg(long, env = "WEFT_DNS_ZONES", value_delimiter = ',', value_name = "ZONE", global = true)]
    pub dns_zones: Option<Vec<String>>,
    /// Where SkyDNS records lie in etcd, as external-dns and CoreDNS write them; `none` for not reading any
    /// [default: /skydns with etcd].
    #[arg(long, env = "WEFT_DNS_SKYDNS_PREFIX", value_name = "PREFIX", global = true)]
    pub dns_skydns_prefix: Option<String>,
    /// DNS records of one's own; in the file only.
    #[arg(skip)]
    pub dns_records: Option<Vec<RecordSpec>>,
    /// Names that stand for others, by who asks; in the file only.
    #[arg(skip)]
    pub dns_links: Option<Vec<LinkSpec>>,
    /// Names that stand for others; in the file only.
    #[arg(skip)]
    pub dns_rewrites: Option<Vec<RewriteSpec>>,
    /// `[dns.external]`: a zone of others that names of services are published in; in the file only.
    #[arg(skip)]
    pub dns: Option<DnsTable>,
    /// Log one DNS question of so many [default: 0, none].
    #[arg(long, env = "WEFT_DNS_QUERY_LOG_EVERY", value_name = "N", global = true)]
    pub dns_query_log_every: Option<u32>,
    /// How per-packet programs attach; tcx needs Linux 6.6 [default: auto].
    #[arg(long, env = "WEFT_DATAPATH_ATTACH", global = true)]
    pub datapath_attach: Option<AttachKind>,
    /// Whether the kernel is asked for short grace periods (/sys/kernel/rcu_expedited) while a program is
    /// attached or a pod's link removed: ADD and DEL are faster, at the price of an interrupt on each CPU
    /// [default: auto].
    #[arg(long, env = "WEFT_DATAPATH_EXPEDITE", global = true)]
    pub datapath_expedite: Option<ExpediteKind>,
    /// How long a freed address rests before reuse, in seconds [default: 30].
    #[arg(long, env = "WEFT_COOL_DOWN_SECS", value_name = "SECS", global = true)]
    pub cool_down_secs: Option<u64>,
    /// How long a pod may be without its link before its addresses are freed, in seconds; ten times as long
    /// where its network namespace exists or the runtime still lists it. Longer where the runtime takes its
    /// time after a reboot [default: 60].
    #[arg(long, env = "WEFT_LOST_AFTER_SECS", value_name = "SECS", global = true)]
    pub lost_after_secs: Option<u64>,
    /// Labels of this node, comma-separated; address pools may select nodes by them.
    #[arg(long, env = "WEFT_NODE_LABELS", value_delimiter = ',', value_name = "KEY=VALUE", global = true)]
    pub node_labels: Option<Vec<String>>,
    /// Where the container runtime looks for network configs: netd keeps its own there while the datapath is
    /// live; `none` writes nothing [default: none].
    #[arg(long, env = "WEFT_CNI_CONF_DIR", value_name = "DIR", global = true)]
    pub cni_conf_dir: Option<PathBuf>,
    /// CNI version of the network config that netd writes [default: 1.0.0].
    #[arg(long, env = "WEFT_CNI_CONF_VERSION", value_name = "VERSION", global = true)]
    pub cni_conf_version: Option<String>,
    /// A JSON list of plugins that follow weft-cni in the network config that netd writes.
    #[arg(long, env = "WEFT_CNI_CHAIN", value_name = "FILE", global = true)]
    pub cni_chain: Option<PathBuf>,
    /// The runtime's cache of CNI results (the folder above `results`), a witness for attachments after a
    /// reboot [default: /var/lib/cni].
    #[arg(long, env = "WEFT_CNI_CACHE_DIR", value_name = "DIR", global = true)]
    pub cni_cache_dir: Option<PathBuf>,
    /// Log lines for people or for machines [default: text].
    #[arg(long, env = "WEFT_LOG_FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
    /// error, warn, info, debug, trace, or a filter per module (tracing's EnvFilter) [default: info].
    #[arg(long, env = "WEFT_LOG_LEVEL", global = true)]
    pub log_level: Option<String>,
}

/// Overlay backends.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OverlayKind {
    /// Plain routes to nodes on the same link, WireGuard to others.
    Auto,
    /// Plain routes; all nodes on one link.
    Native,
    /// The kernel's VXLAN.
    Vxlan,
    /// WireGuard: encrypted.
    Wireguard,
}

/// Where WireGuard runs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WireguardKind {
    /// In the kernel where it can.
    Auto,
    /// In the kernel.
    Kernel,
    /// In weft-wireguard.
    User,
}

/// Who computes checksums of packets inside VXLAN.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VxlanChecksumKind {
    /// The network card where it offers that, until it is found to spoil them.
    Auto,
    /// The kernel.
    Off,
}

/// How TC programs attach.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AttachKind {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// The older way, on any kernel.
    Clsact,
    /// TCX links only.
    Tcx,
}

/// Names of pods made of their addresses.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PodNamesKind {
    /// None.
    Disabled,
    /// Any address, in any namespace that is there.
    Insecure,
    /// Those of pods that are there.
    Verified,
}

/// Whether grace periods are made short.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExpediteKind {
    /// Where the kernel lets us, and nobody else has set it.
    Auto,
    /// Never; the switch is not touched.
    Off,
}

/// Log formats.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A list, or the one value that older files have.
fn one_or_many<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(Some(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    }))
}
