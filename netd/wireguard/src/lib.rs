// SPDX-License-Identifier: Apache-2.0
//! WireGuard devices: the kernel's over generic netlink, and one in user space on boringtun's protocol with I/O of our own.
//!
//! `Device` is what netd configures; both kinds interoperate. The program `weft-wireguard` runs the device in user space.

#[cfg(test)]
mod arbitrary;
mod change;
mod config;
mod control;
mod device;
pub mod engine;
mod kernel;
mod key;
pub mod segment;
mod trie;
pub mod uapi;
mod user;

pub use change::{DeviceChange, PeerChange};
pub use config::{DeviceConfig, DeviceKind, DeviceState, PeerConfig, PeerState};
pub use control::{
    CONNECTIONS_MAX, Configurable, ControlError, ControlListener, ControlServer, REQUEST_BYTES_MAX,
    REQUEST_TIMEOUT,
};
pub use device::{ANSWER_TIMEOUT, Device, DeviceError, KernelDevice, UserDevice, kernel_has_wireguard};
pub use key::{KEY_LEN, KeyError, PresharedKey, PrivateKey, PublicKey};
pub use trie::AllowedIps;
pub use uapi::{Snapshot, UapiError};
