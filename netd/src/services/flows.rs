// SPDX-License-Identifier: Apache-2.0
//! Connections through services as this node remembers them: the sweep of those that are over, and `weft flows`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use ebpf_abi::conntrack::{CT_REPLY, CtState, CtValue};
use ebpf_abi::{Address, CtKey, Protocol, address};
use ebpf_loader::{Fill, ServiceSocket};
use lb::ServiceName;
use netd_api::{ApiError, FlowInfo};

use crate::node::{Node, lock};

/// Between two steps of the sweep: the programs look at ages themselves, the sweep only makes room.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Rounds take this many steps at most, so that a flow's room is free half a minute after it is over.
const STEPS_PER_ROUND: usize = 30;
/// Small maps are gone through in few steps, which cost a system call each.
const STEP_MIN: usize = 4_096;
/// Of the maps' entries: from here on a flood of new flows puts others out.
pub(crate) const PRESSURE_PERCENT: usize = 90;
/// Flows of one answer.
const FLOWS_MAX: usize = 10_000;

/// Sweeps; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut full = [false; 2];
    let mut failed = String::new();
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let swept = tokio::task::block_in_place(|| {
            let mut datapath = lock(&node.datapath);
            let entries: usize = datapath.conntrack_fill().iter().map(|fill| fill.max_entries as usize).sum();
            let budget = (entries / STEPS_PER_ROUND).max(STEP_MIN);
            let swept = datapath.sweep_conntrack(ebpf_loader::monotonic_secs()?, budget)?;
            anyhow::Ok((swept, datapath.conntrack_fill()))
        });
        match swept {
            Ok((swept, fills)) => {
                node.counters.flows_expired.inc_by(swept.removed as u64);
                if swept.is_round_over {
                    tell_pressure(&fills, &mut full);
                }
                failed.clear();
            }
            Err(error) => {
                let error = format!("{error:#}");
                if error != failed {
                    tracing::warn!(
                        error,
                        "flows that are over stay in conntrack until others need their room"
                    );
                }
                failed = error;
            }
        }
    }
}

/// Said when it begins, and when it is over.
fn tell_pressure(fills: &[Fill; 2], full: &mut [bool; 2]) {
    for ((fill, full), map) in fills.iter().zip(full).zip(["established", "half-open"]) {
        let is_full =
            fill.entries * 100 >= fill.max_entries as usize * PRESSURE_PERCENT && fill.max_entries > 0;
        if is_full && !*full {
            tracing::warn!(
                entries = fill.entries,
                of = fill.max_entries,
                "conntrack is nearly full of {map} flows: the least recently used ones go; see service-connections-max"
            );
        } else if !is_full && *full {
            tracing::info!(entries = fill.entries, "conntrack has room for {map} flows again");
        }
        *full = is_full;
    }
}

/// `GET /v1/flows`, and those of one service.
pub(crate) fn flows(node: &Node, of: Option<&ServiceName>) -> Result<Vec<FlowInfo>, ApiError> {
    if let Some(name) = of
        && node.view.load().table.services.get(name).is_none()
    {
        return Err(ApiError::not_found(format!("no Service {name}; `weft service ls` lists them")));
    }
    let failed =
        |error: &dyn std::fmt::Display| ApiError::retry(format!("the maps could not be read: {error}"));
    tokio::task::block_in_place(|| {
        let services = lock(&node.services);
        let compiler = services.compiler();
        let names = compiler.names();
        let is_wanted = |service_id: u32| match of {
            None => true,
            Some(name) => compiler.frontend(service_id).is_some_and(|(owner, _)| owner == name),
        };
        let datapath = lock(&node.datapath);
        let now = ebpf_loader::monotonic_secs().map_err(|error| failed(&error))?;
        let sockets = datapath.sockets_where(|service_id, _| is_wanted(service_id));
        let sockets = sockets.map_err(|error| failed(&error))?;
        let mut flows: Vec<FlowInfo> =
            sockets.iter().take(FLOWS_MAX).map(|socket| of_socket(node, socket, &names, now)).collect();
        let asks = |_: &CtKey, value: &CtValue| value.flags & CT_REPLY == 0 && is_wanted(value.service_id);
        let limit = FLOWS_MAX - flows.len();
        let tracked = datapath.tracked_flows(now, limit, asks).map_err(|error| failed(&error))?;
        flows.extend(tracked.iter().map(|flow| of_packets(&flow.key, &flow.value, &names, now)));
        Ok(flows)
    })
}

fn of_socket(node: &Node, socket: &ServiceSocket, names: &BTreeMap<u32, String>, now: u32) -> FlowInfo {
    let client = match socket.netns {
        Some(cookie) if cookie == node.netns_cookie => node.config.node_name.clone(),
        Some(cookie) => lock(&node.netnses).pod(cookie).unwrap_or_else(|| format!("netns {cookie}")),
        None => "unknown".to_owned(),
    };
    FlowInfo {
        path: "socket".to_owned(),
        protocol: protocol(socket.proto),
        client,
        frontend: socket.frontend,
        service: names.get(&socket.service_id).cloned(),
        backend: socket.backend,
        state: if socket.backend.is_some() { "open" } else { "backend gone" }.to_owned(),
        age_secs: (socket.since_secs != 0).then(|| now.saturating_sub(socket.since_secs)),
    }
}

fn of_packets(key: &CtKey, value: &CtValue, names: &BTreeMap<u32, String>, now: u32) -> FlowInfo {
    let socket = |ip: Address, port: [u8; 2]| SocketAddr::new(address::ip(ip), u16::from_be_bytes(port));
    FlowInfo {
        path: "packet".to_owned(),
        protocol: protocol(key.proto),
        client: socket(key.src, key.sport).to_string(),
        frontend: socket(key.dst, key.dport),
        service: names.get(&value.service_id).cloned(),
        backend: Some(socket(value.dst, value.dport)),
        state: CtState::from_number(value.state).map_or("unknown", CtState::name).to_owned(),
        age_secs: Some(now.saturating_sub(value.began_secs)),
    }
}

fn protocol(number: u8) -> String {
    Protocol::from_number(number).map_or_else(|| number.to_string(), |protocol| protocol.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_told_once_and_taken_back() {
        let fill = |entries| Fill { entries, max_entries: 100 };
        let mut full = [false; 2];
        tell_pressure(&[fill(95), fill(10)], &mut full);
        assert_eq!(full, [true, false]);
        tell_pressure(&[fill(50), fill(90)], &mut full);
        assert_eq!(full, [false, true]);
        tell_pressure(&[Fill::default(), Fill::default()], &mut full);
        assert_eq!(full, [false, false], "no maps, no pressure");
    }
}
