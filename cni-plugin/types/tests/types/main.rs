// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

//! Config, options and result: golden cases from tests/cases/cni, and properties.

mod chain;
mod config;
mod options;
mod result;

use cni_types::{AddOptions, CniError, NetworkConfig, Stdin};
use proptest::prelude::*;
use serde_json::{Value, json};

fn config(value: &Value) -> Result<NetworkConfig, CniError> {
    NetworkConfig::parse(Stdin::decode(value.to_string().as_bytes())?)
}

/// The least config, with more keys.
fn minimal(extra: Value) -> NetworkConfig {
    let mut object = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
    object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    config(&object).unwrap()
}

fn gather(extra: Value, cni_args: &str) -> Result<AddOptions, CniError> {
    AddOptions::gather(&minimal(extra), "eth0", cni_args)
}

/// JSON that looks a little like a config, so that the checks behind the first one are reached too.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        proptest::sample::select(vec![
            "cniVersion",
            "name",
            "type",
            "socket",
            "mtu",
            "prevResult",
            "args",
            "cni",
            "labels",
            "ips",
            "mac",
            "dns",
            "runtimeConfig",
            "interfaces",
            "address",
            "routes",
            "key",
            "value",
            "cni.dev/valid-attachments",
            "portMappings",
            "hostPort",
            "containerPort",
            "hostIP",
            "protocol",
            "bandwidth",
            "ingressRate",
            "ingressBurst",
            "ipRanges",
            "subnet",
            "rangeStart",
            "aliases",
            "weft",
            "cgroupPath",
            "sticky",
            "fastPath",
            "sandbox",
            "interface",
            "dst",
            "gw",
        ])
        .prop_map(str::to_owned),
        ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        proptest::sample::select(vec![
            "1.1.0",
            "0.4.0",
            "weft",
            "10.0.0.1/32",
            "10.0.0.1",
            "/run/x",
            "pod",
            "tcp"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
