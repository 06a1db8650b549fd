// SPDX-License-Identifier: Apache-2.0
//! `weft dns`: what the node's DNS answers, and what another server does.

mod ask;
mod compare;
mod query;

use netd_api::Client;

use crate::args::DnsVerb;
use crate::output::Shown;

pub(super) async fn run(client: &Client, verb: &DnsVerb) -> anyhow::Result<Shown> {
    match verb {
        DnsVerb::Compare(args) => compare::compare(client, args).await,
        DnsVerb::Query(args) => query::query(client, args).await,
    }
}
