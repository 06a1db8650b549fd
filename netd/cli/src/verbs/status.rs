// SPDX-License-Identifier: Apache-2.0
//! `weft status`: the verdict first, then the facts behind it.

use std::fmt::Write;

use netd_api::{Client, PeerInfo, Status, StoreStatus};

use super::explain;
use crate::output::Shown;
use crate::table::{Table, list};

pub(super) async fn status(client: &Client) -> anyhow::Result<Shown> {
    let status = client.status().await.map_err(explain)?;
    Ok(Shown { ok: status.ready, ..Shown::new(text(&status), &status)? })
}

// Writing to a String cannot fail, so the results of write! are dropped below.
fn text(status: &Status) -> String {
    let mut text = String::new();
    let verdict = if status.ready { "READY" } else { "NOT READY" };
    // Ready as it may be: what was decided since does not reach this node.
    let cut_off = if status.store.connected || !status.ready {
        ""
    } else {
        ", but does not follow the store: changes wait"
    };
    let _ = writeln!(text, "{} is {verdict}{cut_off}", status.node.name);
    for reason in &status.reasons {
        let _ = writeln!(text, "  - {reason}");
    }
    text.push('\n');
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    fact("Cluster", format!("{}, node {}", status.cluster, status.node.uuid));
    fact("netd", format!("{}, up {}", status.version, duration(status.uptime_secs)));
    fact("Store", store(&status.store));
    fact("Overlay", overlay(status));
    fact("Services", format!("{}, programmed to revision {}", status.services, status.programmed_revision));
    fact("Pods", format!("{} on this node", status.pods));
    if status.members > 0 {
        fact("Members", format!("{} outside the cluster (`weft member ls`)", status.members));
    }
    if !status.overlay.peers.is_empty() {
        text.push('\n');
        text.push_str(&peers(&status.overlay.peers));
    }
    if !status.pending.is_empty() {
        let _ = writeln!(text, "\nNot applied yet ({}):", status.pending.len());
        for item in &status.pending {
            let _ = writeln!(text, "  - {}: {} (tried {} times)", item.object, item.error, item.retries);
        }
    }
    if !status.bad_values.is_empty() {
        let _ = writeln!(text, "\nProblems with what the store says ({}):", status.bad_values.len());
        for bad in &status.bad_values {
            let _ = writeln!(text, "  - {}: {}", bad.key, bad.reason);
        }
    }
    text
}

fn store(store: &StoreStatus) -> String {
    let state = match (store.connected, store.in_sync) {
        (true, true) => format!("in sync at revision {}", store.revision),
        (true, false) => "connected, reading the first snapshot".to_owned(),
        (false, _) => format!("not reachable, last known revision {}", store.revision),
    };
    let error = store.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let place =
        if store.endpoints.is_empty() { "a file of this node".to_owned() } else { list(&store.endpoints) };
    format!("{state} ({place}){error}")
}

fn overlay(status: &Status) -> String {
    let overlay = &status.overlay;
    let device = overlay.device.as_ref().map(|device| format!(" on {device}")).unwrap_or_default();
    let address =
        |ip: Option<std::net::IpAddr>| ip.map_or_else(|| "none yet".to_owned(), |ip| ip.to_string());
    let why = match overlay.underlay_reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    format!(
        "{}{device}, MTU {}, {} peer{}, underlay {}{why}, overlay address {}",
        overlay.backend,
        overlay.mtu,
        overlay.peers.len(),
        if overlay.peers.len() == 1 { "" } else { "s" },
        address(status.node.underlay),
        address(status.node.overlay),
    )
}

/// A line for each way to each peer: two while it changes its keys. A tunnel that nothing is sent by stands in parentheses.
fn peers(peers: &[PeerInfo]) -> String {
    let mut table = Table::new(["PEER", "PATH", "ENDPOINT", "PEER-DEVICE", "HANDSHAKE", "MTU", "RX", "TX"]);
    let mut problems = String::new();
    for peer in peers {
        let path = peer.path.clone().unwrap_or_else(|| "none".to_owned());
        let mtu = peer.mtu.map(|mtu| mtu.to_string()).unwrap_or_default();
        if let Some(problem) = &peer.problem {
            let _ = writeln!(problems, "  - {}: {problem}", peer.name);
        }
        let by_tunnel = peer.path.as_deref() == Some("wireguard");
        if !by_tunnel || peer.tunnels.is_empty() {
            let none = String::new;
            let endpoint = peer.underlay.to_string();
            table.row([peer.name.clone(), path, endpoint, none(), none(), mtu.clone(), none(), none()]);
        }
        for tunnel in &peer.tunnels {
            let endpoint = tunnel.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
            let generation = tunnel.generation;
            let handshake = match tunnel.handshake_secs {
                Some(secs) => format!("{} ago", duration(secs)),
                None => "never".to_owned(),
            };
            table.row([
                peer.name.clone(),
                if by_tunnel {
                    format!("wireguard/{generation}")
                } else {
                    format!("(wireguard/{generation})")
                },
                endpoint,
                tunnel.peer_kind.clone(),
                handshake,
                if by_tunnel { mtu.clone() } else { String::new() },
                rate(tunnel.rx_bits_per_sec),
                rate(tunnel.tx_bits_per_sec),
            ]);
        }
    }
    table.render("no peers") + &problems
}

/// Bits per second in the unit that leaves at most four digits.
fn rate(bits_per_sec: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")];
    let unit = UNITS.iter().find(|(size, _)| bits_per_sec >= *size);
    unit.map_or_else(
        || format!("{bits_per_sec}bit/s"),
        |(size, unit)| format!("{}.{}{unit}", bits_per_sec / size, bits_per_sec % size * 10 / size),
    )
}

/// The two largest units: `3d4h`, `2h13m`, `45s`.
fn duration(secs: u64) -> String {
    let (days, hours, minutes) = (secs / 86_400, secs / 3_600 % 24, secs / 60 % 60);
    match secs {
        86_400.. => format!("{days}d{hours}h"),
        3_600.. => format!("{hours}h{minutes}m"),
        60.. => format!("{minutes}m{}s", secs % 60),
        _ => format!("{secs}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Status {
        serde_json::from_value(serde_json::json!({
            "version": "0.1.0", "abi": 1, "cluster": "weft",
            "node": {"uuid": "6f1c1b4e-0000-4000-8000-000000000001", "name": "n1", "underlay": "192.0.2.1",
                     "overlay": "10.244.0.0", "alive": true},
            "ready": true,
            "store": {"endpoints": ["http://192.0.2.9:2379"], "connected": true, "in_sync": true, "revision": 42},
            "programmed_revision": 42,
            "overlay": {"backend": "vxlan", "device": "weft.vxlan", "mtu": 1450, "peers": []},
            "pods": 2, "services": 3, "uptime_secs": 7980,
        }))
        .unwrap()
    }

    #[test]
    fn a_ready_node_is_a_short_story() {
        assert_eq!(
            text(&example()),
            "n1 is READY\n\
             \n\
             Cluster   weft, node 6f1c1b4e-0000-4000-8000-000000000001\n\
             netd      0.1.0, up 2h13m\n\
             Store     in sync at revision 42 (http://192.0.2.9:2379)\n\
             Overlay   vxlan on weft.vxlan, MTU 1450, 0 peers, underlay 192.0.2.1, overlay address 10.244.0.0\n\
             Services  3, programmed to revision 42\n\
             Pods      2 on this node\n"
        );
    }

    #[test]
    fn members_are_counted_where_there_are_some() {
        let status = Status { members: 2, ..example() };
        assert!(text(&status).ends_with("Members   2 outside the cluster (`weft member ls`)\n"));
    }

    #[test]
    fn each_peer_has_a_line_and_each_problem_too() {
        let mut status = example();
        let uuid = status.node.uuid;
        status.overlay.peers = serde_json::from_value(serde_json::json!([
            {"uuid": uuid, "name": "n2", "underlay": "192.0.2.2", "path": "wireguard", "mtu": 1440, "tunnels": [
                {"generation": 3, "device": "weft.wg1", "peer_kind": "kernel", "endpoint": "192.0.2.2:51821",
                 "handshake_secs": 61, "rx_bytes": 1, "tx_bytes": 2, "rx_bits_per_sec": 1_250_000_000u64}]},
            {"uuid": uuid, "name": "n3", "underlay": "192.0.2.3", "problem": "it is not on the link"},
            {"uuid": uuid, "name": "n4", "underlay": "192.0.2.4", "path": "vxlan", "mtu": 1450, "tunnels": [
                {"generation": 4, "device": "weft.wg0", "peer_kind": "user", "endpoint": "192.0.2.4:51820",
                 "rx_bytes": 1, "tx_bytes": 2}]},
        ]))
        .unwrap();
        assert!(
            text(&status).ends_with(
                "\n\
                 PEER   PATH            ENDPOINT          PEER-DEVICE   HANDSHAKE   MTU    RX          TX\n\
                 n2     wireguard/3     192.0.2.2:51821   kernel        1m1s ago    1440   1.2Gbit/s   0bit/s\n\
                 n3     none            192.0.2.3         -             -           -      -           -\n\
                 n4     vxlan           192.0.2.4         -             -           1450   -           -\n\
                 n4     (wireguard/4)   192.0.2.4:51820   user          never       -      0bit/s      0bit/s\n  \
                 - n3: it is not on the link\n"
            ),
            "{}",
            text(&status)
        );
    }

    #[test]
    fn a_node_that_is_not_ready_gives_its_reasons_first() {
        let mut status = example();
        status.ready = false;
        status.reasons = vec!["the store has not been read yet".into()];
        status.store.connected = false;
        status.store.last_error = Some("connection refused".into());
        status.bad_values =
            vec![netd_api::BadValue { key: "/weft/v1/weft/services/a/b".into(), reason: "bad".into() }];
        let text = text(&status);
        assert!(text.starts_with("n1 is NOT READY\n  - the store has not been read yet\n\n"), "{text}");
        assert!(
            text.contains(
                "not reachable, last known revision 42 (http://192.0.2.9:2379): connection refused"
            ),
            "{text}"
        );
        assert!(text.ends_with("what the store says (1):\n  - /weft/v1/weft/services/a/b: bad\n"), "{text}");
    }

    #[test]
    fn a_store_without_endpoints_is_a_file() {
        let mut status = example();
        status.store.endpoints.clear();
        assert!(text(&status).contains("in sync at revision 42 (a file of this node)\n"));
    }

    #[test]
    fn durations_show_two_units() {
        let shown: Vec<_> = [0, 59, 61, 3_600, 90_000].map(duration).to_vec();
        assert_eq!(shown, ["0s", "59s", "1m1s", "1h0m", "1d1h"]);
    }
}
