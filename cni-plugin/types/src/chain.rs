// SPDX-License-Identifier: Apache-2.0
//! ADD later in a chain: what an earlier plugin left in `prevResult`, kept and extended.

use ipnet::IpNet;
use serde_json::Value;

use crate::error::{CniError, Code};
use crate::result::{AddResult, Dns, Interface};
use crate::version::Version;

/// A `prevResult` that ADD goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Chained {
    raw: Value,
    result: AddResult,
}

impl Chained {
    /// Errors: code 7, naming prevResult.
    pub fn parse(prev_result: &Value) -> Result<Self, CniError> {
        Ok(Self { raw: prev_result.clone(), result: AddResult::from_prev_result(prev_result)? })
    }

    /// The link of that name in the sandbox, where an earlier plugin made it.
    pub fn sandbox_link(&self, ifname: &str) -> Option<&Interface> {
        self.result.sandbox_link(ifname).map(|(_, link)| link)
    }

    /// The addresses on that link. Those without an interface count too, as the reference plugins take it.
    pub fn addresses_of(&self, ifname: &str) -> Vec<IpNet> {
        let own = self.result.sandbox_link(ifname).map(|(index, _)| index);
        let on_it = |interface: Option<usize>| interface.is_none() || interface == own;
        self.result.ips.iter().filter(|ip| on_it(ip.interface)).map(|ip| ip.address).collect()
    }

    /// The same result, with `dns` where it has none. What we do not know in it is kept.
    pub fn echo(&self, dns: &Dns, version: Version) -> Result<Value, CniError> {
        self.extend(&AddResult { dns: dns.clone(), ..AddResult::default() }, version)
    }

    /// The same result with `own` behind it: links, addresses (their interface indexes moved on) and routes; `own`'s
    /// DNS where it has none. What we do not know in it is kept.
    pub fn extend(&self, own: &AddResult, version: Version) -> Result<Value, CniError> {
        let mut whole = if self.raw.get("cniVersion").and_then(Value::as_str) == Some(version.as_str()) {
            self.raw.clone()
        } else {
            self.result.to_json(version)?
        };
        let mut own = own.clone();
        for ip in &mut own.ips {
            ip.interface = ip.interface.map(|index| index + self.result.interfaces.len());
        }
        if !self.result.dns.is_empty() {
            own.dns = Dns::default();
        }
        let Value::Object(mut own) = own.to_json(version)? else {
            return Err(CniError::new(Code::IO, "the result cannot be written as JSON"));
        };
        for key in ["interfaces", "ips", "routes"] {
            let Some(Value::Array(more)) = own.remove(key) else { continue };
            match &mut whole[key] {
                Value::Array(list) => list.extend(more),
                // Absent, or null, as Go writes an empty list.
                none => *none = Value::Array(more),
            }
        }
        if let Some(dns) = own.remove("dns") {
            whole["dns"] = dns;
        }
        Ok(whole)
    }
}
