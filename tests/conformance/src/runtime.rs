// SPDX-License-Identifier: Apache-2.0
//! The runtime that is played: the plugin, its config, containers, and a memory of what has to be undone.

use crate::attachment::Attachment;
use crate::call::{Answer, Call, ErrorObject};
use crate::cli::Cli;
use crate::interrupt::{self, wait_until};
use crate::kernel::{Link, Place, add_netns, netns_path, remove_netns};
use crate::say::complain;
use crate::verdict::{Checked, expect, fail};
use crate::version::Version;
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The interface that containers get unless a row says otherwise.
pub(crate) const IFNAME: &str = "eth0";
/// The kernel takes a link away a moment after the namespace that held its peer.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// Keys that belong to the list of plugins, not to what one plugin gets.
const LIST_KEYS: [&str; 6] =
    ["capabilities", "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins"];

/// A container: a network namespace and an ID.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) netns: String,
}

impl Container {
    /// CNI_NETNS.
    pub(crate) fn path(&self) -> String {
        netns_path(&self.netns)
    }

    /// Inside it.
    pub(crate) fn place(&self) -> Place {
        Place::netns(&self.netns)
    }
}

/// What one run works with.
pub(crate) struct Runtime {
    plugin: PathBuf,
    prefix: Vec<String>,
    cni_path: String,
    config: Map<String, Value>,
    /// The file as it was read.
    pub(crate) file: Value,
    pub(crate) name: String,
    netns_prefix: String,
    host_netns: Option<String>,
    /// Versions that VERSION named.
    pub(crate) supported: Vec<Version>,
    wanted: BTreeSet<Version>,
    pub(crate) capabilities: BTreeSet<String>,
    pub(crate) broken: Vec<(String, Value)>,
    pub(crate) reuse_wait: Duration,
    /// Addresses that the first ADD got: what this network looks like.
    pub(crate) sample: OnceLock<Vec<IpNet>>,
    made: Mutex<Made>,
    journal: Mutex<Vec<Answer>>,
}

#[derive(Default)]
struct Made {
    count: u32,
    netns: Vec<String>,
    adds: Vec<(BTreeMap<String, String>, Map<String, Value>)>,
}

impl Runtime {
    /// Reads the config, makes the namespace where the plugin runs, and asks the plugin for its versions.
    pub(crate) fn new(cli: &Cli) -> Result<Self> {
        let plugin = cli.plugin.as_deref().context("--plugin is missing")?;
        let plugin = fs::canonicalize(plugin).with_context(|| plugin.display().to_string())?;
        let path = cli.config.as_deref().context("--config is missing")?;
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        let file: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let (name, config, declared) = section(&file, &plugin).with_context(|| path.display().to_string())?;
        let folder = plugin.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let netns_prefix = format!("{}-{}", cli.netns_prefix, std::process::id());
        let (prefix, host_netns) = match (&cli.exec_prefix, cli.host_netns.as_str()) {
            (Some(words), _) => (words.split_whitespace().map(str::to_owned).collect(), None),
            (None, "current") => (Vec::new(), None),
            (None, "create") => {
                let name = format!("{netns_prefix}-host");
                add_netns(&name)?;
                (enter(&name), Some(name))
            }
            (None, name) => (enter(name), None),
        };
        let wanted = if cli.versions.is_empty() { &Version::JUDGED[..] } else { &cli.versions[..] };
        let mut runtime = Self {
            plugin,
            prefix,
            cni_path: cli.cni_path.clone().unwrap_or(folder),
            config,
            file,
            name,
            netns_prefix,
            host_netns,
            supported: Vec::new(),
            wanted: wanted.iter().copied().collect(),
            capabilities: cli.capabilities.clone().map_or(declared, |asked| asked.into_iter().collect()),
            broken: cli.broken.clone(),
            reuse_wait: Duration::from_secs(cli.reuse_wait),
            sample: OnceLock::new(),
            made: Mutex::default(),
            journal: Mutex::default(),
        };
        runtime.ask_versions()?;
        Ok(runtime)
    }

    fn ask_versions(&mut self) -> Result<()> {
        let config = Map::from_iter([("cniVersion".to_owned(), Value::from(Version::V1_0_0.to_string()))]);
        let answer = Call::new(self, "VERSION", config).run_always()?;
        let reply: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        let listed = reply["supportedVersions"].as_array().into_iter().flatten();
        self.supported = listed.filter_map(|text| text.as_str()?.parse().ok()).collect();
        if self.supported.is_empty() {
            // The rows of VERSION will say so; the others go by the config.
            self.supported
                .extend(self.file["cniVersion"].as_str().and_then(|text| text.parse::<Version>().ok()));
        }
        if self.versions().is_empty() {
            bail!("{} speaks none of the versions asked for: {}", self.plugin.display(), answer.told());
        }
        Ok(())
    }

    /// The plugin where it has to run.
    pub(crate) fn command(&self) -> Command {
        self.behind(&self.plugin)
    }

    /// A program where the plugin runs.
    pub(crate) fn behind(&self, program: &Path) -> Command {
        match self.prefix.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        }
    }

    pub(crate) fn plugin(&self) -> &Path {
        &self.plugin
    }

    pub(crate) fn cni_path(&self) -> &str {
        &self.cni_path
    }

    /// The plugin's own side of the wire.
    pub(crate) fn host(&self) -> Place {
        Place::behind(&self.prefix)
    }

    /// The plugin's own network namespace as a path that is right for the plugin.
    pub(crate) fn own_netns(&self) -> String {
        self.host_netns.as_deref().map_or_else(|| "/proc/self/ns/net".to_owned(), netns_path)
    }

    /// Versions that rows go through: asked for, judged here, and spoken by the plugin.
    pub(crate) fn versions(&self) -> Vec<Version> {
        let judged = Version::JUDGED.into_iter();
        judged.filter(|v| self.wanted.contains(v) && self.supported.contains(v)).collect()
    }

    /// The newest of them.
    pub(crate) fn newest(&self) -> Version {
        self.versions().last().copied().unwrap_or(Version::V0_3_0)
    }

    /// Why a version is not gone through; none where it is.
    pub(crate) fn lacks(&self, version: Version) -> Option<String> {
        if !self.supported.contains(&version) {
            return Some(format!("the plugin does not list {version}"));
        }
        (!self.wanted.contains(&version)).then(|| format!("{version} was not asked for"))
    }

    /// A key of the plugin's config.
    pub(crate) fn config_key(&self, key: &str) -> Option<&Value> {
        self.config.get(key)
    }

    /// The config as a runtime sends it in this version.
    pub(crate) fn config_for(&self, version: Version) -> Map<String, Value> {
        let mut config = self.config.clone();
        config.insert("cniVersion".into(), version.to_string().into());
        config.insert("name".into(), self.name.clone().into());
        config
    }

    /// A call in the newest version.
    pub(crate) fn call(&self, verb: &str) -> Call<'_> {
        self.call_in(self.newest(), verb)
    }

    /// A call in this version.
    pub(crate) fn call_in(&self, version: Version, verb: &str) -> Call<'_> {
        Call::new(self, verb, self.config_for(version))
    }

    /// An ADD for a container, in the newest version.
    pub(crate) fn add(&self, container: &Container) -> Call<'_> {
        self.call("ADD").target(container, IFNAME)
    }

    /// Makes a container.
    pub(crate) fn container(&self) -> Checked<Container> {
        interrupt::check()?;
        let netns = {
            let mut made = self.made();
            made.count += 1;
            let name = format!("{}-{}", self.netns_prefix, made.count);
            made.netns.push(name.clone());
            name
        };
        add_netns(&netns)?;
        Ok(Container { id: netns.replace('-', ""), netns })
    }

    /// A container that is attached, in the newest version.
    pub(crate) fn attach(&self, container: &Container) -> Checked<Attachment<'_>> {
        Attachment::make(self.add(container), "")
    }

    /// A call that has to be refused with one of these codes (any, where none is given), and leaves no link behind on
    /// either side.
    pub(crate) fn refused(&self, call: Call<'_>, about: &str, codes: &[i64]) -> Checked<ErrorObject> {
        let netns = call.env.get("CNI_NETNS").and_then(|path| path.strip_prefix("/run/netns/"));
        let container = netns.filter(|name| name.starts_with(&self.netns_prefix)).map(Place::netns);
        let container = container.filter(|_| netns.is_some_and(|name| Path::new(&netns_path(name)).exists()));
        let before = self.host().links()?;
        let inside = container.as_ref().map(Place::links).transpose()?;
        let answer = call.run()?;
        let error = answer.error(about)?;
        expect(codes.is_empty() || codes.contains(&error.code), || {
            format!("{} {about}: expected code {}, got {}", answer.what, either(codes), error.told())
        })?;
        if let (Some(container), Some(before)) = (container, inside) {
            let after = container.links()?;
            expect(before == after, || {
                format!(
                    "{} {about} was refused and left in the container: {}",
                    answer.what,
                    new_names(&before, &after)
                )
            })?;
        }
        self.host_is(&before, &format!("{} {about}", answer.what))?;
        Ok(error)
    }

    /// Waits until the links of the plugin's side are these again.
    pub(crate) fn host_is(&self, before: &BTreeMap<String, Link>, about: &str) -> Checked {
        let mut after = before.clone();
        let settled = wait_until(SETTLE_LIMIT, || {
            after = self.host().links()?;
            // What vanished was some other container's and took its time; what is new counts.
            Ok::<_, anyhow::Error>(after.keys().all(|name| before.contains_key(name)))
        })?;
        expect(settled, || format!("{about} left on the host: {}", new_names(before, &after)))
    }

    /// Tries an ADD again and again for as long as the plugin may keep what was freed.
    pub(crate) fn add_after_rest<'r>(&'r self, call: &Call<'r>, about: &str) -> Checked<Attachment<'r>> {
        let mut last = None;
        let got = wait_until(self.reuse_wait, || {
            let answer = call.clone().run()?;
            let ok = answer.ok();
            if !ok {
                // What a runtime does after a failed ADD.
                call.clone().verb("DEL").run()?;
            }
            last = Some(answer);
            Ok::<_, crate::verdict::Stop>(ok)
        })?;
        match last {
            Some(answer) if got => Attachment::from_answer(call.clone(), answer, about),
            Some(answer) => {
                fail(format!("ADD {about}: still refused after {:?}: {}", self.reuse_wait, answer.told()))
            }
            None => fail(format!("ADD {about}: not tried")),
        }
    }

    pub(crate) fn note_add(&self, call: &Call<'_>) {
        let named = ["CNI_CONTAINERID", "CNI_IFNAME"];
        if named.iter().all(|name| call.env.get(*name).is_some_and(|value| !value.is_empty())) {
            self.made().adds.push((call.env.clone(), call.config.clone()));
        }
    }

    pub(crate) fn note_answer(&self, answer: &Answer) {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).push(answer.clone());
    }

    /// Every answer so far.
    pub(crate) fn journal(&self) -> Vec<Answer> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives every ADD its DEL, then removes the containers. Goes on after errors, and after Ctrl-C.
    pub(crate) fn clean(&self) {
        let (adds, netns) = {
            let mut made = self.made();
            (std::mem::take(&mut made.adds), std::mem::take(&mut made.netns))
        };
        let mut seen = BTreeSet::new();
        for (env, config) in adds {
            let key = (
                env.get("CNI_CONTAINERID").cloned(),
                env.get("CNI_IFNAME").cloned(),
                config.get("name").map(Value::to_string),
            );
            if !seen.insert(key) {
                continue;
            }
            let mut call = Call::new(self, "DEL", config).without("prevResult");
            call.env.extend(env);
            if let Err(error) = call.verb("DEL").run_always() {
                complain(format!("DEL while cleaning up: {error:#}"));
            }
        }
        for name in netns {
            if let Err(error) = remove_netns(&name) {
                complain(format!("removing {name}: {error:#}"));
            }
        }
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.clean();
        if let Some(Err(error)) = self.host_netns.as_deref().map(remove_netns) {
            complain(format!("{error:#}"));
        }
    }
}

fn enter(netns: &str) -> Vec<String> {
    let path = if netns.starts_with('/') { netns.to_owned() } else { netns_path(netns) };
    vec!["nsenter".to_owned(), format!("--net={path}"), "--".to_owned()]
}

/// Network name, the plugin's own section, and the capabilities that it declares.
fn section(file: &Value, plugin: &Path) -> Result<(String, Map<String, Value>, BTreeSet<String>)> {
    let name = file["name"].as_str().context("the config has no name")?.to_owned();
    let own = plugin.file_name().unwrap_or_default().to_string_lossy();
    let own = match file["plugins"].as_array() {
        None => file,
        Some(list) => list
            .iter()
            .find(|entry| entry["type"] == *own)
            .or(list.first())
            .context("the config's list of plugins is empty")?,
    };
    let mut config = own.as_object().context("the config is no JSON object")?.clone();
    let declared = config.get("capabilities").and_then(Value::as_object).into_iter().flatten();
    let declared =
        declared.filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.clone()).collect();
    for key in LIST_KEYS {
        config.remove(key);
    }
    Ok((name, config, declared))
}

fn either(codes: &[i64]) -> String {
    codes.iter().map(i64::to_string).collect::<Vec<_>>().join(" or ")
}

fn new_names(before: &BTreeMap<String, Link>, after: &BTreeMap<String, Link>) -> String {
    let changed = after.iter().filter(|(name, link)| before.get(*name) != Some(link));
    let gone = before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("{name} (gone)"));
    let names: Vec<String> = changed.map(|(name, _)| name.clone()).chain(gone).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_plugin_gets_its_own_section() {
        let list = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [
            { "type": "other" },
            { "type": "mine", "mtu": 1400, "capabilities": { "ips": true, "mac": false } },
        ]});
        let (name, config, declared) = section(&list, Path::new("/opt/cni/bin/mine")).unwrap();
        assert_eq!((name.as_str(), declared), ("net", BTreeSet::from(["ips".to_owned()])));
        assert_eq!(Value::Object(config), json!({ "type": "mine", "mtu": 1400 }));
        let single = json!({ "cniVersion": "1.0.0", "name": "net", "type": "x", "disableCheck": true });
        let (_, config, _) = section(&single, Path::new("/x")).unwrap();
        assert_eq!(Value::Object(config), json!({ "cniVersion": "1.0.0", "name": "net", "type": "x" }));
        assert!(section(&json!({ "plugins": [] }), Path::new("/x")).is_err());
    }
}
