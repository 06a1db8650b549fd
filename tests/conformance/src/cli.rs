// SPDX-License-Identifier: Apache-2.0
//! The command line.

use crate::version::Version;
use clap::{Parser, Subcommand};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Plays a container runtime to a CNI plugin and prints which sentences of CNI 1.1 it keeps.
///
/// Exit codes: 0 no row failed, 1 some did, 2 the run could not be made, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "weft-conformance", version, subcommand_negates_reqs = true)]
pub(crate) struct Cli {
    /// The plugin's executable.
    #[arg(long, required = true)]
    pub(crate) plugin: Option<PathBuf>,
    /// Its network config, JSON: one plugin, or a list that has it.
    #[arg(long, required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Names of all network namespaces that the runner makes begin with this.
    #[arg(long, default_value = "cniconf")]
    pub(crate) netns_prefix: String,
    /// Where the plugin runs: `create` for a network namespace of its own, `current` for the caller's, or a name.
    #[arg(long, default_value = "create", conflicts_with = "exec_prefix")]
    pub(crate) host_netns: String,
    /// A command that runs what is appended to it where the plugin shall run, such as `nsenter --net=/run/netns/NODE`.
    #[arg(long)]
    pub(crate) exec_prefix: Option<String>,
    /// CNI_PATH; the plugin's folder when absent.
    #[arg(long)]
    pub(crate) cni_path: Option<String>,
    /// Versions to go through; all of 0.3.0 to 1.1.0 when absent.
    #[arg(long, value_delimiter = ',')]
    pub(crate) versions: Vec<Version>,
    /// Capabilities to ask for; those that the config declares when absent.
    #[arg(long, value_delimiter = ',')]
    pub(crate) capabilities: Option<Vec<String>>,
    /// KEY=JSON for the config that makes ADD impossible, such as the socket of a daemon that does not run. May be repeated.
    #[arg(long, value_parser = key_value)]
    pub(crate) broken: Vec<(String, Value)>,
    /// Seconds that the plugin may keep a freed address or port before it gives it again.
    #[arg(long, default_value_t = 60)]
    pub(crate) reuse_wait: u64,
    /// Only rows whose name begins with this, such as `add` or `del.twice`. May be repeated.
    #[arg(long)]
    pub(crate) only: Vec<String>,
    /// Print one JSON object at the end instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What the runner starts of itself where the plugin runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One end of a conversation, on the plugin's side of it.
    #[command(hide = true)]
    Talk {
        /// tcp, udp, push or pull.
        how: String,
        /// The other end.
        to: SocketAddr,
    },
}

fn key_value(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("not of the form KEY=JSON")?;
    // A bare word is a string: quoting for the shell and for JSON at once is no fun.
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.to_owned(), value))
}
