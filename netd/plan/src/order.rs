// SPDX-License-Identifier: Apache-2.0
//! From two sets of objects to changes in a safe order.

use std::net::IpAddr;

use crate::delta::DeltaTracker;
use crate::host::{HostObject, HostObjects, HostOp, LinkSpec, RouteKind, RouteSpec};

/// When a change happens, first to last.
///
/// Additions come before removals: a route that moves to another source address must move before the old address
/// goes, because the kernel drops routes whose preferred source disappears. Refusing routes come before forwarding
/// ones, and go after them, so that no moment lies between where traffic could leave by the default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Links that stand in the way of a new one: the kernel allows one VXLAN device for a VNI and port.
    RemoveConflictingLinks,
    /// Devices.
    AddLinks,
    /// Queues, before packets are sent through them.
    AddQueues,
    /// Redirections to devices with a queue.
    AddRedirects,
    /// Addresses: sources of routes.
    AddAddresses,
    /// Unreachable and blackhole routes, and exceptions from wider ones.
    AddBarrierRoutes,
    /// Neighbours: next hops of routes.
    AddNeighbours,
    /// Forwarding entries behind neighbours.
    AddFdb,
    /// Routes to what is on the link; gateways may be among it.
    AddLinkRoutes,
    /// Routes through a gateway.
    AddGatewayRoutes,
    /// Rules that lead to a table, which is full now.
    AddRules,
    /// The reverse begins.
    RemoveRules,
    /// Routes through a gateway.
    RemoveGatewayRoutes,
    /// Redirections.
    RemoveRedirects,
    /// Queues.
    RemoveQueues,
    /// Routes to what is on the link.
    RemoveLinkRoutes,
    /// Forwarding entries.
    RemoveFdb,
    /// Neighbours.
    RemoveNeighbours,
    /// Unreachable and blackhole routes, and exceptions.
    RemoveBarrierRoutes,
    /// Addresses.
    RemoveAddresses,
    /// Devices, last.
    RemoveLinks,
}

/// The changes from `observed` to `desired`, in order. Empty when both are equal.
pub fn plan(desired: &HostObjects, observed: &HostObjects) -> Vec<HostOp> {
    let mut tracker = DeltaTracker::new();
    tracker.set_observed(standing(desired, observed).to_map());
    tracker.set_desired(desired.to_map());
    let observed = observed.to_map();
    let updates = tracker.pending_updates().map(|(key, object)| match observed.contains_key(key) {
        true => HostOp::Replace(object.clone()),
        false => HostOp::Add(object.clone()),
    });
    let removals = tracker.pending_deletions().map(|(_, object)| HostOp::Remove(object.clone()));
    ordered(updates.chain(removals).collect())
}

/// Puts changes in a safe order, see [`Step`]. Changes of one step are in key order, so that the outcome does not
/// depend on the order of the input.
pub fn ordered(mut ops: Vec<HostOp>) -> Vec<HostOp> {
    let new_links: Vec<LinkSpec> = ops.iter().filter_map(new_link).cloned().collect();
    ops.sort_by_cached_key(|op| (step(op, &new_links), op.key()));
    ops
}

/// What will still stand of `observed` once the links of `desired` are in place. A link that is made anew, or that
/// makes room for another, takes its objects with it, and the kernel drops every route whose preferred source is then
/// nowhere. A device that the desired side leaves open is taken as satisfied by any.
fn standing(desired: &HostObjects, observed: &HostObjects) -> HostObjects {
    let goes = |device: &str| match (observed.links.get(device), desired.links.get(device)) {
        (Some(is), Some(wanted)) => !is.changes_in_place(wanted),
        (Some(is), None) => desired.links.values().any(|new| same_tunnel(new, is)),
        (None, _) => false,
    };
    let stays = |source: IpAddr| {
        let mut places = observed.addresses.iter().filter(|spec| spec.address.addr() == source).peekable();
        // An address on no device of ours is on one that we do not touch.
        places.peek().is_none() || places.any(|spec| !goes(&spec.device))
    };
    let wanted = desired.to_map();
    let mut standing = observed.clone();
    for object in observed.objects() {
        let on_it = object.device().is_some_and(goes);
        let from_it = matches!(&object, HostObject::Route(_, route) if !route.source.is_none_or(stays));
        // What is not desired stays listed and is removed in its turn; absent is fine then.
        if (on_it || from_it) && wanted.contains_key(&object.key()) {
            standing.remove(&object.key());
        }
    }
    for (key, route) in &mut standing.routes {
        if desired.routes.get(key).is_some_and(|wanted| wanted.device.is_none()) {
            route.device = None;
        }
    }
    standing
}

fn new_link(op: &HostOp) -> Option<&LinkSpec> {
    match op {
        HostOp::Add(HostObject::Link(_, spec)) | HostOp::Replace(HostObject::Link(_, spec)) => Some(spec),
        HostOp::Add(_) | HostOp::Replace(_) | HostOp::Remove(_) => None,
    }
}

fn step(op: &HostOp, new_links: &[LinkSpec]) -> Step {
    match op {
        HostOp::Add(object) | HostOp::Replace(object) => match object {
            HostObject::Link(..) => Step::AddLinks,
            HostObject::Address(_) => Step::AddAddresses,
            HostObject::Neighbour(..) => Step::AddNeighbours,
            HostObject::Fdb(..) => Step::AddFdb,
            HostObject::Queue(..) => Step::AddQueues,
            HostObject::Redirect(..) => Step::AddRedirects,
            HostObject::Rule(_) => Step::AddRules,
            HostObject::Route(_, spec) if is_barrier(spec) => Step::AddBarrierRoutes,
            HostObject::Route(_, spec) if spec.gateway.is_none() => Step::AddLinkRoutes,
            HostObject::Route(..) => Step::AddGatewayRoutes,
        },
        HostOp::Remove(object) => match object {
            HostObject::Link(_, spec) if new_links.iter().any(|new| same_tunnel(new, spec)) => {
                Step::RemoveConflictingLinks
            }
            HostObject::Link(..) => Step::RemoveLinks,
            HostObject::Address(_) => Step::RemoveAddresses,
            HostObject::Neighbour(..) => Step::RemoveNeighbours,
            HostObject::Fdb(..) => Step::RemoveFdb,
            HostObject::Queue(..) => Step::RemoveQueues,
            HostObject::Redirect(..) => Step::RemoveRedirects,
            HostObject::Rule(_) => Step::RemoveRules,
            HostObject::Route(_, spec) if is_barrier(spec) => Step::RemoveBarrierRoutes,
            HostObject::Route(_, spec) if spec.gateway.is_none() => Step::RemoveLinkRoutes,
            HostObject::Route(..) => Step::RemoveGatewayRoutes,
        },
    }
}

fn is_barrier(route: &RouteSpec) -> bool {
    matches!(route.kind, RouteKind::Blackhole | RouteKind::Throw | RouteKind::Unreachable)
}

fn same_tunnel(new: &LinkSpec, old: &LinkSpec) -> bool {
    match (new, old) {
        (LinkSpec::Vxlan { vni, port, .. }, LinkSpec::Vxlan { vni: old_vni, port: old_port, .. }) => {
            vni == old_vni && port == old_port
        }
        (LinkSpec::VxlanExternal { port, .. }, LinkSpec::VxlanExternal { port: old_port, .. }) => {
            port == old_port
        }
        (
            LinkSpec::Ifb
            | LinkSpec::Tun { .. }
            | LinkSpec::Vxlan { .. }
            | LinkSpec::VxlanExternal { .. }
            | LinkSpec::Wireguard { .. },
            _,
        ) => false,
    }
}
