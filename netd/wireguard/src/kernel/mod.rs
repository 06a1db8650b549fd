// SPDX-License-Identifier: Apache-2.0
//! The kernel's devices over generic netlink (family "wireguard", include/uapi/linux/wireguard.h).
//!
//! The link itself is made and removed elsewhere, over rtnetlink. Sockets are of the netns of the calling
//! thread, one for each call.

mod decode;
mod encode;
mod generic;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod wire;

use std::io;

use async_trait::async_trait;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};

use crate::{
    DeviceChange, DeviceKind, DeviceState,
    device::{Device, DeviceError},
};
use decode::Dump;
use generic::Generic;

/// How often a dump is read again that a change interrupted.
const DUMP_TRIES_MAX: usize = 10;

/// A link of kind "wireguard".
#[derive(Clone, Debug)]
pub struct KernelDevice {
    ifname: String,
}

/// Whether this kernel has WireGuard, built in or as a module; asking makes the kernel load the module where it can.
///
/// # Errors
/// [`DeviceError::Io`] or [`DeviceError::TimedOut`] where it cannot be asked.
pub async fn kernel_has_wireguard() -> Result<bool, DeviceError> {
    let generic = Generic::open()?;
    Ok(generic.family(wire::FAMILY).await?.is_some())
}

impl KernelDevice {
    /// The device of the link of this name, which need not be there yet.
    #[must_use]
    pub fn new(ifname: impl Into<String>) -> Self {
        Self { ifname: ifname.into() }
    }

    async fn open(&self) -> Result<(Generic, u16), DeviceError> {
        let generic = Generic::open()?;
        let family = generic.family(wire::FAMILY).await?.ok_or(DeviceError::NoModule)?;
        Ok((generic, family))
    }

    fn refused(&self, error: DeviceError) -> DeviceError {
        match error {
            // ENODEV: no such link. EOPNOTSUPP: it is of another kind.
            DeviceError::Refused { source, .. } if is_no_link(&source) => {
                DeviceError::NoLink { ifname: self.ifname.clone() }
            }
            error => error,
        }
    }
}

fn is_no_link(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP))
}

#[async_trait]
impl Device for KernelDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Kernel
    }

    fn ifname(&self) -> &str {
        &self.ifname
    }

    async fn read(&self) -> Result<DeviceState, DeviceError> {
        let (generic, family) = self.open().await?;
        let request = encode::get(&self.ifname)?;
        let what = format!("tell the state of {}", self.ifname);
        for _ in 0..DUMP_TRIES_MAX {
            let answer = generic.exchange(&what, family, NLM_F_DUMP, &request).await;
            let answer = answer.map_err(|error| self.refused(error))?;
            if answer.is_interrupted {
                continue;
            }
            let mut dump = Dump::default();
            for message in &answer.messages {
                dump.join(message)
                    .map_err(|why| DeviceError::Answer { who: generic::KERNEL.to_owned(), why })?;
            }
            return Ok(dump.state);
        }
        let why = format!("{DUMP_TRIES_MAX} times the device changed while it was read");
        Err(DeviceError::Answer { who: generic::KERNEL.to_owned(), why })
    }

    async fn apply(&self, change: &DeviceChange) -> Result<(), DeviceError> {
        let (generic, family) = self.open().await?;
        let what = format!("configure {} ({change})", self.ifname);
        for message in encode::set(&self.ifname, change)? {
            let done = generic.exchange(&what, family, NLM_F_ACK, &message).await;
            done.map_err(|error| self.refused(error))?;
        }
        Ok(())
    }
}
