// SPDX-License-Identifier: Apache-2.0
//! Sockets that outlive the server: while netd is away they are held by somebody else, and questions queue in them.
//!
//! Two know how: systemd, for a service with `FileDescriptorStoreMax=` ([`systemd`]), and a small process of ours ([`Holder`],
//! [`HolderClient`]). Which socket is which is read from the socket itself, so nobody keeps a list.

mod holder;
mod message;
pub mod systemd;

pub use holder::{Holder, HolderClient};
