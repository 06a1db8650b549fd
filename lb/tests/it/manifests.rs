// SPDX-License-Identifier: Apache-2.0
//! Manifests that nobody meant.

use lb::{EndpointSlice, Object, Service, ServiceTable, parse_object};
use proptest::prelude::*;
use serde_json::Value;

proptest! {
    /// Anything may stand in a manifest.
    #[test]
    fn any_json_is_an_object_or_an_error_that_says_where(json in any_object()) {
        match parse_object(json) {
            Err(error) => {
                prop_assert!(!error.object.is_empty() && !error.field.is_empty() && !error.reason.is_empty());
            }
            Ok((object, _)) => {
                let none: [&EndpointSlice; 0] = [];
                let no_service: [&Service; 0] = [];
                let (_, problems) = match &object {
                    Object::EndpointSlice(slice) => ServiceTable::build(1, no_service, [slice]),
                    Object::Service(service) => ServiceTable::build(1, [service], none),
                };
                // What was accepted is accepted again; only that FQDN endpoints are not used is said here.
                prop_assert!(problems.iter().all(|problem| problem.field == "addressType"), "{:?}", problems);
            }
        }
    }
}

fn any_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..70_000).prop_map(Value::from),
        "[a-z.0-9:-]{0,12}".prop_map(Value::from),
        Just(Value::from("None")),
        Just(Value::from("10.96.0.7")),
        Just(Value::from("TCP")),
    ];
    let names = prop::sample::select(vec![
        "name",
        "namespace",
        "labels",
        "annotations",
        "type",
        "clusterIP",
        "clusterIPs",
        "selector",
        "ports",
        "port",
        "targetPort",
        "protocol",
        "addresses",
        "conditions",
        "ready",
        "hostname",
        "weft.dev/x",
        "weft.dev/weights",
        "weft.dev/fault",
        "sessionAffinity",
        "externalIPs",
        "ipFamilies",
        "nodePort",
        "loadBalancerSourceRanges",
        "hints",
        "forZones",
        "unknown",
    ]);
    let inner = leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    });
    (any::<bool>(), inner.clone(), inner.clone(), inner).prop_map(|(service, metadata, spec, ports)| {
        let (version, kind) =
            if service { ("v1", "Service") } else { ("discovery.k8s.io/v1", "EndpointSlice") };
        serde_json::json!({
            "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec, "ports": ports,
            "addressType": "IPv4",
        })
    })
}
