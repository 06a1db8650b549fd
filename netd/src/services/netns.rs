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

#[derive(Debug)]
struct Known {
    cookie: u64,
    path: PathBuf,
    /// `namespace/name`.
    pod: String,
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

    fn of(&self, cookie: u64) -> Option<&Known> {
        self.0.values().find(|known| known.cookie == cookie)
    }
}

/// Tells the programs of an attachment's netns. Of several interfaces of one pod the first by name counts. A netns that
/// cannot be entered is not told of: its sockets are translated all the same, connected datagrams at the socket.
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
    {
        let mut netnses = lock(&node.netnses);
        let other = |(key, known): (&AttachmentKey, &Known)| {
            known.cookie == cookie && key.ifname < attachment.key.ifname
        };
        if netnses.0.iter().any(other) {
            return;
        }
        let pod = format!("{}/{}", attachment.namespace, attachment.name);
        netnses.0.insert(attachment.key.clone(), Known { cookie, path, pod });
    }
    let mut datapath = lock(&node.datapath);
    if let Err(error) = tell(&mut datapath, cookie, attachment) {
        tracing::warn!(attachment = %attachment.key, %error, "cannot tell the programs of its netns; netd's next start does");
    }
}

fn tell(datapath: &mut Datapath, cookie: u64, attachment: &Attachment) -> Result<(), MapAccessError> {
    let of = |v4: bool| attachment.ips.iter().copied().find(|ip: &IpAddr| ip.is_ipv4() == v4);
    let per_packet = !attachment.adopted && datapath.pod_has_egress(attachment.host_index);
    let value = NetnsValue::pod(of(true), of(false), attachment.host_index, per_packet);
    datapath.set_netns(cookie, &value)
}

/// Forgets it.
pub(crate) fn leave(node: &Node, key: &AttachmentKey) {
    let Some(known) = lock(&node.netnses).0.remove(key) else { return };
    let mut datapath = lock(&node.datapath);
    if let Err(error) = datapath.remove_netns(known.cookie) {
        tracing::debug!(%error, "the netns stays known until the next full pass");
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
