// SPDX-License-Identifier: Apache-2.0
//! The store of a lab: a real etcd in namespaces of its own.

use crate::interrupt::wait_until;
use crate::members::EtcdMember;
use crate::patience::patient;
use crate::place::{Place, in_netns};
use crate::process::{self, Process, log_tail};
use crate::state::{self, State};
use crate::{cgroup, names};
use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// etcd needs about half a second here; more means something is wrong.
const READY_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// The client URLs of a lab's store.
pub(crate) fn urls(state: &State) -> Vec<String> {
    state.etcd.iter().map(|member| client_url(member.ip)).collect()
}

/// Starts every member that does not run and waits until all answer.
pub(crate) fn start(lab: &str) -> Result<()> {
    let before = State::read(lab)?;
    for member in &before.etcd {
        if !member.process.is_some_and(|process| process.alive()) {
            let process = start_member(&before, member)?;
            state::edit(lab, |state| {
                let found = state.etcd.iter_mut().find(|other| other.name == member.name);
                if let Some(found) = found {
                    found.process = Some(process);
                }
                Ok(())
            })?;
        }
    }
    let started = State::read(lab)?;
    for member in &started.etcd {
        let ready = wait_until(READY_LIMIT, || {
            if !member.process.is_some_and(|process| process.alive()) {
                bail!("{} ended:\n{}", member.name, log_tail(&log(lab, &member.name), 10));
            }
            Ok(healthy(lab, member))
        })?;
        if !ready {
            bail!(
                "{}: not ready in {READY_LIMIT:?}:\n{}",
                member.name,
                log_tail(&log(lab, &member.name), 10)
            );
        }
    }
    Ok(())
}

/// Stops every member, as an operator would (SIGTERM, then SIGKILL).
pub(crate) fn stop(lab: &str) -> Result<()> {
    let processes = state::edit(lab, |state| {
        Ok(state.etcd.iter_mut().filter_map(|member| member.process.take()).collect::<Vec<Process>>())
    })?;
    for process in &processes {
        process.signal(Signal::SIGTERM);
    }
    for process in &processes {
        if !process.wait_gone(STOP_LIMIT) {
            process.signal(Signal::SIGKILL);
            process.wait_gone(STOP_LIMIT);
        }
    }
    Ok(())
}

fn start_member(state: &State, member: &EtcdMember) -> Result<Process> {
    let lab = &state.name;
    let cluster: Vec<_> =
        state.etcd.iter().map(|member| format!("{}={}", member.name, peer_url(member.ip))).collect();
    let cgroup = cgroup::lab(lab)?.join(&member.name);
    cgroup::create(&cgroup)?;
    let mut argv: Vec<OsString> = vec!["etcd".into()];
    let mut flag = |name: &str, value: String| argv.extend([name.into(), value.into()]);
    flag("--name", member.name.clone());
    flag("--data-dir", names::lab_dir(lab).join(&member.name).display().to_string());
    flag("--listen-client-urls", client_url(member.ip));
    flag("--advertise-client-urls", client_url(member.ip));
    flag("--listen-peer-urls", peer_url(member.ip));
    flag("--initial-advertise-peer-urls", peer_url(member.ip));
    flag("--initial-cluster", cluster.join(","));
    flag("--initial-cluster-token", format!("weft-lab-{lab}"));
    let place =
        Place { netns: Some(names::netns(lab, &member.name)), cgroup: Some(cgroup), ..Place::default() };
    process::start(&place, &argv, &log(lab, &member.name))
}

fn healthy(lab: &str, member: &EtcdMember) -> bool {
    let ask = || {
        let address = SocketAddr::from((member.ip, 2379));
        let mut stream = TcpStream::connect_timeout(&address, patient(ANSWER_LIMIT))?;
        stream.set_read_timeout(Some(patient(ANSWER_LIMIT)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.contains("\"true\""))
    };
    in_netns(&names::netns(lab, &member.name), ask).unwrap_or(false)
}

fn log(lab: &str, member: &str) -> PathBuf {
    names::lab_dir(lab).join(format!("{member}.log"))
}

fn client_url(ip: Ipv4Addr) -> String {
    format!("http://{ip}:2379")
}

fn peer_url(ip: Ipv4Addr) -> String {
    format!("http://{ip}:2380")
}
