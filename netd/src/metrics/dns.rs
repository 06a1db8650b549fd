// SPDX-License-Identifier: Apache-2.0
//! The node's DNS server: what was asked and answered, how long that took, what is kept, and how the upstreams do.

use std::fmt;

use dns_server::DnsCounts;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::node::Node;

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct AnswerLabels {
    source: &'static str,
    r#type: &'static str,
    rcode: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct EventLabels {
    event: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
    zone: String,
}

/// Everything of this kind as of now.
pub(super) fn register(node: &Node, registry: &mut Registry) {
    let counts = node.dns_stats.counts();
    let answers = Family::<AnswerLabels, Counter>::default();
    for (source, r#type, rcode, count) in &counts.answers {
        answers.get_or_create(&AnswerLabels { source, r#type, rcode }).inc_by(*count);
    }
    registry.register(
        "dns_answers",
        "Answers of the node's DNS server, by where they came from, type and response code",
        answers,
    );
    let events = Family::<EventLabels, Counter>::default();
    for (event, count) in [
        ("forwarded", counts.forwarded),
        ("cache-hit", counts.cache_hits),
        ("stale", counts.stale),
        ("forward-failed", counts.forward_failures),
        ("refused-overload", counts.forward_overloads),
        ("truncated", counts.truncated),
        ("rate-limited", counts.rate_limited),
        ("unfair-dropped", counts.unfair),
        ("send-failed", counts.send_failures),
        ("ignored", counts.ignored),
        ("cache-evicted", counts.cache_evictions),
        ("stream-accepted", counts.streams_accepted),
        ("stream-refused", counts.streams_refused),
        ("stream-slow", counts.streams_slow),
    ] {
        events.get_or_create(&EventLabels { event }).inc_by(count);
    }
    registry.register("dns_events", "What the node's DNS server met", events);
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    super::gauge(
        registry,
        "dns_streams",
        "Connections of DNS clients over TCP and TLS",
        count(counts.streams_open),
    );
    super::gauge(
        registry,
        "dns_cache_entries",
        "DNS answers kept about names of others",
        count(counts.cache_entries),
    );
    let bytes: Gauge = Gauge::default();
    bytes.set(count(counts.cache_bytes));
    registry.register_with_unit("dns_cache", "What these take", Unit::Bytes, bytes);
    upstreams(&counts, registry);
    let latency = Latency { buckets: counts.latency, sum_us: counts.latency_us };
    registry.register_with_unit(
        "dns_latency",
        "Time from a DNS question to its answer",
        Unit::Seconds,
        latency,
    );
}

fn upstreams(counts: &DnsCounts, registry: &mut Registry) {
    let (answers, failures) =
        (Family::<UpstreamLabels, Counter>::default(), Family::<UpstreamLabels, Counter>::default());
    let healthy = Family::<UpstreamLabels, Gauge>::default();
    let rtt = Family::<UpstreamLabels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    for upstream in &counts.upstreams {
        let labels = UpstreamLabels { upstream: upstream.address.to_string(), zone: upstream.zone.clone() };
        answers.get_or_create(&labels).inc_by(upstream.answers);
        failures.get_or_create(&labels).inc_by(upstream.failures);
        healthy.get_or_create(&labels).set(i64::from(upstream.healthy));
        rtt.get_or_create(&labels).set(upstream.rtt.as_secs_f64());
    }
    registry.register("dns_upstream_answers", "Answers of the DNS servers that netd asks", answers);
    registry.register("dns_upstream_failures", "Questions that these did not answer", failures);
    registry.register(
        "dns_upstream_healthy",
        "1: asked first; 0: asked when no other answers, or never for it leads back",
        healthy,
    );
    registry.register_with_unit("dns_upstream_rtt", "Smoothed round trip to them", Unit::Seconds, rtt);
}

/// A histogram that was counted elsewhere.
struct Latency {
    buckets: Vec<(Option<u64>, u64)>,
    sum_us: u64,
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let seconds = |us: u64| us as f64 / 1e6;
        let buckets: Vec<(f64, u64)> =
            self.buckets.iter().map(|(end, count)| (end.map_or(f64::MAX, seconds), *count)).collect();
        let total = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(seconds(self.sum_us), total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latency({} us)", self.sum_us)
    }
}
