// SPDX-License-Identifier: Apache-2.0
//! `weft node ls`, `weft pod ls`.

use netd_api::{Client, NodeInfo, PodInfo};

use super::explain;
use crate::output::Shown;
use crate::table::{Table, list};

pub(super) async fn nodes(client: &Client) -> anyhow::Result<Shown> {
    let nodes = client.nodes().await.map_err(explain)?;
    Shown::new(nodes_text(&nodes), &nodes)
}

pub(super) async fn pods(client: &Client) -> anyhow::Result<Shown> {
    let pods = client.pods().await.map_err(explain)?;
    Shown::new(pods_text(&pods), &pods)
}

fn nodes_text(nodes: &[NodeInfo]) -> String {
    let mut table = Table::new(["NAME", "STATUS", "UNDERLAY", "OVERLAY", "BLOCKS", "VERSION"]);
    for node in nodes {
        table.row([
            node.name.clone(),
            if node.alive { "Alive" } else { "Suspect" }.to_owned(),
            node.underlay.map(|ip| ip.to_string()).unwrap_or_default(),
            node.overlay.map(|ip| ip.to_string()).unwrap_or_default(),
            list(&node.blocks),
            node.version.clone(),
        ]);
    }
    table.render("No nodes found.")
}

fn pods_text(pods: &[PodInfo]) -> String {
    let mut table = Table::new(["NAMESPACE", "NAME", "IP", "NODE", "IFNAME", "HOST LINK", "LABELS"]);
    for pod in pods {
        let labels: Vec<String> = pod.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([
            pod.namespace.clone(),
            pod.name.clone(),
            list(&pod.ips),
            pod.node.clone(),
            pod.ifname.clone(),
            pod.host_ifname.clone(),
            list(&labels),
        ]);
    }
    table.render("No pods found.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_lease_is_suspect_and_missing_values_are_dashes() {
        let nodes: Vec<NodeInfo> = serde_json::from_value(serde_json::json!([
            {"uuid": "6f1c1b4e-0000-4000-8000-000000000001", "name": "n1", "underlay": "192.0.2.1",
             "overlay": "10.244.0.1", "alive": true, "blocks": ["10.244.0.0/26"], "version": "0.1.0"},
            {"uuid": "6f1c1b4e-0000-4000-8000-000000000002", "name": "n2", "alive": false},
        ]))
        .unwrap();
        assert_eq!(
            nodes_text(&nodes),
            "NAME   STATUS    UNDERLAY    OVERLAY      BLOCKS          VERSION\n\
             n1     Alive     192.0.2.1   10.244.0.1   10.244.0.0/26   0.1.0\n\
             n2     Suspect   -           -            -               -\n"
        );
    }

    #[test]
    fn labels_share_a_cell() {
        let pods: Vec<PodInfo> = serde_json::from_value(serde_json::json!([
            {"namespace": "default", "name": "web-1", "node": "n1", "network": "weft", "container_id": "c1",
             "node_uuid": "6f1c1b4e-0000-4000-8000-000000000001",
             "ifname": "eth0", "ips": ["10.244.0.5"], "host_ifname": "weft0123456789a",
             "labels": {"app": "web", "tier": "front"}, "local": true},
        ]))
        .unwrap();
        assert_eq!(
            pods_text(&pods),
            "NAMESPACE   NAME    IP           NODE   IFNAME   HOST LINK         LABELS\n\
             default     web-1   10.244.0.5   n1     eth0     weft0123456789a   app=web,tier=front\n"
        );
    }
}
