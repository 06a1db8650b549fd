// SPDX-License-Identifier: Apache-2.0
//! What the programs know of pods' network namespaces, by the kernel's cookie: the addresses that their sockets have, and
//! whether the program on the veth translates connected datagrams.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ebpf_abi::NetnsValue;
use ebpf_loader::{Datapath, MapAccessError};
use ipam::AttachmentKey;
use netd_host::Netns;

use crate::attachments::Attachment;
use crate::node::{Node, lock};

/// Cookies of pods' network namespaces, with their path, by the attachment whose addresses the programs know.
#[derive(Debug, Default)]
pub(crate) struct Netnses(BTreeMap<AttachmentKey, Known>);

#[derive(Clone, Debug)]
struct Known {
    cookie: u64,
    path: PathBuf,
    /// `namespace/name`.
    pod: String,
    ips: Vec<IpAddr>,
    host_index: u32,
    adopted: bool,
}

impl Netnses {
    /// Where the netns with this cookie is.
    pub(crate) fn path(&self, cookie: u64) -> Option<PathBuf> {
        self.of(cookie).map(|known| known.path.clone())
    }

    /// The pod that it is of.
    pub(crate) fn pod(&self, cookie: u64) -> Option<String> {
        self.of(cookie).map(|known| known.pod.clone())
    }

    /// Every netns.
    pub(crate) fn paths(&self) -> BTreeSet<PathBuf> {
        self.0.values().map(|known| known.path.clone()).collect()
    }

    /// Forgets what an attachment said; its cookie, with who speaks for that netns now.
    fn forget(&mut self, key: &AttachmentKey) -> Option<(u64, Option<Known>)> {
        let cookie = self.0.remove(key)?.cookie;
        Some((cookie, self.of(cookie).cloned()))
    }

    /// Of several interfaces of one pod the first by name counts.
    fn of(&self, cookie: u64) -> Option<&Known> {
        let same = self.0.iter().filter(|(_, known)| known.cookie == cookie);
        same.min_by_key(|(key, _)| &key.ifname).map(|(_, known)| known)
    }
}

/// Tells the programs of an attachment's netns. One that cannot be entered is not told of: its sockets are translated all the same, connected datagrams at the socket.
pub(crate) fn enter(node: &Node, attachment: &Attachment) {
    if attachment.netns.is_empty() {
        return;
    }
    let path = PathBuf::from(&attachment.netns);
    let cookie = Netns::open(&path)
        .and_then(|netns| netd_host::netns::run_in(&netns, ebpf_loader::netns_cookie))
        .map_err(anyhow::Error::from)
        .and_then(|cookie| Ok(cookie?));
    let cookie = match cookie {
        Ok(cookie) => cookie,
        Err(error) => {
            tracing::debug!(netns = attachment.netns, "its sockets are not known by their netns: {error:#}");
            return;
        }
    };
    let known = Known {
        cookie,
        path,
        pod: format!("{}/{}", attachment.namespace, attachment.name),
        ips: attachment.ips.clone(),
        host_index: attachment.host_index,
        adopted: attachment.adopted,
    };
    let first = {
        let mut netnses = lock(&node.netnses);
        netnses.0.insert(attachment.key.clone(), known.clone());
        netnses.of(cookie).cloned().unwrap_or(known)
    };
    let mut datapath = lock(&node.datapath);
    if let Err(error) = tell(&mut datapath, &first) {
        tracing::warn!(attachment = %attachment.key, %error, "cannot tell the programs of its netns; netd's next start does");
    }
}

fn tell(datapath: &mut Datapath, known: &Known) -> Result<(), MapAccessError> {
    let of = |v4: bool| known.ips.iter().copied().find(|ip: &IpAddr| ip.is_ipv4() == v4);
    let per_packet = !known.adopted && datapath.pod_has_egress(known.host_index);
    let value = NetnsValue::pod(of(true), of(false), known.host_index, per_packet);
    datapath.set_netns(known.cookie, &value)
}

/// Forgets it, where no other interface of the pod is in the same netns.
pub(crate) fn leave(node: &Node, key: &AttachmentKey) {
    let Some((cookie, other)) = lock(&node.netnses).forget(key) else { return };
    let mut datapath = lock(&node.datapath);
    let done = match other {
        // Another interface of the same pod.
        Some(known) => tell(&mut datapath, &known),
        None => datapath.remove_netns(cookie).map(drop),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "the netns stays known as it was until the next full pass");
    }
}

/// Forgets every netns that no attachment has.
pub(crate) fn sweep(node: &Node) -> Result<(), MapAccessError> {
    // First the maps: what somebody tells them meanwhile is known before.
    let mut datapath = lock(&node.datapath);
    let known: BTreeSet<u64> = lock(&node.netnses).0.values().map(|known| known.cookie).collect();
    for cookie in datapath.netns()?.into_keys() {
        if cookie != node.netns_cookie && !known.contains(&cookie) {
            datapath.remove_netns(cookie)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netns_is_known_as_long_as_an_interface_is_in_it() {
        let key = |ifname: &str| AttachmentKey {
            network: "weft".to_owned(),
            container_id: "c1".to_owned(),
            ifname: ifname.to_owned(),
        };
        let known = |cookie, host_index| Known {
            cookie,
            path: PathBuf::from("/run/netns/a"),
            pod: "default/a".to_owned(),
            ips: Vec::new(),
            host_index,
            adopted: false,
        };
        let mut netnses = Netnses::default();
        for (ifname, cookie, host_index) in [("net1", 7, 12), ("eth0", 7, 11), ("eth1", 8, 13)] {
            netnses.0.insert(key(ifname), known(cookie, host_index));
        }
        assert_eq!(netnses.of(7).map(|known| known.host_index), Some(11), "the first by name");
        let (cookie, other) = netnses.forget(&key("eth0")).unwrap();
        assert_eq!((cookie, other.map(|known| known.host_index)), (7, Some(12)));
        assert!(netnses.forget(&key("net1")).is_some_and(|(cookie, other)| cookie == 7 && other.is_none()));
        assert!(netnses.forget(&key("net1")).is_none() && netnses.of(8).is_some());
    }
}
