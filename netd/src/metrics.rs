// SPDX-License-Identifier: Apache-2.0
//! Metrics in the OpenMetrics text form. What other parts know (maps, progress, view) is read at the scrape; only events
//! are counted here.

mod dns;
mod external;
mod overlay;
mod services;

use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::node::{Node, lock};
use crate::status;

/// Upper bounds of the pass durations, seconds: 1 ms to 8 s.
const PASS_BUCKETS: [f64; 14] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0];

/// Events counted as they happen.
#[derive(Debug)]
pub(crate) struct Counters {
    pub adds: Counter,
    pub dels: Counter,
    pub exhausted: Counter,
    pub published: Counter,
    pub sockets_destroyed: Counter,
    pub flows_expired: Counter,
    passes: Histogram,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            adds: Counter::default(),
            dels: Counter::default(),
            exhausted: Counter::default(),
            published: Counter::default(),
            sockets_destroyed: Counter::default(),
            flows_expired: Counter::default(),
            passes: Histogram::new(PASS_BUCKETS),
        }
    }
}

impl Counters {
    /// One pass of the agent took this long.
    pub(crate) fn passed(&self, duration: Duration) {
        self.passes.observe(duration.as_secs_f64());
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct BlockLabels {
    block: String,
    pool: String,
}

/// The text of one scrape.
pub(crate) fn render(node: &Node) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("weft");
    progress(node, &mut registry);
    addresses(node, &mut registry);
    services::register(node, &mut registry);
    dns::register(node, &mut registry);
    external::register(node, &mut registry);
    overlay::register(node, &mut registry);
    let c = &node.counters;
    registry.register("attachments_allocated", "Addresses given to attachments (ADD)", c.adds.clone());
    registry.register("attachments_released", "Attachments released (DEL)", c.dels.clone());
    registry.register(
        "ipam_exhausted",
        "Allocations refused because every pool was full",
        c.exhausted.clone(),
    );
    registry.register("records_published", "Records of this node written to the store", c.published.clone());
    registry.register_with_unit(
        "pass_duration",
        "Time of one pass of the agent",
        Unit::Seconds,
        c.passes.clone(),
    );
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let metric: Gauge = Gauge::default();
    metric.set(value);
    registry.register(name, help, metric);
}

fn progress(node: &Node, registry: &mut Registry) {
    let (progress, mirror, view) = (node.progress.load(), node.mirror.borrow().clone(), node.view.load());
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    gauge(
        registry,
        "ready",
        "1 when /readyz answers 200",
        i64::from(status::not_ready_reasons(node).is_empty()),
    );
    gauge(registry, "store_connected", "1 while the store's watch stands", i64::from(mirror.connected));
    gauge(registry, "store_in_sync", "1 once the store has been read", i64::from(mirror.in_sync));
    gauge(registry, "store_revision", "Newest revision seen", signed(mirror.revision));
    gauge(
        registry,
        "programmed_revision",
        "Newest revision that the kernel matches",
        signed(progress.programmed_revision),
    );
    gauge(
        registry,
        "named_revision",
        "Newest revision whose names DNS answers",
        signed(node.named_revision.load(Ordering::Acquire)),
    );
    gauge(
        registry,
        "published_revision",
        "Newest revision that this node's records match",
        signed(node.published.borrow().revision),
    );
    gauge(
        registry,
        "pending_objects",
        "Kernel objects that could not be applied and are tried again",
        signed(progress.pending.len() as u64),
    );
    gauge(
        registry,
        "bad_values",
        "Values in the store that are skipped",
        signed((view.bad_values.len() + progress.problems.len()) as u64),
    );
    gauge(registry, "nodes", "Nodes of the cluster", signed(view.nodes.len() as u64));
    gauge(registry, "attachments", "Attachments of this node", signed(lock(&node.attachments).len() as u64));
    gauge(registry, "services", "Services of the cluster", signed(view.table.services.len() as u64));
}

fn addresses(node: &Node, registry: &mut Registry) {
    let family = Family::<BlockLabels, Gauge>::default();
    let addresses = node.addressing.addresses();
    for (cidr, usage) in addresses.allocator().blocks() {
        let labels = BlockLabels { block: cidr.to_string(), pool: usage.pool.clone() };
        family.get_or_create(&labels).set(i64::from(usage.used));
    }
    let now = node.addressing.now();
    let sum = |of: &dyn Fn(ipam::Family) -> usize| {
        [ipam::Family::V4, ipam::Family::V6].into_iter().map(of).sum::<usize>()
    };
    let free = sum(&|family| addresses.allocator().free_count(family, now));
    let cooling = sum(&|family| addresses.allocator().cooling_count(family, now));
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    registry.register("ipam_block_used", "Addresses in use, by block of this node", family);
    gauge(registry, "ipam_free", "Addresses that this node can give without the store", count(free));
    gauge(registry, "ipam_cooling", "Freed addresses that rest before reuse", count(cooling));
}
