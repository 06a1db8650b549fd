// SPDX-License-Identifier: Apache-2.0
//! Names of services in a zone of others: nothing where none is configured.

use prometheus_client::registry::Registry;

use crate::node::Node;

/// Everything of this kind as of now.
pub(super) fn register(node: &Node, registry: &mut Registry) {
    if node.config.external_dns.is_none() {
        return;
    }
    let now = node.external.now();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    super::gauge(
        registry,
        "dns_external_leader",
        "1 on the node that publishes names outside",
        i64::from(now.leads),
    );
    super::gauge(
        registry,
        "dns_external_done",
        "1 on that node while the zone is as wished",
        i64::from(now.leads && now.is_done),
    );
    super::gauge(
        registry,
        "dns_external_names",
        "Names of services that are published outside",
        count(now.names),
    );
    super::gauge(registry, "dns_external_records", "Their addresses and aliases", count(now.records));
    super::gauge(
        registry,
        "dns_external_problems",
        "Names that are not published as their services say",
        count(now.problems.len() + now.pending.len()),
    );
    registry.register(
        "dns_external_updates",
        "Updates of the zone that its server took, by what they came to",
        node.external.updates.clone(),
    );
    registry.register(
        "dns_external_errors",
        "Updates and questions that failed, by reason",
        node.external.errors.clone(),
    );
}
