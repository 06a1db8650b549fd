// SPDX-License-Identifier: Apache-2.0
//! Pod links: the program at their host end. Their map entries are in `pod_maps.rs`.

use std::{collections::BTreeSet, net::IpAddr, os::fd::BorrowedFd};

use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;
use ebpf_abi::names;

use crate::{
    datapath::Datapath,
    error::AttachError,
    link::{self, Attached},
    sys::{self, LinkInfo},
    tc::{Direction, Place},
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

        let interface = pod.host_ifname.as_str();
        let [ingress, egress] = pin_names(pod.host_index);
        let place = Place {
            interface,
            index: pod.host_index,
            direction: Direction::Ingress,
            pin: &ingress,
            leaves_mark: false,
        };
        // The way back first: what goes out translated comes back to be translated.
        let back = Place { direction: Direction::Egress, pin: &egress, leaves_mark: true, ..place };
        if let Err(error) = self.attach_tc(names::POD_EGRESS, back) {
            // An ingress qdisc of others excludes clsact, and so any filter at egress.
            tracing::warn!(interface, %error, "answers through the host's stack are not translated back: services reach this pod's connections by its sockets only");
        }
        let outcome = self.attach_tc(names::POD_INGRESS, place)?;
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
        let [ingress, egress] = pin_names(host_index);
        self.detach_tc(&ingress, host_index, Direction::Ingress)?;
        self.detach_tc(&egress, host_index, Direction::Egress)?;
        // Last: while the program runs, a link without an entry may send nothing.
        self.remove_pod(host_index)?;
        Ok(())
    }

    /// Whether answers that come to this pod through the host's stack are translated back: without it packets of the pod
    /// must not be translated, only its sockets' addresses.
    pub fn pod_has_egress(&self, host_index: u32) -> bool {
        let [_, egress] = pin_names(host_index);
        if self.tcx {
            return self.has_link(host_index, &egress);
        }
        self.links_dir().join(egress).is_dir()
    }

    /// Whether a pinned TCX bpf_link holds the program at this host end.
    pub(crate) fn is_attached(&self, host_index: u32) -> bool {
        let [ingress, _] = pin_names(host_index);
        self.has_link(host_index, &ingress)
    }

    fn has_link(&self, host_index: u32, pin: &str) -> bool {
        let observed = link::observe(&self.links_dir().join(pin));
        matches!(observed, Some(LinkInfo::Tcx { ifindex, .. }) if ifindex == host_index)
    }
}

/// Names of a pod link's pins: for what the pod sends, and for what goes to it.
fn pin_names(host_index: u32) -> [String; 2] {
    [format!("{PIN_PREFIX}{host_index}"), format!("{PIN_PREFIX}out-{host_index}")]
}

/// Whether the kernel has TCX: one that has says that there is no such interface, another knows no such attachment.
pub(crate) fn has_tcx(classifier: BorrowedFd<'_>) -> bool {
    match sys::link_create(classifier, NO_INTERFACE, BPF_TCX_INGRESS as u32) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}
