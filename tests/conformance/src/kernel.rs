// SPDX-License-Identifier: Apache-2.0
//! What the kernel has: links, addresses and routes of a network namespace, by `ip`. And namespaces themselves.

use crate::process::tool;
use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Where a look is taken or a link is made: the words before `ip`, and its first arguments.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    words: Vec<String>,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) mac: String,
    pub(crate) mtu: u64,
    /// Set up by somebody; whether it carries is another matter.
    pub(crate) up: bool,
}

/// A route: where to, through whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) dst: IpNet,
    pub(crate) gw: Option<IpAddr>,
    pub(crate) dev: String,
}

impl Place {
    /// A namespace by its name under /run/netns.
    pub(crate) fn netns(name: &str) -> Self {
        Self { words: ["ip", "-n", name].map(str::to_owned).to_vec() }
    }

    /// Behind a command; behind none it is the caller's own namespace.
    pub(crate) fn behind(prefix: &[String]) -> Self {
        Self { words: prefix.iter().cloned().chain(["ip".to_owned()]).collect() }
    }

    /// Runs `ip` with these arguments.
    pub(crate) fn ip(&self, args: &[&str]) -> Result<String> {
        let argv: Vec<&str> = self.words.iter().map(String::as_str).chain(args.iter().copied()).collect();
        tool(&argv)
    }

    fn json(&self, args: &[&str]) -> Result<Vec<Value>> {
        let text = self.ip(args)?;
        // With nothing to show some versions print nothing at all.
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&text).with_context(|| format!("ip {} printed no JSON", args.join(" ")))
    }

    /// All links by name.
    pub(crate) fn links(&self) -> Result<BTreeMap<String, Link>> {
        let links = self.json(&["-j", "link", "show"])?.into_iter().filter_map(|link| {
            let mac = link["address"].as_str().unwrap_or_default().to_owned();
            let up = link["flags"].as_array()?.iter().any(|flag| flag == "UP");
            Some((link["ifname"].as_str()?.to_owned(), Link { mac, mtu: link["mtu"].as_u64()?, up }))
        });
        Ok(links.collect())
    }

    /// One link.
    pub(crate) fn link(&self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.remove(name))
    }

    /// The addresses of a link, link-local IPv6 ones left out; none where the link does not exist.
    pub(crate) fn addresses(&self, link: &str) -> Result<Vec<IpNet>> {
        let all = self.json(&["-j", "address", "show"])?;
        let of_link = all.iter().filter(|entry| entry["ifname"] == link);
        let infos = of_link.flat_map(|entry| entry["addr_info"].as_array().into_iter().flatten());
        let addresses = infos.filter(|info| info["scope"] != "link").filter_map(|info| {
            let address = info["local"].as_str()?.parse().ok()?;
            IpNet::new(address, u8::try_from(info["prefixlen"].as_u64()?).ok()?).ok()
        });
        Ok(addresses.collect())
    }

    /// An address of the namespace that others may reach: of global scope, on a link that is up.
    pub(crate) fn global_address(&self, ipv6: bool) -> Result<Option<IpAddr>> {
        let family = if ipv6 { "-6" } else { "-4" };
        let all = self.json(&[family, "-j", "address", "show", "up", "scope", "global"])?;
        let infos = all.iter().flat_map(|entry| entry["addr_info"].as_array().into_iter().flatten());
        Ok(infos.filter_map(|info| info["local"].as_str()?.parse().ok()).next())
    }

    /// All routes of both families and all tables.
    pub(crate) fn routes(&self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            for entry in self.json(&[family, "-j", "route", "show", "table", "all"])? {
                let dst = entry["dst"].as_str().unwrap_or_default();
                let dst = if dst == "default" { all } else { dst };
                let Some(dst) = dst.parse().ok().or_else(|| dst.parse::<IpAddr>().ok().map(IpNet::from))
                else {
                    continue;
                };
                let gw = entry["gateway"].as_str().or_else(|| entry["via"]["host"].as_str());
                routes.push(Route {
                    dst,
                    gw: gw.and_then(|gw| gw.parse().ok()),
                    dev: entry["dev"].as_str().unwrap_or_default().to_owned(),
                });
            }
        }
        Ok(routes)
    }
}

/// Where named namespaces are.
pub(crate) fn netns_path(name: &str) -> String {
    format!("/run/netns/{name}")
}

/// Makes a network namespace with its loopback up.
pub(crate) fn add_netns(name: &str) -> Result<()> {
    tool(&["ip", "netns", "add", name])?;
    Place::netns(name).ip(&["link", "set", "lo", "up"]).map(drop)
}

/// Removes a network namespace; one that is gone is fine.
pub(crate) fn remove_netns(name: &str) -> Result<()> {
    if std::path::Path::new(&netns_path(name)).exists() {
        tool(&["ip", "netns", "del", name])?;
    }
    Ok(())
}
