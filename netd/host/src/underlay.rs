// SPDX-License-Identifier: Apache-2.0

//! Which of the node's addresses its peers reach it by.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netd_plan::RouteKind;
use netlink_packet_route::{address::AddressScope, route::RouteAttribute};

use crate::{
    Host, HostError, Link,
    address::Address,
    link::LinkTable,
    route::{Route, ip_of},
};

/// The address and device that carry the overlay's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Address of this node towards its peers.
    pub address: IpAddr,
    /// Device that has it.
    pub device: String,
    /// MTU of that device in bytes.
    pub mtu: u32,
    /// Why this one, for people.
    pub reason: String,
}

/// How the underlay stands at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayNow {
    /// MTU of its device in bytes.
    pub mtu: u32,
    /// Whether the device is administratively up.
    pub is_up: bool,
    /// Whether the device still has the address.
    pub has_address: bool,
    /// What is on the link of the device, as [`Host::subnets`] has it.
    pub subnets: Vec<IpNet>,
}

/// The main table, RT_TABLE_MAIN of include/uapi/linux/rtnetlink.h.
const MAIN_TABLE: u32 = netd_plan::host::TABLE_MAIN;

impl Host {
    /// Chooses the underlay: the `configured` address; else the one on the route to the `store`; else the one on the
    /// default route with the lowest metric; else the only device that has a global address. Never a device of ours,
    /// never loopback. IPv4 only where nothing is configured.
    ///
    /// # Errors
    /// [`HostError::NoUnderlay`], which says what was tried. A configured address that is not here is an error, not a
    /// reason to take another.
    pub async fn underlay(
        &self,
        configured: Option<IpAddr>,
        store: Option<IpAddr>,
    ) -> Result<Underlay, HostError> {
        let candidates = self.candidates().await?;
        let mut tried = Vec::new();
        if let Some(chosen) = self.by_route(&candidates, configured, store, &mut tried).await? {
            return Ok(chosen);
        }
        let usable = candidates.usable_links();
        if let [(link, address)] = usable[..] {
            return Ok(underlay(address, link, "its link is the only one with an address".to_owned()));
        }
        tried.push(format!("{} links with a global IPv4 address instead of one", usable.len()));
        Err(HostError::NoUnderlay { reason: tried.join("; ") })
    }

    /// Chooses anew for a node whose former underlay has lost its address, by the same rules; the last of them is
    /// another one: an address on the same device. That some other link is the only one for a moment is no reason.
    ///
    /// # Errors
    /// As [`Self::underlay`].
    pub async fn underlay_again(
        &self,
        former: &Underlay,
        configured: Option<IpAddr>,
        store: Option<IpAddr>,
    ) -> Result<Underlay, HostError> {
        let candidates = self.candidates().await?;
        let mut tried = Vec::new();
        if let Some(chosen) = self.by_route(&candidates, configured, store, &mut tried).await? {
            return Ok(chosen);
        }
        let device = &former.device;
        let same = candidates.usable_links().into_iter().find(|(link, _)| link.name == *device);
        if let Some((link, address)) = same {
            return Ok(underlay(address, link, format!("it is the address of {device} now")));
        }
        tried.push(format!("no global IPv4 address on {device}"));
        Err(HostError::NoUnderlay { reason: tried.join("; ") })
    }

    /// How the underlay stands now; without its device nothing of it does.
    ///
    /// # Errors
    /// [`HostError::NoDevice`].
    pub async fn underlay_now(&self, underlay: &Underlay) -> Result<UnderlayNow, HostError> {
        let link = self.existing_link(&underlay.device).await?;
        let mut addresses = self.addresses().await?;
        addresses.retain(|address| address.index == link.index);
        Ok(UnderlayNow {
            mtu: link.mtu,
            is_up: link.is_up,
            has_address: addresses.iter().any(|address| address.net.addr() == underlay.address),
            subnets: on_link(&addresses),
        })
    }

    async fn candidates(&self) -> Result<Candidates, HostError> {
        let links = LinkTable::new(self.links().await?);
        Ok(Candidates { links, addresses: self.addresses().await? })
    }

    /// What is configured, or what the routes say; what was tried is added to `tried`.
    async fn by_route(
        &self,
        candidates: &Candidates,
        configured: Option<IpAddr>,
        store: Option<IpAddr>,
        tried: &mut Vec<String>,
    ) -> Result<Option<Underlay>, HostError> {
        if let Some(address) = configured {
            let chosen = candidates.by_address(address, "it is configured".to_owned());
            let reason = format!("{address} is configured, but no usable link here has it");
            return chosen.ok_or(HostError::NoUnderlay { reason }).map(Some);
        }
        if let Some(store) = store {
            let source = self.source_towards(store).await?;
            let reason = || format!("it is on the route to the store at {store}");
            if let Some(chosen) = source.and_then(|source| candidates.by_address(source, reason())) {
                return Ok(Some(chosen));
            }
            tried.push(format!("no route to the store at {store} over a usable link"));
        }
        let mut defaults = self.routes(&candidates.links, None).await?;
        defaults.retain(is_default);
        defaults.sort_by_key(|route| route.key.metric);
        if let Some(chosen) = defaults.iter().find_map(|route| candidates.by_default_route(route)) {
            return Ok(Some(chosen));
        }
        tried.push("no IPv4 default route over a usable link".to_owned());
        Ok(None)
    }

    /// What is on the link of that device: the prefixes of its global addresses, sorted. What is within reaches the device's
    /// node without a router.
    ///
    /// # Errors
    /// [`HostError::NoDevice`].
    pub async fn subnets(&self, device: &str) -> Result<Vec<IpNet>, HostError> {
        let index = self.link_index(device).await?;
        let mut addresses = self.addresses().await?;
        addresses.retain(|address| address.index == index);
        Ok(on_link(&addresses))
    }

    /// The source address that the kernel takes towards `destination`.
    async fn source_towards(&self, destination: IpAddr) -> Result<Option<IpAddr>, HostError> {
        let route = self.route_to(destination).await?;
        Ok(route.iter().flat_map(|route| &route.attributes).find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(ip) => ip_of(ip),
            _ => None,
        }))
    }
}

/// The prefixes of these addresses that are on the link, sorted.
fn on_link(addresses: &[Address]) -> Vec<IpNet> {
    let global = addresses.iter().filter(|address| address.scope == AddressScope::Universe);
    let subnets: BTreeSet<IpNet> = global.map(|address| address.net.trunc()).collect();
    subnets.into_iter().collect()
}

struct Candidates {
    links: LinkTable,
    addresses: Vec<Address>,
}

impl Candidates {
    fn by_address(&self, address: IpAddr, reason: String) -> Option<Underlay> {
        let found = self.addresses.iter().filter(|candidate| candidate.net.addr() == address);
        let link =
            found.filter_map(|candidate| self.links.link(candidate.index)).find(|link| is_usable(link))?;
        Some(underlay(address, link, reason))
    }

    fn by_default_route(&self, route: &Route) -> Option<Underlay> {
        let spec = route.spec.as_ref()?;
        let link =
            self.links.iter().find(|link| Some(&link.name) == spec.device.as_ref() && is_usable(link))?;
        let address = spec.source.or_else(|| self.first_global(link))?;
        Some(underlay(address, link, format!("it is on the default route over {}", link.name)))
    }

    fn usable_links(&self) -> Vec<(&Link, IpAddr)> {
        let usable = self.links.iter().filter(|link| is_usable(link));
        usable.filter_map(|link| Some((link, self.first_global(link)?))).collect()
    }

    fn first_global(&self, link: &Link) -> Option<IpAddr> {
        let global = |address: &&Address| {
            address.index == link.index
                && address.scope == AddressScope::Universe
                && address.net.addr().is_ipv4()
        };
        self.addresses.iter().find(global).map(|address| address.net.addr())
    }
}

fn underlay(address: IpAddr, link: &Link, reason: String) -> Underlay {
    Underlay { address, device: link.name.clone(), mtu: link.mtu, reason }
}

fn is_usable(link: &Link) -> bool {
    link.is_up && !link.is_loopback && !link.is_own()
}

fn is_default(route: &Route) -> bool {
    let is_unicast = route.spec.as_ref().is_some_and(|spec| spec.kind == RouteKind::Unicast);
    let key = &route.key;
    key.table == MAIN_TABLE && key.dst.prefix_len() == 0 && key.dst.addr().is_ipv4() && is_unicast
}
