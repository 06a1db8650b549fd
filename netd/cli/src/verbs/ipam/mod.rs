// SPDX-License-Identifier: Apache-2.0
//! `weft ipam`.

mod change;
mod check;
mod owners;
mod show;

use netd_api::Client;

use crate::args::IpamVerb;
use crate::output::Shown;

pub(super) async fn run(client: &Client, verb: &IpamVerb) -> anyhow::Result<Shown> {
    match verb {
        IpamVerb::Show => show::show(client).await,
        IpamVerb::Check => check::check(client).await,
        IpamVerb::Repair { yes } => check::repair(client, *yes).await,
        IpamVerb::Pool(verb) => change::pool(client, verb).await,
        IpamVerb::Sticky(verb) => change::sticky(client, verb).await,
    }
}
