// SPDX-License-Identifier: Apache-2.0
//! Services, from the store's objects to the maps, and what has to be done around them.
//!
//! `objects.rs`: the table, difference by difference; `sync.rs`: the table into the maps; `around.rs`: what the programs know of
//! nodes and addresses, and the devices that they are on; `claims.rs`: what services hold of the cluster; `netns.rs`: what they know of pods' network namespaces; `ended.rs`:
//! connections to backends that are gone; `flows.rs`: the sweep through conntrack, and what is in it; `health_check.rs`: what
//! load balancers ask; `settle.rs`: sockets that were closed unseen; `show.rs`: what people ask.

mod around;
mod claims;
mod ended;
mod flows;
mod health_check;
mod netns;
mod objects;
mod settle;
mod show;
mod sync;

use std::collections::BTreeMap;

pub(crate) use around::{Around, client_pods, map_sizes, ports};
pub(crate) use claims::keep as keep_claims;
pub(crate) use ended::Ended;
pub(crate) use flows::{PRESSURE_PERCENT, flows, keep as keep_flows};
pub(crate) use health_check::keep as keep_health_checks;
pub(crate) use netns::{Netnses, enter as enter_netns, leave as leave_netns, sweep as sweep_netns};
pub(crate) use objects::Objects;
pub(crate) use settle::keep as keep_sockets;
pub(crate) use show::{list, one};
pub(crate) use sync::{Left, ServiceSync, Synced};

use crate::view::View;

/// Labels that name a node's zone: Kubernetes' own, and the short one of examples.
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "zone"];

/// The zone that a node's labels put it in.
pub(crate) fn zone(labels: &BTreeMap<String, String>) -> Option<&str> {
    ZONE_LABELS.iter().find_map(|label| labels.get(*label)).map(String::as_str)
}

/// The port of the device for direct server return, where some service wants that.
pub(crate) fn dsr_port(view: &View) -> Option<u16> {
    view.dsr.then(|| netd_plan::dsr_port(view.config.wireguard_port))
}
