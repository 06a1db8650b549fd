// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a node's wires, on request: cut off, healed, another MTU.

use crate::families::StoreKind;
use crate::state::{self, State};
use crate::topology;
use crate::usage::usage;
use anyhow::Result;

/// Ethernet's smallest IPv4 MTU (RFC 791) and the largest a veth takes.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65_535;

/// Cuts a node off from `all`, from the `store`, or from another node. Adds to what is cut already.
pub(crate) fn partition(lab: &str, node: &str, from: &str) -> Result<()> {
    let state = state::edit(lab, |state| {
        state.node(node)?;
        if from == "store" && state.store == StoreKind::File {
            return Err(usage("the store is a file of the node: nothing cuts it off").into());
        }
        if !matches!(from, "all" | "store") {
            state.node(from)?;
            if from == node {
                return Err(usage(format!("{node} cannot be cut off from itself")).into());
            }
        }
        state.partitions.insert((node.into(), from.into()));
        Ok(state.clone())
    })?;
    topology::apply_partitions(&state)
}

/// Joins a node to everything again, also where another node was cut off from it.
pub(crate) fn heal(lab: &str, node: &str) -> Result<()> {
    let state = state::edit(lab, |state| {
        state.node(node)?;
        state.partitions.retain(|(one, other)| one != node && other != node);
        Ok(state.clone())
    })?;
    topology::apply_partitions(&state)
}

/// Changes the MTU of the wire to a node.
pub(crate) fn mtu(lab: &str, node: &str, mtu: u32) -> Result<()> {
    State::read(lab)?.node(node)?;
    if !MTU_RANGE.contains(&mtu) {
        return Err(usage(format!("an MTU is {} to {}", MTU_RANGE.start(), MTU_RANGE.end())).into());
    }
    topology::set_mtu(lab, node, mtu)
}
