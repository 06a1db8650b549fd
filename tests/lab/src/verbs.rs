// SPDX-License-Identifier: Apache-2.0
//! Each verb of the command line, done.

use crate::cli::{Args, EtcdVerb, NodeVerb, PodVerb, ProbeArgs, RushArgs, TalkArgs, UpArgs, Verb};
use crate::families::StoreKind;
use crate::patience::patient;
use crate::place::{Failure, Place};
use crate::run::sibling;
use crate::say::{complain, say};
use crate::show::Show;
use crate::state::{self, State};
use crate::up::{UpOptions, up};
use crate::usage::usage;
use crate::workers::probe::{ProbeOptions, probe};
use crate::workers::rush::{RushOptions, rush};
use crate::workers::talk::{TalkOptions, talk};
use crate::workers::{outside, query, serve, stream};
use crate::{apply, demo, etcd, faults, interrupt, names, node, pod, target, teardown, tunnel};
use anyhow::Result;
use std::ffi::OsString;
use std::process::ExitCode;

const DEFAULT_LAB: &str = "weft";

/// Does what the command line says.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let lab = args.name.as_deref().unwrap_or(DEFAULT_LAB);
    names::check_lab(lab)?;
    match args.verb {
        Verb::Up(up) => up_verb(lab, &up)?,
        Verb::Show { json } => show(lab, json)?,
        Verb::Pod(verb) => pod_verb(lab, verb)?,
        Verb::Exec { target, command } => return exec(lab, &target, &command),
        Verb::Node(verb) => return node_verb(lab, verb),
        Verb::Etcd(verb) => etcd_verb(lab, &verb)?,
        Verb::Apply { file, timeout, no_wait } => {
            let reply = apply::apply(lab, &file, (!no_wait).then_some(timeout))?;
            for result in &reply.results {
                let address = result.cluster_ip.map(|ip| format!(" at {ip}")).unwrap_or_default();
                say(format!("{} {}{address}", result.object, result.action));
                result
                    .ignored
                    .iter()
                    .for_each(|field| complain(format!("{}: ignored: {field}", result.object)));
            }
        }
        Verb::Weft { node, args } => return weft(lab, &node, args),
        Verb::Down => teardown::down(lab).map(drop)?,
        Verb::Demo(options) => return demo::run(args.name.as_deref(), &options),
        Verb::Enter { netns, cgroup, resolv_conf, wireguard_dir, setsid, command } => {
            if setsid {
                // Fails only for a process group's leader, which then has what it wants already.
                let _ = nix::unistd::setsid();
            }
            return Ok(failed(&Place { netns, cgroup, resolv_conf, wireguard_dir }.exec(&command)));
        }
        Verb::Serve { tcp, udp, server } => serve::serve(&server, &tcp, &udp)?,
        Verb::Probe(args) => say(serde_json::to_string(&probe(&args.into()))?),
        Verb::Stream { to, duration } => stream::stream(&to, duration)?,
        Verb::Talk(args) => talk(&args.into())?,
        Verb::Rush(args) => rush(&args.into())?,
        Verb::Query { question, kind, server, timeout } => {
            say(serde_json::to_string(&query::query(&question, &kind, server, patient(timeout))?)?);
        }
        Verb::ServeOutside { v6 } => outside::serve_outside(v6)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up_verb(lab: &str, args: &UpArgs) -> Result<()> {
    interrupt::install()?;
    up(&UpOptions {
        nodes: args.node_count(),
        families: args.families,
        store: args.store,
        etcd_members: args.etcd_members,
        overlay: args.overlay.as_str().into(),
        tunnel: args.tunnel,
        tunnel_args: args.tunnel_arg.clone(),
        underlay: args.underlay_families,
        underlay_mtu: args.underlay_mtu,
        nat: args.nat.clone(),
        cluster: args.cluster.clone(),
        netd_args: args.netd_arg.clone(),
        ..UpOptions::new(lab)
    })?;
    show(lab, args.json)
}

fn show(lab: &str, json: bool) -> Result<()> {
    let show = Show::from(&State::read(lab)?);
    say(if json { serde_json::to_string(&show)? } else { show.to_string().trim_end().to_owned() });
    Ok(())
}

fn pod_verb(lab: &str, verb: PodVerb) -> Result<()> {
    let _held = state::hold(lab, false)?;
    match verb {
        PodVerb::Add(args) if args.bare => pod::bare(lab, &args.spec()?).map(drop),
        PodVerb::Add(args) => {
            say(serde_json::to_string_pretty(&pod::add(lab, &args.spec()?)?.result)?);
            Ok(())
        }
        PodVerb::Rm { node, pod, ifname: Some(ifname) } => pod::remove_interface(lab, &node, &pod, &ifname),
        PodVerb::Rm { node, pod, ifname: None } => pod::remove(lab, &node, &pod),
        PodVerb::Check { node, pod } => pod::check(lab, &node, &pod),
        PodVerb::Gc { node, without } => {
            pod::gc(lab, &node, &without.iter().map(String::as_str).collect::<Vec<_>>())
        }
    }
}

fn etcd_verb(lab: &str, verb: &EtcdVerb) -> Result<()> {
    if State::read(lab)?.store == StoreKind::File {
        return Err(usage(format!("lab {lab} has no etcd: its store is a file")).into());
    }
    match verb {
        EtcdVerb::Start => etcd::start(lab),
        EtcdVerb::Stop => etcd::stop(lab),
    }
}

fn node_verb(lab: &str, verb: NodeVerb) -> Result<ExitCode> {
    let _held = state::hold(lab, false)?;
    let start = |name: &str| {
        node::start(lab, name)?;
        node::wait_ready(lab, name, node::READY_LIMIT).map(drop)
    };
    match verb {
        NodeVerb::Status { node } => return status(lab, &node),
        NodeVerb::Kill { node } => node::kill(lab, &node),
        NodeVerb::Stop { node } => node::stop(lab, &node),
        NodeVerb::Crash { node } => node::crash(lab, &node),
        NodeVerb::Start { node } => start(&node),
        NodeVerb::Restart { node } => node::stop(lab, &node).and_then(|()| start(&node)),
        NodeVerb::Partition { node, from } => faults::partition(lab, &node, &from),
        NodeVerb::Heal { node } => faults::heal(lab, &node),
        NodeVerb::Mtu { node, mtu } => faults::mtu(lab, &node, mtu),
        NodeVerb::Offloads { node, offloads } => faults::offloads(lab, &node, offloads),
        NodeVerb::Roam { node } => faults::roam(lab, &node).map(say),
        NodeVerb::TunnelKill { node } => tunnel::kill(lab, &node),
        NodeVerb::TunnelStart { node } => tunnel::start(lab, &node),
        NodeVerb::TunnelRestart { node } => tunnel::restart(lab, &node),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// The plugin's own words, on its own streams.
fn status(lab: &str, node: &str) -> Result<ExitCode> {
    let answer = pod::status(lab, node)?;
    let (said, complained) = (answer.stdout.trim(), answer.stderr.trim());
    if !said.is_empty() {
        say(said);
    }
    if !complained.is_empty() {
        complain(complained);
    }
    Ok(if answer.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn exec(lab: &str, target: &str, command: &[OsString]) -> Result<ExitCode> {
    Ok(failed(&target::place(&State::read(lab)?, target)?.exec(command)))
}

fn weft(lab: &str, node: &str, args: Vec<OsString>) -> Result<ExitCode> {
    let state = State::read(lab)?;
    let socket = state.node(node)?.socket();
    let mut command = vec![sibling("weft")?.into_os_string(), "--socket".into(), socket.into_os_string()];
    command.extend(args);
    Ok(failed(&target::place(&state, node)?.exec(&command)))
}

fn failed(failure: &Failure) -> ExitCode {
    complain(format!("weft-lab: {:#}", failure.error));
    failure.exit_code.into()
}

impl From<ProbeArgs> for ProbeOptions {
    fn from(args: ProbeArgs) -> ProbeOptions {
        ProbeOptions {
            to: args.to,
            count: args.count,
            udp: args.udp,
            connected: args.connected,
            limit: patient(args.timeout),
            interval: args.interval,
        }
    }
}

impl From<TalkArgs> for TalkOptions {
    fn from(args: TalkArgs) -> TalkOptions {
        TalkOptions {
            to: args.to,
            udp: args.udp,
            connected: args.connected,
            limit: patient(args.timeout),
            interval: args.interval,
            duration: patient(args.duration),
        }
    }
}

impl From<RushArgs> for RushOptions {
    fn from(args: RushArgs) -> RushOptions {
        RushOptions {
            to: args.to,
            udp: args.udp,
            count: args.count,
            duration: patient(args.duration),
            rate: args.rate,
            threads: args.threads,
            limit: patient(args.timeout),
            each: args.each,
        }
    }
}
