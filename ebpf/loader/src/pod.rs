// SPDX-License-Identifier: Apache-2.0
//! Pod links: their map entries and the program at their host end.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, os::fd::BorrowedFd, path::Path};

use aya::maps::{HashMap, MapData, MapError};
use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;
use ebpf_abi::{POD_REDIRECT, PodKey, PodLink, PodValue, names};

use crate::{
    clsact,
    datapath::{Datapath, entries},
    error::{AttachError, MapAccessError},
    image::is_absent,
    link::{self, Attached, Target},
    sys::{self, LinkInfo},
};

/// BPF_ANY (linux/bpf.h): create or replace.
const ANY: u64 = 0;
/// No interface has it: indexes count up from 1.
const NO_INTERFACE: u32 = i32::MAX as u32;
/// Start of a pod link's pin name; the interface index follows.
const PIN_PREFIX: &str = "pod-";

/// A pod's link, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAttachment {
    /// Name of the veth's host end, in the caller's netns.
    pub host_ifname: String,
    /// Its interface index.
    pub host_index: u32,
    /// The pod's address, the only one it may send from.
    pub ip: Ipv4Addr,
    /// MAC of the container end.
    pub mac: [u8; 6],
    /// MAC of the host end.
    pub host_mac: [u8; 6],
    /// Whether packets between this pod and others of the node may pass by the host's stack.
    pub redirect: bool,
}

/// A pod link as the maps and pins have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPod {
    /// Interface index of the host end.
    pub host_index: u32,
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// MAC of the container end.
    pub mac: [u8; 6],
    /// MAC of the host end; `None` when the address is not (or no longer) reached over this link.
    pub host_mac: Option<[u8; 6]>,
    /// Whether both directions may pass by the host's stack.
    pub redirect: bool,
    /// Whether a pinned TCX bpf_link holds the program there. Always `false` with clsact, which keeps no record of ours.
    pub attached: bool,
}

impl Datapath {
    /// Writes the pod's map entries, then attaches the program (or replaces it). May be repeated.
    pub fn attach_pod(&mut self, pod: &PodAttachment) -> Result<Attached, AttachError> {
        // A name may have been given to another interface since the caller looked.
        if nix::net::if_::if_nametoindex(pod.host_ifname.as_str()) != Ok(pod.host_index) {
            return Err(AttachError::InterfaceChanged {
                interface: pod.host_ifname.clone(),
                index: pod.host_index,
            });
        }
        let flags = if pod.redirect { POD_REDIRECT } else { 0 };
        self.pod_links
            .insert(pod.host_index, PodLink::new(pod.ip, pod.mac, flags), ANY)
            .map_err(MapAccessError::of(names::POD_LINKS))?;
        let value = PodValue { ifindex: pod.host_index, flags, mac: pod.mac, host_mac: pod.host_mac };
        self.pods.insert(PodKey::new(pod.ip), value, ANY).map_err(MapAccessError::of(names::PODS))?;

        let pin = self.link_pin(&pin_name(pod.host_index));
        let outcome = if self.tcx {
            let target = Target::Interface(pod.host_index);
            let program = self.program_fd(names::POD_INGRESS)?;
            let outcome = link::ensure(names::POD_INGRESS, program, target, BPF_TCX_INGRESS as u32, &pin)?;
            // From the time of another attach mode. One that stays checks each packet a second time, nothing worse.
            if let Err(error) = clsact::detach(names::POD_INGRESS, &pod.host_ifname) {
                tracing::warn!(%error, "an old filter stays");
            }
            outcome
        } else {
            let outcome = clsact::attach(&mut self.ebpf, names::POD_INGRESS, &pod.host_ifname)?;
            unpin(&pin)?;
            outcome
        };
        tracing::debug!(interface = pod.host_ifname, ip = %pod.ip, ?outcome, "pod link attached");
        Ok(outcome)
    }

    /// Removes the pod's map entries and the program. Absent is fine, as is an interface that is gone; an address that
    /// meanwhile belongs to another link stays.
    pub fn detach_pod(&mut self, host_index: u32, ip: Ipv4Addr) -> Result<(), AttachError> {
        let key = PodKey::new(ip);
        let owned = match self.pods.get(&key, 0) {
            Ok(value) => value.ifindex == host_index,
            Err(MapError::KeyNotFound) => false,
            Err(source) => return Err(MapAccessError { map: names::PODS, source }.into()),
        };
        if owned {
            remove(&mut self.pods, &key, names::PODS)?;
        }
        unpin(&self.link_pin(&pin_name(host_index)))?;
        if let Some(interface) = clsact::interface_name(host_index) {
            clsact::detach(names::POD_INGRESS, &interface)?;
        }
        // Last: while the program runs, a link without an entry may send nothing.
        remove(&mut self.pod_links, &host_index, names::POD_LINKS)?;
        Ok(())
    }

    /// Every pod link that the maps know, by interface index.
    pub fn pods(&self) -> Result<BTreeMap<u32, ObservedPod>, MapAccessError> {
        let links = entries(&self.pod_links, names::POD_LINKS)?;
        let pods = entries(&self.pods, names::PODS)?;
        Ok(links
            .into_iter()
            .map(|(host_index, link)| {
                let pod = pods.get(&PodKey::new(link.address())).filter(|pod| pod.ifindex == host_index);
                let pin = self.link_pin(&pin_name(host_index));
                let observed = ObservedPod {
                    host_index,
                    ip: link.address(),
                    mac: link.mac,
                    host_mac: pod.map(|pod| pod.host_mac),
                    redirect: link.flags & pod.map_or(0, |pod| pod.flags) & POD_REDIRECT != 0,
                    attached: matches!(link::observe(&pin), Some(LinkInfo::Tcx { ifindex, .. }) if ifindex == host_index),
                };
                (host_index, observed)
            })
            .collect())
    }
}

/// Whether the kernel has TCX: one that has says that there is no such interface, another knows no such attachment.
pub(crate) fn has_tcx(classifier: BorrowedFd<'_>) -> bool {
    match sys::link_create(classifier, NO_INTERFACE, BPF_TCX_INGRESS as u32) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

/// Removes pins of pod bpf_links whose interface is gone: the kernel has detached those already.
pub(crate) fn sweep_dead_pins(links_dir: &Path) {
    for entry in fs::read_dir(links_dir).into_iter().flatten().flatten() {
        let is_pod = entry.file_name().to_string_lossy().starts_with(PIN_PREFIX);
        if is_pod && matches!(link::observe(&entry.path()), Some(LinkInfo::Tcx { ifindex: 0, .. })) {
            match link::remove(&entry.path()) {
                Ok(_) => {
                    tracing::info!(pin = %entry.path().display(), "removed the pin of a link that is gone")
                }
                Err(error) => {
                    tracing::warn!(pin = %entry.path().display(), %error, "cannot remove a dead pin")
                }
            }
        }
    }
}

fn pin_name(host_index: u32) -> String {
    format!("{PIN_PREFIX}{host_index}")
}

pub(crate) fn unpin(pin: &Path) -> Result<(), AttachError> {
    link::remove(pin).map(drop).map_err(|source| AttachError::Kernel {
        action: "unpin",
        program: names::POD_INGRESS,
        target: pin.display().to_string(),
        source,
    })
}

fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), MapAccessError> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if is_absent(&error) => Ok(()),
        Err(source) => Err(MapAccessError { map: name, source }),
    }
}
