// SPDX-License-Identifier: Apache-2.0
//! The result of ADD: kept in the newest shape, written in the caller's version, read from any version.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{CniError, Code};
use crate::version::Version;

/// A CNI result without its `cniVersion`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// The links, host ends and container ends.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// The routes inside the container.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What the container's resolv.conf shall say.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of its netns; none on the host.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// A socket file of the interface; since 1.1.0.
    #[serde(
        default,
        deserialize_with = "empty_is_none",
        rename = "socketPath",
        skip_serializing_if = "Option::is_none"
    )]
    pub socket_path: Option<String>,
    /// A PCI device; since 1.1.0.
    #[serde(
        default,
        deserialize_with = "empty_is_none",
        rename = "pciID",
        skip_serializing_if = "Option::is_none"
    )]
    pub pci_id: Option<String>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address and prefix length.
    pub address: IpNet,
    /// The gateway for this address.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`; a negative one says none, as in results of the first Go library.
    #[serde(default, deserialize_with = "negative_is_none", skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route. All but `dst` and `gw` exist since 1.1.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; the address's gateway where there is none.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The MSS to advertise, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; lower wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as rtnetlink numbers it (0 global, 253 link, 254 host).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

/// DNS settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// DNS servers, preferred first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains, preferred first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// resolv.conf options.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddResult {
    /// Reads a `prevResult` of any supported version. Errors: code 7, naming prevResult.
    pub fn from_prev_result(value: &Value) -> Result<Self, CniError> {
        let invalid = |reason: String| {
            CniError::new(
                Code::INVALID_CONFIG,
                format!("prevResult is damaged: {reason}; it must be the result of ADD"),
            )
        };
        // serde takes a list for a struct, too.
        if !value.is_object() {
            return Err(invalid("it is no JSON object".to_owned()));
        }
        if let Some(version) = value.get("cniVersion") {
            version.as_str().unwrap_or_default().parse::<Version>().map_err(|error| invalid(error.msg))?;
        }
        let result = Self::deserialize(value).map_err(|error| invalid(error.to_string()))?;
        let links = result.interfaces.len();
        match result.ips.iter().find(|ip| ip.interface.is_some_and(|index| index >= links)) {
            Some(ip) => Err(invalid(format!("{} is on an interface that it does not list", ip.address))),
            None => Ok(result),
        }
    }

    /// The link of that name in a sandbox, and its place in `interfaces`.
    pub fn sandbox_link(&self, ifname: &str) -> Option<(usize, &Interface)> {
        self.interfaces.iter().enumerate().find(|(_, link)| link.name == ifname && link.sandbox.is_some())
    }

    /// The result as the caller's version writes it. What the version has no word for is left out.
    pub fn to_json(&self, version: Version) -> Result<Value, CniError> {
        let mut shaped = self.clone();
        if version < Version::V1_1_0 {
            for link in &mut shaped.interfaces {
                (link.mtu, link.socket_path, link.pci_id) = (None, None, None);
            }
            for route in &mut shaped.routes {
                *route = Route { gw: route.gw, ..Route::to(route.dst) };
            }
        }
        let mut json = serde_json::to_value(&shaped).map_err(|error| {
            CniError::new(Code::IO, format!("the result cannot be written as JSON: {error}"))
        })?;
        json["cniVersion"] = version.as_str().into();
        if version < Version::V1_0_0
            && let Some(ips) = json.get_mut("ips").and_then(Value::as_array_mut)
        {
            for (json, ip) in ips.iter_mut().zip(&self.ips) {
                json["version"] = if ip.address.addr().is_ipv4() { "4" } else { "6" }.into();
            }
        }
        Ok(json)
    }
}

impl Route {
    /// A route with a destination and nothing else.
    pub fn to(dst: IpNet) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// The Go library writes `null` for an empty list.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// To Go an empty text and an absent one are the same.
fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
}

fn negative_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let index = Option::<i64>::deserialize(deserializer)?;
    Ok(index.and_then(|index| usize::try_from(index).ok()))
}
