// SPDX-License-Identifier: Apache-2.0
//! The command line of `weft-lab node`.

use crate::wires::Offloads;
use clap::Subcommand;

/// Nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// SIGKILL to the node's netd only
    Kill {
        /// The node
        node: String,
    },
    /// SIGTERM to the node's netd
    Stop {
        /// The node
        node: String,
    },
    /// End every process of the node and its pods
    Crash {
        /// The node
        node: String,
    },
    /// Whether an ADD could work now: CNI STATUS
    Status {
        /// The node
        node: String,
    },
    /// Start the node's netd and wait until it is ready
    Start {
        /// The node
        node: String,
    },
    /// Stop and start the node's netd
    Restart {
        /// The node
        node: String,
    },
    /// Cut the node off
    Partition {
        /// The node
        node: String,
        /// `all`, `store`, or another node
        #[arg(long, default_value = "all", value_name = "all|store|NODE2")]
        from: String,
    },
    /// Join the node to everything again
    Heal {
        /// The node
        node: String,
    },
    /// Change the MTU of the wire to the node
    Mtu {
        /// The node
        node: String,
        /// Bytes
        mtu: u32,
    },
    /// Change what the wire to the node does with large packets
    Offloads {
        /// The node
        node: String,
        /// What
        #[arg(value_enum)]
        offloads: Offloads,
    },
    /// Give the node another underlay address instead of its own; prints it
    Roam {
        /// The node
        node: String,
    },
    /// SIGKILL to the node's weft-wireguard only
    TunnelKill {
        /// The node
        node: String,
    },
    /// Start the node's weft-wireguard
    TunnelStart {
        /// The node
        node: String,
    },
    /// Let a second weft-wireguard take over from the node's, as an upgrade does
    TunnelRestart {
        /// The node
        node: String,
    },
}
