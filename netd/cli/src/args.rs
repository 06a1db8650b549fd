// SPDX-License-Identifier: Apache-2.0
//! The command line.

mod dns;
mod ipam;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};

pub(crate) use dns::{DnsCompareArgs, DnsQueryArgs, DnsVerb};
pub(crate) use ipam::{IpamVerb, PoolAddArgs, PoolVerb, StickyVerb};
pub(crate) use values::{DEFAULT_NAMESPACE, LabelChange, ObjectName, interval_text};

/// netd's socket where none is named.
pub(crate) const DEFAULT_SOCKET: &str = "/run/weft/netd.sock";

/// Look at a node's Weft network and change its services.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true)]
pub(crate) struct Args {
    /// netd's Unix socket
    #[arg(long, global = true, value_name = "PATH", env = "WEFT_SOCKET", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Whether this node is ready, and if not, why; exit code 1 where it is not
    Status,
    /// Look at everything that decides whether packets arrive; fails when something is wrong
    Doctor,
    /// The cluster's nodes; take one out for good
    #[command(subcommand)]
    Node(NodeVerb),
    /// The cluster's pods; label one
    #[command(subcommand)]
    Pod(PodVerb),
    /// Services and their backends
    #[command(subcommand)]
    Service(ServiceVerb),
    /// Connections through services that this node remembers
    Flows {
        /// Only those of this service: NAMESPACE/NAME; a name alone means the namespace `default`
        #[arg(value_name = "NS/NAME")]
        service: Option<ObjectName>,
    },
    /// What this node's DNS answers and why; how that differs from another server
    #[command(subcommand)]
    Dns(DnsVerb),
    /// Create or change the objects in a file (YAML, several documents, or JSON)
    Apply(FileArgs),
    /// Delete the objects in a file, or one object by its name
    Delete(DeleteArgs),
    /// Address pools, blocks and their use; find and mend what does not agree
    #[command(subcommand)]
    Ipam(IpamVerb),
    /// The cluster's settings, some of which change while it runs
    #[command(subcommand)]
    Config(ConfigVerb),
    /// The WireGuard keys of this node
    #[command(subcommand)]
    Key(KeyVerb),
    /// Machines outside the cluster that talk with pods through WireGuard
    #[command(subcommand)]
    Member(MemberVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Show the settings
    Show,
    /// Change settings; connections go on, one pair of nodes after the other changes over
    Set(ConfigSetArgs),
}

#[derive(Debug, ClapArgs)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("settings").required(true).multiple(true).args(["overlay", "key_rotation", "trusted_cidrs"]))]
pub(crate) struct ConfigSetArgs {
    /// How pods of different nodes reach each other
    #[arg(long, value_parser = ["wireguard", "vxlan", "native", "auto"])]
    pub(crate) overlay: Option<String>,
    /// How often every node makes a new WireGuard key, such as 7d; `off` for only when asked to
    #[arg(long, value_name = "TIME", value_parser = values::interval)]
    pub(crate) key_rotation: Option<u64>,
    /// Hosts outside the cluster that may open connections to pods, under their own addresses: the whole list,
    /// comma-separated; `none` for nobody
    #[arg(long, value_name = "CIDR,…", value_parser = values::cidrs)]
    pub(crate) trusted_cidrs: Option<values::Cidrs>,
    /// Do not ask, though members outside the cluster are cut off
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Make a new key while everything runs: the other nodes follow with theirs, and the old ones go
    Rotate {
        /// How long to wait until every peer has moved
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::duration)]
        wait: Duration,
        /// Do not ask, though members outside the cluster are cut off until each has a new configuration
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MemberVerb {
    /// Let a machine join; prints a configuration for its WireGuard client (wg-quick)
    Add {
        /// Its name
        name: String,
        /// The public key of a pair that it made itself; without, a pair is made and the private key printed once
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
        /// Where it finds a node whose own address is of no use to it, such as a router's that passes the node's ports on;
        /// PORT stands for the cluster's wireguard-port, PORT + 1 for the next. For each such node once
        #[arg(long = "endpoint", value_name = "NODE=HOST[:PORT]", value_parser = values::endpoint)]
        endpoints: Vec<(String, String)>,
        /// Write the configuration into this file (mode 600), never over one that is there
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List the members, with the last handshake of each with this node
    #[command(visible_alias = "list")]
    Ls,
    /// Print a member's configuration as of now, without its private key: after keys were rotated or nodes came and went
    Show {
        /// The member
        name: String,
        /// Write it into this file (mode 600), never over one that is there
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Let a machine go; its addresses become free
    Rm {
        /// The member
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes
    #[command(visible_alias = "list")]
    Ls,
    /// Take a node out of the cluster for good: its pods' addresses become free for others
    ///
    /// Every other node first stops sending to it, and the node itself says that it has stopped. Then its blocks are
    /// free. The command waits for that; broken off or not, what it began goes on, and nothing calls it off. A node that is
    /// alive or has pods is removed only after a question, or with --yes.
    Rm(NodeRmArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PodVerb {
    /// List the pods of all nodes
    #[command(visible_alias = "list")]
    Ls {
        /// With MAC, host ports, limits, sticky name and container of the pods of this node
        #[arg(short, long)]
        wide: bool,
    },
    /// Set and drop labels of a pod of this node; they last until the pod goes
    Label {
        /// NAMESPACE/NAME; a name alone means the namespace `default`
        #[arg(value_name = "NS/NAME")]
        name: ObjectName,
        /// KEY=VALUE sets a label, KEY- drops it
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<LabelChange>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// List the services
    #[command(visible_alias = "list")]
    Ls,
    /// One service with its backends, and where connections to it go from here
    Get {
        /// NAMESPACE/NAME; a name alone means the namespace `default`
        #[arg(value_name = "NS/NAME")]
        name: ObjectName,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NodeRmArgs {
    /// The node's name or UUID
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// The machine is off and stays off: do not wait for its own word. The other nodes' is waited for all the same
    #[arg(long)]
    pub(crate) force: bool,
    /// How long to wait until its blocks are free
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::duration)]
    pub(crate) wait: Duration,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct FileArgs {
    /// The file; `-` reads stdin
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["file", "kind"]))]
pub(crate) struct DeleteArgs {
    /// Delete what this file names; `-` reads stdin
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// `service`, `endpointslice`
    #[arg(requires = "name", value_parser = parse_kind)]
    pub(crate) kind: Option<String>,
    /// NAMESPACE/NAME; a name alone means the namespace `default`
    #[arg(value_name = "NS/NAME", requires = "kind", conflicts_with = "file")]
    pub(crate) name: Option<ObjectName>,
}

/// The kinds that can be deleted by name, with the short forms people type.
fn parse_kind(text: &str) -> Result<String, String> {
    match text.to_ascii_lowercase().as_str() {
        "service" | "services" | "svc" => Ok("Service".to_owned()),
        "endpointslice" | "endpointslices" => Ok("EndpointSlice".to_owned()),
        _ => Err("known kinds: service, endpointslice".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn delete_takes_a_file_or_a_name_but_not_both() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        assert!(parse("weft delete service shop/web").is_ok());
        assert!(parse("weft delete -f web.yaml").is_ok());
        for wrong in
            ["weft delete", "weft delete service", "weft delete pod a/b", "weft delete -f x service a/b"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn global_options_may_stand_after_the_verb() {
        let args = Args::try_parse_from("weft node ls --json --socket /tmp/s".split(' ')).unwrap();
        assert!(args.json);
        assert_eq!(args.socket, PathBuf::from("/tmp/s"));
    }
    #[test]
    fn labels_are_set_and_dropped_in_one_line() {
        let args = Args::try_parse_from("weft pod label shop/web app=web tier- --json".split(' ')).unwrap();
        let Verb::Pod(PodVerb::Label { name, changes }) = args.verb else { panic!("{:?}", args.verb) };
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("shop", "web"));
        assert_eq!(changes.len(), 2);
        assert!(args.json, "an option after the labels is an option");
        assert!(Args::try_parse_from("weft pod label shop/web".split(' ')).is_err());
    }

    #[test]
    fn a_dns_question_has_a_type_and_perhaps_a_pod() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let Verb::Dns(DnsVerb::Query(args)) = parse("weft dns query db --as shop/web").unwrap().verb else {
            panic!("no query")
        };
        assert_eq!((args.name.as_str(), args.record_type.as_str()), ("db", "A"));
        assert_eq!(args.client.map(|pod| (pod.namespace, pod.name)), Some(("shop".into(), "web".into())));
        let Verb::Dns(DnsVerb::Compare(args)) = parse("weft dns compare 10.96.0.10 --rate 20").unwrap().verb
        else {
            panic!("no comparison")
        };
        assert_eq!((args.server.to_string().as_str(), args.rate.get()), ("10.96.0.10:53", 20));
        assert!(parse("weft dns compare [fd00::a]:5353").is_ok());
        for wrong in ["weft dns compare ns.example", "weft dns compare ::1 --rate 0", "weft dns query"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_yes_alone_is_no_setting() {
        let parse = |line: &str| Args::try_parse_from(line.split(' ')).is_ok();
        assert!(parse("weft config set --overlay auto --key-rotation 7d --yes"));
        assert!(parse(
            "weft member add laptop --endpoint n1=host --endpoint n2=host:4000 --output weft0.conf"
        ));
        assert!(!parse("weft config set --yes") && !parse("weft config set"));
    }

    #[test]
    fn a_removal_waits_a_minute_unless_told_otherwise() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let wait = |line: &str| match parse(line).unwrap().verb {
            Verb::Node(NodeVerb::Rm(args)) => (args.wait.as_secs(), args.force),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("weft node rm n3"), (60, false));
        assert_eq!(wait("weft node rm n3 --force --wait 2m"), (120, true));
        assert!(parse("weft node rm").is_err());
        assert!(parse("weft node rm n3 --wait soon").is_err());
    }
}
