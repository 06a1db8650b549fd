// SPDX-License-Identifier: Apache-2.0
//! The result of ADD: what rows read from it, and its shape version by version.

use crate::version::Version;
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// Fields of an interface that came with 1.1.0.
const NEW_OF_INTERFACES: [&str; 3] = ["mtu", "socketPath", "pciID"];
/// Fields of a route that came with 1.1.0.
const NEW_OF_ROUTES: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

/// A result that was understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AddResult {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Ip>,
    pub(crate) routes: Vec<(IpNet, Option<IpAddr>)>,
    pub(crate) dns: Value,
}

/// An entry of `interfaces`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: Option<String>,
    pub(crate) mtu: Option<u64>,
    pub(crate) sandbox: Option<String>,
}

/// An entry of `ips`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ip {
    pub(crate) address: IpNet,
    pub(crate) interface: Option<usize>,
}

impl AddResult {
    /// Errors: what is missing or of a wrong type.
    pub(crate) fn parse(raw: &Value) -> Result<Self, String> {
        if !raw.is_object() {
            return Err("not a JSON object".to_owned());
        }
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let mut interfaces = Vec::new();
        for (i, entry) in list(raw, "interfaces")?.iter().enumerate() {
            interfaces.push(Interface {
                name: text(&entry["name"]).ok_or_else(|| format!("interfaces[{i}] has no name"))?,
                mac: text(&entry["mac"]),
                mtu: entry["mtu"].as_u64(),
                sandbox: text(&entry["sandbox"]),
            });
        }
        let mut ips = Vec::new();
        for (i, entry) in list(raw, "ips")?.iter().enumerate() {
            let address = entry["address"].as_str().and_then(|address| address.parse().ok());
            let address =
                address.ok_or_else(|| format!("ips[{i}].address is {}, not CIDR", entry["address"]))?;
            let interface = match &entry["interface"] {
                Value::Null => None,
                number => match number.as_u64().and_then(|n| usize::try_from(n).ok()) {
                    Some(index) if index < interfaces.len() => Some(index),
                    _ => return Err(format!("ips[{i}].interface is {number}, not an index of interfaces")),
                },
            };
            if !is_ip_or_absent(&entry["gateway"]) {
                return Err(format!("ips[{i}].gateway is {}, not an address", entry["gateway"]));
            }
            ips.push(Ip { address, interface });
        }
        let mut routes = Vec::new();
        for (i, entry) in list(raw, "routes")?.iter().enumerate() {
            let dst = entry["dst"].as_str().and_then(|dst| dst.parse().ok());
            let dst = dst.ok_or_else(|| format!("routes[{i}].dst is {}, not CIDR", entry["dst"]))?;
            if !is_ip_or_absent(&entry["gw"]) {
                return Err(format!("routes[{i}].gw is {}, not an address", entry["gw"]));
            }
            routes.push((dst, entry["gw"].as_str().and_then(|gw| gw.parse().ok())));
        }
        Ok(Self { interfaces, ips, routes, dns: raw["dns"].clone() })
    }

    /// The interface of this name in this sandbox, with its index.
    pub(crate) fn own(&self, ifname: &str, sandbox: &str) -> Option<(usize, &Interface)> {
        let mut interfaces = self.interfaces.iter().enumerate();
        interfaces.find(|(_, i)| i.name == ifname && i.sandbox.as_deref() == Some(sandbox))
    }

    /// The addresses of one interface; those that name none belong to any.
    pub(crate) fn addresses_of(&self, index: usize) -> Vec<IpNet> {
        let of_it = self.ips.iter().filter(|ip| ip.interface.is_none_or(|i| i == index));
        of_it.map(|ip| ip.address).collect()
    }

    /// All addresses.
    pub(crate) fn addresses(&self) -> Vec<IpNet> {
        self.ips.iter().map(|ip| ip.address).collect()
    }

    /// A list of strings in `dns`.
    pub(crate) fn dns_list(&self, key: &str) -> Vec<&str> {
        self.dns[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

/// What is wrong with a result's shape in this version; nothing, where it is as the specification has it.
pub(crate) fn shape_problems(raw: &Value, version: Version) -> Vec<String> {
    let mut problems = Vec::new();
    if raw["cniVersion"] != version.to_string() {
        problems.push(format!("cniVersion is {}, expected \"{version}\"", raw["cniVersion"]));
    }
    if let Err(problem) = AddResult::parse(raw) {
        problems.push(problem);
    }
    for (i, ip) in entries(raw, "ips").enumerate() {
        let found = ip["version"].as_str();
        let family = if ip["address"].as_str().is_some_and(|a| a.contains(':')) { "6" } else { "4" };
        if version < Version::V1_0_0 && found != Some(family) {
            problems.push(format!("ips[{i}].version is {}, expected \"{family}\"", ip["version"]));
        }
        if version >= Version::V1_0_0 && !ip["version"].is_null() {
            problems.push(format!("ips[{i}].version went away with 1.0.0"));
        }
    }
    for (key, fields) in [("interfaces", &NEW_OF_INTERFACES[..]), ("routes", &NEW_OF_ROUTES[..])] {
        for (i, entry) in entries(raw, key).enumerate() {
            for field in fields.iter().filter(|field| !entry[**field].is_null()) {
                let number = !matches!(*field, "socketPath" | "pciID");
                if version < Version::V1_1_0 {
                    problems.push(format!("{key}[{i}].{field} came with 1.1.0"));
                } else if number && entry[*field].as_u64().is_none() {
                    problems.push(format!("{key}[{i}].{field} is {}, not a number", entry[*field]));
                }
            }
        }
    }
    problems.extend(dns_problems(&raw["dns"]));
    problems
}

fn dns_problems(dns: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    if !dns.is_null() && !dns.is_object() {
        return vec![format!("dns is {dns}, not an object")];
    }
    for key in ["nameservers", "search", "options"] {
        let all_text = |list: &Vec<Value>| list.iter().all(Value::is_string);
        if !dns[key].is_null() && !dns[key].as_array().is_some_and(all_text) {
            problems.push(format!("dns.{key} is {}, not a list of strings", dns[key]));
        }
    }
    for server in entries(dns, "nameservers").filter(|server| !is_ip_or_absent(server)) {
        problems.push(format!("dns.nameservers has {server}, not an address"));
    }
    problems
}

fn entries<'v>(raw: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    raw[key].as_array().into_iter().flatten()
}

fn list<'v>(raw: &'v Value, key: &str) -> Result<&'v [Value], String> {
    match &raw[key] {
        Value::Null => Ok(&[]),
        Value::Array(list) => Ok(list),
        other => Err(format!("{key} is {other}, not a list")),
    }
}

fn is_ip_or_absent(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.is_empty() || text.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shapes_differ_by_version() {
        let new = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": "/run/netns/x" }],
            "ips": [{ "address": "10.0.0.2/32", "gateway": "169.254.1.1", "interface": 0 }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
            "dns": { "nameservers": ["10.96.0.10"] },
        });
        assert_eq!(shape_problems(&new, Version::V1_1_0), [""; 0]);
        let mut old = new.clone();
        old["cniVersion"] = "0.4.0".into();
        assert_eq!(shape_problems(&old, Version::V0_4_0).len(), 2, "version is missing, mtu is too new");
        old["ips"][0]["version"] = "4".into();
        old["interfaces"][0].as_object_mut().unwrap().remove("mtu");
        assert_eq!(shape_problems(&old, Version::V0_4_0), [""; 0]);
        old["cniVersion"] = "1.0.0".into();
        assert_eq!(shape_problems(&old, Version::V1_0_0), ["ips[0].version went away with 1.0.0"]);
        let mut bad = new;
        bad["ips"][0]["interface"] = 7.into();
        assert_eq!(shape_problems(&bad, Version::V1_1_0).len(), 1);
    }

    #[test]
    fn addresses_belong_to_interfaces() {
        let result = AddResult::parse(&json!({
            "interfaces": [{ "name": "br0" }, { "name": "eth0", "sandbox": "/x" }],
            "ips": [{ "address": "10.0.0.2/24", "interface": 1 }, { "address": "10.0.0.9/24", "interface": 0 }],
        }))
        .unwrap();
        let (index, _) = result.own("eth0", "/x").unwrap();
        assert_eq!(result.addresses_of(index), ["10.0.0.2/24".parse::<IpNet>().unwrap()]);
        assert!(result.own("eth0", "/y").is_none());
    }
}
