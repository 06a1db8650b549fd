// SPDX-License-Identifier: Apache-2.0
//! The attachments of this node, durable: one JSON file each in `<state>/attachments/`. The address journal knows who holds
//! which address; this table knows the rest (pod, labels, links), so that a restarted netd publishes and repairs the same
//! pods as before.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipam::AttachmentKey;
use netd_api::{Bandwidth, PortMapping};
use netd_plan::Mac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files::{remove_if_there, write_whole};

/// How far an attachment has come.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Has an address; weft-cni is making the link.
    Pending,
    /// Live: programs attached, published.
    Committed,
    /// DEL has begun: withdrawn from services, its address not yet free.
    Releasing,
}

/// One interface of one container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Attachment {
    pub key: AttachmentKey,
    pub phase: Phase,
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub ips: Vec<IpAddr>,
    /// The sticky name that the addresses follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// Further names in its namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// The caller wants the host's stack for its packets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slow_path: bool,
    /// Another plugin made the link and gave the addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// Empty for an adopted link.
    pub host_ifname: String,
    #[serde(default)]
    pub host_index: u32,
    #[serde(default)]
    pub host_mac: Mac,
    #[serde(default)]
    pub container_mac: Mac,
    #[serde(default)]
    pub netns: String,
    pub mtu: u32,
    /// Milliseconds since the epoch at allocation, for the sweep of attachments that were never committed.
    pub allocated_at_ms: u64,
}

impl Attachment {
    /// Its labels with the implied ones, which no selector can be cheated out of.
    pub(crate) fn effective_labels(&self) -> BTreeMap<String, String> {
        let implied = [("weft.dev/name", &self.name), ("weft.dev/namespace", &self.namespace)];
        let mut labels = self.labels.clone();
        labels.extend(implied.map(|(key, value)| (key.to_owned(), value.clone())));
        labels
    }
}

/// All attachments, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Attachments {
    dir: PathBuf,
    items: BTreeMap<AttachmentKey, Arc<Attachment>>,
}

impl Attachments {
    /// Reads what an earlier netd left. A damaged file is set aside with the suffix `.damaged` and reported: its pod keeps
    /// its network, and CHECK or DEL of it still work from the journal and the kernel.
    pub(crate) fn load(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("attachments");
        std::fs::create_dir_all(&dir)?;
        let mut items = BTreeMap::new();
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {}
                // A crash between write and rename.
                Some("tmp") => {
                    remove_if_there(&path)?;
                    continue;
                }
                _ => continue,
            }
            let text = std::fs::read(&path)?;
            match serde_json::from_slice::<Attachment>(&text) {
                Ok(attachment) => {
                    items.insert(attachment.key.clone(), Arc::new(attachment));
                }
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    tracing::error!(file = %path.display(), aside = %aside.display(), %error, "damaged attachment record set aside");
                    std::fs::rename(&path, &aside)?;
                }
            }
        }
        Ok(Self { dir, items })
    }

    /// Adds or replaces; a killed netd finds it again. A crash of the machine may lose it, with the pod: its address stays
    /// on record in the journal, which is durable, until the sweep finds nobody who has it.
    pub(crate) fn put(&mut self, attachment: Attachment) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(&attachment)?;
        write_whole(&self.path(&attachment.key), &bytes)?;
        self.items.insert(attachment.key.clone(), Arc::new(attachment));
        Ok(())
    }

    /// Removes; absent is fine. One that a crash of the machine brings back has no link any more, and is swept.
    pub(crate) fn remove(&mut self, key: &AttachmentKey) -> io::Result<Option<Arc<Attachment>>> {
        remove_if_there(&self.path(key))?;
        Ok(self.items.remove(key))
    }

    pub(crate) fn get(&self, key: &AttachmentKey) -> Option<&Attachment> {
        self.items.get(key).map(Arc::as_ref)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.items.values().map(Arc::as_ref)
    }

    /// All of them as they are now, for work without the lock.
    pub(crate) fn all(&self) -> Vec<Arc<Attachment>> {
        self.items.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Container IDs may be longer than a file name: the name is a hash, the key stands inside.
    fn path(&self, key: &AttachmentKey) -> PathBuf {
        let digest = Sha256::digest(key.to_string().as_bytes());
        let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        self.dir.join(format!("{hex}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(id: &str) -> Attachment {
        Attachment {
            key: AttachmentKey { network: "weft".into(), container_id: id.into(), ifname: "eth0".into() },
            phase: Phase::Committed,
            namespace: "default".into(),
            name: id.into(),
            uid: String::new(),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            ips: vec!["10.244.0.2".parse().unwrap()],
            sticky: None,
            aliases: Vec::new(),
            port_mappings: Vec::new(),
            bandwidth: None,
            cgroup_path: None,
            slow_path: false,
            adopted: false,
            host_ifname: "weft0".into(),
            host_index: 7,
            host_mac: Mac([2, 0, 0, 0, 0, 1]),
            container_mac: Mac([2, 0, 0, 0, 0, 2]),
            netns: "/run/netns/x".into(),
            mtu: 1450,
            allocated_at_ms: 1,
        }
    }

    #[test]
    fn a_restarted_netd_reads_the_same_attachments() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Attachments::load(dir.path()).unwrap();
        first.put(attachment("a")).unwrap();
        first.put(attachment("b")).unwrap();
        first.remove(&attachment("a").key).unwrap();
        first.remove(&attachment("a").key).unwrap();
        let second = Attachments::load(dir.path()).unwrap();
        assert_eq!(second.iter().collect::<Vec<_>>(), vec![&attachment("b")]);
        assert_eq!(second.len(), 1);
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        Attachments::load(dir.path()).unwrap().put(attachment("a")).unwrap();
        std::fs::write(dir.path().join("attachments/x.json"), "{").unwrap();
        let again = Attachments::load(dir.path()).unwrap();
        assert_eq!(again.len(), 1);
        assert!(dir.path().join("attachments/x.damaged").exists());
    }
}
