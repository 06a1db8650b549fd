// SPDX-License-Identifier: Apache-2.0
//! The node's own interfaces: uplinks, tunnels, the device for direct server return.
//!
//! Which ones have a program is written below `links`: `<hook>-<index>` is the pin of the bpf_link, or, for a clsact filter, a
//! directory of that name; `uplink-out-<index>` is what an uplink sends. So it is known after a restart, and to `netd clean`.

use std::{collections::BTreeMap, fs, path::Path};

use ebpf_abi::names;

use crate::{
    clsact,
    datapath::Datapath,
    error::AttachError,
    link::{self, Attached},
    sys::{self, LinkInfo},
    tc::{Direction, Place},
};

/// What an interface of the node is, and so what is done with packets that come in by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Packets from outside the cluster: node ports, load balancer and external addresses.
    Uplink,
    /// Packets from other nodes, with or without an Ethernet header, of an overlay that is not the one of
    /// [`Datapath::attach_overlay`].
    Tunnel,
    /// Packets that other nodes sent on for direct server return.
    Dsr,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 3] = [Self::Uplink, Self::Tunnel, Self::Dsr];

    const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Tunnel => "tunnel",
            Self::Dsr => "dsr",
        }
    }

    fn program(self, has_ethernet: bool) -> &'static str {
        match self {
            Self::Uplink => names::UPLINK_INGRESS,
            Self::Tunnel if has_ethernet => names::OVERLAY_INGRESS,
            Self::Tunnel => names::TUNNEL_INGRESS,
            Self::Dsr => names::DSR_INGRESS,
        }
    }
}

impl Datapath {
    /// Makes sure that these interfaces, and no others, have the hook's program at their ingress. May be repeated; an
    /// interface that was remade under the same name gets the program anew. Gives what happened to each.
    pub fn attach_devices(
        &mut self,
        hook: Hook,
        devices: &[&str],
    ) -> Result<BTreeMap<u32, Attached>, AttachError> {
        let mut outcomes = BTreeMap::new();
        let mut is_blind = false;
        for device in devices {
            let changed = || AttachError::InterfaceChanged { interface: (*device).to_owned(), index: 0 };
            let index = nix::net::if_::if_nametoindex(*device).map_err(|_| changed())?;
            let has_ethernet = sys::is_ethernet(device).map_err(|_| changed())?;
            let pin = format!("{}-{index}", hook.name());
            let place = Place {
                interface: device,
                index,
                direction: Direction::Ingress,
                pin: &pin,
                leaves_mark: true,
            };
            if hook == Hook::Uplink {
                // The way back first.
                let back = Place { direction: Direction::Egress, pin: &back_pin(index), ..place };
                if let Err(error) = self.attach_tc(names::UPLINK_EGRESS, back) {
                    // An ingress qdisc of others excludes clsact, and so any filter at egress.
                    tracing::warn!(device, %error, "node ports do not lead to processes of the host here");
                    is_blind = true;
                    self.say_blind_uplink(true)?;
                }
            }
            let outcome = self.attach_tc(hook.program(has_ethernet), place)?;
            if outcome != Attached::Updated {
                tracing::info!(device, hook = hook.name(), ?outcome, "attached");
            }
            outcomes.insert(index, outcome);
        }
        for index in self.devices(hook) {
            if !outcomes.contains_key(&index) {
                self.detach_device(hook, index)?;
            }
        }
        if hook == Hook::Uplink {
            self.say_blind_uplink(is_blind)?;
        }
        Ok(outcomes)
    }

    /// Indexes of the interfaces that have the hook's program, or had it before they went.
    pub fn devices(&self, hook: Hook) -> Vec<u32> {
        let mut indexes: Vec<u32> = marked(&self.links_dir())
            .into_iter()
            .filter_map(|(found, index)| (found == hook).then_some(index))
            .collect();
        indexes.sort_unstable();
        indexes
    }

    fn detach_device(&mut self, hook: Hook, index: u32) -> Result<(), AttachError> {
        self.detach_tc(&format!("{}-{index}", hook.name()), index, Direction::Ingress)?;
        if hook == Hook::Uplink {
            self.detach_tc(&back_pin(index), index, Direction::Egress)?;
        }
        tracing::info!(index, hook = hook.name(), "detached");
        Ok(())
    }
}

/// Name of the pin of what an uplink sends.
fn back_pin(index: u32) -> String {
    format!("{}-out-{index}", Hook::Uplink.name())
}

/// What the names below `links` say of hooks: each with an interface index.
pub(crate) fn marked(links_dir: &Path) -> Vec<(Hook, u32)> {
    let entries = fs::read_dir(links_dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let (hook, index) = name.to_str()?.rsplit_once('-')?;
            let hook = Hook::ALL.into_iter().find(|known| known.name() == hook)?;
            Some((hook, index.parse().ok()?))
        })
        .collect()
}

/// Removes pins of bpf_links whose interface is gone (the kernel has detached those already), and marks of filters that went
/// with theirs.
pub(crate) fn sweep_dead_pins(links_dir: &Path) {
    for entry in fs::read_dir(links_dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let removed = if path.is_dir() {
            let name = entry.file_name();
            let index = name.to_str().and_then(|name| name.rsplit_once('-')?.1.parse().ok());
            match index {
                Some(index) if clsact::interface_name(index).is_none() => {
                    fs::remove_dir(&path).map(|()| true)
                }
                _ => continue,
            }
        } else if matches!(link::observe(&path), Some(LinkInfo::Tcx { ifindex: 0, .. })) {
            link::remove(&path)
        } else {
            continue;
        };
        match removed {
            Ok(_) => tracing::info!(pin = %path.display(), "removed the pin of a link that is gone"),
            Err(error) => tracing::warn!(pin = %path.display(), %error, "cannot remove a dead pin"),
        }
    }
}
