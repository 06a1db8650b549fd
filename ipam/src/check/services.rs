// SPDX-License-Identifier: Apache-2.0
//! ClusterIPs and node ports: a claim stands exactly while its service has the address or the port.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Action, Finding, FindingKind, Witnesses, operator};

pub(super) fn check(witnesses: &Witnesses) -> Vec<Finding> {
    let mut users: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
    for (service, ips) in &witnesses.services {
        for ip in ips {
            users.entry(*ip).or_default().push(service);
        }
    }
    let mut findings = Vec::new();
    for (ip, service) in &witnesses.service_claims {
        if witnesses.services.get(service).is_none_or(|ips| !ips.contains(ip)) {
            let text = format!("ClusterIP {ip} is claimed for service {service}, which does not have it");
            let others = users.get(ip).map_or(0, Vec::len);
            let action = if others == 0 {
                Action::DeleteServiceClaim(*ip)
            } else {
                operator("another service has it: apply that one again, then this claim is its own")
            };
            findings.push(Finding::of_address(FindingKind::Leak, service, *ip, text, action));
        }
    }
    for (ip, services) in users {
        if services.len() > 1 {
            let all = services.join(" and ");
            let text = format!("ClusterIP {ip} is in services {all}");
            let action = operator("delete one of them and apply it again without clusterIP");
            findings.push(Finding::of_address(FindingKind::Double, all, ip, text, action));
        } else if !witnesses.service_claims.contains_key(&ip) {
            let service = services.concat();
            let text = format!("service {service} has ClusterIP {ip} without a claim: another could get it");
            let action = operator(format!("apply service {service} again"));
            findings.push(Finding::of_address(FindingKind::MissingRecord, service, ip, text, action));
        }
    }
    findings.extend(ports(witnesses));
    findings
}

fn ports(witnesses: &Witnesses) -> Vec<Finding> {
    let mut users: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for (service, ports) in &witnesses.service_ports {
        for port in ports {
            users.entry(*port).or_default().push(service);
        }
    }
    let mut findings = Vec::new();
    for (port, service) in &witnesses.port_claims {
        if witnesses.service_ports.get(service).is_none_or(|ports| !ports.contains(port)) {
            let text = format!("node port {port} is claimed for service {service}, which does not have it");
            let action = match users.contains_key(port) {
                false => Action::DeletePortClaim(*port),
                true => operator("another service has it: apply that one again, then this claim is its own"),
            };
            findings.push(Finding::of(FindingKind::Leak, service, text, action));
        }
    }
    for (port, services) in users {
        if services.len() > 1 {
            let all = services.join(" and ");
            let text = format!("node port {port} is in services {all}");
            let action = operator("delete one of them and apply it again without nodePort");
            findings.push(Finding::of(FindingKind::Double, all, text, action));
        } else if !witnesses.port_claims.contains_key(&port) {
            let service = services.concat();
            let text =
                format!("service {service} has node port {port} without a claim: another could get it");
            let action = operator(format!("apply service {service} again"));
            findings.push(Finding::of(FindingKind::MissingRecord, service, text, action));
        }
    }
    findings
}
