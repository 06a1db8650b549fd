// SPDX-License-Identifier: Apache-2.0
//! Whether names are answered, and by whom while this netd is away; for `weft doctor`.

use std::net::SocketAddr;

use netd_api::Verdict;

use super::{addresses, other_servers};
use crate::node::Node;

/// What there is to say about names.
pub(crate) fn check(node: &Node) -> (Verdict, String) {
    if node.zone.load().is_none() {
        let text = "the cluster's names are not known yet: every question gets SERVFAIL";
        return (Verdict::Wrong, text.to_owned());
    }
    let (wanted, bound) = (addresses(&node.facts().overlays), node.dns_bound.borrow().clone());
    let missing: Vec<SocketAddr> = wanted.into_iter().filter(|address| !bound.contains(address)).collect();
    if let Some(first) = missing.first() {
        let text = format!(
            "other nodes' pods cannot ask this node's server at {first}, should their own be away: see the log; who has the \
             port, `ss -lnp sport = :{}` says",
            first.port()
        );
        return (Verdict::Note, text);
    }
    let view = node.view.load();
    let others = other_servers(&view, node.uuid);
    match others.first() {
        Some(first) => {
            let more = others.len() - 1;
            (
                Verdict::Ok,
                format!(
                    "this node's server answers; while netd is away {first} and {more} more addresses do"
                ),
            )
        }
        None if view.alive.len() > 1 => {
            let text = "this node's server answers; no other node would while netd is away";
            (Verdict::Note, text.to_owned())
        }
        None => (Verdict::Ok, "this node's server answers; it is the only one".to_owned()),
    }
}
