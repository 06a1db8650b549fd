// SPDX-License-Identifier: Apache-2.0
//! The lab as tests use it: reads like a story, cleans up on drop.

use crate::apply;
use crate::cni_command::CniCall;
use crate::maps::{self, Maps};
use crate::members::Pod;
use crate::node::{self, READY_LIMIT};
use crate::place::Place;
use crate::pod::{self, PodSpec};
use crate::process;
use crate::run::{self, Output};
use crate::running::{Capture, Running};
use crate::say::complain;
use crate::show::Show;
use crate::state::{self, State};
use crate::up::{UpOptions, up};
use crate::wires::Offloads;
use crate::witness::{Witness, witness_clear_text};
use crate::workers::probe::ProbeReport;
use crate::workers::query::QueryReport;
use crate::workers::rush::RushReport;
use crate::{etcd, faults, holder, target, teardown, tunnel};
use anyhow::{Context, Result};
use netd_api::{ApplyReply, ApplyRequest, Client, ClientError, DeleteRequest, Status};
use std::ffi::OsString;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long one command of a test may take.
const EXEC_LIMIT: Duration = Duration::from_secs(30);
/// Of a hundred thousand connections, in a debug build.
const RUSH_LIMIT: Duration = Duration::from_secs(180);
const APPLY_LIMIT: Duration = Duration::from_secs(15);

/// A running lab. One that this process brought up is taken down when the value is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    owned: bool,
}

impl Lab {
    /// Brings a lab up that lives as long as the value.
    pub fn up(mut options: UpOptions) -> Result<Lab> {
        options.owned = true;
        up(&options)?;
        Ok(Lab { name: options.name, owned: true })
    }

    /// A name that no other test of this machine uses now.
    pub fn unique_name(prefix: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// A lab that `weft-lab up` left running; stays when the value is dropped.
    pub fn open(name: &str) -> Result<Lab> {
        State::read(name)?;
        Ok(Lab { name: name.into(), owned: false })
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it consists of now.
    pub fn state(&self) -> Result<State> {
        State::read(&self.name)
    }

    /// What `weft-lab show --json` prints.
    pub fn show(&self) -> Result<Show> {
        Ok(Show::from(&self.state()?))
    }

    /// Adds a pod through weft-cni.
    pub fn pod_add(&self, spec: &PodSpec) -> Result<Pod> {
        let _held = state::hold(&self.name, false)?;
        pod::add(&self.name, spec)
    }

    /// Removes a pod through weft-cni.
    pub fn pod_rm(&self, node: &str, pod: &str) -> Result<()> {
        let _held = state::hold(&self.name, false)?;
        pod::remove(&self.name, node, pod)
    }

    /// Removes one interface of a pod through weft-cni.
    pub fn pod_rm_interface(&self, node: &str, pod: &str, ifname: &str) -> Result<()> {
        let _held = state::hold(&self.name, false)?;
        pod::remove_interface(&self.name, node, pod, ifname)
    }

    /// Makes a pod's namespace without any ADD; a later [`Lab::pod_add`] gives it an interface.
    pub fn pod_bare(&self, node: &str, pod: &str) -> Result<Pod> {
        let _held = state::hold(&self.name, false)?;
        pod::bare(&self.name, &PodSpec::new(node, pod))
    }

    /// CHECK of each interface of a pod, with the results in the runtime's cache.
    pub fn pod_check(&self, node: &str, pod: &str) -> Result<()> {
        pod::check(&self.name, node, pod)
    }

    /// GC of each network of a node: valid is what the lab's pods have, save for those in `without`.
    pub fn pod_gc(&self, node: &str, without: &[&str]) -> Result<()> {
        let _held = state::hold(&self.name, false)?;
        pod::gc(&self.name, node, without)
    }

    /// STATUS of a node, whatever its answer.
    pub fn cni_status(&self, node: &str) -> Result<Output> {
        pod::status(&self.name, node)
    }

    /// A pod of the lab.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.state()?.pods.remove(name).with_context(|| format!("no pod {name}"))
    }

    /// A call of weft-cni in a node, with everything open to be wrong.
    pub fn cni(&self, node: &str) -> Result<CniCall> {
        Ok(CniCall::new(self.state()?.node(node)?))
    }

    /// Runs a command in a node, a pod, `outside`, `net` or `<node>-nat`, to its end.
    pub fn exec(&self, target: &str, argv: &[&str]) -> Result<Output> {
        self.exec_within(target, argv, EXEC_LIMIT)
    }

    /// Like [`Lab::exec`], with another time limit.
    pub fn exec_within(&self, target: &str, argv: &[&str], limit: Duration) -> Result<Output> {
        run::output(&mut self.enter(target, argv)?, b"", limit)
    }

    /// Starts a command in a node, a pod, `outside` or `net`; it ends with the value.
    pub fn spawn(&self, target: &str, argv: &[&str]) -> Result<Running> {
        Running::start(self.enter(target, argv)?)
    }

    /// Starts a backend on these ports in a pod or node; it ends with the value.
    pub fn serve(&self, target: &str, name: &str, tcp: &[u16], udp: &[u16]) -> Result<Running> {
        let mut args = vec!["serve".to_owned(), "--as".into(), name.into()];
        tcp.iter().for_each(|port| args.extend(["--tcp".into(), port.to_string()]));
        udp.iter().for_each(|port| args.extend(["--udp".into(), port.to_string()]));
        let running = self.worker_spawn(target, &args)?;
        running.wait_line(Duration::from_secs(5)).with_context(|| format!("a server in {target}"))?;
        Ok(running)
    }

    /// Runs `weft-lab probe` in a pod or node. `args` are its own: `--to`, `--count`, …
    pub fn probe(&self, target: &str, args: &[&str]) -> Result<ProbeReport> {
        self.worker(target, "probe", args)?.json(&format!("a probe from {target}"))
    }

    /// Runs `weft-lab rush` in a pod or node to its end: many short connections. `args` are its own.
    pub fn rush(&self, target: &str, args: &[&str]) -> Result<RushReport> {
        let own = run::sibling("weft-lab")?;
        let own = own.to_str().context("the path of weft-lab is not UTF-8")?;
        let answer = self.exec_within(target, &[&[own, "rush"], args].concat(), RUSH_LIMIT)?;
        answer.json(&format!("a rush from {target}"))
    }

    /// Starts `weft-lab VERB` in a pod or node; it ends with the value.
    pub fn worker_start(&self, target: &str, args: &[&str]) -> Result<Running> {
        self.worker_spawn(target, &args.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    /// Runs `weft-lab query` in a pod or node: a question to its own name server, unless `args` say otherwise.
    pub fn query(&self, target: &str, args: &[&str]) -> Result<QueryReport> {
        self.worker(target, "query", args)?.json(&format!("a DNS question from {target}"))
    }

    /// Starts a long transfer (`weft-lab stream`) that reports its progress line by line.
    pub fn stream(&self, target: &str, to: &str, duration: Duration) -> Result<Running> {
        let seconds = format!("{}ms", duration.as_millis());
        self.worker_spawn(target, &["stream", "--to", to, "--for", &seconds].map(str::to_owned))
    }

    /// Starts tcpdump on the underlay's bridge: a witness that is none of ours.
    pub fn capture(&self, filter: &str) -> Result<Capture> {
        Capture::start(|argv| self.spawn("net", argv), crate::names::BRIDGE, filter)
    }

    /// Applies YAML through the first live node and waits until every live node has programmed it.
    pub fn apply(&self, yaml: &str) -> Result<ApplyReply> {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        file.write_all(yaml.as_bytes())?;
        apply::apply(&self.name, file.path(), Some(APPLY_LIMIT))
    }

    /// Applies objects through n1, without the CLI and without waiting: for changes many times a second.
    pub fn apply_objects(&self, objects: Vec<serde_json::Value>) -> Result<ApplyReply> {
        let request = ApplyRequest { objects };
        self.ask("n1", async |client| client.apply(&request).await)
    }

    /// Deletes a `Service` or `EndpointSlice` of the namespace `default` through n1, and waits until every live node has
    /// programmed that.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let request = DeleteRequest { kind: kind.into(), namespace: "default".into(), name: name.into() };
        let reply = self.ask("n1", async |client| client.delete(&request).await)?;
        apply::wait_programmed(&self.name, reply.revision, APPLY_LIMIT)
    }

    /// Runs the weft CLI against a node.
    pub fn weft(&self, node: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(run::sibling("weft")?);
        command.env("WEFT_SOCKET", self.state()?.node(node)?.socket()).args(args);
        run::output(&mut command, b"", EXEC_LIMIT)
    }

    /// How a node's netd is doing.
    pub fn status(&self, node: &str) -> Result<Status> {
        self.ask(node, async |client| client.status().await)
    }

    /// Sends a request to a node's netd.
    pub fn ask<T: Send>(
        &self,
        node: &str,
        request: impl AsyncFnOnce(Client) -> Result<T, ClientError> + Send,
    ) -> Result<T> {
        node::ask(&self.state()?.node(node)?.socket(), request)
    }

    /// What is in a node's pinned maps.
    pub fn maps(&self, node: &str) -> Result<Maps> {
        maps::read(&self.state()?, node)
    }

    /// Where a node's pins lie.
    pub fn pin_dir(&self, node: &str) -> Result<PathBuf> {
        maps::pin_dir(&self.state()?, node)
    }

    /// SIGKILL to a node's netd and nothing else.
    pub fn node_kill(&self, node: &str) -> Result<()> {
        node::kill(&self.name, node)
    }

    /// SIGTERM to a node's netd; returns after its orderly end.
    pub fn node_stop(&self, node: &str) -> Result<()> {
        node::stop(&self.name, node)
    }

    /// Stops a node's netd in the middle of what it does; [`Self::node_resume`] lets it go on.
    pub fn node_pause(&self, node: &str) -> Result<()> {
        node::pause(&self.name, node, true)
    }

    /// Lets a netd go on that was paused.
    pub fn node_resume(&self, node: &str) -> Result<()> {
        node::pause(&self.name, node, false)
    }

    /// Ends every process of a node and its pods.
    pub fn node_crash(&self, node: &str) -> Result<()> {
        node::crash(&self.name, node)
    }

    /// Starts a node's netd and waits until it is ready.
    pub fn node_start(&self, node: &str) -> Result<Status> {
        self.node_spawn(node)?;
        node::wait_ready(&self.name, node, READY_LIMIT)
    }

    /// Starts a node's netd and does not wait.
    pub fn node_spawn(&self, node: &str) -> Result<()> {
        node::start(&self.name, node)
    }

    /// SIGKILL to a node's weft-wireguard and nothing else.
    pub fn tunnel_kill(&self, node: &str) -> Result<()> {
        tunnel::kill(&self.name, node)
    }

    /// Starts a node's weft-wireguard and waits until its control sockets answer.
    pub fn tunnel_start(&self, node: &str) -> Result<()> {
        tunnel::start(&self.name, node)
    }

    /// Starts a second weft-wireguard on a node, as an upgrade does; returns when it has taken over and the first has ended.
    pub fn tunnel_restart(&self, node: &str) -> Result<()> {
        tunnel::restart(&self.name, node)
    }

    /// SIGKILL to what holds a node's DNS sockets and nothing else.
    pub fn holder_kill(&self, node: &str) -> Result<()> {
        holder::kill(&self.name, node)
    }

    /// Gives every weft-wireguard of the lab other extra arguments, from its next start on.
    pub fn tunnel_args(&self, args: &[&str]) -> Result<()> {
        state::edit(&self.name, |state| {
            state.tunnel_args = args.iter().map(ToString::to_string).collect();
            Ok(())
        })
    }

    /// Gives every netd of the lab other extra arguments, from its next start on.
    pub fn netd_args(&self, args: &[&str]) -> Result<()> {
        state::edit(&self.name, |state| {
            state.netd_args = args.iter().map(ToString::to_string).collect();
            Ok(())
        })
    }

    /// The last lines of a node's log.
    pub fn node_log(&self, node: &str, lines: usize) -> Result<String> {
        Ok(process::log_tail(&self.state()?.node(node)?.log(), lines))
    }

    /// The last lines of the log of a node's weft-wireguard.
    pub fn tunnel_log(&self, node: &str, lines: usize) -> Result<String> {
        Ok(process::log_tail(&self.state()?.node(node)?.tunnel_log(), lines))
    }

    /// Cuts a node off from `all`, `store` or another node.
    pub fn partition(&self, node: &str, from: &str) -> Result<()> {
        faults::partition(&self.name, node, from)
    }

    /// Joins a node to everything again.
    pub fn heal(&self, node: &str) -> Result<()> {
        faults::heal(&self.name, node)
    }

    /// Changes the MTU of the wire to a node.
    pub fn mtu(&self, node: &str, mtu: u32) -> Result<()> {
        faults::mtu(&self.name, node, mtu)
    }

    /// Changes what the wire to a node does with large packets.
    pub fn offloads(&self, node: &str, offloads: Offloads) -> Result<()> {
        faults::offloads(&self.name, node, offloads)
    }

    /// Gives a node another underlay address, and takes the one it had; of a node behind a NAT the public one. The new
    /// address.
    pub fn roam(&self, node: &str) -> Result<Ipv4Addr> {
        faults::roam(&self.name, node)
    }

    /// Watches the underlay from now on for packets with a pod's address in their outermost header.
    pub fn witness(&self) -> Result<Witness> {
        witness_clear_text(self, self.state()?.families.pod_cidrs())
    }

    /// Stops the store.
    pub fn etcd_stop(&self) -> Result<()> {
        etcd::stop(&self.name)
    }

    /// Starts the store again and waits until it answers.
    pub fn etcd_start(&self) -> Result<()> {
        etcd::start(&self.name)
    }

    /// Takes the lab down now and says what went wrong, which a drop cannot.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        teardown::down(&self.name).map(drop)
    }

    /// Leaves the lab running when this process ends.
    pub fn keep(mut self) -> Result<()> {
        self.owned = false;
        state::edit(&self.name, |state| {
            state.owner = None;
            Ok(())
        })
    }

    fn enter(&self, target: &str, argv: &[&str]) -> Result<Command> {
        enter_command(&target::place(&self.state()?, target)?, argv)
    }

    fn worker(&self, target: &str, verb: &str, args: &[&str]) -> Result<Output> {
        let own = run::sibling("weft-lab")?;
        let own = own.to_str().context("the path of weft-lab is not UTF-8")?;
        self.exec(target, &[&[own, verb], args].concat())
    }

    fn worker_spawn(&self, target: &str, args: &[String]) -> Result<Running> {
        let own = run::sibling("weft-lab")?;
        let own = own.to_str().context("the path of weft-lab is not UTF-8")?;
        let args: Vec<_> = [own].into_iter().chain(args.iter().map(String::as_str)).collect();
        self.spawn(target, &args)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned {
            // Also while panicking: never a second panic, only a word.
            if let Err(error) = teardown::down(&self.name) {
                complain(format!("{error:#}"));
            }
        }
    }
}

fn enter_command(place: &Place, argv: &[&str]) -> Result<Command> {
    let argv: Vec<OsString> = argv.iter().map(Into::into).collect();
    let mut command = Command::new(run::sibling("weft-lab")?);
    command.arg("enter").args(place.args()).arg("--").args(argv);
    Ok(command)
}
