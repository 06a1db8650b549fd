// SPDX-License-Identifier: Apache-2.0
//! One node: its disk, its link, its addressing while netd runs, and the task that does what netd's agent does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use ipam::{AttachmentKey, Timestamp};
use netd::addressing::{Addressing, GiveError, Picture, Wish};
use netd_store::records::{SCHEMA, decode};
use netd_store::{Key, Keys, Listing, Store};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::cable::Cable;

/// Released addresses rest this long, in simulated milliseconds.
pub const COOL_DOWN: Duration = Duration::from_secs(30);
/// Quick, so that a test with a store in memory is short.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// How far what a node sees lies behind what is, in real time.
const LAG_MAX: Duration = Duration::from_millis(4);

/// What netd has durable about an attachment, and the kernel has in use.
pub type Attachments = Arc<Mutex<BTreeMap<AttachmentKey, Vec<IpAddr>>>>;

/// One node of the simulation.
pub struct Node {
    /// Its identity.
    pub uuid: Uuid,
    /// Its link to the store.
    pub cable: Arc<Cable>,
    /// Attachments that live here, whether netd runs or not.
    pub attachments: Attachments,
    /// What pools with a selector look at.
    pub labels: BTreeMap<String, String>,
    /// netd's agent looks at the store again this often, in real time.
    pub look_every: Duration,
    /// The machine is switched off.
    pub off: bool,
    /// An operator removed it from the cluster.
    pub removed: bool,
    dir: TempDir,
    keys: Keys,
    clock: Arc<AtomicU64>,
    running: Option<(Arc<Addressing>, JoinHandle<()>)>,
}

impl Node {
    /// A node whose netd does not run yet.
    pub fn new(uuid: Uuid, cable: Arc<Cable>, keys: Keys, clock: Arc<AtomicU64>) -> Result<Node> {
        let dir = tempfile::tempdir()?;
        Ok(Node {
            uuid,
            cable,
            attachments: Attachments::default(),
            labels: BTreeMap::new(),
            look_every: LOOK_EVERY,
            off: false,
            removed: false,
            dir,
            keys,
            clock,
            running: None,
        })
    }

    /// netd starts: journal read, store followed.
    pub fn start(&mut self) -> Result<()> {
        if self.running.is_some() || self.off {
            return Ok(());
        }
        let clock = self.clock.clone();
        let addressing = Arc::new(Addressing::open(
            self.dir.path(),
            self.uuid,
            COOL_DOWN,
            self.keys.clone(),
            self.cable.clone(),
            Arc::new(move || Timestamp(clock.load(Ordering::SeqCst))),
        )?);
        // What an earlier netd had allocated and never put on record is nobody's: its sweep's work.
        let known = lock(&self.attachments);
        for (_, owner) in addressing.allocations() {
            if let ipam::Owner::Attachment(key) = owner
                && !known.contains_key(&key)
            {
                addressing.take_back(&key)?;
            }
        }
        drop(known);
        let agent = Agent {
            addressing: addressing.clone(),
            cable: self.cable.clone(),
            keys: self.keys.clone(),
            node: self.uuid,
            labels: self.labels.clone(),
            attachments: self.attachments.clone(),
        };
        self.running = Some((addressing, tokio::spawn(agent.run(self.look_every))));
        Ok(())
    }

    /// netd is killed: memory is lost, the disk and the pods stay.
    pub async fn kill(&mut self) {
        if let Some((_, task)) = self.running.take() {
            task.abort();
            // Until it has ended it may still write to the journal.
            let _ = task.await;
        }
    }

    /// The addressing, while netd runs.
    pub fn addressing(&self) -> Option<Arc<Addressing>> {
        self.running.as_ref().map(|(addressing, _)| addressing.clone())
    }
}

/// ADD as netd does it; `None` where netd refused.
pub async fn add(
    addressing: &Arc<Addressing>,
    attachments: &Attachments,
    key: AttachmentKey,
    wish: &Wish,
) -> Result<Vec<IpAddr>, GiveError> {
    let given = addressing.give(&key, wish).await?;
    let ips = given.ips.clone();
    lock(attachments).insert(key.clone(), ips.clone());
    addressing.commit(&key).map_err(GiveError::Journal)?;
    Ok(ips)
}

/// DEL as netd does it: off the kernel first, then free.
pub fn del(addressing: &Addressing, attachments: &Attachments, key: &AttachmentKey) -> Result<()> {
    lock(attachments).remove(key);
    addressing.take_back(key).map(drop)
}

/// What netd's agent, spare keeper and settler do, in one loop.
struct Agent {
    addressing: Arc<Addressing>,
    cable: Arc<Cable>,
    keys: Keys,
    node: Uuid,
    labels: BTreeMap<String, String>,
    attachments: Attachments,
}

impl Agent {
    async fn run(self, look_every: Duration) {
        let mut last: Option<Picture> = None;
        loop {
            tokio::time::sleep(look_every).await;
            match self.cable.list(self.keys.root()).await {
                Ok(listing) => {
                    let labels = self.labels.clone();
                    last = Some(Picture { labels, ..picture(&listing, &self.keys, self.node) });
                }
                Err(error) => {
                    let Some(last) = &mut last else { continue };
                    last.away = Some(error.to_string());
                }
            }
            let Some(picture) = last.clone() else { continue };
            // What is seen is never what is: a watch is behind, and a busy machine lets a task wait.
            tokio::time::sleep(LAG_MAX.mul_f32(fastrand::f32())).await;
            self.addressing.observe(picture);
            // Refusals and cut links are what the simulation is about: the next round tries again.
            let _ = self.addressing.settle(|key| lock(&self.attachments).contains_key(key)).await;
            let _ = self.addressing.keep_ahead().await;
        }
    }
}

/// The store's content, as netd's view would tell it.
pub fn picture(listing: &Listing, keys: &Keys, own: Uuid) -> Picture {
    let mut picture = Picture { in_sync: true, configured: true, ..Picture::default() };
    for item in &listing.items {
        let (key, value) = (item.key.as_str(), item.value.as_ref());
        match keys.parse(key) {
            Some(Key::Pool(name)) => drop(picture.pools.insert(name, decode(key, value).unwrap())),
            Some(Key::Block(cidr)) => drop(picture.blocks.insert(cidr, decode(key, value).unwrap())),
            Some(Key::Address(ip)) => drop(picture.borrowed.insert(ip, decode(key, value).unwrap())),
            Some(Key::Sticky(name)) => drop(picture.sticky.insert(name, decode(key, value).unwrap())),
            Some(Key::Tombstone(uuid)) => picture.removed |= uuid == own,
            _ => {}
        }
    }
    picture
}

/// The node's record, as its publisher would write it.
pub fn record(uuid: Uuid, name: &str) -> String {
    format!(r#"{{"schema":{SCHEMA},"uuid":"{uuid}","name":"{name}","underlay":"192.0.2.1"}}"#)
}

/// Locks; a panic elsewhere is that test's failure, not another one here.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
