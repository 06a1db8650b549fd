// SPDX-License-Identifier: Apache-2.0
//! How packets travel between nodes.

use clap::ValueEnum;

/// The overlay of a lab, and of the demo, that asks for none.
pub const DEFAULT_OVERLAY: Overlay = Overlay::Wireguard;

/// How packets travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Overlay {
    /// Plain routes to nodes on the same link, WireGuard to others
    Auto,
    /// Plain routes on one L2
    Native,
    /// Kernel VXLAN
    Vxlan,
    /// WireGuard
    Wireguard,
}

impl Overlay {
    /// As netd's configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Overlay::Auto => "auto",
            Overlay::Native => "native",
            Overlay::Vxlan => "vxlan",
            Overlay::Wireguard => "wireguard",
        }
    }
}

/// Whether nodes with this overlay need a weft-wireguard beside netd.
pub(crate) fn needs_tunnel(overlay: &str) -> bool {
    [Overlay::Auto, Overlay::Wireguard].iter().any(|one| one.as_str() == overlay)
}
