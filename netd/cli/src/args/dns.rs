// SPDX-License-Identifier: Apache-2.0
//! `weft dns …` on the command line.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use clap::{Args as ClapArgs, Subcommand};

use super::ObjectName;

/// The port of DNS.
const PORT: u16 = 53;

#[derive(Debug, Subcommand)]
pub(crate) enum DnsVerb {
    /// What this node's DNS answers, and why: which Service, which view, which endpoints are left out
    Query(DnsQueryArgs),
    /// Ask this node and another server (such as the CoreDNS that is to be replaced) for every name of the cluster, and show
    /// where they differ; exit code 1 where they do
    ///
    /// Order and TTL do not matter. Names with weft.dev/dns-views are not asked for, nor names of pods made of addresses.
    Compare(DnsCompareArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DnsQueryArgs {
    /// The name; with --as it goes through the pod's search path unless it ends with a dot
    pub(crate) name: String,
    /// A, AAAA, SRV, PTR, TXT, … or a number as TYPE65
    #[arg(value_name = "TYPE", default_value = "A")]
    pub(crate) record_type: String,
    /// The pod that asks: NAMESPACE/NAME; a name alone means the namespace `default`
    #[arg(long = "as", value_name = "NS/POD")]
    pub(crate) client: Option<ObjectName>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DnsCompareArgs {
    /// The other server
    #[arg(value_name = "IP[:PORT]", value_parser = server)]
    pub(crate) server: SocketAddr,
    /// Questions a second to each of the two at most
    #[arg(long, value_name = "N", default_value = "500", value_parser = rate)]
    pub(crate) rate: NonZeroU32,
}

fn server(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)));
    address.map_err(|_| "expected an address, or an address with a port".to_owned())
}

/// More would be a load test of the other server.
fn rate(text: &str) -> Result<NonZeroU32, String> {
    let rate: NonZeroU32 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if rate.get() > 10_000 { Err("10000 at most".to_owned()) } else { Ok(rate) }
}
