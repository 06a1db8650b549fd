// SPDX-License-Identifier: Apache-2.0
//! Members: machines outside the cluster that talk with pods through WireGuard, each as a peer of every node.

mod config;
mod endpoint;
mod told;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use netd_api::{ApiError, MemberAddRequest, MemberInfo, MemberReply, MemberRequest, Verdict};
use netd_plan::{Backend, HostObjects, MemberFacts, NodeFacts, member_objects, wireguard_mtu};
use netd_store::claim::{MemberError, remove_member};
use netd_store::records::{MemberRecord, WireguardRecord};
use netd_wireguard::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::addressing::MemberAddError;
use crate::attach;
use crate::node::{Node, now_ms};
use crate::tunnel::TunnelState;
use crate::view::View;
use config::{Peer, Tunnel, wg_quick};
use endpoint::endpoint;

pub(crate) use told::notes;

/// A write is answered once this node has seen it.
const SEEN_WAIT: Duration = Duration::from_secs(1);
const SEEN_POLL: Duration = Duration::from_millis(10);
/// A name's length: that of a DNS label.
const NAME_BYTES_MAX: usize = 63;

/// `POST /v1/members/add`.
pub(crate) async fn add(node: &Node, request: &MemberAddRequest) -> Result<MemberReply, ApiError> {
    check_name(&request.name)?;
    let view = node.view.load_full();
    if view.nodes.values().any(|node| node.name == request.name) {
        return Err(ApiError::conflict(format!(
            "there is a node {}: a member has a name of its own",
            request.name
        )));
    }
    let names: Vec<&str> = view.nodes.values().map(|node| node.name.as_str()).collect();
    let endpoints = endpoint::check(&request.endpoints, &names).map_err(ApiError::invalid)?;
    if !told::are_served(view.config.overlay) {
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
    let record = match node.addressing.add_member(&request.name, &public.to_base64(), endpoints).await {
        Ok(record) => record,
        Err(MemberAddError::Give(error)) => return Err(attach::refusal(node, error)),
        Err(MemberAddError::Record(error)) => return Err(refusal(error)),
    };
    tracing::info!(name = record.name, ips = ?record.ips, "member added");
    wait_seen(node, &record.name, true).await;
    Ok(reply(&node.view.load(), &node.tunnel.state.load(), &record, private.as_ref()))
}

/// What `weft doctor` says of them; nothing where there is none.
pub(crate) fn check(node: &Node) -> Option<(Verdict, String)> {
    told::check(node.view.load().config.overlay, &list(node))
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
    Ok(reply(&view, &node.tunnel.state.load(), record, None))
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
fn reply(
    view: &View,
    tunnel: &TunnelState,
    record: &MemberRecord,
    private: Option<&PrivateKey>,
) -> MemberReply {
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
    let served = told::are_served(view.config.overlay);
    if !served {
        let overlay = view.config.overlay.as_str();
        notes.push(format!(
            "the cluster's overlay is {overlay}: members reach nothing until it is wireguard or auto again"
        ));
    }
    for facts in nodes {
        let known = view.nodes.get(&facts.uuid);
        let newest = |tunnel: &WireguardRecord| {
            let key = tunnel.keys.iter().max_by_key(|key| key.generation)?;
            Some((key.public_key.parse().ok()?, key.port))
        };
        let Some((public, port)) = known.and_then(|known| newest(known.wireguard.as_ref()?)) else {
            if served {
                notes.push(format!("node {} has no WireGuard key: its pods are not reached", facts.name));
            }
            continue;
        };
        // 0: its netd does not say.
        let underlay_mtu = known.map_or(0, |known| known.underlay_mtu);
        mtus.extend((underlay_mtu > 0).then(|| wireguard_mtu(underlay_mtu, facts.underlay)));
        let told = record.endpoints.get(&facts.name);
        let told = told.and_then(|text| endpoint(text, view.config.wireguard_port, port));
        let seen = tunnel.peers.get(&facts.uuid).into_iter().flatten().filter_map(|link| link.endpoint);
        if told.is_none() {
            notes.extend(no_way_to(&facts, seen.map(|endpoint| endpoint.ip()).collect()));
        }
        let published = SocketAddr::new(facts.underlay, port);
        let endpoint = told.or_else(|| (!facts.underlay.is_unspecified()).then(|| published.to_string()));
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

/// Why a member may not find a node at the address that it publishes; `seen`: where its packets come from.
fn no_way_to(facts: &NodeFacts, seen: BTreeSet<IpAddr>) -> Option<String> {
    let name = &facts.name;
    if facts.underlay.is_unspecified() {
        return Some(format!("node {name} has no address of its own at which it is reached"));
    }
    let other = seen.into_iter().find(|ip| *ip != facts.underlay)?;
    Some(format!(
        "node {name} publishes {} and is seen at {other}: behind a NAT a member reaches it only where its ports are passed on; \
         name that place when you add the member (--endpoint {name}=HOST)",
        facts.underlay
    ))
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
        "member name {name:?}: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-' and '.', beginning with a letter or digit; \
         `add` and `remove` are words of the API"
    )))
}

fn parse_key(text: &str) -> Result<PublicKey, ApiError> {
    let refused = |why: &dyn std::fmt::Display| ApiError::invalid(format!("public key {text:?}: {why}"));
    let key: PublicKey = text.parse().map_err(|error| refused(&error))?;
    if key.is_low_order() {
        return Err(refused(&"it belongs to no private key (all zeros, or another point of low order)"));
    }
    Ok(key)
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
    fn a_key_without_a_private_half_is_refused() {
        let zeros = PublicKey::from([0; 32]).to_base64();
        assert!(parse_key(&zeros).is_err_and(|error| error.to_string().contains("no private key")));
        let key = PrivateKey::generate().unwrap().public();
        assert_eq!(parse_key(&key.to_base64()).unwrap(), key);
        assert!(parse_key("x").is_err());
    }

    #[test]
    fn a_node_behind_a_nat_is_told() {
        let mut facts = NodeFacts {
            uuid: Uuid::from_u128(3),
            name: "n3".into(),
            underlay: "192.168.3.2".parse().unwrap(),
            overlays: Vec::new(),
            vtep_mac: netd_plan::vtep_mac(Uuid::nil()),
            blocks: Vec::new(),
        };
        let seen = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(no_way_to(&facts, seen(&[])), None);
        assert_eq!(no_way_to(&facts, seen(&["192.168.3.2"])), None);
        let said = no_way_to(&facts, seen(&["192.168.3.2", "198.51.100.7"])).unwrap();
        assert!(said.contains("is seen at 198.51.100.7") && said.contains("--endpoint n3=HOST"), "{said}");
        facts.underlay = Ipv4Addr::UNSPECIFIED.into();
        assert!(no_way_to(&facts, seen(&[])).is_some());
    }

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
