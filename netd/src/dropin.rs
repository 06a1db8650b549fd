// SPDX-License-Identifier: Apache-2.0
//! The drop-in: the network config (`10-weft.conflist`) by which container runtimes find weft-cni.
//!
//! Written whole or not at all, and only while the datapath is live: a runtime that finds it may start pods. Somebody who
//! deletes or edits it gets it back: inotify says so at once, a periodic look catches what inotify missed. It stays when
//! netd ends, because pods are deleted through it also while netd is down; `netd clean` removes it.
//!
//! The same folder tells what runs behind weft-cni: [`chained_plugins`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::time::sleep;

use crate::config::DropInConfig;
use crate::files::{remove_if_there, write_atomically};

/// Runtimes take the first file of the folder by name: early, yet something may still go before it.
const FILE: &str = "10-weft.conflist";
/// What write_atomically puts beside it; no runtime reads a name that ends like this.
const TEMPORARY: &str = "10-weft.conflist.tmp";
/// The network's name: part of every attachment's key.
const NETWORK: &str = "weft";
/// How weft-cni is called in a network config.
const PLUGIN: &str = "weft-cni";
/// What weft-cni does when a runtime asks for it (CNI CONVENTIONS.md, "Dynamic Plugin specific fields").
const CAPABILITIES: [&str; 8] =
    ["aliases", "bandwidth", "cgroupPath", "dns", "ipRanges", "ips", "mac", "portMappings"];
/// Looks without an event: for file systems and changes that inotify does not see.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How soon a datapath that came alive is noticed; a node is waiting to be usable.
const LIVE_EVERY: Duration = Duration::from_millis(100);
/// Between two mendings: two programs that want the same file must not spin.
const REST: Duration = Duration::from_secs(1);
/// A network config is a few hundred bytes; anything this big is something else.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Room for the events of one read: each has a header and a file name of at most 255 bytes (inotify(7)).
const EVENT_BYTES: usize = 4096;

/// Why the network config cannot be made.
#[derive(Debug, Error)]
pub(crate) enum DropInError {
    #[error("cni-chain: cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cni-chain: {path}: {reason}; a JSON list of plugin objects is needed, each with its \"type\"")]
    Chain { path: PathBuf, reason: String },
}

/// What a look at the file found, and did about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Look {
    /// It was as it should be.
    Fine,
    /// It was not there; it is now.
    Made,
    /// It held something else, or was no plain file; it is right again.
    Mended,
}

/// The network config in the runtime's folder.
#[derive(Debug)]
pub(crate) struct DropIn {
    dir: PathBuf,
    content: Vec<u8>,
}

impl DropIn {
    /// Reads what follows weft-cni, and makes the content; touches nothing yet.
    pub(crate) fn new(config: &DropInConfig) -> Result<Self, DropInError> {
        let chain = config.chain.as_deref().map(read_chain).transpose()?.unwrap_or_default();
        Ok(Self { dir: config.dir.clone(), content: render(config, chain) })
    }

    /// Keeps the file as it should be for as long as it is polled. While `live` says no, the file is left as it is: a
    /// runtime that has it goes on to delete pods through it.
    pub(crate) async fn keep(self, live: impl Fn() -> bool) {
        let mut watch = None;
        let mut was_there = false;
        let mut said = String::new();
        loop {
            if !live() {
                sleep(LIVE_EVERY).await;
                continue;
            }
            // First the watch, then the look: what happens in between is an event.
            let outcome = self.watched(&mut watch).and_then(|()| self.look());
            let mended = matches!(outcome, Ok(Look::Made | Look::Mended));
            match outcome {
                Ok(Look::Fine) => {}
                Ok(_) if !was_there => {
                    // Also where an older netd's lay there.
                    tracing::info!(path = %self.path().display(), "network config written");
                }
                Ok(look) => {
                    let what = if look == Look::Made { "was deleted" } else { "was changed" };
                    tracing::warn!(path = %self.path().display(), "the network config {what}; written again");
                }
                Err(error) => {
                    let now = error.to_string();
                    if now != said {
                        tracing::error!(path = %self.path().display(), "cannot write the network config, and try again: {now}");
                        said = now;
                    }
                    sleep(LOOK_EVERY).await;
                    continue;
                }
            }
            said.clear();
            if mended && was_there {
                sleep(REST).await;
            }
            was_there = true;
            tokio::select! {
                () = happened(&mut watch) => {}
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Removes the file, and what an interrupted write left; whether there was one.
    pub(crate) fn remove(dir: &Path) -> io::Result<bool> {
        let there = fs::symlink_metadata(dir.join(FILE)).is_ok();
        remove_if_there(&dir.join(TEMPORARY))?;
        remove_if_there(&dir.join(FILE))?;
        Ok(there)
    }

    /// Writes the file where it is not as it should be.
    fn look(&self) -> io::Result<Look> {
        let path = self.path();
        let look = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Look::Made,
            Err(error) => return Err(error),
            // A FIFO must not be opened, and a link would make somebody else's file ours.
            Ok(found) if !found.is_file() || found.len() != self.content.len() as u64 => Look::Mended,
            Ok(_) if fs::read(&path).is_ok_and(|content| content == self.content) => return Ok(Look::Fine),
            Ok(_) => Look::Mended,
        };
        write_atomically(&path, &self.content)?;
        Ok(look)
    }

    /// Makes the folder, and a watch over it where there is none. Without inotify the periodic look goes on alone.
    fn watched(&self, watch: &mut Option<Watch>) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        if watch.is_none() {
            match Watch::over(&self.dir) {
                Ok(over) => *watch = Some(over),
                Err(error) => {
                    tracing::debug!(dir = %self.dir.display(), "no inotify: looking every {LOOK_EVERY:?} ({error})");
                }
            }
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }
}

/// Types of the plugins that follow weft-cni in the configs of `network` in `dir`, in the order of file names, each once.
///
/// A file that cannot be read or is no network config is passed over, as runtimes do; so is a folder that is not there.
pub(crate) fn chained_plugins(dir: &Path, network: &str) -> Vec<String> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json"))
        .collect();
    paths.sort();
    let mut types = Vec::new();
    for path in paths {
        let Some(config) = read_json(&path).ok().flatten() else { continue };
        if config["name"] != network {
            continue;
        }
        let plugins = config["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
        let behind = plugins.iter().skip_while(|plugin| plugin["type"] != PLUGIN).skip(1);
        for name in behind.filter_map(|plugin| plugin["type"].as_str()) {
            if !types.iter().any(|known| known == name) {
                types.push(name.to_owned());
            }
        }
    }
    types
}

/// The config list (CNI spec, section 1) with weft-cni first. A capability that a plugin behind it declares is that plugin's:
/// a runtime hands it to all who declare it, and two would do the same job, or stand in each other's way.
fn render(config: &DropInConfig, chain: Vec<Value>) -> Vec<u8> {
    let theirs = |name: &str| chain.iter().any(|plugin| plugin["capabilities"][name] == true);
    let ours = CAPABILITIES
        .into_iter()
        .filter(|name| !theirs(name))
        .map(|name| (name.to_owned(), Value::Bool(true)));
    let capabilities: Map<String, Value> = ours.collect();
    let mut plugins = vec![json!({ "type": PLUGIN, "socket": config.socket, "capabilities": capabilities })];
    plugins.extend(chain);
    let list = json!({ "cniVersion": config.version, "name": NETWORK, "plugins": plugins });
    format!("{list:#}\n").into_bytes()
}

fn read_chain(path: &Path) -> Result<Vec<Value>, DropInError> {
    let wrong = |reason: &str| DropInError::Chain { path: path.to_owned(), reason: reason.to_owned() };
    let text = read_text(path)
        .map_err(|source| DropInError::Read { path: path.to_owned(), source })?
        .ok_or_else(|| wrong("no plain file of at most 1 MiB"))?;
    let plugins: Vec<Value> = serde_json::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
    for plugin in &plugins {
        match plugin["type"].as_str() {
            None | Some("") => return Err(wrong("a plugin without a type")),
            Some(PLUGIN) => return Err(wrong("weft-cni is there already, first in the list")),
            Some(_) => {}
        }
    }
    Ok(plugins)
}

fn read_json(path: &Path) -> io::Result<Option<Value>> {
    Ok(read_text(path)?.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The text of a plain file of sane size; none where it is something else.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    // Asked before it is opened: to open a FIFO is to wait for its writer.
    let found = fs::metadata(path)?;
    if !found.is_file() || found.len() > CONFIG_BYTES_MAX {
        return Ok(None);
    }
    let mut text = String::new();
    File::open(path)?.take(CONFIG_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// inotify over one folder.
struct Watch(EventStream<[u8; EVENT_BYTES]>);

impl Watch {
    fn over(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let changed = WatchMask::CLOSE_WRITE | WatchMask::DELETE | WatchMask::MOVE;
        inotify.watches().add(dir, changed | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF)?;
        Ok(Self(inotify.into_event_stream([0; EVENT_BYTES])?))
    }

    /// Waits for an event on our file. An error where the folder went, and the watch with it.
    async fn next(&mut self) -> io::Result<()> {
        while let Some(event) = self.0.next().await {
            let event = event?;
            if event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
                break;
            }
            // An event without a name tells that the queue ran over: look.
            if event.name.is_none_or(|name| name == FILE) {
                return Ok(());
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Waits for an event; forever without a watch. A watch that ended is given up, and made anew at the next look.
async fn happened(watch: &mut Option<Watch>) {
    match watch {
        None => std::future::pending().await,
        Some(over) => {
            if over.next().await.is_err() {
                *watch = None;
            }
        }
    }
}

#[cfg(test)]
#[path = "dropin_tests.rs"]
mod tests;
