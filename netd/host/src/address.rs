// SPDX-License-Identifier: Apache-2.0

//! Addresses, marked as ours with IFA_PROTO (Linux 5.18), which `ip address` shows as `proto`.
//!
//! IPv6 ones are there at once, without asking the link for duplicates (RFC 4862 allows that): nobody else is on it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netd_plan::{AddressSpec, pods};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
        CacheInfo,
    },
};
use nix::errno::Errno;

use crate::{
    Host, HostError, Link, ROUTE_PROTOCOL,
    error::absent_is_fine,
    link::{LinkTable, sysctl_error},
    sysctl,
};

/// INFINITY_LIFE_TIME of include/net/addrconf.h.
const LIFETIME_INFINITE: u32 = u32::MAX;

/// An address as the kernel has it.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) net: IpNet,
    pub(crate) scope: AddressScope,
    /// IPv6: the kernel takes it as a source only where a socket asks for it.
    is_deprecated: bool,
    has_own_protocol: bool,
}

impl Host {
    pub(crate) async fn addresses(&self) -> Result<Vec<Address>, HostError> {
        let mut addresses = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            let replies =
                self.socket.dump("list addresses", RouteNetlinkMessage::GetAddress(message)).await?;
            // A kernel without one family answers with the other's.
            addresses.extend(replies.iter().filter_map(|reply| parse(reply, family)));
        }
        Ok(addresses)
    }

    pub(crate) async fn own_addresses(&self, links: &LinkTable) -> Result<BTreeSet<AddressSpec>, HostError> {
        let addresses = self.addresses().await?;
        let spec = |address: &Address| {
            let device = links.link(address.index)?;
            is_own(address, device.is_own()).then(|| AddressSpec {
                device: device.name.clone(),
                address: address.net,
                scope_host: address.is_no_source(),
            })
        };
        Ok(addresses.iter().filter_map(spec).collect())
    }

    pub(crate) async fn set_address(&self, spec: &AddressSpec) -> Result<(), HostError> {
        let link = self.existing_link(&spec.device).await?;
        let added = match self.add_address(spec, link.index).await {
            // IPv6 is off on the link: one that an earlier version made, or that somebody changed.
            Err(error)
                if error.errno() == Some(Errno::EACCES) && link.is_own() && spec.address.addr().is_ipv6() =>
            {
                sysctl::open_for_ipv6(&link.name).map_err(sysctl_error)?;
                self.add_address(spec, link.index).await
            }
            other => other,
        };
        match added {
            Err(error) if error.errno() == Some(Errno::EEXIST) => self.replace_address(spec, &link).await,
            other => other,
        }
    }

    /// # Errors
    /// EEXIST where the address is there, ours or not.
    pub(crate) async fn add_address(&self, spec: &AddressSpec, index: u32) -> Result<(), HostError> {
        let what = format!("add address {} to {}", spec.address, spec.device);
        let message = RouteNetlinkMessage::NewAddress(message(spec, index));
        self.socket.request(&what, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    async fn replace_address(&self, spec: &AddressSpec, link: &Link) -> Result<(), HostError> {
        let Some(present) = self.find_address(spec, link.index).await? else { return Ok(()) };
        if !is_own(&present, link.is_own()) {
            let object = format!("address {} on {}", spec.address, spec.device);
            return Err(HostError::Foreign { object, found: "it has no mark of ours".to_owned() });
        }
        if present.is_no_source() == spec.scope_host {
            return Ok(());
        }
        // The kernel cannot change an address's scope.
        self.remove_address(spec).await?;
        self.add_address(spec, link.index).await
    }

    /// An address that is not ours is left alone, and counts as absent.
    pub(crate) async fn remove_address(&self, spec: &AddressSpec) -> Result<(), HostError> {
        let Some(link) = self.link(&spec.device).await? else { return Ok(()) };
        match self.find_address(spec, link.index).await? {
            Some(present) if is_own(&present, link.is_own()) => {}
            _ => return Ok(()),
        }
        let what = format!("remove address {} from {}", spec.address, spec.device);
        let message = RouteNetlinkMessage::DelAddress(message(spec, link.index));
        absent_is_fine(self.socket.request(&what, message, 0).await)
    }

    async fn find_address(&self, spec: &AddressSpec, index: u32) -> Result<Option<Address>, HostError> {
        let addresses = self.addresses().await?;
        Ok(addresses.into_iter().find(|address| address.index == index && address.net == spec.address))
    }
}

impl Address {
    /// Whether the kernel takes it for packets to others only when asked to.
    fn is_no_source(&self) -> bool {
        self.scope == AddressScope::Host || self.is_deprecated
    }
}

/// On links of ours everything is, but for the link-local addresses that the kernel gives itself.
fn is_own(address: &Address, is_own_link: bool) -> bool {
    let is_of_kernel = matches!(address.net.addr(), IpAddr::V6(ip)
        if ip.is_unicast_link_local() && ip != pods::POD_GATEWAY_V6);
    address.has_own_protocol || (is_own_link && !is_of_kernel)
}

fn message(spec: &AddressSpec, index: u32) -> AddressMessage {
    let ip = spec.address.addr();
    let mut message = AddressMessage::default();
    message.header.family = family_of(ip);
    message.header.prefix_len = spec.address.prefix_len();
    message.header.index = index;
    message.header.scope = if spec.scope_host { AddressScope::Host } else { AddressScope::Universe };
    message.attributes = vec![
        AddressAttribute::Local(ip),
        AddressAttribute::Address(ip),
        AddressAttribute::Protocol(AddressProtocol::Other(ROUTE_PROTOCOL)),
    ];
    if ip.is_ipv6() {
        let mut flags = AddressFlags::Nodad;
        if spec.address.prefix_len() == spec.address.max_prefix_len() {
            // The address's own route is in the table `local`.
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    if ip.is_ipv6() && spec.scope_host {
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_preferred = 0;
        lifetimes.ifa_valid = LIFETIME_INFINITE;
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
    message
}

pub(crate) fn family_of(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn parse(reply: &RouteNetlinkMessage, family: AddressFamily) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = reply else { return None };
    (message.header.family == family).then(|| parse_address(message)).flatten()
}

pub(crate) fn parse_address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut remote, mut has_own_protocol) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => remote = Some(*ip),
            AddressAttribute::Protocol(mark) => has_own_protocol = u8::from(*mark) == ROUTE_PROTOCOL,
            _ => {}
        }
    }
    let header = &message.header;
    let net = IpNet::new(local.or(remote)?, header.prefix_len).ok()?;
    Some(Address {
        index: header.index,
        net,
        scope: header.scope,
        is_deprecated: header.flags.contains(AddressHeaderFlags::Deprecated),
        has_own_protocol,
    })
}
