// SPDX-License-Identifier: Apache-2.0
//! Pod links: the program at their host end. Their map entries are in `pod_maps.rs`.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;
use ebpf_abi::names;

use crate::{
    clsact,
    datapath::Datapath,
    error::AttachError,
    expedite::Expedited,
    link::{self, Attached, Target},
    sys::{self, LinkInfo},
};

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
    /// The pod's addresses, the only ones it may send from (beside the link-local one that follows from its MAC, when
    /// there is one of IPv6). Without one of a family the pod may not send that family at all.
    pub addresses: Vec<IpAddr>,
    /// MAC of the container end.
    pub mac: [u8; 6],
    /// MAC of the host end.
    pub host_mac: [u8; 6],
    /// Whether packets from and to this pod may pass by the host's stack: those between it and other pods of the node that
    /// may, too, and those over the overlay device.
    pub redirect: bool,
}

/// A pod link as the maps and pins have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPod {
    /// Interface index of the host end.
    pub host_index: u32,
    /// The pod's addresses: every one that any map has for this link.
    pub addresses: BTreeSet<IpAddr>,
    /// MAC of the container end; zeroes when the link itself has no entry (which then may send nothing).
    pub mac: [u8; 6],
    /// MAC of the host end; `None` when something is missing: the link's entry, or one of the addresses is not (or no
    /// longer) reached over this link or may not be sent from.
    pub host_mac: Option<[u8; 6]>,
    /// Whether packets in both directions, and of every address, may pass by the host's stack.
    pub redirect: bool,
    /// Whether a pinned TCX bpf_link holds the program there. Always `false` with clsact, which keeps no record of ours.
    pub attached: bool,
}

impl Datapath {
    /// Writes the pod's map entries, then attaches the program (or replaces it), then removes the entries of addresses that
    /// the link had before and that are no longer listed. May be repeated.
    pub fn attach_pod(&mut self, pod: &PodAttachment) -> Result<Attached, AttachError> {
        // A name may have been given to another interface since the caller looked.
        if nix::net::if_::if_nametoindex(pod.host_ifname.as_str()) != Ok(pod.host_index) {
            return Err(AttachError::InterfaceChanged {
                interface: pod.host_ifname.clone(),
                index: pod.host_index,
            });
        }
        let addresses = pod.addresses.iter().map(IpAddr::to_canonical).collect();
        self.write_pod(pod, &addresses)?;

        let pin = self.pod_pin(pod.host_index);
        let outcome = if self.tcx {
            let target = Target::Interface(pod.host_index);
            let program = self.program_fd(names::POD_INGRESS)?;
            let outcome = link::ensure(
                names::POD_INGRESS,
                program,
                target,
                BPF_TCX_INGRESS as u32,
                &pin,
                self.expedite,
            )?;
            // From the time of another attach mode. One that stays checks each packet a second time, nothing worse.
            if let Err(error) = clsact::detach(&pod.host_ifname) {
                tracing::warn!(%error, "an old filter stays");
            }
            outcome
        } else {
            let outcome = {
                let _soon = Expedited::begin(self.expedite);
                clsact::attach(&mut self.ebpf, names::POD_INGRESS, &pod.host_ifname)?
            };
            unpin(&pin)?;
            outcome
        };
        self.remove_addresses_except(pod.host_index, &addresses)?;
        tracing::debug!(interface = pod.host_ifname, ?addresses, ?outcome, "pod link attached");
        Ok(outcome)
    }

    /// Removes the pod's map entries (of these addresses and any others the link has) and the program. Absent is fine, as
    /// is an interface that is gone; an address that meanwhile belongs to another link stays.
    pub fn detach_pod(&mut self, host_index: u32, addresses: &[IpAddr]) -> Result<(), AttachError> {
        let addresses = addresses.iter().map(IpAddr::to_canonical);
        self.known_addresses.entry(host_index).or_default().extend(addresses);
        self.make_unreachable(host_index)?;
        unpin(&self.pod_pin(host_index))?;
        if let Some(interface) = clsact::interface_name(host_index) {
            clsact::detach(&interface)?;
        }
        // Last: while the program runs, a link without an entry may send nothing.
        self.remove_pod(host_index)?;
        Ok(())
    }

    /// Whether a pinned TCX bpf_link holds the program at this host end.
    pub(crate) fn is_attached(&self, host_index: u32) -> bool {
        let observed = link::observe(&self.pod_pin(host_index));
        matches!(observed, Some(LinkInfo::Tcx { ifindex, .. }) if ifindex == host_index)
    }

    fn pod_pin(&self, host_index: u32) -> PathBuf {
        self.link_pin(&format!("{PIN_PREFIX}{host_index}"))
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

pub(crate) fn unpin(pin: &Path) -> Result<(), AttachError> {
    link::remove(pin).map(drop).map_err(|source| AttachError::Kernel {
        action: "unpin",
        program: names::POD_INGRESS,
        target: pin.display().to_string(),
        source,
    })
}
