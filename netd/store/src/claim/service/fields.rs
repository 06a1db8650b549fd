// SPDX-License-Identifier: Apache-2.0
//! Between a Service object and what allocation knows of it. Goes by the object's own field names, so that what other
//! fields mean to others makes no difference here.

use std::net::IpAddr;

use ipam::{Family, FamilyPolicy, ServiceKind, ServicePortWish, ServiceWish};
use lb::{Protocol, Service};
use serde_json::Value;

use crate::records::BadRecord;

/// What the object says of what is allocated. A value of a wrong kind counts as not given: objects are checked when they are
/// applied.
pub(super) fn read(service: &Service) -> ServiceWish {
    let spec = serde_json::to_value(&service.spec).unwrap_or_default();
    let text = |name: &str| spec.get(name).and_then(Value::as_str).unwrap_or_default();
    let kind = match text("type") {
        "ExternalName" => ServiceKind::ExternalName,
        _ if service.is_headless() => ServiceKind::Headless,
        "NodePort" => ServiceKind::NodePort,
        "LoadBalancer" => ServiceKind::LoadBalancer {
            node_ports: spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true),
            local: text("externalTrafficPolicy") == "Local",
        },
        _ => ServiceKind::ClusterIp,
    };
    let families = spec.get("ipFamilies").and_then(Value::as_array);
    let ports = spec.get("ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let port = |(port, json): (&lb::Port, &Value)| ServicePortWish {
        protocol: number(port.protocol),
        port: port.port,
        node_port: number_in(json, "nodePort"),
    };
    ServiceWish {
        kind,
        addresses: if kind.has_addresses() { service.cluster_ips() } else { Vec::new() },
        families: families.into_iter().flatten().filter_map(|name| family(name.as_str()?)).collect(),
        policy: FamilyPolicy::parse(text("ipFamilyPolicy")),
        ports: service.spec.ports.iter().zip(ports).map(port).collect(),
        health_port: number_in(&spec, "healthCheckNodePort"),
    }
}

/// Writes what was given into the object. Where there is nothing to give the fields stay as they were, but ports that went.
pub(super) fn write(service: &mut Service, given: &ServiceWish, key: &str) -> Result<(), BadRecord> {
    let bad = |error: serde_json::Error| BadRecord { key: key.to_owned(), reason: error.to_string() };
    let mut spec = serde_json::to_value(&service.spec).map_err(bad)?;
    if let Some(spec) = spec.as_object_mut() {
        let mut set = |name: &str, value: Option<Value>| match value {
            Some(value) => drop(spec.insert(name.to_owned(), value)),
            None => drop(spec.remove(name)),
        };
        if given.kind.has_addresses() {
            let addresses = |ip: &IpAddr| Value::from(ip.to_string());
            set("clusterIP", given.addresses.first().map(addresses));
            set("clusterIPs", Some(given.addresses.iter().map(addresses).collect()));
        }
        if given.kind.has_addresses() || (given.kind == ServiceKind::Headless && !given.families.is_empty()) {
            set("ipFamilies", Some(given.families.iter().map(|family| family.to_string()).collect()));
            set("ipFamilyPolicy", given.policy.map(|policy| Value::from(policy.as_str())));
        }
        set("healthCheckNodePort", (given.health_port != 0).then(|| Value::from(given.health_port)));
    }
    let ports =
        spec.get_mut("ports").and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    for (json, port) in ports.iter_mut().zip(&given.ports) {
        let Some(json) = json.as_object_mut() else { continue };
        match port.node_port {
            0 => drop(json.remove("nodePort")),
            number => drop(json.insert("nodePort".to_owned(), Value::from(number))),
        }
    }
    service.spec = serde_json::from_value(spec).map_err(bad)?;
    Ok(())
}

fn number_in(json: &Value, name: &str) -> u16 {
    json.get(name).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

fn family(name: &str) -> Option<Family> {
    match name {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

/// IP protocol numbers (IANA).
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Sctp => 132,
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Service {
        let json = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": spec,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_is_written_reads_back_and_the_rest_stays() {
        let mut service = service(serde_json::json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP", "custom": {"a": 1},
            "ports": [{"port": 80, "name": "http", "appProtocol": "h2c"}, {"port": 53, "protocol": "UDP", "name": "dns", "nodePort": 30053}],
        }));
        let mut wish = read(&service);
        assert_eq!(wish.kind, ServiceKind::LoadBalancer { node_ports: true, local: true });
        assert_eq!((wish.ports[0].node_port, wish.ports[1].node_port), (0, 30_053));
        wish.addresses = vec!["fd00::7".parse().unwrap(), "10.96.0.7".parse().unwrap()];
        wish.families = vec![Family::V6, Family::V4];
        wish.policy = Some(FamilyPolicy::RequireDual);
        wish.ports[0].node_port = 30_080;
        wish.health_port = 30_090;
        write(&mut service, &wish, "key").unwrap();
        assert_eq!(read(&service), wish);
        let json = serde_json::to_value(&service).unwrap();
        assert_eq!(json["spec"]["clusterIPs"], serde_json::json!(["fd00::7", "10.96.0.7"]));
        assert_eq!(
            (&json["spec"]["custom"]["a"], &json["spec"]["ports"][0]["appProtocol"]),
            (&1.into(), &"h2c".into())
        );

        wish.ports[1].node_port = 0;
        wish.health_port = 0;
        write(&mut service, &wish, "key").unwrap();
        assert_eq!(read(&service), wish);
    }

    #[test]
    fn a_service_without_addresses_keeps_what_its_object_says() {
        let mut headless = service(serde_json::json!({"clusterIP": "None", "ports": [{"port": 80}]}));
        let before = headless.clone();
        let wish = read(&headless);
        assert_eq!(wish.kind, ServiceKind::Headless);
        write(&mut headless, &wish, "key").unwrap();
        assert_eq!(headless, before);
    }
}
