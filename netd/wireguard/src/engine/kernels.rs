// SPDX-License-Identifier: Apache-2.0
//! Devices that this program was told to run and that the kernel runs: where netd chose the kernel's WireGuard, its links
//! have these names. They are left to it, and taken when they are gone; ending instead would only be ended again.

use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context;
use nix::net::if_::if_nametoindex;

use super::options::EngineOptions;
use super::program::Event;
use super::running::RunningDevice;
use crate::{Device, KernelDevice};

/// Between two looks whether a link of the kernel's is gone: netd waits about as long for a device that is missing.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Names of devices that wait.
#[derive(Default)]
pub(crate) struct LeftToKernel(Vec<String>);

impl LeftToKernel {
    /// Makes the device and starts it; `None` where it is the kernel's, which is said once.
    pub(crate) fn open(
        &mut self,
        name: &str,
        socket_dir: &Path,
        options: EngineOptions,
        events: &Sender<Event>,
    ) -> anyhow::Result<Option<RunningDevice>> {
        match RunningDevice::open(name, socket_dir, options, events.clone()) {
            Ok(device) => Ok(Some(device)),
            Err(_) if is_kernels(name) => {
                tracing::info!(
                    device = name,
                    "the kernel has a WireGuard link of this name: nothing to do for it until that link is gone"
                );
                self.0.push(name.to_owned());
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("device {name}")),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those whose link is gone, to be opened again.
    pub(crate) fn take_gone(&mut self) -> Vec<String> {
        let (still, gone) = self.0.drain(..).partition(|name| if_nametoindex(name.as_str()).is_ok());
        self.0 = still;
        gone
    }
}

/// Whether the link of this name is a WireGuard device of the kernel.
fn is_kernels(name: &str) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.is_ok_and(|runtime| runtime.block_on(KernelDevice::new(name).read()).is_ok())
}
