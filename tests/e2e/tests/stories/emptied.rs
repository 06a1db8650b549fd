// SPDX-License-Identifier: Apache-2.0
//! A store that comes back empty: the nodes hold what they know until an operator says otherwise.

use crate::left::{addresses, keys};
use crate::{have, lab_with, service};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, Running, UpOptions, lab_dir, wait_until};

const NODES: [&str; 2] = ["n1", "n2"];
/// More than go in one honest stroke.
const SERVICES: usize = 8;
/// Longest back-off against the store, and some.
const SOON: Duration = Duration::from_secs(12);

#[test]
fn an_emptied_store_is_not_believed_until_netd_is_restarted() -> Result<()> {
    let Some(scene) = Scene::set("emptied", &[], SERVICES)? else { return Ok(()) };
    let lab = &scene.lab;
    let (held, blocks) = (addresses(lab, "n2")?, blocks(lab)?);
    scene.works("at first", "client", &scene.vips)?;

    // Emptied by mistake, and repaired: as if nothing had been.
    let good = scene.empty_the_store()?;
    scene.is_held()?;
    scene.works("held", "client", &scene.vips)?;
    for node in NODES {
        ensure!(lab.status(node)?.ready, "{node} can serve: {:?}", lab.status(node)?.reasons);
    }
    lab.etcd_stop()?;
    fs::remove_dir_all(scene.data())?;
    fs::rename(&good, scene.data())?;
    lab.etcd_start()?;
    for node in NODES {
        let mut store = None;
        let repaired = wait_until(SOON, || {
            let status = lab.status(node)?;
            let done = status.store.connected && status.store.last_error.is_none();
            store = Some(status.store);
            Ok(done)
        })?;
        ensure!(repaired, "{node} does not believe the repaired store: {store:?}");
    }
    lab.apply(&service("between", "web"))?;
    scene.works("repaired", "client", &scene.vips)?;

    fs::remove_dir_all(scene.empty_the_store()?)?;
    scene.is_held()?;
    scene.works("held again", "client", &scene.vips)?;
    lab.pod_add(&PodSpec::new("n1", "late"))?;
    scene.works("held again", "late", &scene.vips)?;
    let late = addresses(lab, "n1")?;
    lab.pod_rm("n2", "goes")?;
    ensure!(addresses(lab, "n2")?.len() + 1 == held.len(), "a DEL while the store is not believed");

    for node in NODES {
        lab.node_stop(node)?;
        let status = lab.node_start(node)?;
        ensure!(status.store.connected && status.store.in_sync, "{node}: {:?}", status.store);
    }
    // Nodes, blocks and pods are back, with what they had; services are gone, as the store says.
    let back = wait_until(SOON, || {
        let known = |folder: &str| Ok::<_, anyhow::Error>(keys(lab, folder)?.len());
        Ok(known("nodes/")? == 2 && known("pods/")? == 4 && known("alive/")? == 2)
    })?;
    ensure!(back, "{:?}\n{}", keys(lab, "")?, lab.node_log("n1", 20)?);
    scene.joined()?;
    ensure!(self::blocks(lab)? == blocks, "{:?} instead of {blocks:?}", self::blocks(lab)?);
    ensure!(addresses(lab, "n1")? == late, "addresses have changed: {:?}", addresses(lab, "n1")?);
    for node in NODES {
        let services = lab.ask(node, async |client| client.services().await)?;
        let names: Vec<_> = services.iter().map(|service| service.name.as_str()).collect();
        ensure!(names == ["kube-dns"], "{node}: {names:?}");
    }
    let gone = lab.probe("client", &["--to", &scene.vips[0], "--count", "1", "--timeout", "500ms"])?;
    ensure!(gone.ok == 0, "a service that the store does not have still answers");

    let vip = format!("{}:80", lab.apply(&service("again", "web"))?.results[0].cluster_ip.unwrap());
    lab.pod_add(&PodSpec::new("n2", "new"))?;
    for from in ["client", "late", "new"] {
        scene.works("accepted", from, std::slice::from_ref(&vip))?;
    }
    for node in NODES {
        let status = lab.status(node)?;
        ensure!(status.ready && status.pending.is_empty() && status.bad_values.is_empty(), "{status:?}");
    }
    scene.lab.down()
}

/// The emptied store says that every block is free; the nodes know better.
#[test]
fn from_an_emptied_store_nobody_takes_another_s_block() -> Result<()> {
    if !have("curl", "tight") {
        return Ok(());
    }
    // Two blocks, one for each node; a freed address can be had again at once.
    let args = ["--pod-cidr", "10.244.0.0/25", "--cool-down-secs", "0"];
    let Some(scene) = Scene::set("tight", &args, SERVICES)? else { return Ok(()) };
    let lab = &scene.lab;
    let blocks = blocks(lab)?;
    ensure!(blocks.values().all(|own| own.len() == 1), "{blocks:?}");
    let socket = lab.state()?.node("n1")?.socket().display().to_string();
    // Half an ADD each: addresses without pods.
    let fillers = |path: &str, count: u32| {
        let call = format!(
            "for i in $(seq {count}); do curl -s --unix-socket {socket} http://netd/v1/attachments/{path} \
             -d '{{\"network\":\"weft\",\"container_id\":\"filler'$i'\",\"ifname\":\"eth0\"}}' > /dev/null; done"
        );
        lab.exec("n1", &["sh", "-c", &call])?.text(path)
    };
    fillers("allocate", 70)?;
    let full = addresses(lab, "n1")?;
    ensure!(full.len() == 63, "{} addresses", full.len());

    fs::remove_dir_all(scene.empty_the_store()?)?;
    scene.is_held()?;
    for name in ["x", "y", "z"] {
        let given = lab.pod_add(&PodSpec::new("n1", name)).map(|pod| pod.ips);
        ensure!(given.is_err(), "held: n1 gives {given:?} away; the blocks are {blocks:?}");
    }
    ensure!(addresses(lab, "n1")? == full && self::blocks(lab)? == blocks, "held: {:?}", self::blocks(lab)?);
    scene.works("held", "client", &scene.vips)?;

    // With an address to give, a node is ready, though there is no block to spare.
    fillers("release", 5)?;
    for node in NODES {
        lab.node_stop(node)?;
        lab.node_start(node)?;
    }
    scene.joined()?;
    ensure!(self::blocks(lab)? == blocks, "accepted: {:?} instead of {blocks:?}", self::blocks(lab)?);
    lab.pod_add(&PodSpec::new("n1", "new"))?;
    for from in ["client", "new"] {
        scene.works("accepted", from, &[])?;
    }
    scene.lab.down()
}

/// A cluster so small that losing everything may be meant: it believes the store, and puts back what is its own.
#[test]
fn a_small_cluster_registers_anew_in_an_emptied_store() -> Result<()> {
    let Some(scene) = Scene::set("small", &[], 1)? else { return Ok(()) };
    let lab = &scene.lab;
    let (blocks, held) = (blocks(lab)?, NODES.map(|node| addresses(lab, node).ok()));
    fs::remove_dir_all(scene.empty_the_store()?)?;
    let back = wait_until(SOON, || {
        let known = |folder: &str| Ok::<_, anyhow::Error>(keys(lab, folder)?.len());
        Ok(known("nodes/")? == 2 && known("pods/")? == 4 && known("alive/")? == 2 && known("config")? == 1)
    })?;
    ensure!(back, "{:?}\n{}", keys(lab, "")?, lab.node_log("n1", 20)?);
    scene.joined()?;
    ensure!(self::blocks(lab)? == blocks, "{:?} instead of {blocks:?}", self::blocks(lab)?);
    ensure!(NODES.map(|node| addresses(lab, node).ok()) == held, "addresses have changed");
    let vip = format!("{}:80", lab.apply(&service("again", "web"))?.results[0].cluster_ip.unwrap());
    scene.works("registered anew", "client", &[vip])?;
    scene.lab.down()
}

/// Two nodes with pods and services.
struct Scene {
    lab: Lab,
    vips: Vec<String>,
    backend: String,
    _servers: [Running; 2],
}

impl Scene {
    fn set(story: &str, netd_args: &[&str], services: usize) -> Result<Option<Scene>> {
        if !have("etcdctl", story) {
            return Ok(None);
        }
        let mut options = UpOptions { nodes: 2, ..UpOptions::new(&Lab::unique_name(story)) };
        options.netd_args = netd_args.iter().map(ToString::to_string).collect();
        let Some(lab) = lab_with(options)? else { return Ok(None) };
        lab.pod_add(&PodSpec::new("n1", "client"))?;
        lab.pod_add(&PodSpec::new("n2", "b1").label("app", "web"))?;
        let b2 = lab.pod_add(&PodSpec::new("n2", "b2").label("app", "web"))?;
        lab.pod_add(&PodSpec::new("n2", "goes"))?;
        let servers = [lab.serve("b1", "b1", &[8080], &[])?, lab.serve("b2", "b2", &[8080], &[])?];
        let yaml: Vec<_> = (0..services).map(|index| service(&format!("web{index}"), "web")).collect();
        let applied = lab.apply(&yaml.join("---\n"))?.results;
        let vips = applied.iter().map(|result| format!("{}:80", result.cluster_ip.unwrap())).collect();
        Ok(Some(Scene { lab, vips, backend: format!("{}:8080", b2.ips[0]), _servers: servers }))
    }

    fn data(&self) -> PathBuf {
        lab_dir(self.lab.name()).join("etcd1")
    }

    /// Starts the store anew with nothing in it; where its content lies now.
    fn empty_the_store(&self) -> Result<PathBuf> {
        self.lab.etcd_stop()?;
        let aside = self.data().with_extension("aside");
        fs::rename(self.data(), &aside)?;
        self.lab.etcd_start()?;
        Ok(aside)
    }

    /// Both nodes object, and say so.
    fn is_held(&self) -> Result<()> {
        for node in NODES {
            let mut said = None;
            let objects = wait_until(SOON, || {
                said = self.lab.status(node)?.store.last_error;
                Ok(said.as_ref().is_some_and(|error| error.contains("the store came back with")))
            })?;
            let log = self.lab.node_log(node, 60)?;
            ensure!(objects, "{node} does not object: {said:?}\n{log}");
            ensure!(said.is_some_and(|error| error.contains("restart netd to accept")), "{node}");
            ensure!(log.contains("the store came back with"), "{node} does not log it:\n{log}");
            ensure!(!self.lab.status(node)?.store.connected, "{node} says that it follows the store");
        }
        Ok(())
    }

    /// Both nodes know each other's blocks again.
    fn joined(&self) -> Result<()> {
        let knows = |node: &&str| {
            self.lab.status(node).is_ok_and(|status| {
                status.ready
                    && status.overlay.peers.iter().filter(|peer| !peer.blocks.is_empty()).count() == 1
            })
        };
        let joined = wait_until(SOON, || Ok(NODES.iter().all(knows)))?;
        for node in NODES {
            let status = self.lab.status(node)?;
            ensure!(
                joined,
                "{node}: {:?} {:?}\n{}",
                status.reasons,
                status.overlay,
                self.lab.node_log(node, 60)?
            );
        }
        Ok(())
    }

    /// These services and the backend itself answer.
    fn works(&self, when: &str, from: &str, services: &[String]) -> Result<()> {
        for to in services.iter().chain([&self.backend]) {
            let report = self.lab.probe(from, &["--to", to, "--count", "5"])?;
            ensure!(report.all_ok(), "{when}: {from} to {to}: {}", report.failures());
        }
        Ok(())
    }
}

/// Blocks that hold the nodes' addresses, by node.
fn blocks(lab: &Lab) -> Result<BTreeMap<String, Vec<String>>> {
    let mut blocks = BTreeMap::new();
    for node in NODES {
        let mut own: Vec<_> = lab.status(node)?.node.blocks.iter().map(ToString::to_string).collect();
        own.sort();
        blocks.insert(node.to_owned(), own);
    }
    Ok(blocks)
}
