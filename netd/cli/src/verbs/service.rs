// SPDX-License-Identifier: Apache-2.0
//! `weft service ls`, `weft service get`.

use std::fmt::Write;

use netd_api::{BackendShare, Client, FrontendVerdict, PortInfo, ServiceDetail, ServiceInfo};

use super::explain;
use crate::args::ObjectName;
use crate::output::Shown;
use crate::table::{Table, list};

pub(super) async fn ls(client: &Client) -> anyhow::Result<Shown> {
    let services = client.services().await.map_err(explain)?;
    Shown::new(list_text(&services), &services)
}

pub(super) async fn get(client: &Client, name: &ObjectName) -> anyhow::Result<Shown> {
    let detail = client.service(&name.namespace, &name.name).await.map_err(explain)?;
    Shown::new(detail_text(&detail), &detail)
}

fn list_text(services: &[ServiceInfo]) -> String {
    let mut table =
        Table::new(["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORTS", "BACKENDS"]);
    for service in services {
        table.row([
            service.namespace.clone(),
            service.name.clone(),
            service.kind.clone(),
            cluster_ips(service),
            list(&service.external_ips),
            ports(&service.ports),
            format!("{}/{}", service.ready_backends, service.total_backends),
        ]);
    }
    table.render("No services found.")
}

fn detail_text(detail: &ServiceDetail) -> String {
    let info = &detail.info;
    let mut text = String::new();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{:<14}{value}", format!("{name}:"));
        }
    };
    fact("Name", info.name.clone());
    fact("Namespace", info.namespace.clone());
    fact("Type", info.kind.clone());
    fact("ClusterIP", cluster_ips(info));
    fact("ExternalIP", list(&info.external_ips));
    fact("ExternalName", detail.external_name.clone().unwrap_or_default());
    let selector: Vec<String> = detail.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    fact("Selector", list(&selector));
    fact("Ports", ports(&info.ports));
    let settings: Vec<String> = detail.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    fact("Settings", settings.join(" "));
    fact("Backends", format!("{} of {} take new connections", info.ready_backends, info.total_backends));
    for problem in &detail.problems {
        fact("Problem", problem.clone());
    }
    if !detail.frontends.is_empty() {
        text.push_str("\nFrontends on this node:\n");
        text.push_str(&frontends(detail));
    }
    if !detail.verdicts.is_empty() {
        text.push_str("\nNew connections from this node:\n");
        text.push_str(&verdicts(&detail.verdicts));
    }
    text.push_str("\nBackends:\n");
    text.push_str(&backends(detail));
    text
}

/// Of a frontend with many backends the first are named: shares differ only by weight and rounding.
const BACKENDS_SHOWN: usize = 8;

fn verdicts(verdicts: &[FrontendVerdict]) -> String {
    let mut table = Table::new(["FRONTEND", "ASKED BY", "VERDICT", "TO", "WHY"]);
    for verdict in verdicts {
        let one = |to: &BackendShare| {
            let here = if to.local { " here" } else { "" };
            format!("{} {:.1}%{here}", to.backend, to.share)
        };
        let mut to: Vec<String> = verdict.backends.iter().take(BACKENDS_SHOWN).map(one).collect();
        if verdict.backends.len() > BACKENDS_SHOWN {
            to.push(format!("and {} more", verdict.backends.len() - BACKENDS_SHOWN));
        }
        table.row([
            verdict.frontend.clone(),
            verdict.asked_by.clone(),
            verdict.verdict.clone(),
            to.join(", "),
            verdict.reason.clone(),
        ]);
    }
    table.render("none")
}

fn frontends(detail: &ServiceDetail) -> String {
    let mut table = Table::new(["FRONTEND", "PORT NAME", "ID", "SLOTS", "CONNECTIONS", "REFUSED"]);
    for frontend in &detail.frontends {
        let slots = match frontend.slot_count {
            0 => "none".to_owned(),
            count => format!("{count}@{}", frontend.slot_offset),
        };
        table.row([
            frontend.frontend.clone(),
            frontend.name.clone().unwrap_or_default(),
            frontend.service_id.to_string(),
            slots,
            frontend.connections.to_string(),
            frontend.refused.to_string(),
        ]);
    }
    table.render("none")
}

fn backends(detail: &ServiceDetail) -> String {
    let mut table = Table::new(["ADDRESS", "PORT", "PROTOCOL", "PORT NAME", "NODE", "STATE", "SOURCE"]);
    for backend in &detail.backends {
        table.row([
            backend.address.to_string(),
            backend.port.to_string(),
            backend.protocol.clone(),
            backend.port_name.clone().unwrap_or_default(),
            backend.node.clone().unwrap_or_default(),
            backend.state.clone(),
            backend.source.clone(),
        ]);
    }
    table.render("none: connections are refused")
}

/// As kubectl says it: the addresses, or `None` where there are none on purpose.
fn cluster_ips(service: &ServiceInfo) -> String {
    if service.cluster_ips.is_empty() { "None".to_owned() } else { list(&service.cluster_ips) }
}

/// `80/TCP`, `80:30080/TCP` with a node port, `80>8080/TCP` where the backends listen elsewhere.
fn ports(ports: &[PortInfo]) -> String {
    let one = |port: &PortInfo| {
        let node = port.node_port.map(|node| format!(":{node}")).unwrap_or_default();
        let target = port.target_port.as_ref().filter(|target| **target != port.port.to_string());
        let target = target.map(|target| format!(">{target}")).unwrap_or_default();
        format!("{}{node}{target}/{}", port.port, port.protocol)
    };
    list(&ports.iter().map(one).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail() -> ServiceDetail {
        serde_json::from_value(serde_json::json!({
            "namespace": "default", "name": "web", "type": "ClusterIP", "cluster_ips": ["10.96.0.20"],
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "target_port": "8080"},
                {"protocol": "UDP", "port": 53, "target_port": "53", "node_port": 30053},
            ],
            "ready_backends": 1, "total_backends": 2,
            "selector": {"app": "web"},
            "frontends": [
                {"frontend": "10.96.0.20:80/tcp", "address": "10.96.0.20", "port": 80, "protocol": "TCP", "name": "http",
                 "service_id": 7, "slot_offset": 40, "slot_count": 1, "connections": 12, "refused": 0},
                {"frontend": "node:30053/udp external", "address": "0.0.0.0", "port": 30053, "protocol": "UDP",
                 "service_id": 8, "slot_offset": 0, "slot_count": 0, "connections": 0, "refused": 3},
            ],
            "settings": {"externalTrafficPolicy": "Local"},
            "verdicts": [
                {"frontend": "10.96.0.20:80/tcp", "asked_by": "cluster", "verdict": "forward", "reason": "all that are up",
                 "backends": [{"backend": "10.244.0.5:8080/tcp", "local": true, "share": 100.0}]},
                {"frontend": "node:30053/udp external", "asked_by": "world", "verdict": "drop", "reason": "none here"},
            ],
            "backends": [
                {"address": "10.244.0.5", "port": 8080, "protocol": "TCP", "port_name": "http", "node": "n1",
                 "state": "up", "source": "endpoints"},
            ],
            "problems": [],
        }))
        .unwrap()
    }

    #[test]
    fn the_list_reads_like_kubectls() {
        assert_eq!(
            list_text(&[detail().info]),
            "NAMESPACE   NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORTS                      BACKENDS\n\
             default     web    ClusterIP   10.96.0.20   -             80>8080/TCP,53:30053/UDP   1/2\n"
        );
        assert_eq!(list_text(&[]), "No services found.\n");
    }

    #[test]
    fn the_detail_shows_frontends_and_backends() {
        assert_eq!(
            detail_text(&detail()),
            "Name:         web\n\
             Namespace:    default\n\
             Type:         ClusterIP\n\
             ClusterIP:    10.96.0.20\n\
             Selector:     app=web\n\
             Ports:        80>8080/TCP,53:30053/UDP\n\
             Settings:     externalTrafficPolicy=Local\n\
             Backends:     1 of 2 take new connections\n\
             \n\
             Frontends on this node:\n\
             FRONTEND                  PORT NAME   ID   SLOTS   CONNECTIONS   REFUSED\n\
             10.96.0.20:80/tcp         http        7    1@40    12            0\n\
             node:30053/udp external   -           8    none    0             3\n\
             \n\
             New connections from this node:\n\
             FRONTEND                  ASKED BY   VERDICT   TO                                WHY\n\
             10.96.0.20:80/tcp         cluster    forward   10.244.0.5:8080/tcp 100.0% here   all that are up\n\
             node:30053/udp external   world      drop      -                                 none here\n\
             \n\
             Backends:\n\
             ADDRESS      PORT   PROTOCOL   PORT NAME   NODE   STATE   SOURCE\n\
             10.244.0.5   8080   TCP        http        n1     up      endpoints\n"
        );
    }
}
