// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

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
    /// Whether this node is ready, and if not, why
    Status,
    /// The cluster's nodes
    #[command(subcommand)]
    Node(NodeVerb),
    /// The cluster's pods
    #[command(subcommand)]
    Pod(PodVerb),
    /// Services and their backends
    #[command(subcommand)]
    Service(ServiceVerb),
    /// Create or change the objects in a file (YAML, several documents, or JSON)
    Apply(FileArgs),
    /// Delete the objects in a file, or one object by its name
    Delete(DeleteArgs),
    /// Address pools, blocks and their use
    #[command(subcommand)]
    Ipam(IpamVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes
    #[command(visible_alias = "list")]
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PodVerb {
    /// List the pods of all nodes
    #[command(visible_alias = "list")]
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// List the services
    #[command(visible_alias = "list")]
    Ls,
    /// One service with its backends
    Get {
        /// NAMESPACE/NAME; a name alone means the namespace `default`
        #[arg(value_name = "NS/NAME")]
        name: ObjectName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum IpamVerb {
    /// Pools and blocks with their use
    Show,
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

/// A namespaced name as typed: `NS/NAME` or `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The namespace of an object that names none.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

impl std::str::FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err("expected NAMESPACE/NAME or NAME".to_owned());
        }
        Ok(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
    }
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
    fn a_name_without_namespace_is_in_default() {
        let name: ObjectName = "web".parse().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("default", "web"));
        let name: ObjectName = "shop/web".parse().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("shop", "web"));
        for wrong in ["", "/web", "shop/", "a/b/c"] {
            assert!(wrong.parse::<ObjectName>().is_err(), "{wrong}");
        }
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
}
