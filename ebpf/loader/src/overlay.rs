// SPDX-License-Identifier: Apache-2.0
//! The overlay device: its program, and the entry that tells the pods' program about it.

use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;
use ebpf_abi::names;

use crate::{
    clsact,
    datapath::Datapath,
    error::{AttachError, MapAccessError},
    link::{self, Attached, Target},
    pod::unpin,
};

/// Name of its bpf_link's pin.
pub(crate) const PIN: &str = "overlay";
/// The only entry of OVERLAY.
const ENTRY: u32 = 0;
/// OVERLAY's value while there is no device.
const NO_DEVICE: u32 = 0;

impl Datapath {
    /// Attaches the program to the overlay device (or replaces it there), then lets pods send to it directly. May be
    /// repeated; a device that was remade under the same name has another index and gets the program anew.
    pub fn attach_overlay(&mut self, device: &str) -> Result<Attached, AttachError> {
        let index = nix::net::if_::if_nametoindex(device)
            .map_err(|_| AttachError::InterfaceChanged { interface: device.to_owned(), index: NO_DEVICE })?;
        let pin = self.link_pin(PIN);
        let outcome = if self.tcx {
            let program = self.program_fd(names::OVERLAY_INGRESS)?;
            let target = Target::Interface(index);
            let outcome = link::ensure(
                names::OVERLAY_INGRESS,
                program,
                target,
                BPF_TCX_INGRESS as u32,
                &pin,
                self.expedite,
            )?;
            // From the time of another attach mode. One that stays finds nothing left to do.
            if let Err(error) = clsact::detach(device) {
                tracing::warn!(%error, "an old filter stays");
            }
            outcome
        } else {
            let outcome = clsact::attach(&mut self.ebpf, names::OVERLAY_INGRESS, device)?;
            unpin(&pin)?;
            outcome
        };
        self.overlay.set(ENTRY, index, 0).map_err(MapAccessError::of(names::OVERLAY))?;
        Ok(outcome)
    }

    /// Pods' packets to other nodes take the host's stack again. The program goes with the device or with its pin.
    pub fn detach_overlay(&mut self) -> Result<(), AttachError> {
        let index = self.overlay()?;
        self.overlay.set(ENTRY, NO_DEVICE, 0).map_err(MapAccessError::of(names::OVERLAY))?;
        unpin(&self.link_pin(PIN))?;
        if let Some(device) = index.and_then(clsact::interface_name) {
            clsact::detach(&device)?;
        }
        Ok(())
    }

    /// Interface index that pods' packets to other nodes go to directly, as the map has it.
    pub fn overlay(&self) -> Result<Option<u32>, MapAccessError> {
        let index = self.overlay.get(&ENTRY, 0).map_err(MapAccessError::of(names::OVERLAY))?;
        Ok((index != NO_DEVICE).then_some(index))
    }
}
