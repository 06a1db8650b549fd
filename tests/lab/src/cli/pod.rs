// SPDX-License-Identifier: Apache-2.0
//! The command line of `weft-lab pod`.

use super::values;
use crate::pod::{Bandwidth, NETWORK, PodSpec, PortMapping};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::Value;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

/// Pods.
#[derive(Debug, Subcommand)]
pub(crate) enum PodVerb {
    /// Add a pod and print the CNI result
    Add(Box<PodAddArgs>),
    /// Remove a pod
    Rm {
        /// The node it runs on
        node: String,
        /// Its name
        pod: String,
        /// Only this interface
        #[arg(long, hide = true)]
        ifname: Option<String>,
    },
    /// Compare a pod with what ADD answered: CNI CHECK
    Check {
        /// The node it runs on
        node: String,
        /// Its name
        pod: String,
    },
    /// Give up what no pod of this lab has: CNI GC
    Gc {
        /// The node
        node: String,
        /// As if this pod were not there; may be repeated
        #[arg(long, hide = true, value_name = "POD")]
        without: Vec<String>,
    },
}

/// What pod to add.
#[derive(Debug, clap::Args)]
pub(crate) struct PodAddArgs {
    /// The node it runs on
    node: String,
    /// Its name
    pod: String,
    /// Its Kubernetes namespace
    #[arg(long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// A label; may be repeated
    #[arg(long = "label", value_parser = values::label, value_name = "K=V")]
    labels: Vec<(String, String)>,
    /// A port of the node that leads to the pod; may be repeated
    #[arg(long = "port", value_parser = values::port, value_name = "HOST:CONTAINER[/udp]")]
    ports: Vec<PortMapping>,
    /// The address it asks for; once for each family
    #[arg(long = "ip", value_name = "IP")]
    ips: Vec<IpAddr>,
    /// The interface; where the pod is there already, it gets this one in addition
    #[arg(long, hide = true, default_value = crate::names::POD_IF)]
    ifname: String,
    /// The network
    #[arg(long, hide = true, default_value = NETWORK)]
    network: String,
    /// The MAC it asks for
    #[arg(long, hide = true)]
    mac: Option<String>,
    /// Limits of its traffic in bits per second
    #[arg(long, hide = true, value_parser = values::bandwidth, value_name = "INGRESS/EGRESS")]
    bandwidth: Option<Bandwidth>,
    /// A further name; may be repeated
    #[arg(long = "alias", hide = true)]
    aliases: Vec<String>,
    /// The name whose addresses it gets
    #[arg(long, hide = true, value_name = "NAME|pod|mac")]
    sticky: Option<String>,
    /// The CNI version of the configuration
    #[arg(long, hide = true)]
    cni_version: Option<String>,
    /// What an earlier plugin of the chain answered
    #[arg(long, hide = true, value_name = "FILE")]
    prev_result: Option<PathBuf>,
    /// JSON to lay over the network configuration
    #[arg(long, hide = true, value_parser = values::json, value_name = "JSON")]
    extra: Option<Value>,
    /// Its processes run outside of the node's control group, as those of a virtual machine do
    #[arg(long)]
    outside_cgroup: bool,
    /// Only the namespace, no ADD
    #[arg(long, hide = true)]
    pub(crate) bare: bool,
}

impl PodAddArgs {
    /// What was asked for. Errors: the file with the earlier result cannot be read.
    pub(crate) fn spec(self) -> Result<PodSpec> {
        let plain = PodSpec::new(&self.node, &self.pod);
        let prev_result = self.prev_result.map(|file| {
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            serde_json::from_str(&text).with_context(|| format!("{}: no JSON", file.display()))
        });
        Ok(PodSpec {
            namespace: self.namespace,
            labels: self.labels.into_iter().collect(),
            ports: self.ports,
            ips: self.ips,
            ifname: self.ifname,
            network: self.network,
            mac: self.mac,
            bandwidth: self.bandwidth,
            aliases: self.aliases,
            sticky: self.sticky,
            cni_version: self.cni_version.unwrap_or(plain.cni_version),
            prev_result: prev_result.transpose()?,
            extra: self.extra.unwrap_or_default(),
            outside_cgroup: self.outside_cgroup,
            name: plain.name,
            node: plain.node,
        })
    }
}
