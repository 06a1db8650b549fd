// SPDX-License-Identifier: Apache-2.0
//! What this node owes the store: its node record, its pods, the endpoints of services that select them, the mirrors of its
//! blocks. Desired from local state, observed from the mirror, the difference written in compare-and-swap transactions.
//! With the store down the difference waits; nothing is queued elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use lb::{ChunkMap, PodFacts, Service, ServiceName, Unread};
use netd_store::records::{
    BadRecord, Extra, NodeRecord, PodRecord, SCHEMA, WireguardKeyRecord, WireguardRecord, encode,
};
use netd_store::{
    Items, Key, KeyValue, Keys, MAX_TRANSACTION_BYTES, MAX_TRANSACTION_OPERATIONS, MirrorState, Transaction,
};

use crate::attachments::{Attachment, Phase};
use crate::labels;
use crate::node::{Node, Published, lock};
use crate::overlay::{recorded, sent_by};
use crate::pace::Pace;
use crate::services;
use crate::status::VERSION;
use crate::tunnel::ListeningKey;
use crate::view::View;

/// A burst of ADDs becomes one transaction.
const COALESCE: Duration = Duration::from_millis(10);
/// Pause after the store refused or did not answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Each write is a compare and a put: half of what a transaction may hold.
const WRITES_PER_TRANSACTION: usize = MAX_TRANSACTION_OPERATIONS / 2 - 1;
/// Keys and values of one transaction: well below what etcd takes (1.5 MiB by default).
const BYTES_PER_TRANSACTION: usize = MAX_TRANSACTION_BYTES / 2;

/// Pods' records as they were written last: of hundreds one change makes one be written anew.
type Written = BTreeMap<String, (Arc<Attachment>, Bytes)>;

/// What was made or seen before: of thousands of services one change makes one be looked at.
#[derive(Default)]
struct Made {
    pods: Written,
    endpoints: Endpoints,
    present: Present,
}

/// Keeps the store as this node owes it; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut mirror = node.mirror.clone();
    let mut retry = false;
    let mut made = Made::default();
    let mut pace = Pace::new(COALESCE);
    loop {
        tokio::select! {
            // The store's task has ended: so does netd.
            changed = mirror.changed() => if changed.is_err() { return Ok(()) },
            () = node.publish_wake.notified() => {}
            () = tokio::time::sleep(RETRY_AFTER), if retry => {}
        }
        pace.wait().await;
        let state = mirror.borrow_and_update().clone();
        if !state.in_sync {
            continue;
        }
        retry = match round(&node, &state, &mut made, &mut pace).await {
            Ok(quiet) => {
                node.publish_error.store(None);
                !quiet
            }
            Err(error) => {
                complain(&node, format!("{error:#}"));
                true
            }
        };
    }
}

/// Once for each new reason; status and metrics show it as long as it lasts.
fn complain(node: &Node, error: String) {
    if node.publish_error.load().as_deref() != Some(&error) {
        tracing::warn!(error, "this node's records are not in the store; trying again");
    }
    node.publish_error.store(Some(Arc::new(error)));
}

/// Writes what differs. True when nothing did: then everything up to this revision and local change is in the store.
async fn round(node: &Arc<Node>, state: &MirrorState, made: &mut Made, pace: &mut Pace) -> Result<bool> {
    let start = Instant::now();
    // Before the state is read: a change that comes while we look is not claimed to be published.
    let change = node.change();
    let view = node.view.load_full();
    if view.revision != state.revision || !view.in_sync {
        // The agent has not parsed this revision yet; it wakes us when it has.
        return Ok(false);
    }
    if node.overlay.load().plan.keep.is_empty() {
        // It has not chosen how to reach the others: the record would say that this node has nothing to be reached by.
        return Ok(false);
    }
    let desired = desired(node, &view, made)?;
    // A store whose listing is held back gets this node's records all the same: that is what makes it whole again, and
    // what keeps others from claiming blocks that have an owner.
    let held = node.held.load_full();
    let present = held.as_deref().unwrap_or(state);
    made.present.follow(&present.items, node);
    let writes = difference(&desired, present, &made.present, &view.table.unread, node);
    // Waiting for the store costs nobody anything.
    pace.ran(start.elapsed());
    if writes.is_empty() && held.is_some() {
        return Ok(true);
    }
    if writes.is_empty() {
        node.published.send_replace(Published { change, revision: state.revision });
        return Ok(true);
    }
    for batch in batches(&writes, &node.keys) {
        // A node that was removed meanwhile writes nothing: its blocks may be another's.
        let mut transaction = Transaction::new().absent(node.keys.tombstone(node.uuid));
        for write in batch {
            transaction = transaction.unchanged(&write.key, write.seen);
            transaction = match &write.value {
                Some(value) => transaction.put(&write.key, value.clone()),
                None => transaction.delete(&write.key),
            };
        }
        if !node.store.transact(transaction).await?.succeeded {
            // The mirror is behind: the watch brings what we have not seen, and wakes us.
            tracing::debug!("a record of this node changed meanwhile; comparing again");
            return Ok(false);
        }
        node.counters.published.inc_by(batch.len() as u64);
    }
    Ok(false)
}

/// What fits into one transaction, by number and by size; a value that fits into none goes alone and fails alone.
///
/// Slices of one Service are written at once: pods move between them when others with other ports come or go, and a pod that is
/// in none for a moment loses its connections. Only where they do not fit into one transaction are they cut.
fn batches<'a>(writes: &'a [Write], keys: &Keys) -> Vec<&'a [Write]> {
    let size = |write: &Write| write.key.len() * 2 + write.value.as_ref().map_or(0, Bytes::len);
    let fits = |writes: &[Write]| {
        writes.len() <= WRITES_PER_TRANSACTION
            && writes.iter().map(size).sum::<usize>() <= BYTES_PER_TRANSACTION
    };
    let endpoints = keys.endpoints();
    let service =
        |key: &str| -> Option<usize> { key.starts_with(&endpoints).then(|| key.rfind('/')).flatten() };
    let of_one_service = writes.chunk_by(|a, b| {
        service(&a.key).is_some_and(|end| service(&b.key) == Some(end) && a.key[..end] == b.key[..end])
    });
    let mut batches = Vec::new();
    let (mut start, mut end) = (0, 0);
    for group in of_one_service.flat_map(|group| group.chunks(if fits(group) { group.len() } else { 1 })) {
        let next = end + group.len();
        if end > start && !fits(&writes[start..next]) {
            batches.push(&writes[start..end]);
            start = end;
        }
        end = next;
    }
    if start < end {
        batches.push(&writes[start..end]);
    }
    batches
}

/// One key to write (`Some`) or delete (`None`), if it is still at the revision seen (0: absent).
#[derive(Debug, PartialEq)]
struct Write {
    key: String,
    value: Option<Bytes>,
    seen: u64,
}

fn desired(node: &Node, view: &View, made: &mut Made) -> Result<BTreeMap<String, Bytes>, BadRecord> {
    let mut records = BTreeMap::new();
    if view.tombstones.contains_key(&node.uuid) {
        // Whoever removed this node decides about what it had; nothing of it is written again.
        return Ok(records);
    }
    let mut add =
        |key: String, value: Result<Bytes, BadRecord>| value.map(|value| drop(records.insert(key, value)));
    let facts = node.facts();
    let key = node.keys.node(node.uuid);
    let overlay = node.overlay.load();
    let record = NodeRecord {
        schema: SCHEMA,
        uuid: node.uuid,
        name: facts.name,
        underlay: facts.underlay,
        overlay: facts.overlays.iter().find(|ip| ip.is_ipv4()).or(facts.overlays.first()).copied(),
        overlay6: facts.overlays.iter().find(|ip| ip.is_ipv6()).copied(),
        labels: node.config.node_labels.clone(),
        vtep_mac: facts.vtep_mac.to_string(),
        wireguard: wireguard(node, view),
        underlay_mtu: overlay.underlay_mtu,
        backends_up: Some(overlay.plan.up.iter().copied().map(recorded).collect()),
        sends: node.routed.load().sends.map(sent_by),
        dns: node.config.dns_addresses.first().copied(),
        dns_serves: node.dns_bound.borrow().iter().map(SocketAddr::ip).collect(),
        version: VERSION.to_owned(),
        // What a newer netd put there stays.
        extra: view.nodes.get(&node.uuid).map(|known| known.extra.clone()).unwrap_or_default(),
    };
    add(key.clone(), encode(&key, &record))?;

    let attachments = lock(&node.attachments).all();
    let mut still = Written::new();
    for attachment in attachments.iter().filter(|a| a.phase != Phase::Pending) {
        let key = node.keys.pod(node.uuid, &attachment.key);
        let value = match made.pods.remove(&key) {
            Some((of, value)) if Arc::ptr_eq(&of, attachment) || of == *attachment => value,
            _ => encode(&key, &pod_record(node, attachment))?,
        };
        still.insert(key.clone(), (attachment.clone(), value.clone()));
        add(key, Ok(value))?;
    }
    made.pods = still;
    let pods: Vec<PodFacts> =
        attachments.iter().filter(|a| a.phase == Phase::Committed).map(|a| pod_facts(node, a)).collect();
    made.endpoints.follow(node, view, pods)?;
    for (key, value) in &made.endpoints.slices {
        add(key.clone(), Ok(value.clone()))?;
    }
    for block in node.addressing.addresses().mirrors() {
        let key = node.keys.block(block.cidr);
        // A block that the store gives to another is not ours to write: the agent reports it.
        if view
            .blocks
            .get(&block.cidr)
            .is_none_or(|known| known.owner == node.uuid && known.epoch == block.epoch)
        {
            add(key.clone(), encode(&key, &block))?;
        }
    }
    Ok(records)
}

/// The keys whose devices listen; while none does, those that were published: a device that restarts is back before the
/// peers have heard of it.
fn wireguard(node: &Node, view: &View) -> Option<WireguardRecord> {
    let tunnel = node.tunnel.state.load();
    if tunnel.generations.is_empty() {
        return None;
    }
    if tunnel.keys.is_empty() {
        return view.nodes.get(&node.uuid)?.wireguard.clone();
    }
    let key = |key: &ListeningKey| WireguardKeyRecord {
        generation: key.generation,
        public_key: key.public.to_string(),
        port: key.port,
    };
    Some(WireguardRecord {
        kind: node.tunnel.kind.as_str().to_owned(),
        keys: tunnel.keys.iter().map(key).collect(),
        sends: node.routed.load().generation,
    })
}

fn pod_record(node: &Node, attachment: &Attachment) -> PodRecord {
    PodRecord {
        schema: SCHEMA,
        attachment: attachment.key.clone(),
        node: node.uuid,
        namespace: attachment.namespace.clone(),
        name: attachment.name.clone(),
        labels: attachment.labels.clone(),
        ips: attachment.ips.clone(),
        aliases: attachment.aliases.clone(),
        host_ifname: attachment.host_ifname.clone(),
        ready: attachment.phase == Phase::Committed,
        terminating: attachment.phase == Phase::Releasing,
        extra: Extra::new(),
    }
}

fn pod_facts(node: &Node, attachment: &Attachment) -> PodFacts {
    PodFacts {
        namespace: attachment.namespace.clone(),
        name: attachment.name.clone(),
        labels: attachment.effective_labels(),
        ips: attachment.ips.clone(),
        node_name: node.config.node_name.clone(),
        zone: services::zone(&node.config.node_labels).map(str::to_owned),
        ready: true,
        terminating: false,
        hostname: None,
        ports: labels::named_ports(&attachment.labels),
    }
}

/// Endpoints that this node's pods are of services, and the services and pods that they were made from.
#[derive(Default)]
struct Endpoints {
    services: ChunkMap<String, Service>,
    pods: Vec<PodFacts>,
    slices: BTreeMap<String, Bytes>,
}

impl Endpoints {
    fn follow(&mut self, node: &Node, view: &View, pods: Vec<PodFacts>) -> Result<(), BadRecord> {
        if self.pods != pods {
            *self = Self { pods, ..Self::default() };
        }
        let uuid = node.uuid.to_string();
        for difference in view.services.differences(&self.services, "", |_| true) {
            if let Some(lb::Metadata { namespace, name, .. }) =
                difference.before.map(|before| &before.metadata)
            {
                let prefix = node.keys.service_endpoints(namespace, name);
                let of_it = self.slices.range(prefix.clone()..).map(|(key, _)| key);
                let gone: Vec<String> = of_it.take_while(|key| key.starts_with(&prefix)).cloned().collect();
                gone.iter().for_each(|key| drop(self.slices.remove(key)));
            }
            let Some(service) = difference.now else { continue };
            let lb::Metadata { namespace, name, .. } = &service.metadata;
            for family in [lb::Family::V4, lb::Family::V6] {
                let slices = lb::endpoints_for(service, &self.pods, &uuid, family);
                for (number, slice) in (1..).zip(slices) {
                    let source = Keys::node_source(node.uuid, family == lb::Family::V6, number);
                    let key = node.keys.endpoint(namespace, name, &source);
                    let value = encode(&key, &slice)?;
                    self.slices.insert(key, value);
                }
            }
        }
        self.services = view.services.clone();
        Ok(())
    }
}

/// Keys of endpoints that are in the store and that only this node writes.
#[derive(Default)]
struct Present {
    seen: Items,
    own: BTreeSet<String>,
}

impl Present {
    fn follow(&mut self, items: &Items, node: &Node) {
        let prefix = node.keys.endpoints();
        for difference in items.differences(&self.seen, prefix.as_str(), |key| key.starts_with(&prefix)) {
            match difference.now {
                None => drop(self.own.remove(difference.key.as_str())),
                Some(item) if is_own(item, &node.keys, node) => drop(self.own.insert(item.key.clone())),
                Some(_) => {}
            }
        }
        self.seen = items.clone();
    }
}

fn difference(
    desired: &BTreeMap<String, Bytes>,
    state: &MirrorState,
    present: &Present,
    unread: &Unread,
    node: &Node,
) -> Vec<Write> {
    let mut writes = Vec::new();
    for (key, value) in desired {
        let known = state.items.get(key);
        if known.is_none_or(|known| known.value != *value) {
            let seen = known.map_or(0, |known| known.mod_revision);
            writes.push(Write { key: key.clone(), value: Some(value.clone()), seen });
        }
    }
    let pods = node.keys.node_pods(node.uuid);
    let endpoints = present.own.iter().filter(|key| !is_of_unread(key, unread, &node.keys));
    let endpoints = endpoints.filter_map(|key| state.items.get(key)).map(Arc::as_ref);
    for item in state.range(&pods).chain(endpoints).filter(|item| !desired.contains_key(&item.key)) {
        writes.push(Write { key: item.key.clone(), value: None, seen: item.mod_revision });
    }
    writes
}

/// Whether a slice is one of a Service that does not read: which pods it wants is not known, and others serve its last good value.
fn is_of_unread(key: &str, unread: &Unread, keys: &Keys) -> bool {
    match (unread.services.is_empty(), keys.parse(key)) {
        (false, Some(Key::Endpoint { namespace, name, .. })) => {
            unread.services.contains(&ServiceName::new(namespace, name))
        }
        _ => false,
    }
}

/// Of the endpoints those that only this node writes and may delete, as it may its pods. Its node record and its blocks stay
/// until an operator removes the node.
fn is_own(item: &KeyValue, keys: &Keys, node: &Node) -> bool {
    // Most are others', and a key says so sooner than its parts do.
    let source = item.key.rsplit('/').next().unwrap_or_default();
    Keys::node_of_source(source) == Some(node.uuid)
        && matches!(keys.parse(&item.key), Some(Key::Endpoint { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_a_service_that_does_not_read_stay() {
        let keys = Keys::new("weft").unwrap();
        let mut unread = Unread::default();
        let key = keys.endpoint("default", "web", &Keys::node_source(uuid::Uuid::from_u128(7), false, 1));
        assert!(!is_of_unread(&key, &unread, &keys));
        unread.services.insert(ServiceName::new("default", "web"));
        assert!(is_of_unread(&key, &unread, &keys));
        assert!(!is_of_unread(&key.replace("/web/", "/api/"), &unread, &keys));
    }

    #[test]
    fn slices_of_one_service_are_written_at_once() {
        let keys = Keys::new("weft").unwrap();
        let node = uuid::Uuid::from_u128(7);
        let write = |key: String, size: usize| Write { key, value: Some(vec![0; size].into()), seen: 0 };
        let slices = |service: &str, count: usize, size: usize| -> Vec<Write> {
            let key = |number| keys.endpoint("default", service, &Keys::node_source(node, false, number));
            (1..=count).map(|number| write(key(number), size)).collect()
        };
        let large = BYTES_PER_TRANSACTION / 4;
        for before in 0..2 * WRITES_PER_TRANSACTION {
            for size in [10, large] {
                let mut writes: Vec<Write> = (0..before)
                    .map(|number| write(keys.endpoint("default", &format!("a{number}"), "x"), 10))
                    .collect();
                writes.extend(slices("api", 3, size));
                writes.extend(slices("web", 3, size));
                let batches = batches(&writes, &keys);
                assert!(batches.iter().copied().flatten().eq(&writes));
                assert!(batches.iter().all(|batch| batch.len() <= WRITES_PER_TRANSACTION));
                for service in ["api", "web"] {
                    let prefix = keys.service_endpoints("default", service);
                    let of_it = |batch: &&&[Write]| batch.iter().any(|write| write.key.starts_with(&prefix));
                    assert_eq!(batches.iter().filter(of_it).count(), 1, "{service} behind {before}");
                }
            }
        }
        // More than a transaction takes.
        for (writes, least) in
            [(slices("web", WRITES_PER_TRANSACTION + 1, 10), 2), (slices("web", 2, BYTES_PER_TRANSACTION), 2)]
        {
            let batches = batches(&writes, &keys);
            assert_eq!(batches.len(), least);
            assert!(batches.iter().copied().flatten().eq(&writes));
        }
    }
}
