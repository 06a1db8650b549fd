// SPDX-License-Identifier: Apache-2.0
//! What ADD asks for, gathered from runtimeConfig, args.cni, CNI_ARGS and the config.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::args::CniArgs;
use crate::capabilities::{self, Bandwidth, IpRange, PortMapping};
use crate::config::{NetworkConfig, excerpt, invalid};
use crate::error::CniError;
use crate::result::Dns;
use crate::sticky::sticky;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddOptions {
    /// The pod, where the runtime named one.
    pub pod: Option<Pod>,
    /// args.cni.labels
    pub labels: BTreeMap<String, String>,
    /// The addresses asked for, one of a family at most; empty for any.
    pub requested_ips: Vec<IpAddr>,
    /// Sets of ranges, each for one address of its family; empty for any.
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// The name whose addresses it gets again; none for ordinary ones.
    pub sticky: Option<String>,
    /// Further names of the pod.
    pub aliases: Vec<String>,
    /// Ports of the host that lead to it.
    pub port_mappings: Vec<PortMapping>,
    /// Limits of its traffic.
    pub bandwidth: Option<Bandwidth>,
    /// Its control group, for people.
    pub cgroup_path: Option<String>,
    /// Whether its packets may pass by the host's stack.
    pub fast_path: bool,
    /// The MAC asked for, for the container end.
    pub mac: Option<[u8; 6]>,
    /// The MTU of the config, in bytes.
    pub mtu: Option<u32>,
    /// DNS settings that replace netd's.
    pub dns: Option<Dns>,
    /// What the runtime asked for and does not get, one line each.
    pub ignored: Vec<String>,
}

impl AddOptions {
    /// Gathers and checks. Errors: code 7 (code 4 where CNI_ARGS is at fault, code 2 for a part of a capability that we
    /// do not serve), naming the field.
    pub fn gather(config: &NetworkConfig, ifname: &str, cni_args: &str) -> Result<Self, CniError> {
        let args = CniArgs::parse(cni_args)?;
        let mac = mac(config, &args)?;
        let (requested_ips, asked) = (requested_ips(config, &args)?, |key| config.capability(key));
        let pod = args.pod_name.map(|name| Pod {
            namespace: args.pod_namespace.unwrap_or_else(|| "default".to_owned()),
            name,
            uid: args.pod_uid,
        });
        let (ip_ranges, ignored) =
            asked("ipRanges").map(capabilities::ip_ranges).transpose()?.unwrap_or_default();
        Ok(Self {
            labels: labels(config.cni_args("labels"))?,
            requested_ips,
            ip_ranges,
            sticky: sticky(config, ifname, pod.as_ref(), mac)?,
            aliases: asked("aliases")
                .map(|value| capabilities::aliases(value, &config.name))
                .transpose()?
                .unwrap_or_default(),
            port_mappings: asked("portMappings")
                .map(capabilities::port_mappings)
                .transpose()?
                .unwrap_or_default(),
            bandwidth: asked("bandwidth").map(capabilities::bandwidth).transpose()?.flatten(),
            cgroup_path: asked("cgroupPath").map(capabilities::cgroup_path).transpose()?.flatten(),
            fast_path: config.fast_path()?,
            mac,
            mtu: config.mtu()?,
            dns: dns(config)?,
            pod,
            ignored,
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
    let wrong = |error| invalid(format!("args.cni.labels: {error}"));
    match value {
        None => Ok(BTreeMap::new()),
        Some(list @ Value::Array(_)) => Vec::<Label>::deserialize(list)
            .map(|labels| labels.into_iter().map(|label| (label.key, label.value)).collect())
            .map_err(wrong),
        Some(other) => BTreeMap::deserialize(other).map_err(wrong),
    }
}

fn requested_ips(config: &NetworkConfig, args: &CniArgs) -> Result<Vec<IpAddr>, CniError> {
    for (field, value) in
        [("runtimeConfig.ips", config.capability("ips")), ("args.cni.ips", config.cni_args("ips"))]
    {
        let Some(value) = value else { continue };
        let texts =
            Vec::<String>::deserialize(value).map_err(|error| invalid(format!("{field}: {error}")))?;
        if !texts.is_empty() {
            return addresses(field, texts.iter().map(String::as_str));
        }
    }
    addresses("IP in CNI_ARGS", args.ip.iter().flat_map(|list| list.split(',')).map(str::trim))
}

/// Addresses, bare or with a prefix length, which says nothing to us: a pod's address is always a /32 or /128.
fn addresses<'a>(field: &str, texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpAddr>, CniError> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        let address = text
            .parse::<IpAddr>()
            .or_else(|_| text.parse::<IpNet>().map(|net| net.addr()))
            .map_err(|_| invalid(format!("{field}: {} is not an IP address", excerpt(&text.into()))))?
            .to_canonical();
        if addresses.contains(&address) {
            continue;
        }
        if let Some(other) = addresses.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(invalid(format!(
                "{field}: {other} and {address}; an attachment has one address of each family"
            )));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn mac(config: &NetworkConfig, args: &CniArgs) -> Result<Option<[u8; 6]>, CniError> {
    let of_args = args.mac.clone().map(Value::from);
    let sources = [
        ("runtimeConfig.mac", config.capability("mac")),
        ("args.cni.mac", config.cni_args("mac").filter(|value| *value != "")),
        ("MAC in CNI_ARGS", of_args.as_ref()),
    ];
    let Some((field, value)) = sources.into_iter().find_map(|(field, value)| Some((field, value?))) else {
        return Ok(None);
    };
    let mac = value.as_str().and_then(parse_mac).ok_or_else(|| {
        invalid(format!("{field}: {} is not a MAC address of the form aa:bb:cc:dd:ee:ff", excerpt(value)))
    })?;
    // Bit 0 of the first byte means multicast (IEEE 802), which no link may have as its own.
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(invalid(format!("{field}: {value} is not the address of one link")));
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

/// The capability has its own key names (CNI CONVENTIONS.md), and containerd writes null for an empty list.
fn dns(config: &NetworkConfig) -> Result<Option<Dns>, CniError> {
    #[derive(Deserialize)]
    struct RuntimeDns {
        servers: Option<Vec<String>>,
        searches: Option<Vec<String>>,
        options: Option<Vec<String>>,
    }
    if let Some(value) = config.capability("dns") {
        let asked: RuntimeDns = capabilities::decode("runtimeConfig.dns", value)?;
        let dns = Dns {
            nameservers: asked.servers.unwrap_or_default(),
            domain: None,
            search: asked.searches.unwrap_or_default(),
            options: asked.options.unwrap_or_default(),
        };
        if !dns.is_empty() {
            return Ok(Some(dns));
        }
    }
    match config.dns() {
        None => Ok(None),
        Some(value) => Dns::deserialize(value).map(Some).map_err(|error| invalid(format!("dns: {error}"))),
    }
}
