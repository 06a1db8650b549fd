// SPDX-License-Identifier: Apache-2.0
//! The fields of each kind that something acts upon, or that only inform. A field that is not here is kept, and named
//! as ignored.

use crate::shape::{Field, Shape};

const PORT_NUMBER: Shape = Shape::Int(1, 65_535);
/// 0 is the same as not given.
const NODE_PORT: Shape = Shape::Int(0, 65_535);
const PROTOCOL: Shape = Shape::OneOf(&["TCP", "UDP", "SCTP"]);
const TRAFFIC_POLICY: Shape = Shape::OneOf(&["Cluster", "Local"]);
const METADATA: Shape = Shape::Object(&[
    ("name", Shape::Text),
    ("namespace", Shape::Text),
    ("labels", Shape::TextMap),
    ("annotations", Shape::TextMap),
]);

/// `v1` `Service`.
pub(crate) const SERVICE: &[Field] = &[
    ("apiVersion", Shape::Text),
    ("kind", Shape::Text),
    ("metadata", METADATA),
    ("spec", Shape::Object(SPEC)),
    // What others report of themselves in it (conditions) is theirs.
    ("status", Shape::Open(&[("loadBalancer", Shape::Open(&[("ingress", Shape::List(&INGRESS))]))])),
];

const SPEC: &[Field] = &[
    ("type", Shape::OneOf(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
    ("clusterIP", Shape::Text),
    ("clusterIPs", Shape::List(&Shape::Text)),
    ("selector", Shape::TextMap),
    ("ports", Shape::List(&Shape::Object(SERVICE_PORT))),
    ("externalName", Shape::Text),
    ("publishNotReadyAddresses", Shape::Bool),
    ("externalTrafficPolicy", TRAFFIC_POLICY),
    ("internalTrafficPolicy", TRAFFIC_POLICY),
    ("ipFamilies", Shape::List(&Shape::OneOf(&["IPv4", "IPv6"]))),
    ("ipFamilyPolicy", Shape::OneOf(&["SingleStack", "PreferDualStack", "RequireDualStack"])),
    ("sessionAffinity", Shape::OneOf(&["None", "ClientIP"])),
    ("sessionAffinityConfig", Shape::Object(&[("clientIP", Shape::Object(CLIENT_IP))])),
    ("trafficDistribution", Shape::OneOf(&["PreferClose", "PreferSameZone", "PreferSameNode"])),
    ("externalIPs", Shape::List(&Shape::Text)),
    ("loadBalancerSourceRanges", Shape::List(&Shape::Text)),
    ("loadBalancerClass", Shape::Text),
    ("allocateLoadBalancerNodePorts", Shape::Bool),
    ("healthCheckNodePort", NODE_PORT),
];

const CLIENT_IP: &[Field] = &[("timeoutSeconds", Shape::Int(1, 86_400))];

const SERVICE_PORT: &[Field] = &[
    ("name", Shape::Text),
    ("protocol", PROTOCOL),
    ("port", PORT_NUMBER),
    ("targetPort", Shape::Port),
    ("nodePort", NODE_PORT),
    ("appProtocol", Shape::Text),
];

const INGRESS: Shape = Shape::Object(&[
    ("ip", Shape::Text),
    ("hostname", Shape::Text),
    ("ipMode", Shape::OneOf(&["VIP", "Proxy"])),
]);

/// `discovery.k8s.io/v1` `EndpointSlice`.
pub(crate) const ENDPOINT_SLICE: &[Field] = &[
    ("apiVersion", Shape::Text),
    ("kind", Shape::Text),
    ("metadata", METADATA),
    ("addressType", Shape::OneOf(&["IPv4", "IPv6", "FQDN"])),
    ("endpoints", Shape::List(&Shape::Object(ENDPOINT))),
    ("ports", Shape::List(&Shape::Object(ENDPOINT_PORT))),
];

const ENDPOINT: &[Field] = &[
    ("addresses", Shape::List(&Shape::Text)),
    ("conditions", Shape::Object(CONDITIONS)),
    ("hostname", Shape::Text),
    ("nodeName", Shape::Text),
    ("zone", Shape::Text),
    ("hints", Shape::Object(HINTS)),
    // Shown to people only: what else it says makes no difference.
    ("targetRef", Shape::Open(&[("kind", Shape::Text), ("namespace", Shape::Text), ("name", Shape::Text)])),
];

const HINT: Shape = Shape::Object(&[("name", Shape::Text)]);
const HINTS: &[Field] = &[("forZones", Shape::List(&HINT)), ("forNodes", Shape::List(&HINT))];

const CONDITIONS: &[Field] =
    &[("ready", Shape::Bool), ("serving", Shape::Bool), ("terminating", Shape::Bool)];

const ENDPOINT_PORT: &[Field] =
    &[("name", Shape::Text), ("protocol", PROTOCOL), ("port", PORT_NUMBER), ("appProtocol", Shape::Text)];
