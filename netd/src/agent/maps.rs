// SPDX-License-Identifier: Apache-2.0
//! The part of a pass that speaks with the maps and programs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use anyhow::Result;
use ebpf_loader::{AttachError, ObservedPod};
use netd_api::PendingItem;
use netd_plan::BackendKind;

use super::Agent;
use crate::attach;
use crate::attachments::{Attachment, Phase};
use crate::desired;
use crate::node::{lock, monotonic_ms};
use crate::services::{Synced, client_pods};
use crate::view::View;

impl Agent {
    pub(super) fn keep_services(&mut self, view: &View) -> Result<Synced> {
        let node = &self.node;
        tokio::task::block_in_place(|| {
            let own = node.facts().overlays;
            // Attachments come before maps wherever both are held.
            let pods = client_pods(node);
            let mut services = lock(&node.services);
            // Before the lock that every ADD needs: of thousands of services this takes its time.
            services.recollect();
            let mut datapath = lock(&node.datapath);
            let node_view = self.around.node_view(node, view, pods, &datapath)?;
            self.around.tell(node, view, &own, &mut datapath)?;
            services.pass(&mut datapath, &view.table, node_view, view.in_sync, monotonic_ms())
        })
    }

    pub(super) fn keep_devices(&mut self, view: &View) -> Result<()> {
        let mut datapath = lock(&self.node.datapath);
        tokio::task::block_in_place(|| self.around.attach(&self.node, view, &mut datapath))
    }

    /// Once everything is attached, what an earlier version left beside is not needed any more.
    pub(super) fn finish_migration(&mut self, attached: bool) {
        if self.migrated || !attached {
            return;
        }
        match tokio::task::block_in_place(|| lock(&self.node.datapath).finish_migration()) {
            Ok(()) => self.migrated = true,
            Err(error) => {
                tracing::warn!(%error, "what an earlier version pinned is still there; tried again")
            }
        }
    }

    /// The program on the overlay device: attached once by this netd, and again when the device was remade.
    pub(super) fn keep_overlay(&mut self) -> Result<(), AttachError> {
        // WireGuard's devices carry IP packets, not frames: those take the host's stack.
        let device = match self.node.overlay.load().keeps(BackendKind::Vxlan) {
            true => netd_host::interface_index(desired::VXLAN_DEVICE),
            false => None,
        };
        if self.overlay == Some(device) {
            return Ok(());
        }
        let mut datapath = lock(&self.node.datapath);
        tokio::task::block_in_place(|| match device {
            Some(_) => datapath.attach_overlay(desired::VXLAN_DEVICE).map(drop),
            None => datapath.detach_overlay(),
        })?;
        self.overlay = Some(device);
        Ok(())
    }

    /// Who computes checksums inside VXLAN. A device that lost the offload keeps it off: what was found out stays true.
    pub(super) fn keep_checksums(&self) -> Result<(), netd_host::HostError> {
        let is_off = self.node.vxlan_checksum_off.load(Ordering::Relaxed);
        let device = desired::VXLAN_DEVICE;
        if is_off && netd_host::interface_index(device).is_some() && netd_host::offload::tx_checksum(device)?
        {
            netd_host::offload::set_tx_checksum(device, false)?;
            tracing::info!(device, "the kernel computes checksums");
        }
        Ok(())
    }

    /// Programs and map entries of all live pods: a netd that was just started replaces the programs behind the pinned
    /// links; in doubt it looks for what somebody removed. Returns the pods that could not be attached.
    pub(super) fn keep_pods(
        &mut self,
        view: &View,
        doubt: bool,
        errors: &mut Vec<String>,
    ) -> Vec<PendingItem> {
        // Held throughout: a DEL either came before (then it is not live here) or waits until its pod is consistent.
        let attachments = lock(&self.node.attachments);
        if doubt {
            match tokio::task::block_in_place(|| lock(&self.node.datapath).pods()) {
                Ok(present) => {
                    self.attached
                        .retain(|index, (ips, _)| present.get(index).is_some_and(|pod| is_whole(pod, ips)));
                    if view.in_sync {
                        let known: BTreeSet<u32> = attachments.iter().map(|a| a.host_index).collect();
                        let strangers = present.values().filter(|pod| !known.contains(&pod.host_index));
                        self.sweep_pods(strangers, errors);
                    }
                }
                Err(error) => errors.push(format!("reading the pod maps: {error}")),
            }
        }
        let mut pending = Vec::new();
        let live = |a: &&Attachment| {
            a.phase == Phase::Committed && !a.adopted && !self.gone.contains(&a.host_ifname)
        };
        for attachment in attachments.iter().filter(live) {
            let wanted = (attachment.ips.clone(), attach::fast_path(&self.node, attachment).is_ok());
            if self.attached.get(&attachment.host_index) == Some(&wanted) {
                continue;
            }
            match tokio::task::block_in_place(|| attach::attach(&self.node, attachment)) {
                Ok(()) => drop(self.attached.insert(attachment.host_index, wanted)),
                Err(error) => pending.push(PendingItem {
                    object: format!("programs of pod {}/{}", attachment.namespace, attachment.name),
                    error: error.to_string(),
                    retries: 0,
                }),
            }
        }
        pending
    }

    /// Map entries of pods that are no more. One whose address is still given to somebody stays: its record may be damaged.
    fn sweep_pods<'a>(&self, strangers: impl Iterator<Item = &'a ObservedPod>, errors: &mut Vec<String>) {
        for pod in strangers {
            let given = {
                let addresses = self.node.addressing.addresses();
                pod.addresses.iter().any(|ip| addresses.allocator().lookup_address(ip).is_some())
            };
            if given {
                continue;
            }
            let ips: Vec<IpAddr> = pod.addresses.iter().copied().collect();
            if let Err(error) = lock(&self.node.datapath).detach_pod(pod.host_index, &ips) {
                errors.push(format!("sweeping the map entries of {ips:?}: {error}"));
            }
        }
    }
}

/// Its program, its entries and all of its addresses are there; clsact keeps no record of programs, so such a pod is attached
/// again, which changes nothing where nothing was missing.
fn is_whole(pod: &ObservedPod, ips: &[IpAddr]) -> bool {
    pod.attached && pod.host_mac.is_some() && ips.iter().all(|ip| pod.addresses.contains(ip))
}
