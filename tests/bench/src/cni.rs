// SPDX-License-Identifier: Apache-2.0
//! One side of the CNI rows: a plugin, its config, and a namespace that it runs in. Both sides are called by the same
//! code, from a thread that is in that namespace already: what is measured is the plugin's process, from start to end.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{lab, netns};

/// Where Debian's package containernetworking-plugins puts the reference plugins.
const REFERENCE_DIR: &str = "/usr/lib/cni";
/// The reference's own node; the prefix is the bench's own.
const REFERENCE_NODE: &str = "weftbench-cni";
/// Containers of either side are called so, and a number that no other has; the reference's node begins so, too.
const OWN: &str = "weftbench-c";

/// A plugin to be measured.
#[derive(Debug)]
pub(crate) struct Side {
    plugin: PathBuf,
    folder: PathBuf,
    config: Value,
    netns: PathBuf,
}

/// A container of a side; its result once it was added.
#[derive(Debug)]
pub(crate) struct Container {
    name: String,
    result: Value,
}

impl Side {
    /// weft-cni on the lab's first node.
    pub(crate) fn weft() -> Result<Self> {
        let (netns, config) = lab::VXLAN.node("n1")?;
        let plugin = std::env::current_exe()?.with_file_name("weft-cni");
        Self::new(plugin, config, netns::path(&netns))
    }

    /// The reference bridge with host-local in a namespace of its own. Without masquerade, which Weft has in place for
    /// all pods at once and which would cost bridge two programs for each.
    pub(crate) fn reference(books: &Path) -> Result<Self> {
        must(Command::new("ip").args(["netns", "add", REFERENCE_NODE]))?;
        must(Command::new("ip").args(["-n", REFERENCE_NODE, "link", "set", "lo", "up"]))?;
        let config = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "reference",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.202.0.0/16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": books,
            },
        });
        Self::new(Path::new(REFERENCE_DIR).join("bridge"), config, netns::path(REFERENCE_NODE))
    }

    fn new(plugin: PathBuf, config: Value, netns: PathBuf) -> Result<Self> {
        if !plugin.is_file() {
            bail!("{} is missing: run `make deps build`", plugin.display());
        }
        let folder = plugin.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { plugin, folder, config, netns })
    }

    /// Adds every container, one after the other; microseconds each.
    pub(crate) fn add(&self, containers: &mut [Container]) -> Result<Vec<f64>> {
        self.inside(|| {
            let each = containers.iter_mut().map(|container| {
                let (answer, time) = self.call("ADD", container)?;
                container.result = serde_json::from_slice(&answer).context("a result that is no JSON")?;
                Ok(time)
            });
            each.collect()
        })
    }

    /// Deletes every container, one after the other; microseconds each.
    pub(crate) fn del(&self, containers: &[Container]) -> Result<Vec<f64>> {
        self.inside(|| containers.iter().map(|container| Ok(self.call("DEL", container)?.1)).collect())
    }

    fn call(&self, verb: &str, container: &Container) -> Result<(Vec<u8>, f64)> {
        let mut config = self.config.clone();
        if verb != "ADD" {
            config["prevResult"] = container.result.clone();
        }
        let stdin = serde_json::to_vec(&config)?;
        let mut command = Command::new(&self.plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &container.name)
            .env("CNI_NETNS", format!("/run/netns/{}", container.name))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.plugin.display()))?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(&stdin)?;
        }
        let out = child.wait_with_output()?;
        let time = start.elapsed().as_nanos() as f64 / 1_000.0;
        if !out.status.success() {
            bail!(
                "{verb} of {} by {}: {} {}",
                container.name,
                self.plugin.display(),
                String::from_utf8_lossy(&out.stdout).trim(),
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok((out.stdout, time))
    }

    /// In the side's namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(&self.netns, work)
    }
}

/// Makes containers: network namespaces with their loopback up, as a runtime has them before ADD.
pub(crate) fn containers(count: usize) -> Result<Vec<Container>> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let each = (0..count).map(|_| {
        let name = format!("{OWN}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        must(Command::new("ip").args(["netns", "add", &name]))?;
        must(Command::new("ip").args(["-n", &name, "link", "set", "lo", "up"]))?;
        Ok(Container { name, result: Value::Null })
    });
    each.collect()
}

/// Removes containers that were deleted from their network.
pub(crate) fn discard(containers: Vec<Container>) -> Result<()> {
    containers
        .iter()
        .try_for_each(|container| must(Command::new("ip").args(["netns", "del", &container.name])))
}

/// Removes every namespace of these rows; none is fine.
pub(crate) fn remove() {
    netns::remove_all(OWN);
}

fn must(command: &mut Command) -> Result<()> {
    let out = command.stdin(Stdio::null()).output().context("cannot run ip")?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}
