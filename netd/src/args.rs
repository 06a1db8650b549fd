// SPDX-License-Identifier: Apache-2.0
//! Flags and environment. Each option also stands in the configuration file under the same name; flags win over the
//! environment, the environment over the file, the file over the defaults (config.rs).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Deserialize;

/// Weft's node daemon.
#[derive(Debug, Parser)]
#[command(name = "netd", version = crate::status::VERSION, about, max_term_width = 110)]
pub(crate) struct Args {
    /// Configuration file (TOML). Read when it exists; must exist when given.
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
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
    /// etcd client URLs, comma-separated [default: http://127.0.0.1:2379].
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
    /// How pods of different nodes reach each other [default: vxlan].
    #[arg(long, env = "WEFT_OVERLAY", global = true)]
    pub overlay: Option<OverlayKind>,
    /// This node's address on the underlay [default: the one towards the store, else of the default route].
    #[arg(long, env = "WEFT_UNDERLAY_ADDRESS", value_name = "IP", global = true)]
    pub underlay_address: Option<IpAddr>,
    /// Pod CIDR, used when the cluster has no configuration in the store yet [default: 10.244.0.0/16].
    #[arg(long, env = "WEFT_POD_CIDR", value_name = "CIDR", global = true)]
    pub pod_cidr: Option<ipnet::IpNet>,
    /// Service CIDR, used when the cluster has no configuration in the store yet [default: 10.96.0.0/16].
    #[arg(long, env = "WEFT_SERVICE_CIDR", value_name = "CIDR", global = true)]
    pub service_cidr: Option<ipnet::IpNet>,
    /// Destinations outside the pod and service CIDRs that pods reach with their own address, comma-separated.
    #[arg(long, env = "WEFT_NO_MASQUERADE_CIDRS", value_delimiter = ',', value_name = "CIDR", global = true)]
    pub no_masquerade_cidrs: Option<Vec<ipnet::IpNet>>,
    /// Where metrics, /healthz and /readyz are served [default: 127.0.0.1:9157].
    #[arg(long, env = "WEFT_METRICS_LISTEN", value_name = "IP:PORT", global = true)]
    pub metrics_listen: Option<SocketAddr>,
    /// This node's DNS address for its pods [default: 169.254.53.53].
    #[arg(long, env = "WEFT_DNS_ADDRESS", value_name = "IP", global = true)]
    pub dns_address: Option<IpAddr>,
    /// DNS servers for names outside the zone, comma-separated `IP[:PORT]` [default: those of /etc/resolv.conf].
    #[arg(long, env = "WEFT_DNS_UPSTREAMS", value_delimiter = ',', value_name = "IP[:PORT]", global = true)]
    pub dns_upstreams: Option<Vec<String>>,
    /// How per-packet programs attach; tcx needs Linux 6.6 [default: auto].
    #[arg(long, env = "WEFT_DATAPATH_ATTACH", global = true)]
    pub datapath_attach: Option<AttachKind>,
    /// How long a freed address rests before reuse, in seconds [default: 30].
    #[arg(long, env = "WEFT_COOL_DOWN_SECS", value_name = "SECS", global = true)]
    pub cool_down_secs: Option<u64>,
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
    /// Plain routes; all nodes on one link.
    Native,
    /// The kernel's VXLAN.
    Vxlan,
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

/// Log formats.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
