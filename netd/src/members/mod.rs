// SPDX-License-Identifier: Apache-2.0
//! Members: machines outside the cluster that talk with pods through WireGuard, each as a peer of every node.

mod config;

use std::net::Ipv4Addr;
use std::time::Duration;

use netd_api::{ApiError, MemberAddRequest, MemberInfo, MemberReply, MemberRequest};
use netd_plan::{Backend, HostObjects, MemberFacts, NodeFacts, member_objects, wireguard_mtu};
use netd_store::claim::{MemberError, remove_member};
use netd_store::records::{MemberRecord, OverlayBackend, WireguardRecord};
use netd_wireguard::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::addressing::MemberAddError;
use crate::attach;
use crate::node::{Node, now_ms};
use crate::view::View;
use config::{Peer, Tunnel, wg_quick};

/// A write is answered once this node has seen it.
const SEEN_WAIT: Duration = Duration::from_secs(1);
const SEEN_POLL: Duration = Duration::from_millis(10);
/// A name's length: that of a DNS label.
const NAME_BYTES_MAX: usize = 63;

/// `POST /v1/members/add`.
pub(crate) async fn add(node: &Node, request: &MemberAddRequest) -> Result<MemberReply, ApiError> {
    check_name(&request.name)?;
    let view = node.view.load_full();
    if !matches!(view.config.overlay, OverlayBackend::Wireguard | OverlayBackend::Auto) {
        return Err(ApiError::invalid(format!(
            "the cluster's overlay is {}: members need wireguard or auto (`weft config set --overlay wireguard`)",
            view.config.overlay.as_str()
        )));
    }
    let (public, private) = match &request.public_key {
        Some(text) => (parse_key(text)?, None),
        None => {
            let made = PrivateKey::generate();
            let private = made.map_err(|error| ApiError::fatal(format!("cannot make a key: {error}")))?;
            (private.public(), Some(private))
        }
    };
    if let Some(owner) = owner_of(&view, &public) {
        return Err(ApiError::conflict(format!(
            "the key {public} is that of {owner}: each machine has its own"
        )));
    }
    let record = match node.addressing.add_member(&request.name, &public.to_base64()).await {
        Ok(record) => record,
        Err(MemberAddError::Give(error)) => return Err(attach::refusal(node, error)),
        Err(MemberAddError::Record(error)) => return Err(refusal(error)),
    };
    tracing::info!(name = record.name, ips = ?record.ips, "member added");
    wait_seen(node, &record.name, true).await;
    Ok(reply(&node.view.load(), &record, private.as_ref()))
}

/// `GET /v1/members`.
pub(crate) fn list(node: &Node) -> Vec<MemberInfo> {
    let (view, tunnel, now) = (node.view.load(), node.tunnel.state.load(), now_ms());
    let info = |record: &MemberRecord| {
        let member = tunnel.members.get(&record.name);
        let heard = member.and_then(|member| member.links.iter().max_by_key(|link| link.handshake_ms));
        MemberInfo {
            name: record.name.clone(),
            ips: record.ips.clone(),
            public_key: record.public_key.clone(),
            endpoint: heard.and_then(|link| link.endpoint),
            handshake_secs: heard.and_then(|link| Some(now.saturating_sub(link.handshake_ms?) / 1_000)),
        }
    };
    view.members.values().map(info).collect()
}

/// `GET /v1/members/NAME`.
pub(crate) fn show(node: &Node, name: &str) -> Result<MemberReply, ApiError> {
    let view = node.view.load();
    let record = view.members.get(name).ok_or_else(|| unknown(name))?;
    Ok(reply(&view, record, None))
}

/// `POST /v1/members/remove`.
pub(crate) async fn remove(node: &Node, request: &MemberRequest) -> Result<(), ApiError> {
    let record = remove_member(node.store.as_ref(), &node.keys, &request.name).await.map_err(refusal)?;
    tracing::info!(name = record.name, ips = ?record.ips, "member removed");
    wait_seen(node, &record.name, false).await;
    Ok(())
}

/// Routes to the members that stand in this node's devices.
pub(crate) fn routes(node: &Node, view: &View, own: &NodeFacts) -> HostObjects {
    let (now, tunnel) = (node.overlay.load(), node.tunnel.state.load());
    let backend = now.backends.iter().find_map(|backend| match backend {
        Backend::Wireguard(config) => Some(config),
        Backend::Native | Backend::Vxlan(_) => None,
    });
    let Some(config) = backend else { return HostObjects::new() };
    let facts = |record: &MemberRecord| {
        let generation = tunnel.members.get(&record.name)?.generation;
        Some(MemberFacts { ips: record.ips.clone(), generation })
    };
    let members: Vec<MemberFacts> = view.members.values().filter_map(facts).collect();
    member_objects(config, own, &members, &view.pod_cidrs())
}

/// What a member is told: all nodes as they are now.
fn reply(view: &View, record: &MemberRecord, private: Option<&PrivateKey>) -> MemberReply {
    // A member is no node: nothing is its own, and every node is a peer.
    let nobody = NodeFacts {
        uuid: Uuid::nil(),
        name: record.name.clone(),
        underlay: Ipv4Addr::UNSPECIFIED.into(),
        overlays: Vec::new(),
        vtep_mac: netd_plan::vtep_mac(Uuid::nil()),
        blocks: Vec::new(),
    };
    let nodes = view.peers(nobody.uuid);
    let mut claims = netd_plan::allowed_ips(&nobody, &nodes, &view.pod_cidrs());
    let (mut peers, mut notes, mut mtus) = (Vec::new(), Vec::new(), Vec::new());
    for facts in nodes {
        let known = view.nodes.get(&facts.uuid);
        let newest = |tunnel: &WireguardRecord| {
            let key = tunnel.keys.iter().max_by_key(|key| key.generation)?;
            Some((key.public_key.parse().ok()?, key.port))
        };
        let Some((public, port)) = known.and_then(|known| newest(known.wireguard.as_ref()?)) else {
            notes.push(format!("node {} has no WireGuard key: its pods are not reached", facts.name));
            continue;
        };
        // 0: its netd does not say.
        let underlay_mtu = known.map_or(0, |known| known.underlay_mtu);
        mtus.extend((underlay_mtu > 0).then(|| wireguard_mtu(underlay_mtu, facts.underlay)));
        let endpoint = (!facts.underlay.is_unspecified()).then(|| (facts.underlay, port).into());
        if endpoint.is_none() {
            notes.push(format!("node {} has no address of its own at which it is reached", facts.name));
        }
        let allowed_ips = claims.remove(&facts.uuid).unwrap_or_default();
        peers.push(Peer { node: facts.name, public, endpoint, allowed_ips });
    }
    let tunnel = Tunnel { member: record, private, mtu: mtus.into_iter().min(), peers: &peers };
    MemberReply {
        name: record.name.clone(),
        ips: record.ips.clone(),
        public_key: record.public_key.clone(),
        config: wg_quick(&tunnel),
        notes,
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    // These two are paths of their own.
    let taken = ["add", "remove"].contains(&name);
    if begins && !taken && name.len() <= NAME_BYTES_MAX && name.chars().all(allowed) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "member name {name:?}: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-' and '.', beginning with a letter or digit, but not \
         `add` or `remove`"
    )))
}

fn parse_key(text: &str) -> Result<PublicKey, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(format!("public key {text:?}: {error}")))
}

/// Whose key this is already.
fn owner_of(view: &View, key: &PublicKey) -> Option<String> {
    let same = |text: &str| text.parse::<PublicKey>().is_ok_and(|known| known == *key);
    let member = view.members.values().find(|member| same(&member.public_key));
    let has = |tunnel: &WireguardRecord| tunnel.keys.iter().any(|key| same(&key.public_key));
    let node = || view.nodes.values().find(|node| node.wireguard.as_ref().is_some_and(has));
    let member = member.map(|member| format!("member {}", member.name));
    member.or_else(|| node().map(|node| format!("node {}", node.name)))
}

fn refusal(error: MemberError) -> ApiError {
    match error {
        MemberError::Exists(name) => ApiError::conflict(format!(
            "there is a member {name} already; `weft member show {name}` prints its configuration, `weft member rm {name}` \
             removes it"
        )),
        MemberError::Unknown(name) => unknown(&name),
        MemberError::Change(error) => ApiError::retry(format!("the store: {error}")),
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!("no member {name}; `weft member ls` lists them"))
}

/// With the store's watch away the write stands all the same; the view follows.
async fn wait_seen(node: &Node, name: &str, there: bool) {
    let seen = async {
        while node.view.load().members.contains_key(name) != there {
            tokio::time::sleep(SEEN_POLL).await;
        }
    };
    let _ = tokio::time::timeout(SEEN_WAIT, seen).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_label_or_several() {
        for name in ["laptop", "anna.example", "0-1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "add", "Laptop", "-a", "a/b", "a b", &"a".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
