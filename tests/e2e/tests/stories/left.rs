// SPDX-License-Identifier: Apache-2.0
//! What pods leave on a node and in the store: all of it must be gone once they are.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use weft_lab::{Lab, wait_until};

/// The publisher writes what a DEL took away some milliseconds later.
const STORE_LIMIT: Duration = Duration::from_secs(5);

/// Fails with everything that pods left on a node, or in the store for it.
pub(crate) fn nothing_left(lab: &Lab, node: &str) -> Result<()> {
    let mut left = on_node(lab, node)?;
    left.extend(lab.maps(node)?.pods.iter().map(|ip| format!("map entry of {ip}")));
    ensure!(left.is_empty(), "left on {node}: {}\n{}", left.join(", "), lab.node_log(node, 25)?);
    let mut left = Vec::new();
    let gone = wait_until(STORE_LIMIT, || {
        left = in_store(lab, node)?;
        Ok(left.is_empty())
    })?;
    ensure!(gone, "left in the store: {}\n{}", left.join(", "), lab.node_log(node, 25)?);
    Ok(())
}

/// Links, routes, neighbours, pins, records and addresses of pods; all but the map entries, which take their time to read.
pub(crate) fn on_node(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let kernel =
        "ip -o link show type veth; ip -o route show table all proto 157; ip neigh show nud permanent";
    let kernel = lab.exec(node, &["sh", "-c", kernel])?.text("ip")?;
    // A pod's host end is `weft` and eleven hex digits; the overlay device is not a pod's.
    let of_pods = |line: &&str| {
        line.split([' ', ':', '@']).any(|word| {
            word.strip_prefix("weft")
                .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
        })
    };
    let mut left: Vec<String> = kernel.lines().filter(of_pods).map(|line| line.trim().to_owned()).collect();
    for version in fs::read_dir(lab.pin_dir(node)?)? {
        let pins = fs::read_dir(version?.path().join("links"))?.flatten();
        let names = pins.map(|pin| pin.file_name().to_string_lossy().into_owned());
        left.extend(names.filter(|name| name.starts_with("pod-")).map(|name| format!("pin {name}")));
    }
    let records = lab.state()?.node(node)?.dir.join("state/attachments");
    for record in fs::read_dir(&records).with_context(|| records.display().to_string())? {
        left.push(format!("record {}", record?.file_name().to_string_lossy()));
    }
    left.extend(addresses(lab, node)?.into_iter().map(|(ip, owner)| format!("{ip} of {owner}")));
    Ok(left)
}

/// Addresses that pods of a node have, with their owners, as `weft ipam show` tells.
pub(crate) fn addresses(lab: &Lab, node: &str) -> Result<BTreeMap<String, String>> {
    let shown: Value = lab.weft(node, &["ipam", "show", "--json"])?.json("weft ipam show")?;
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let all = shown["addresses"].as_array().context("no addresses")?;
    let pairs = all.iter().map(|entry| (text(entry, "address"), text(entry, "owner")));
    Ok(pairs.filter(|(_, owner)| !owner.starts_with("node/")).collect())
}

/// Pod records of the node, and the names of pods in its blocks.
pub(crate) fn in_store(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let uuid = lab.status(node)?.node.uuid.to_string();
    let mut left = keys(lab, &format!("pods/{uuid}/"))?;
    let blocks = etcdctl(lab, &["get", "--prefix", &key(lab, "ipam/blocks/"), "--print-value-only"])?;
    left.extend(
        blocks.lines().filter(|line| line.contains(&uuid) && line.contains("attachment/")).map(str::to_owned),
    );
    Ok(left)
}

/// Keys of the lab's cluster below a folder.
pub(crate) fn keys(lab: &Lab, folder: &str) -> Result<Vec<String>> {
    let text = etcdctl(lab, &["get", "--prefix", &key(lab, folder), "--keys-only"])?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// A key of the lab's cluster.
pub(crate) fn key(lab: &Lab, path: &str) -> String {
    format!("/weft/v1/{}/{path}", lab.name())
}

/// Runs etcdctl on n1 against the lab's store.
pub(crate) fn etcdctl(lab: &Lab, args: &[&str]) -> Result<String> {
    let url = lab.show()?.etcd.remove(0);
    let command = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", &url];
    lab.exec("n1", &[&command, args].concat())?.text("etcdctl")
}
