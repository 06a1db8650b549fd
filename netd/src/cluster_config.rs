// SPDX-License-Identifier: Apache-2.0
//! The settings that all nodes share, shown and changed while everything runs.

use std::time::Duration;

use netd_api::{ApiError, ConfigReply, ConfigRequest};
use netd_store::Transaction;
use netd_store::records::{ClusterConfig, OverlayBackend, decode, encode};

use crate::members;
use crate::node::Node;
use crate::view::View;

/// A write is answered once this node has seen it.
const SEEN_WAIT: Duration = Duration::from_secs(1);
/// Somebody else may change settings at the same time; more often than this is a fight.
const TRIES: usize = 5;
/// Keys that change more often than this would be replaced while peers still move.
const ROTATION_MIN_SECS: u64 = 600;

/// `GET /v1/config`.
pub(crate) fn show(node: &Node) -> ConfigReply {
    let view = node.view.load();
    reply(&view.config, &view)
}

/// `POST /v1/config`.
pub(crate) async fn set(node: &Node, request: &ConfigRequest) -> Result<ConfigReply, ApiError> {
    let overlay = request.overlay.as_deref().map(parse_overlay).transpose()?;
    if let Some(secs @ 1..ROTATION_MIN_SECS) = request.key_rotation_secs {
        return Err(ApiError::invalid(format!(
            "key-rotation: {secs}s is less than {ROTATION_MIN_SECS}s, and peers need time to follow"
        )));
    }
    for cidr in request.trusted_cidrs.iter().flatten() {
        if cidr.addr() != cidr.network() {
            let meant = cidr.trunc();
            return Err(ApiError::invalid(format!(
                "trusted-cidrs: {cidr} has host bits set; did you mean {meant}?"
            )));
        }
    }
    let key = node.keys.config();
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        ApiError::retry(format!("cannot {what} the cluster's settings: {error}"))
    };
    for _ in 0..TRIES {
        let known = node.store.get(&key).await.map_err(|error| failed("read", &error))?;
        let mut config: ClusterConfig = match &known {
            Some(item) => decode(&item.key, &item.value)
                .map_err(|error| ApiError::fatal(format!("{error}; mend it in the store first")))?,
            None => node.view.load().config.clone(),
        };
        if let Some(overlay) = overlay {
            config.overlay = overlay;
        }
        if let Some(secs) = request.key_rotation_secs {
            config.key_rotation_secs = (secs > 0).then_some(secs);
        }
        if let Some(cidrs) = &request.trusted_cidrs {
            config.trusted_cidrs.clone_from(cidrs);
        }
        let value = encode(&key, &config).map_err(|error| ApiError::fatal(error.to_string()))?;
        let seen = known.map_or(0, |item| item.mod_revision);
        let write = Transaction::new().unchanged(&key, seen).put(&key, value);
        let done = node.store.transact(write).await.map_err(|error| failed("write", &error))?;
        if done.succeeded {
            node.wait_seen(done.revision, SEEN_WAIT).await;
            return Ok(reply(&config, &node.view.load()));
        }
    }
    Err(ApiError::retry("somebody else changes the cluster's settings at the same time; try again"))
}

fn parse_overlay(text: &str) -> Result<OverlayBackend, ApiError> {
    let all =
        [OverlayBackend::Wireguard, OverlayBackend::Vxlan, OverlayBackend::Native, OverlayBackend::Auto];
    all.into_iter().find(|backend| backend.as_str() == text).ok_or_else(|| {
        ApiError::invalid(format!("overlay: {text:?} is not one of wireguard, vxlan, native, auto"))
    })
}

/// Any node is a gateway to all pods; where packets between nodes go through WireGuard, the pod's own is the better one.
fn trusted_note(config: &ClusterConfig) -> Option<String> {
    let tunnel = matches!(config.overlay, OverlayBackend::Wireguard | OverlayBackend::Auto);
    (tunnel && !config.trusted_cidrs.is_empty()).then(|| {
        "trusted hosts may route all pod addresses to any node; where nodes are connected by WireGuard, what comes by another \
         node than the pod's own travels in VXLAN inside it, with a smaller MTU: each node's blocks (`weft node ls`) routed to \
         that very node are faster"
            .to_owned()
    })
}

fn reply(config: &ClusterConfig, view: &View) -> ConfigReply {
    let names: Vec<&str> = view.members.keys().map(String::as_str).collect();
    ConfigReply {
        overlay: config.overlay.as_str().to_owned(),
        key_rotation_secs: config.key_rotation_secs,
        trusted_cidrs: config.trusted_cidrs.clone(),
        service_cidr: config.service_cidr,
        service_cidrs: config.service_cidrs(),
        node_port_range: config.node_port_range.to_string(),
        dns_zone: config.dns_zone.clone(),
        vxlan_port: config.vxlan_port,
        wireguard_port: config.wireguard_port,
        notes: trusted_note(config).into_iter().chain(members::notes(config, &names)).collect(),
    }
}
