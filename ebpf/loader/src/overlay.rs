// SPDX-License-Identifier: Apache-2.0
//! The overlay device: its program, and the entry that tells the pods' program about it.

use ebpf_abi::names;

use crate::{
    datapath::Datapath,
    error::{AttachError, MapAccessError},
    link::Attached,
    tc::{Direction, Place},
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
        let place =
            Place { interface: device, index, direction: Direction::Ingress, pin: PIN, leaves_mark: false };
        let outcome = self.attach_tc(names::OVERLAY_INGRESS, place)?;
        self.maps.overlay.set(&ENTRY, &index)?;
        Ok(outcome)
    }

    /// Pods' packets to other nodes take the host's stack again. The program goes with the device or with its pin.
    pub fn detach_overlay(&mut self) -> Result<(), AttachError> {
        let index = self.overlay()?;
        self.maps.overlay.set(&ENTRY, &NO_DEVICE)?;
        self.detach_tc(PIN, index.unwrap_or(NO_DEVICE), Direction::Ingress)?;
        Ok(())
    }

    /// Interface index that pods' packets to other nodes go to directly, as the map has it.
    pub fn overlay(&self) -> Result<Option<u32>, MapAccessError> {
        Ok(self.maps.overlay.get(&ENTRY)?.filter(|index| *index != NO_DEVICE))
    }
}
