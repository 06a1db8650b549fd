// SPDX-License-Identifier: Apache-2.0
//! What can happen to a node's wires, on request: cut off, healed, another MTU, other offloads, another address.

use crate::families::StoreKind;
use crate::state::{self, State};
use crate::usage::usage;
use crate::wires::{self, Offloads};
use crate::{names, node_config};
use anyhow::{Context, Result};
use std::fs;
use std::net::Ipv4Addr;

/// Ethernet's smallest IPv4 MTU (RFC 791) and the largest a veth takes.
pub(crate) const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65_535;

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
    wires::apply_partitions(&state)
}

/// Joins a node to everything again, also where another node was cut off from it.
pub(crate) fn heal(lab: &str, node: &str) -> Result<()> {
    let state = state::edit(lab, |state| {
        state.node(node)?;
        state.partitions.retain(|(one, other)| one != node && other != node);
        Ok(state.clone())
    })?;
    wires::apply_partitions(&state)
}

/// Changes the MTU of the wire to a node.
pub(crate) fn mtu(lab: &str, node: &str, mtu: u32) -> Result<()> {
    let state = State::read(lab)?;
    let node = state.node(node)?;
    check_mtu(mtu)?;
    wires::set_mtu(lab, node, mtu)
}

/// Refuses what no wire can have.
pub(crate) fn check_mtu(mtu: u32) -> Result<()> {
    if !MTU_RANGE.contains(&mtu) {
        return Err(usage(format!("an MTU is {} to {}", MTU_RANGE.start(), MTU_RANGE.end())).into());
    }
    Ok(())
}

/// Changes what the wire to a node does with large packets.
pub(crate) fn offloads(lab: &str, node: &str, offloads: Offloads) -> Result<()> {
    wires::set_offloads(lab, State::read(lab)?.node(node)?, offloads)
}

/// Gives a node another underlay address, and takes the one it had; of a node behind a NAT the public one. The new address.
///
/// Its netd is not told; one that starts later finds the new address in its configuration, where it names one.
pub(crate) fn roam(lab: &str, name: &str) -> Result<Ipv4Addr> {
    let (before, state) = state::edit(lab, |state| {
        let index = state.nodes.iter().position(|node| node.name == name).unwrap_or_default() as u16 + 1;
        let before = state.node(name)?.clone();
        let new = names::other_ip(index, before.wire_ip());
        let node = state.node_mut(name)?;
        match &mut node.nat {
            Some(public) => *public = new,
            None => node.underlay_ip = new,
        }
        node.underlay_ip6 = node.underlay_ip6.map(|_| names::ip6_of(new));
        Ok((before, state.clone()))
    })?;
    let after = state.node(name)?;
    wires::readdress(lab, &before, after)?;
    let config = after.dir.join("netd.toml");
    fs::write(&config, node_config::text(&state, after)).with_context(|| config.display().to_string())?;
    if !state.partitions.is_empty() {
        wires::apply_partitions(&state)?;
    }
    Ok(after.wire_ip())
}
