// SPDX-License-Identifier: Apache-2.0
//! A list of plugins as a container runtime runs it (CNI SPEC.md, section 3): ADD and CHECK in order, DEL the other way
//! round, each with the result of those before. The list lies where the node's runtime, and netd, look for it.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use weft_lab::{
    Lab, Output, Pod, TOOL_LIMIT, in_netns, netns_path, network_config, output, sibling, wait_until,
};

/// Where Debian's containernetworking-plugins are.
const PLUGINS_DIR: &str = "/usr/lib/cni";
/// The newest version that these know.
const VERSION: &str = "1.0.0";
/// A netd that is ready writes its list within a fraction of this.
const WRITTEN_LIMIT: Duration = Duration::from_secs(5);

/// Whether the reference plugins are there; says SKIP when they are not.
pub(crate) fn have_plugins(story: &str) -> bool {
    let there = PathBuf::from(PLUGINS_DIR).join("portmap").is_file();
    if !there {
        println!("SKIP {story}: containernetworking-plugins is not installed");
    }
    there
}

/// A list of plugins on a node.
pub(crate) struct Conflist<'a> {
    lab: &'a Lab,
    node: String,
    name: String,
    plugins: Vec<Value>,
}

impl<'a> Conflist<'a> {
    /// Writes the list. A plugin `weft-cni` gets the node's socket.
    pub(crate) fn write(lab: &'a Lab, node: &str, name: &str, plugins: &[Value]) -> Result<Conflist<'a>> {
        let of_node = network_config(lab.state()?.node(node)?);
        let mut plugins = plugins.to_vec();
        for plugin in plugins.iter_mut().filter(|plugin| plugin["type"] == of_node["type"]) {
            plugin["socket"] = of_node["socket"].clone();
        }
        let list = json!({ "cniVersion": VERSION, "name": name, "plugins": plugins });
        let file = lab.state()?.node(node)?.cni_conf_dir().join(format!("50-{name}.conflist"));
        fs::write(&file, format!("{list:#}\n")).with_context(|| file.display().to_string())?;
        Ok(Conflist { lab, node: node.into(), name: name.into(), plugins })
    }

    /// The list that netd itself wrote, which it does as soon as it is ready.
    pub(crate) fn of_netd(lab: &'a Lab, node: &str) -> Result<Conflist<'a>> {
        let file = lab.state()?.node(node)?.cni_conf_dir().join("10-weft.conflist");
        wait_until(WRITTEN_LIMIT, || Ok(file.exists()))?;
        let text = fs::read(&file).with_context(|| file.display().to_string())?;
        let list: Value = serde_json::from_slice(&text)?;
        let name = list["name"].as_str().context("a list without a name")?.to_owned();
        let plugins = list["plugins"].as_array().context("a list without plugins")?.clone();
        Ok(Conflist { lab, node: node.into(), name, plugins })
    }

    /// ADD for a pod, which is made where it is not there yet. `asked` are the runtime's capability arguments: each plugin
    /// gets those that it declares.
    pub(crate) fn add(&self, pod: &str, ifname: &str, asked: Value) -> Result<Chained<'_>> {
        let there = self.lab.state()?.pods.remove(pod);
        let pod = there.map_or_else(|| self.lab.pod_bare(&self.node, pod), Ok)?;
        let mut chained = Chained { list: self, pod, ifname: ifname.into(), asked, results: Vec::new() };
        for plugin in &self.plugins {
            let answer = chained.call(plugin, "ADD", chained.results.last())?;
            if !answer.ok() {
                let _ = chained.del();
            }
            chained
                .results
                .push(answer.json(&format!("ADD of {} for {}", plugin["type"], chained.pod.name))?);
        }
        Ok(chained)
    }
}

/// An attachment that a list made.
pub(crate) struct Chained<'a> {
    list: &'a Conflist<'a>,
    pub(crate) pod: Pod,
    ifname: String,
    asked: Value,
    /// What each plugin answered.
    pub(crate) results: Vec<Value>,
}

impl Chained<'_> {
    /// CHECK of every plugin, with the last result.
    ///
    /// Not of portmap: that of the reference 1.1.1 looks for its IPv4 rules among those of IPv6, and fails behind any plugin.
    pub(crate) fn check(&self) -> Result<()> {
        for plugin in self.list.plugins.iter().filter(|plugin| plugin["type"] != "portmap") {
            self.call(plugin, "CHECK", self.results.last())?.text(&format!("CHECK of {}", plugin["type"]))?;
        }
        Ok(())
    }

    /// DEL of every plugin, the last one first, with the last result.
    pub(crate) fn del(&self) -> Result<()> {
        for plugin in self.list.plugins.iter().rev() {
            self.call(plugin, "DEL", self.results.last())?.text(&format!("DEL of {}", plugin["type"]))?;
        }
        Ok(())
    }

    /// Its addresses, those of IPv4 first.
    pub(crate) fn ips(&self) -> Result<Vec<IpAddr>> {
        let of_entry = |entry: &Value| entry["address"].as_str()?.split('/').next()?.parse().ok();
        let entries = self.results.last().and_then(|result| result["ips"].as_array());
        let mut ips: Vec<_> = entries.into_iter().flatten().filter_map(of_entry).collect();
        ensure!(!ips.is_empty(), "no addresses in {:?}", self.results.last());
        ips.sort();
        Ok(ips)
    }

    fn call(&self, plugin: &Value, command: &str, prev: Option<&Value>) -> Result<Output> {
        let kind = plugin["type"].as_str().context("a plugin without a type")?;
        let program = match kind {
            "weft-cni" => sibling(kind)?,
            _ => PathBuf::from(PLUGINS_DIR).join(kind),
        };
        let mut config = plugin.clone();
        config["cniVersion"] = VERSION.into();
        config["name"] = self.list.name.as_str().into();
        let declared = |(key, _): &(&String, &Value)| plugin["capabilities"][key.as_str()] == true;
        let asked: Map<String, Value> =
            self.asked.as_object().into_iter().flatten().filter(declared).map(owned).collect();
        if !asked.is_empty() {
            config["runtimeConfig"] = asked.into();
        }
        if let Some(prev) = prev {
            config["prevResult"] = prev.clone();
        }
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}",
            self.pod.namespace, self.pod.name
        );
        let mut process = Command::new(program);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", PLUGINS_DIR)
            .env("CNI_CONTAINERID", &self.pod.container_id)
            .env("CNI_NETNS", netns_path(&self.pod.netns))
            .env("CNI_IFNAME", &self.ifname)
            .env("CNI_ARGS", args);
        let netns = self.list.lab.state()?.node(&self.list.node)?.netns.clone();
        let stdin = serde_json::to_vec(&config)?;
        in_netns(&netns, || output(&mut process, &stdin, TOOL_LIMIT))
    }
}

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}
