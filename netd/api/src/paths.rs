// SPDX-License-Identifier: Apache-2.0
//! The paths of the API, shared by netd's router and the client.

use std::fmt::Write as _;

/// POST: reserve addresses for an attachment (phase one of ADD).
pub const ALLOCATE: &str = "/v1/attachments/allocate";
/// POST: the links exist, attach the programs and publish the pod (phase two of ADD).
pub const COMMIT: &str = "/v1/attachments/commit";
/// POST: withdraw, detach and free an attachment; idempotent.
pub const RELEASE: &str = "/v1/attachments/release";
/// POST: what netd knows of an attachment; 404 when nothing.
pub const CHECK: &str = "/v1/attachments/check";
/// GET: how this node is doing.
pub const STATUS: &str = "/v1/status";
/// GET: what this node finds when it looks at itself and at the ways to the others.
pub const DOCTOR: &str = "/v1/doctor";
/// GET: every node of the cluster.
pub const NODES: &str = "/v1/nodes";
/// GET: every pod of the cluster.
pub const PODS: &str = "/v1/pods";
/// GET: every service.
pub const SERVICES: &str = "/v1/services";
/// GET: the route pattern of one service, in axum's syntax; [`service`] makes the path.
pub const SERVICE: &str = "/v1/services/{namespace}/{name}";
/// GET: connections through services that this node remembers; the newest thousands of them.
pub const FLOWS: &str = "/v1/flows";
/// GET: the route pattern of those of one service, in axum's syntax; [`service_flows`] makes the path.
pub const SERVICE_FLOWS: &str = "/v1/services/{namespace}/{name}/flows";
/// POST: what this node's DNS answers to somebody, and why.
pub const DNS_QUERY: &str = "/v1/dns/query";
/// POST: every question that this node's DNS answers itself.
pub const DNS_QUESTIONS: &str = "/v1/dns/questions";
/// POST: create or change objects.
pub const APPLY: &str = "/v1/apply";
/// POST: delete one object.
pub const DELETE: &str = "/v1/delete";
/// GET: pools, blocks and this node's addresses.
pub const IPAM: &str = "/v1/ipam";
/// GET: compare all witnesses of the addresses on this node and in the store.
pub const IPAM_CHECK: &str = "/v1/ipam/check";
/// POST: mend what the check has proven.
pub const IPAM_REPAIR: &str = "/v1/ipam/repair";
/// POST: add a pool.
pub const POOL_ADD: &str = "/v1/ipam/pools/add";
/// POST: nothing new comes from a pool.
pub const POOL_DRAIN: &str = "/v1/ipam/pools/drain";
/// POST: a drained pool is used again.
pub const POOL_UNDRAIN: &str = "/v1/ipam/pools/undrain";
/// POST: remove an empty pool.
pub const POOL_REMOVE: &str = "/v1/ipam/pools/remove";
/// POST: a sticky name gives its addresses up.
pub const STICKY_REMOVE: &str = "/v1/ipam/sticky/remove";
/// POST: a node leaves the cluster for good.
pub const NODE_REMOVE: &str = "/v1/nodes/remove";
/// POST: set and drop labels of a pod on this node.
pub const POD_LABEL: &str = "/v1/pods/label";

/// GET and POST: the cluster's settings.
pub const CONFIG: &str = "/v1/config";
/// POST: new WireGuard keys.
pub const KEY_ROTATE: &str = "/v1/keys/rotate";

/// GET: every machine outside the cluster that is a WireGuard member.
pub const MEMBERS: &str = "/v1/members";
/// GET: the route pattern of one member, in axum's syntax; [`member`] makes the path.
pub const MEMBER: &str = "/v1/members/{name}";
/// POST: a machine joins.
pub const MEMBER_ADD: &str = "/v1/members/add";
/// POST: a machine leaves.
pub const MEMBER_REMOVE: &str = "/v1/members/remove";

/// The path of one member.
pub fn member(name: &str) -> String {
    format!("{MEMBERS}/{}", segment(name))
}

/// The path of one service. Bytes that a path segment may not hold (RFC 3986 section 3.3) are percent-encoded.
pub fn service(namespace: &str, name: &str) -> String {
    format!("{SERVICES}/{}/{}", segment(namespace), segment(name))
}

/// The path of one service's flows.
pub fn service_flows(namespace: &str, name: &str) -> String {
    format!("{}/flows", service(namespace, name))
}

fn segment(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_service_path_cannot_leave_its_segment() {
        assert_eq!(super::service("default", "web-1"), "/v1/services/default/web-1");
        assert_eq!(super::service("a/b", "c?d e"), "/v1/services/a%2Fb/c%3Fd%20e");
    }
}
