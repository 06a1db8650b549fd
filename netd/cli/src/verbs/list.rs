// SPDX-License-Identifier: Apache-2.0
//! `weft node ls`, `weft pod ls`.

use netd_api::{Bandwidth, Client, NodeInfo, PodInfo, PortMapping};

use super::explain;
use crate::output::Shown;
use crate::table::{Table, list};

pub(super) async fn nodes(client: &Client) -> anyhow::Result<Shown> {
    let nodes = client.nodes().await.map_err(explain)?;
    Shown::new(nodes_text(&nodes), &nodes)
}

pub(super) async fn pods(client: &Client, wide: bool) -> anyhow::Result<Shown> {
    let pods = client.pods().await.map_err(explain)?;
    Shown::new(if wide { wide_text(&pods) } else { pods_text(&pods) }, &pods)
}

fn nodes_text(nodes: &[NodeInfo]) -> String {
    let mut table = Table::new(["NAME", "STATUS", "UNDERLAY", "OVERLAY", "BLOCKS", "VERSION"]);
    for node in nodes {
        table.row([
            node.name.clone(),
            match (node.removing, node.alive) {
                (true, _) => "Removing",
                (false, true) => "Alive",
                (false, false) => "Suspect",
            }
            .to_owned(),
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

/// What the pods of this node asked for; other nodes tell theirs.
fn wide_text(pods: &[PodInfo]) -> String {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "IP",
        "NODE",
        "IFNAME",
        "MAC",
        "HOST PORTS",
        "BANDWIDTH",
        "STICKY",
        "CONTAINER",
    ]);
    for pod in pods {
        table.row([
            pod.namespace.clone(),
            pod.name.clone(),
            list(&pod.ips),
            pod.node.clone(),
            pod.ifname.clone(),
            pod.mac.clone().unwrap_or_default(),
            list(&pod.port_mappings.iter().map(port).collect::<Vec<_>>()),
            pod.bandwidth.as_ref().map(bandwidth).unwrap_or_default(),
            pod.sticky.clone().unwrap_or_default(),
            pod.container_id.clone(),
        ]);
    }
    table.render("No pods found.")
}

/// `[ADDRESS:]PORT:PORT/PROTOCOL`, the host's first.
fn port(mapping: &PortMapping) -> String {
    let address = match mapping.host_ip {
        None => String::new(),
        Some(ip) if ip.is_ipv6() => format!("[{ip}]:"),
        Some(ip) => format!("{ip}:"),
    };
    format!("{address}{}:{}/{}", mapping.host_port, mapping.container_port, mapping.protocol)
}

/// Bits per second to and from the pod.
fn bandwidth(limits: &Bandwidth) -> String {
    let one = |direction: &str, rate: u64| (rate > 0).then(|| format!("{direction} {rate} bit/s"));
    let both = [one("in", limits.ingress_rate), one("out", limits.egress_rate)];
    both.into_iter().flatten().collect::<Vec<_>>().join(", ")
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

    #[test]
    fn the_wide_list_says_who_has_a_host_port() {
        let pods: Vec<PodInfo> = serde_json::from_value(serde_json::json!([
            {"namespace": "default", "name": "web-1", "node": "n1", "network": "weft", "container_id": "c1",
             "node_uuid": "6f1c1b4e-0000-4000-8000-000000000001", "mac": "02:00:00:00:00:01", "sticky": "db-0",
             "ifname": "eth0", "ips": ["10.244.0.5"], "host_ifname": "weft0123456789a", "local": true,
             "bandwidth": {"ingress_rate": 1000, "egress_rate": 2000},
             "port_mappings": [{"host_port": 8088, "container_port": 80, "protocol": "tcp"},
                               {"host_ip": "fd00::1", "host_port": 53, "container_port": 53, "protocol": "udp"}]},
        ]))
        .unwrap();
        let text = wide_text(&pods);
        for word in [
            "8088:80/tcp,[fd00::1]:53:53/udp",
            "in 1000 bit/s, out 2000 bit/s",
            "db-0",
            "02:00:00:00:00:01",
            "c1",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn a_node_on_its_way_out_is_told_apart() {
        let node = serde_json::json!([{"uuid": "6f1c1b4e-0000-4000-8000-000000000001", "name": "n1", "alive": true,
                                       "removing": true}]);
        assert!(nodes_text(&serde_json::from_value::<Vec<NodeInfo>>(node).unwrap()).contains("Removing"));
    }
}
