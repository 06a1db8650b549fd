// SPDX-License-Identifier: Apache-2.0
//! What ADD asks for, gathered from runtimeConfig, args.cni and CNI_ARGS.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::args::CniArgs;
use crate::config::{NetworkConfig, invalid};
use crate::error::CniError;
use crate::result::Dns;

/// The pod that a runtime names in CNI_ARGS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// K8S_POD_NAMESPACE; `default` where only the name came.
    pub namespace: String,
    /// K8S_POD_NAME
    pub name: String,
    /// K8S_POD_UID
    pub uid: Option<String>,
}

/// The wishes of one ADD. Where several sources speak, the order is runtimeConfig, args.cni, CNI_ARGS, config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddOptions {
    /// The pod, where the runtime named one.
    pub pod: Option<Pod>,
    /// args.cni.labels
    pub labels: BTreeMap<String, String>,
    /// The addresses asked for; empty for any.
    pub requested_ips: Vec<IpAddr>,
    /// The MAC asked for, for the container end.
    pub mac: Option<[u8; 6]>,
    /// The MTU of the config, in bytes.
    pub mtu: Option<u32>,
    /// DNS settings that replace netd's.
    pub dns: Option<Dns>,
}

/// runtimeConfig.dns: the capability has its own key names (CNI CONVENTIONS.md).
#[derive(Deserialize)]
struct RuntimeDns {
    #[serde(default)]
    servers: Vec<String>,
    #[serde(default)]
    searches: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

impl AddOptions {
    /// Gathers and checks. Errors: code 7 (code 4 where CNI_ARGS is at fault), naming the field.
    pub fn gather(config: &NetworkConfig, cni_args: &str) -> Result<Self, CniError> {
        let args = CniArgs::parse(cni_args)?;
        Ok(Self {
            labels: labels(config.cni_args("labels"))?,
            requested_ips: requested_ips(config, &args)?,
            mac: mac(config, &args)?,
            mtu: config.mtu()?,
            dns: dns(config)?,
            pod: args.pod_name.map(|name| Pod {
                namespace: args.pod_namespace.unwrap_or_else(|| "default".to_owned()),
                name,
                uid: args.pod_uid,
            }),
        })
    }
}

/// Labels come as a list of `{key, value}` (CNI CONVENTIONS.md) or as a map (what people write).
fn labels(value: Option<&Value>) -> Result<BTreeMap<String, String>, CniError> {
    #[derive(Deserialize)]
    struct Label {
        key: String,
        value: String,
    }
    match value {
        None => Ok(BTreeMap::new()),
        Some(list @ Value::Array(_)) => Vec::<Label>::deserialize(list)
            .map(|labels| labels.into_iter().map(|label| (label.key, label.value)).collect())
            .map_err(|error| invalid(format!("args.cni.labels: {error}"))),
        Some(other) => {
            BTreeMap::deserialize(other).map_err(|error| invalid(format!("args.cni.labels: {error}")))
        }
    }
}

fn requested_ips(config: &NetworkConfig, args: &CniArgs) -> Result<Vec<IpAddr>, CniError> {
    for (field, value) in
        [("runtimeConfig.ips", config.runtime_config("ips")), ("args.cni.ips", config.cni_args("ips"))]
    {
        let Some(value) = value else { continue };
        let texts =
            Vec::<String>::deserialize(value).map_err(|error| invalid(format!("{field}: {error}")))?;
        if !texts.is_empty() {
            return texts.iter().map(|text| address(field, text)).collect();
        }
    }
    args.ip
        .iter()
        .flat_map(|list| list.split(','))
        .map(|text| address("IP in CNI_ARGS", text.trim()))
        .collect()
}

/// An address, bare or with a prefix length, which says nothing to us: a pod's address is always a /32 or /128.
fn address(field: &str, text: &str) -> Result<IpAddr, CniError> {
    text.parse::<IpAddr>()
        .or_else(|_| text.parse::<IpNet>().map(|net| net.addr()))
        .map_err(|_| invalid(format!("{field}: {text:?} is not an IP address")))
}

fn mac(config: &NetworkConfig, args: &CniArgs) -> Result<Option<[u8; 6]>, CniError> {
    let (field, text) = match (config.runtime_config("mac"), &args.mac) {
        (Some(value), _) => match value.as_str() {
            Some("") => return Ok(None),
            Some(text) => ("runtimeConfig.mac", text),
            None => return Err(invalid(format!("runtimeConfig.mac: {value} is not a string"))),
        },
        (None, Some(text)) => ("MAC in CNI_ARGS", text.as_str()),
        (None, None) => return Ok(None),
    };
    let mac = parse_mac(text).ok_or_else(|| {
        invalid(format!("{field}: {text:?} is not a MAC address of the form aa:bb:cc:dd:ee:ff"))
    })?;
    // Bit 0 of the first byte means multicast (IEEE 802), which no link may have as its own.
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(invalid(format!("{field}: {text:?} is not the address of one link")));
    }
    Ok(Some(mac))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn dns(config: &NetworkConfig) -> Result<Option<Dns>, CniError> {
    if let Some(value) = config.runtime_config("dns") {
        let asked =
            RuntimeDns::deserialize(value).map_err(|error| invalid(format!("runtimeConfig.dns: {error}")))?;
        let dns =
            Dns { nameservers: asked.servers, domain: None, search: asked.searches, options: asked.options };
        if !dns.is_empty() {
            return Ok(Some(dns));
        }
    }
    match config.dns() {
        None => Ok(None),
        Some(value) => Dns::deserialize(value).map(Some).map_err(|error| invalid(format!("dns: {error}"))),
    }
}
