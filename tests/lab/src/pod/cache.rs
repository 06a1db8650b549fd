// SPDX-License-Identifier: Apache-2.0
//! The result cache that container runtimes keep (containernetworking/cni, `libcni/api.go`): one file for each
//! attachment, `results/<network>-<container ID>-<ifname>`, kind `cniCacheV1`. It outlives the node's processes.

use super::call::cni_args;
use crate::members::{Node, Pod};
use crate::names;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

/// What the library calls the only version of the format that there is.
const KIND: &str = "cniCacheV1";
/// RFC 4648, section 4.
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Writes down what ADD answered.
pub(super) fn store(node: &Node, pod: &Pod, result: &Value) -> Result<()> {
    let path = path(node, pod);
    fs::write(&path, entry(pod, result).to_string()).with_context(|| path.display().to_string())
}

/// What ADD answered, from the file.
pub(super) fn load(node: &Node, pod: &Pod) -> Result<Value> {
    let path = path(node, pod);
    let read = || anyhow::Ok(serde_json::from_str::<Value>(&fs::read_to_string(&path)?)?["result"].take());
    read().with_context(|| path.display().to_string())
}

/// Forgets an attachment. An absent file is fine.
pub(super) fn remove(node: &Node, pod: &Pod) -> Result<()> {
    let path = path(node, pod);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

fn path(node: &Node, pod: &Pod) -> PathBuf {
    let name = format!("{}-{}-{}", pod.network(), pod.container_id, pod.ifname);
    node.cni_cache_dir().join("results").join(name)
}

fn entry(pod: &Pod, result: &Value) -> Value {
    let mut plugin = pod.config.clone();
    let asked = plugin.as_object_mut().and_then(|plugin| plugin.remove("runtimeConfig")).unwrap_or(json!({}));
    // The library keeps the list that an operator wrote, as bytes, which JSON in Go shows as base64.
    let list = json!({ "cniVersion": plugin["cniVersion"], "name": plugin["name"], "plugins": [plugin] });
    json!({
        "kind": KIND,
        "containerId": pod.container_id,
        "config": base64(list.to_string().as_bytes()),
        "ifName": pod.ifname,
        "networkName": pod.network(),
        "netns": names::netns_path(&pod.netns),
        "cniArgs": cni_args(pod),
        "capabilityArgs": asked,
        "result": result,
    })
}

fn base64(bytes: &[u8]) -> String {
    let group = |chunk: &[u8]| {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        let digit = |index: usize| match index <= chunk.len() {
            true => char::from(BASE64[(bits >> (18 - 6 * index) & 63) as usize]),
            false => '=',
        };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_standard_s_examples() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn an_entry_has_what_the_library_writes() {
        let pod: Pod = serde_json::from_value(json!({
            "name": "p", "node": "n1", "namespace": "shop", "netns": "weft-x-p", "container_id": "c1", "ready": true,
            "ifname": "eth0", "ips": [], "further": [],
            "config": {"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "runtimeConfig": {"ips": ["10.0.0.1"]}},
        }))
        .unwrap();
        let entry = entry(&pod, &json!({"ips": []}));
        let keys: Vec<_> = entry.as_object().unwrap().keys().map(String::as_str).collect();
        let mut wanted = [
            "kind",
            "containerId",
            "config",
            "ifName",
            "networkName",
            "netns",
            "cniArgs",
            "capabilityArgs",
            "result",
        ];
        wanted.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, wanted);
        assert_eq!(entry["cniArgs"][2], json!(["K8S_POD_NAME", "p"]));
        assert_eq!(entry["capabilityArgs"], json!({"ips": ["10.0.0.1"]}));
    }
}
