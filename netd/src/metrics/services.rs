// SPDX-License-Identifier: Apache-2.0
//! Services: what goes through them, what is remembered of it, and how full the maps are.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::node::{Node, lock};

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct EventLabels {
    event: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct MapLabels {
    map: &'static str,
}

/// Everything of this kind as of now.
pub(super) fn register(node: &Node, registry: &mut Registry) {
    let (names, left_out) = {
        let services = lock(&node.services);
        (services.compiler().names(), services.compiler().capacity().len())
    };
    let datapath = lock(&node.datapath);
    counters(&datapath, &names, registry);
    maps(&datapath, registry);
    let entries = Family::<MapLabels, Gauge>::default();
    for (fill, map) in datapath.conntrack_fill().iter().zip(["established", "half-open"]) {
        entries.get_or_create(&MapLabels { map }).set(count(fill.entries));
    }
    let sockets = datapath.socket_count().unwrap_or_default();
    drop(datapath);
    registry.register(
        "conntrack_entries",
        "Entries of flows that go on, two for each flow, at the last sweep",
        entries,
    );
    super::gauge(
        registry,
        "service_sockets",
        "Connections of local sockets through services",
        count(sockets),
    );
    super::gauge(
        registry,
        "service_left_out",
        "Services of which something does not fit into the maps",
        count(left_out),
    );
    let c = &node.counters;
    registry.register(
        "conntrack_expired",
        "Entries of flows that were over and were removed",
        c.flows_expired.clone(),
    );
    registry.register(
        "service_sockets_destroyed",
        "Sockets that were destroyed because their backend was gone",
        c.sockets_destroyed.clone(),
    );
}

fn counters(
    datapath: &ebpf_loader::Datapath,
    names: &std::collections::BTreeMap<u32, String>,
    registry: &mut Registry,
) {
    let connections = Family::<ServiceLabels, Counter>::default();
    let refused = Family::<ServiceLabels, Counter>::default();
    for (id, counted) in datapath.counters().unwrap_or_default() {
        let Some(service) = names.get(&id).cloned() else { continue };
        let labels = ServiceLabels { service };
        connections.get_or_create(&labels).inc_by(counted.connections);
        refused.get_or_create(&labels).inc_by(counted.refused);
    }
    let drops = Family::<ReasonLabels, Counter>::default();
    for (reason, count) in datapath.drops().unwrap_or_default() {
        drops.get_or_create(&ReasonLabels { reason: reason.to_string() }).inc_by(count);
    }
    let events = Family::<EventLabels, Counter>::default();
    for (counter, count) in datapath.packet_counters().unwrap_or_default() {
        events.get_or_create(&EventLabels { event: counter.name() }).inc_by(count);
    }
    registry.register(
        "service_connections",
        "Connections and datagrams sent to a backend, by frontend",
        connections,
    );
    registry.register(
        "service_refused",
        "Connections refused for lack of a backend or port, or by an injected fault, by frontend",
        refused,
    );
    registry.register("datapath_drops", "Packets dropped, by reason", drops);
    registry.register("conntrack_events", "What the programs met on the packet path and at sockets", events);
}

fn maps(datapath: &ebpf_loader::Datapath, registry: &mut Registry) {
    let (bytes, room) = (Family::<MapLabels, Gauge>::default(), Family::<MapLabels, Gauge>::default());
    for usage in datapath.usage() {
        let labels = MapLabels { map: usage.map };
        bytes.get_or_create(&labels).set(i64::try_from(usage.bytes).unwrap_or(i64::MAX));
        room.get_or_create(&labels).set(i64::from(usage.max_entries));
    }
    registry.register_with_unit("map_memory", "Memory of a map", Unit::Bytes, bytes);
    registry.register("map_entries_max", "Entries that a map has room for", room);
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
