// SPDX-License-Identifier: Apache-2.0
//! The fields of each kind that something acts upon. A field that is not here is kept, and named as ignored.

use crate::shape::{Field, Shape};

const PORT_NUMBER: Shape = Shape::Int(1, 65_535);
const PROTOCOL: Shape = Shape::OneOf(&["TCP", "UDP", "SCTP"]);
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
];

const SPEC: &[Field] = &[
    ("type", Shape::OneOf(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
    ("clusterIP", Shape::Text),
    ("clusterIPs", Shape::List(&Shape::Text)),
    ("selector", Shape::TextMap),
    ("ports", Shape::List(&Shape::Object(SERVICE_PORT))),
    ("externalName", Shape::Text),
    ("publishNotReadyAddresses", Shape::Bool),
    ("externalTrafficPolicy", Shape::Default(&["Cluster"])),
    ("internalTrafficPolicy", Shape::Default(&["Cluster"])),
    ("ipFamilies", Shape::Default(&["IPv4"])),
    ("ipFamilyPolicy", Shape::Default(&["SingleStack"])),
    ("sessionAffinity", Shape::Default(&["None"])),
];

const SERVICE_PORT: &[Field] =
    &[("name", Shape::Text), ("protocol", PROTOCOL), ("port", PORT_NUMBER), ("targetPort", Shape::Port)];

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
    // Shown to people only: what else it says makes no difference.
    ("targetRef", Shape::Open(&[("kind", Shape::Text), ("namespace", Shape::Text), ("name", Shape::Text)])),
];

const CONDITIONS: &[Field] =
    &[("ready", Shape::Bool), ("serving", Shape::Bool), ("terminating", Shape::Bool)];

const ENDPOINT_PORT: &[Field] = &[("name", Shape::Text), ("protocol", PROTOCOL), ("port", PORT_NUMBER)];
