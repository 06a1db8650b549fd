// SPDX-License-Identifier: Apache-2.0
//! The command line of weft-lab: a contract, see the folder's README.

mod node;
mod pod;
mod values;

use crate::families::{Families, StoreKind};
use crate::overlay::{DEFAULT_OVERLAY, Overlay};
use crate::say::complain;
use crate::usage::exit_code;
use crate::verbs;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

pub(crate) use node::NodeVerb;
pub(crate) use pod::PodVerb;

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
    /// Add, check and remove pods, as a container runtime would
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
        #[arg(long, default_value = "60s", value_parser = values::duration, value_name = "TIME")]
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
    Demo(DemoArgs),
    /// Become a command in a namespace, control group and mount namespace
    #[command(hide = true)]
    Enter {
        #[arg(long)]
        netns: Option<String>,
        #[arg(long)]
        cgroup: Option<PathBuf>,
        #[arg(long)]
        resolv_conf: Option<PathBuf>,
        #[arg(long)]
        wireguard_dir: Option<PathBuf>,
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
        #[arg(long = "for", default_value = "10s", value_parser = values::duration)]
        duration: Duration,
    },
    /// One socket that asks again and again, a line of JSON for each answer
    #[command(hide = true)]
    Talk(TalkArgs),
    /// Many short connections, counted by who answered
    #[command(hide = true)]
    Rush(RushArgs),
    /// One DNS question, the answer as JSON
    #[command(hide = true)]
    Query {
        question: String,
        #[arg(default_value = "A")]
        kind: String,
        #[arg(long)]
        server: Option<SocketAddr>,
        #[arg(long, default_value = "3s", value_parser = values::duration)]
        timeout: Duration,
    },
    /// The outside host's servers
    #[command(hide = true)]
    ServeOutside {
        /// Names have an IPv6 address, too
        #[arg(long)]
        v6: bool,
    },
}

/// What lab to bring up.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// How many nodes [default: 3; with `--store file` 1]
    #[arg(long)]
    pub(crate) nodes: Option<u16>,
    /// How packets travel between nodes
    #[arg(long, value_enum, default_value_t = DEFAULT_OVERLAY)]
    pub(crate) overlay: Overlay,
    /// Run a weft-wireguard in each node also where the overlay needs none
    #[arg(long)]
    pub(crate) tunnel: bool,
    /// Address families of pods and services
    #[arg(long, value_enum, default_value_t)]
    pub(crate) families: Families,
    /// Address families of the underlay; with v6 nodes talk to each other over IPv6 (IPv4 is always there, for etcd)
    #[arg(long, value_enum, default_value_t)]
    pub(crate) underlay_families: Families,
    /// MTU of the underlay, in bytes [default: 1500]
    #[arg(long, value_name = "MTU")]
    pub(crate) underlay_mtu: Option<u32>,
    /// A node behind a router that does NAT; may be repeated
    #[arg(long, value_name = "NODE")]
    pub(crate) nat: Vec<String>,
    /// Where the cluster's state lies
    #[arg(long, value_enum, default_value_t)]
    pub(crate) store: StoreKind,
    /// How many etcd members: 1 or 3
    #[arg(long, default_value_t = 1, value_parser = values::members)]
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
    /// One more argument for every weft-wireguard
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) tunnel_arg: Vec<String>,
}

impl UpArgs {
    /// How many nodes were asked for.
    pub(crate) fn node_count(&self) -> u16 {
        self.nodes.unwrap_or_else(|| default_nodes(self.store))
    }
}

/// What demo to play.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// How many nodes: 1 or 3 [default: 3; with `--store file` 1]
    #[arg(long, value_parser = values::members)]
    pub(crate) nodes: Option<u16>,
    /// Where the cluster's state lies
    #[arg(long, value_enum, default_value_t)]
    pub(crate) store: StoreKind,
    /// How packets travel between nodes
    #[arg(long, value_enum, default_value_t = DEFAULT_OVERLAY)]
    pub(crate) overlay: Overlay,
    /// Leave the lab running when a promise is not kept
    #[arg(long)]
    pub(crate) keep: bool,
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
    #[arg(long, default_value = "2s", value_parser = values::duration)]
    pub(crate) timeout: Duration,
    #[arg(long, default_value = "0ms", value_parser = values::duration)]
    pub(crate) interval: Duration,
}

/// How to talk.
#[derive(Debug, clap::Args)]
pub(crate) struct TalkArgs {
    #[arg(long)]
    pub(crate) to: String,
    #[arg(long)]
    pub(crate) udp: bool,
    #[arg(long, requires = "udp")]
    pub(crate) connected: bool,
    #[arg(long, default_value = "1s", value_parser = values::duration)]
    pub(crate) timeout: Duration,
    #[arg(long, default_value = "20ms", value_parser = values::duration)]
    pub(crate) interval: Duration,
    #[arg(long = "for", default_value = "60s", value_parser = values::duration)]
    pub(crate) duration: Duration,
}

/// How to rush.
#[derive(Debug, clap::Args)]
pub(crate) struct RushArgs {
    #[arg(long)]
    pub(crate) to: String,
    #[arg(long)]
    pub(crate) udp: bool,
    #[arg(long, default_value_t = u64::MAX)]
    pub(crate) count: u64,
    #[arg(long = "for", default_value = "60s", value_parser = values::duration)]
    pub(crate) duration: Duration,
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u64,
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: u64,
    #[arg(long, default_value = "2s", value_parser = values::duration)]
    pub(crate) timeout: Duration,
    #[arg(long)]
    pub(crate) each: bool,
}

/// A file holds the state of one host.
pub(crate) fn default_nodes(store: StoreKind) -> u16 {
    if store == StoreKind::File { 1 } else { 3 }
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
    fn the_underlay_has_ipv4_unless_told_otherwise() {
        let up = |line: &str| match Args::try_parse_from(line.split(' ')).unwrap().verb {
            Verb::Up(up) => (up.overlay, up.underlay_families, up.underlay_mtu, up.nat),
            other => panic!("{other:?}"),
        };
        assert_eq!(up("weft-lab up"), (DEFAULT_OVERLAY, Families::V4, None, Vec::new()));
        assert_eq!(
            up("weft-lab up --overlay auto --underlay-families v6 --underlay-mtu 9000 --nat n2 --nat n3"),
            (Overlay::Auto, Families::V6, Some(9000), vec!["n2".to_owned(), "n3".into()])
        );
    }

    #[test]
    fn a_file_store_has_one_node_unless_told_otherwise() {
        let up = |line: &str| match Args::try_parse_from(line.split(' ')).unwrap().verb {
            Verb::Up(up) => (up.node_count(), up.store, up.families),
            other => panic!("{other:?}"),
        };
        assert_eq!(up("weft-lab up"), (3, StoreKind::Etcd, Families::V4));
        assert_eq!(up("weft-lab up --store file --families dual"), (1, StoreKind::File, Families::Dual));
        assert_eq!(up("weft-lab up --store file --nodes 2"), (2, StoreKind::File, Families::V4));
    }
}
