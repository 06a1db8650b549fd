// SPDX-License-Identifier: Apache-2.0
//! The command line of weft-lab: a contract, see the folder's README.

use crate::say::complain;
use crate::usage::exit_code;
use crate::verbs;
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A Weft cluster on one machine: nodes as network namespaces, real etcd, real netd, pods through the real weft-cni.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage; of `exec` and `weft` those of the command.
#[derive(Debug, Parser)]
#[command(name = "weft-lab", version, propagate_version = true)]
pub(crate) struct Args {
    /// The lab's name (default: weft; of `demo`: demo)
    #[arg(long, global = true, value_name = "LAB")]
    pub(crate) name: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What weft-lab can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Bring a lab up; returns when all nodes are ready
    Up(UpArgs),
    /// Show what a lab consists of
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add and remove pods, as a container runtime would
    #[command(subcommand)]
    Pod(PodVerb),
    /// Run a command in a node, a pod or the outside host, in place of this process
    Exec {
        /// A node, a pod, or `outside`
        #[arg(value_name = "NODE|POD|outside")]
        target: String,
        /// The command with its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Stop, kill, start and cut off nodes
    #[command(subcommand)]
    Node(NodeVerb),
    /// Stop and start the store
    #[command(subcommand, hide = true)]
    Etcd(EtcdVerb),
    /// Apply a file; returns when every live node has programmed it
    Apply {
        /// YAML or JSON, several documents allowed
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// How long all of it may take
        #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
        timeout: Duration,
        /// Return once the objects are stored
        #[arg(long)]
        no_wait: bool,
    },
    /// Run the weft CLI against a node, in place of this process
    Weft {
        /// The node
        node: String,
        /// Arguments of weft
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Take a lab down, whatever state it is in
    Down,
    /// Prove each promise with real traffic in a lab of its own
    Demo {
        /// Leave the lab running when a promise is not kept
        #[arg(long)]
        keep: bool,
    },
    /// Become a command in a namespace, control group and mount namespace
    #[command(hide = true)]
    Enter {
        #[arg(long)]
        netns: Option<String>,
        #[arg(long)]
        cgroup: Option<PathBuf>,
        #[arg(long)]
        resolv_conf: Option<PathBuf>,
        /// In a session of its own
        #[arg(long)]
        setsid: bool,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// A backend for tests: says its name and what it sees
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        tcp: Vec<u16>,
        #[arg(long)]
        udp: Vec<u16>,
        #[arg(long = "as", visible_alias = "server-name")]
        server: String,
    },
    /// A client for tests: connects again and again, prints counts as JSON
    #[command(hide = true)]
    Probe(ProbeArgs),
    /// One long transfer against a backend, with a line of progress now and then
    #[command(hide = true)]
    Stream {
        #[arg(long)]
        to: String,
        #[arg(long = "for", default_value = "10s", value_parser = parse_duration)]
        duration: Duration,
    },
    /// One DNS question, the answer as JSON
    #[command(hide = true)]
    Query {
        question: String,
        #[arg(default_value = "A")]
        kind: String,
        #[arg(long)]
        server: Option<SocketAddr>,
        #[arg(long, default_value = "3s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// The outside host's servers
    #[command(hide = true)]
    ServeOutside,
}

/// What lab to bring up.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    pub(crate) nodes: u16,
    /// How packets travel between nodes
    #[arg(long, value_enum, default_value_t = Overlay::Vxlan)]
    pub(crate) overlay: Overlay,
    /// Address families of pods and services
    #[arg(long, value_enum, default_value_t = Families::V4)]
    pub(crate) families: Families,
    /// Where the cluster's state lies
    #[arg(long, value_enum, default_value_t = Store::Etcd)]
    pub(crate) store: Store,
    /// How many etcd members: 1 or 3
    #[arg(long, default_value_t = 1, value_parser = parse_members)]
    pub(crate) etcd_members: u16,
    /// Print what `show --json` prints
    #[arg(long)]
    pub(crate) json: bool,
    /// Another cluster name than the lab's
    #[arg(long, hide = true)]
    pub(crate) cluster: Option<String>,
    /// One more argument for every netd
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) netd_arg: Vec<String>,
}

/// How packets travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Overlay {
    /// Plain routes on one L2
    Native,
    /// Kernel VXLAN
    Vxlan,
    /// WireGuard
    Wireguard,
}

/// Address families of pods and services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Families {
    /// Both
    Dual,
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Where the cluster's state lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    /// A real etcd
    Etcd,
    /// A file on each node
    File,
}

/// Pods.
#[derive(Debug, Subcommand)]
pub(crate) enum PodVerb {
    /// Add a pod and print the CNI result
    Add {
        /// The node it runs on
        node: String,
        /// Its name
        pod: String,
        /// Its Kubernetes namespace
        #[arg(long, default_value = "default", value_name = "NS")]
        namespace: String,
        /// A label; may be repeated
        #[arg(long = "label", value_parser = parse_label, value_name = "K=V")]
        labels: Vec<(String, String)>,
        /// A port of the node that leads to the pod; may be repeated
        #[arg(long = "port", value_parser = parse_port, value_name = "HOST:CONTAINER[/udp]")]
        ports: Vec<crate::pod::PortMapping>,
        /// The address it asks for
        #[arg(long)]
        ip: Option<IpAddr>,
    },
    /// Remove a pod
    Rm {
        /// The node it runs on
        node: String,
        /// Its name
        pod: String,
    },
}

/// Nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// SIGKILL to the node's netd only
    Kill {
        /// The node
        node: String,
    },
    /// SIGTERM to the node's netd
    Stop {
        /// The node
        node: String,
    },
    /// End every process of the node and its pods
    Crash {
        /// The node
        node: String,
    },
    /// Start the node's netd and wait until it is ready
    Start {
        /// The node
        node: String,
    },
    /// Stop and start the node's netd
    Restart {
        /// The node
        node: String,
    },
    /// Cut the node off
    Partition {
        /// The node
        node: String,
        /// `all`, `store`, or another node
        #[arg(long, default_value = "all", value_name = "all|store|NODE2")]
        from: String,
    },
    /// Join the node to everything again
    Heal {
        /// The node
        node: String,
    },
    /// Change the MTU of the wire to the node
    Mtu {
        /// The node
        node: String,
        /// Bytes
        mtu: u32,
    },
}

/// The store.
#[derive(Debug, Subcommand)]
pub(crate) enum EtcdVerb {
    /// Stop every member
    Stop,
    /// Start every member
    Start,
}

/// What to probe.
#[derive(Debug, clap::Args)]
pub(crate) struct ProbeArgs {
    #[arg(long)]
    pub(crate) to: String,
    #[arg(long, default_value_t = 1)]
    pub(crate) count: u32,
    #[arg(long)]
    pub(crate) udp: bool,
    #[arg(long, requires = "udp")]
    pub(crate) connected: bool,
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    pub(crate) interval: Duration,
}

/// Reads the command line and does what it says; the exit code.
pub fn run() -> ExitCode {
    // clap itself exits with 2 on wrong usage.
    match verbs::run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            complain(format!("weft-lab: {error:#}"));
            exit_code(&error).into()
        }
    }
}

/// `60s`, `500ms`, `2m`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "use a number with ms, s or m, such as 60s".to_owned())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        unit => Err(format!("unknown unit {unit:?}: use ms, s or m")),
    }
}

fn parse_members(text: &str) -> Result<u16, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("use 1 or 3".into()),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("use KEY=VALUE".into()),
    }
}

fn parse_port(text: &str) -> Result<crate::pod::PortMapping, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    match (ports.split_once(':').map(|(host, container)| (port(host), port(container))), protocol) {
        (Some((Some(host), Some(container))), "tcp" | "udp") => {
            Ok(crate::pod::PortMapping { host, container, protocol: protocol.into() })
        }
        _ => Err("use HOST:CONTAINER or HOST:CONTAINER/udp".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_lab_name_goes_anywhere_before_the_dashes() {
        for line in [
            "weft-lab --name x exec n1 -- ls --name y",
            "weft-lab exec --name x n1 -- ls --name y",
            "weft-lab exec n1 --name x -- ls --name y",
        ] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(args.name.as_deref(), Some("x"), "{line}");
            assert!(matches!(args.verb, Verb::Exec { command, .. } if command == ["ls", "--name", "y"]));
        }
        let args = Args::try_parse_from("weft-lab pod add n1 p --label a=b --name x".split(' ')).unwrap();
        assert_eq!(args.name.as_deref(), Some("x"));
    }

    #[test]
    fn durations_labels_and_ports_are_read_as_people_write_them() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("soon").is_err() && parse_duration("5h").is_err());
        assert_eq!(parse_label("app=web"), Ok(("app".into(), "web".into())));
        assert!(parse_label("=web").is_err() && parse_label("app").is_err());
        let port = parse_port("8080:80/udp").unwrap();
        assert_eq!((port.host, port.container, port.protocol.as_str()), (8080, 80, "udp"));
        assert!(parse_port("80").is_err() && parse_port("0:80").is_err() && parse_port("1:2/sctp").is_err());
    }
}
