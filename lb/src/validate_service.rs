// SPDX-License-Identifier: Apache-2.0
//! What the fields of a Service must say, each alone and together; after Kubernetes' own validation.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::kubernetes::CLUSTER_IP_NONE;
use crate::validate::{
    Check, MAX_PORTS, address, fail, is_multicast_or_unspecified, label, name_or_placeholder, port_name,
    subdomain,
};
use crate::{ObjectError, Port, Service, TargetPort};

/// As in Kubernetes: a day.
const AFFINITY_SECS_MAX: u32 = 86_400;
/// Bounds what one object can cost: external and load balancer addresses, and source ranges.
const MAX_ADDRESSES: usize = 256;

/// Checks a Service, wherever it came from.
pub(crate) fn check(service: &Service) -> Result<(), ObjectError> {
    check_service(service).map_err(|(field, reason)| ObjectError {
        object: name_or_placeholder("Service", &service.metadata),
        field,
        reason,
    })
}

fn check_service(service: &Service) -> Check {
    let spec = &service.spec;
    label("metadata.name", &service.metadata.name)?;
    label("metadata.namespace", &service.metadata.namespace)?;
    match spec.kind.as_str() {
        "" | "ClusterIP" | "NodePort" | "LoadBalancer" => check_cluster_ips(service)?,
        "ExternalName" => return check_external_name(service),
        other => {
            let known = "ClusterIP, NodePort, LoadBalancer, ExternalName";
            return fail("spec.type", format!("{other:?} is not one of {known}"));
        }
    }
    if spec.ports.is_empty() && !service.is_headless() {
        return fail("spec.ports", "missing: a Service with a ClusterIP needs at least one port".to_owned());
    }
    check_service_ports(&spec.ports)?;
    check_families(service)?;
    check_node_ports(service)?;
    check_outside(service)?;
    check_affinity(service)?;
    one_of("spec.internalTrafficPolicy", &spec.internal_traffic_policy, &["Cluster", "Local"])?;
    let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    one_of("spec.trafficDistribution", &spec.traffic_distribution, &known)
}

fn check_cluster_ips(service: &Service) -> Check {
    let spec = &service.spec;
    let has_address = !spec.cluster_ip.is_empty() && spec.cluster_ip != CLUSTER_IP_NONE;
    if has_address {
        address("spec.clusterIP", &spec.cluster_ip)?;
    }
    let mut families = BTreeSet::new();
    for (index, text) in spec.cluster_ips.iter().enumerate() {
        let field = format!("spec.clusterIPs[{index}]");
        if text == CLUSTER_IP_NONE && spec.cluster_ips.len() == 1 {
            continue;
        }
        let ip = address(&field, text)?;
        if !families.insert(ip.is_ipv4()) {
            return fail(
                &field,
                format!("{text} is a second address of one family; give at most one of each"),
            );
        }
    }
    if service.is_headless() && matches!(spec.kind.as_str(), "NodePort" | "LoadBalancer") {
        return fail("spec.clusterIP", format!("None does not go with type {}", spec.kind));
    }
    match spec.cluster_ips.first() {
        Some(first) if !spec.cluster_ip.is_empty() && *first != spec.cluster_ip => {
            fail("spec.clusterIPs[0]", format!("{first} differs from spec.clusterIP {}", spec.cluster_ip))
        }
        _ => Ok(()),
    }
}

fn check_families(service: &Service) -> Check {
    let spec = &service.spec;
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    one_of("spec.ipFamilyPolicy", &spec.ip_family_policy, &policies)?;
    let mut families = BTreeSet::new();
    for (index, family) in spec.ip_families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if !["IPv4", "IPv6"].contains(&family.as_str()) {
            return fail(&field, format!("{family:?} is not one of IPv4, IPv6"));
        }
        if !families.insert(family) {
            return fail(&field, format!("{family} is given twice"));
        }
    }
    for (index, (family, ip)) in spec.ip_families.iter().zip(service.cluster_ips()).enumerate() {
        if ip.is_ipv4() != (family == "IPv4") {
            let reason = format!("{ip} is not {family}, as spec.ipFamilies[{index}] says");
            return fail(&format!("spec.clusterIPs[{index}]"), reason);
        }
    }
    let two = if spec.ip_families.len() > 1 { "spec.ipFamilies" } else { "spec.clusterIPs" };
    if spec.ip_family_policy == "SingleStack" && (spec.ip_families.len() > 1 || spec.cluster_ips.len() > 1) {
        return fail(two, "two families do not go with ipFamilyPolicy SingleStack".to_owned());
    }
    Ok(())
}

fn check_node_ports(service: &Service) -> Check {
    let spec = &service.spec;
    let reachable = matches!(service.kind(), "NodePort" | "LoadBalancer");
    let mut taken = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let Some(number) = port.node_port.filter(|port| *port != 0) else { continue };
        let field = format!("spec.ports[{index}].nodePort");
        if !reachable {
            return fail(&field, format!("given, but type {} has no node ports", service.kind()));
        }
        if !taken.insert((port.protocol, number)) {
            return fail(&field, format!("{number}/{} is given twice", port.protocol));
        }
    }
    let wants_health_check = service.kind() == "LoadBalancer" && spec.external_traffic_policy == "Local";
    if spec.health_check_node_port.is_some_and(|port| port != 0) && !wants_health_check {
        let reason = "goes only with type LoadBalancer and externalTrafficPolicy Local";
        return fail("spec.healthCheckNodePort", reason.to_owned());
    }
    Ok(())
}

fn check_outside(service: &Service) -> Check {
    let spec = &service.spec;
    one_of("spec.externalTrafficPolicy", &spec.external_traffic_policy, &["Cluster", "Local"])?;
    let reachable = matches!(service.kind(), "NodePort" | "LoadBalancer") || !spec.external_ips.is_empty();
    if spec.external_traffic_policy == "Local" && !reachable {
        let reason =
            "Local, but nobody outside reaches this Service: it has no node ports and no externalIPs";
        return fail("spec.externalTrafficPolicy", reason.to_owned());
    }
    for (field, count) in [
        ("spec.externalIPs", spec.external_ips.len()),
        ("spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges.len()),
        ("status.loadBalancer.ingress", service.status.load_balancer.ingress.len()),
    ] {
        if count > MAX_ADDRESSES {
            return fail(field, format!("{count} of them; at most {MAX_ADDRESSES} are allowed"));
        }
    }
    for (index, text) in spec.external_ips.iter().enumerate() {
        address(&format!("spec.externalIPs[{index}]"), text)?;
    }
    for (index, text) in spec.load_balancer_source_ranges.iter().enumerate() {
        let field = format!("spec.loadBalancerSourceRanges[{index}]");
        if service.kind() != "LoadBalancer" {
            return fail(&field, format!("given, but type {} has no load balancer", service.kind()));
        }
        if text.trim().parse::<IpNet>().is_err() {
            return fail(&field, format!("{text:?} is not a CIDR such as 192.0.2.0/24"));
        }
    }
    for (index, ingress) in service.status.load_balancer.ingress.iter().enumerate() {
        let at = format!("status.loadBalancer.ingress[{index}]");
        if !ingress.ip.is_empty() {
            match ingress.ip.parse() {
                Ok(ip) if !is_multicast_or_unspecified(ip) => {}
                _ => {
                    return fail(
                        &format!("{at}.ip"),
                        format!("{:?} is not a unicast IP address", ingress.ip),
                    );
                }
            }
        }
        one_of(&format!("{at}.ipMode"), &ingress.ip_mode, &["VIP", "Proxy"])?;
        if !ingress.ip_mode.is_empty() && ingress.ip.is_empty() {
            return fail(&format!("{at}.ipMode"), "given without ip".to_owned());
        }
    }
    Ok(())
}

fn check_affinity(service: &Service) -> Check {
    let spec = &service.spec;
    one_of("spec.sessionAffinity", &spec.session_affinity, &["None", "ClientIP"])?;
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(client_ip) = client_ip else { return Ok(()) };
    if spec.session_affinity != "ClientIP" {
        let reason = "goes only with sessionAffinity ClientIP";
        return fail("spec.sessionAffinityConfig.clientIP", reason.to_owned());
    }
    match client_ip.timeout_seconds {
        Some(secs) if !(1..=AFFINITY_SECS_MAX).contains(&secs) => fail(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{secs} is not in 1..={AFFINITY_SECS_MAX}"),
        ),
        _ => Ok(()),
    }
}

/// Empty is the default.
fn one_of(field: &str, text: &str, known: &[&str]) -> Check {
    if text.is_empty() || known.contains(&text) {
        return Ok(());
    }
    fail(field, format!("{text:?} is not one of {}", known.join(", ")))
}

fn check_external_name(service: &Service) -> Check {
    let spec = &service.spec;
    let name = spec.external_name.strip_suffix('.').unwrap_or(&spec.external_name);
    if name.is_empty() {
        return fail("spec.externalName", "missing: type ExternalName needs a DNS name".to_owned());
    }
    subdomain("spec.externalName", name)?;
    if !spec.cluster_ip.is_empty() && spec.cluster_ip != CLUSTER_IP_NONE {
        return fail("spec.clusterIP", format!("{} given, but type ExternalName has none", spec.cluster_ip));
    }
    check_service_ports(&spec.ports)
}

fn check_service_ports(ports: &[Port]) -> Check {
    if ports.len() > MAX_PORTS {
        return fail("spec.ports", format!("{} ports; at most {MAX_PORTS} are allowed", ports.len()));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        if port.name.is_empty() && ports.len() > 1 {
            return fail(&format!("{at}.name"), "missing: each of several ports needs a name".to_owned());
        }
        if !port.name.is_empty() {
            label(&format!("{at}.name"), &port.name)?;
        }
        if !names.insert(&port.name) {
            return fail(&format!("{at}.name"), format!("{:?} is used by two ports", port.name));
        }
        if port.port == 0 {
            return fail(&format!("{at}.port"), "missing, or not in 1..=65535".to_owned());
        }
        if !numbers.insert((port.protocol, port.port)) {
            return fail(&format!("{at}.port"), format!("{}/{} is given twice", port.port, port.protocol));
        }
        match &port.target_port {
            Some(TargetPort::Name(name)) => port_name(&format!("{at}.targetPort"), name)?,
            Some(TargetPort::Number(0)) => {
                return fail(&format!("{at}.targetPort"), "0 is not in 1..=65535".to_owned());
            }
            Some(TargetPort::Number(_)) | None => {}
        }
    }
    Ok(())
}
