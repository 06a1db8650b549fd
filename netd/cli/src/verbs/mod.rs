// SPDX-License-Identifier: Apache-2.0
//! One file for each verb or small group of verbs. A verb asks netd and returns what is to be shown; how an answer
//! looks is a function of its own, tested without a netd.

mod config;
mod dns;
mod doctor;
mod flows;
mod ipam;
mod key;
mod label;
mod list;
mod member;
mod members_left;
mod node;
mod object;
mod service;
mod status;

use anyhow::anyhow;
use netd_api::{Client, ClientError, DEFAULT_TIMEOUT};

use crate::args::{Args, ConfigVerb, KeyVerb, NodeVerb, PodVerb, ServiceVerb, Verb};
use crate::output::Shown;

/// Carries out the command line.
pub(crate) async fn run(args: &Args) -> anyhow::Result<Shown> {
    let client = Client::new(args.socket.clone(), DEFAULT_TIMEOUT);
    match &args.verb {
        Verb::Status => status::status(&client).await,
        Verb::Doctor => doctor::doctor(&client).await,
        Verb::Node(NodeVerb::Ls) => list::nodes(&client).await,
        Verb::Node(NodeVerb::Rm(args)) => node::remove(&client, args).await,
        Verb::Pod(PodVerb::Ls { wide }) => list::pods(&client, *wide).await,
        Verb::Pod(PodVerb::Label { name, changes }) => label::label(&client, name, changes).await,
        Verb::Service(ServiceVerb::Ls) => service::ls(&client).await,
        Verb::Service(ServiceVerb::Get { name }) => service::get(&client, name).await,
        Verb::Flows { service } => flows::flows(&client, service.as_ref()).await,
        Verb::Dns(verb) => dns::run(&client, verb).await,
        Verb::Apply(from) => object::apply(&client, &from.file).await,
        Verb::Delete(what) => object::delete(&client, what).await,
        Verb::Ipam(verb) => ipam::run(&client, verb).await,
        Verb::Config(ConfigVerb::Show) => config::show(&client).await,
        Verb::Config(ConfigVerb::Set(args)) => config::set(&client, args).await,
        Verb::Member(verb) => member::run(&client, verb).await,
        Verb::Key(KeyVerb::Rotate { wait, yes }) => key::rotate(&client, *wait, *yes).await,
    }
}

/// A failed request, with what an operator can do about it.
fn explain(error: ClientError) -> anyhow::Error {
    match &error {
        ClientError::NotRunning { .. } => anyhow!(
            "{error}\nsee `systemctl status netd`; if netd's socket is elsewhere, name it with --socket or WEFT_SOCKET"
        ),
        ClientError::Forbidden { .. } => anyhow!("{error}\nrun this command as root"),
        _ => anyhow!(error),
    }
}
