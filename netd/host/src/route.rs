// SPDX-License-Identifier: Apache-2.0

//! Routes of our protocol number.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netd_plan::{RouteKey, RouteKind, RouteSpec};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
        RouteScope, RouteType,
    },
};
use nix::errno::Errno;

use crate::{Host, HostError, address::family_of, error::absent_is_fine, link::LinkTable};

/// The protocol number of our routes and addresses: their ownership mark (DESIGN: route protocol 157).
pub const ROUTE_PROTOCOL: u8 = 157;

/// A route as the kernel has it; the spec is `None` for a kind that we never make.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) key: RouteKey,
    pub(crate) spec: Option<RouteSpec>,
    protocol: RouteProtocol,
}

impl Host {
    /// Routes of all tables, or of one protocol (filtered by the kernel: a host may have a million others).
    pub(crate) async fn routes(
        &self,
        links: &LinkTable,
        protocol: Option<RouteProtocol>,
    ) -> Result<Vec<Route>, HostError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = protocol.unwrap_or_default();
            let replies = self.socket.dump("list routes", RouteNetlinkMessage::GetRoute(message)).await?;
            // A kernel without one family answers with the other's.
            let parsed = replies.iter().filter_map(|reply| parse(reply, family, links));
            routes.extend(parsed.filter(|route| protocol.is_none_or(|wanted| route.protocol == wanted)));
        }
        Ok(routes)
    }

    pub(crate) async fn own_routes(
        &self,
        links: &LinkTable,
    ) -> Result<BTreeMap<RouteKey, RouteSpec>, HostError> {
        let routes = self.routes(links, Some(own_protocol())).await?;
        // One of a kind that we never make counts as unicast without a next hop: unequal to anything desired.
        Ok(routes.into_iter().map(|route| (route.key, route.spec.unwrap_or_default())).collect())
    }

    pub(crate) async fn set_route(&self, key: &RouteKey, spec: &RouteSpec) -> Result<(), HostError> {
        let device = match &spec.device {
            Some(name) => Some(self.link_index(name).await?),
            None => None,
        };
        let what = format!("add route {} (metric {}, table {})", key.dst, key.metric, key.table);
        let message = || RouteNetlinkMessage::NewRoute(message(key, spec, device));
        // Not replaced at once: the kernel's replace takes any route of that key, whoever made it.
        match self.socket.request(&what, message(), NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            other => return other,
        }
        let links = LinkTable::new(self.links().await?);
        let present = self.routes(&links, None).await?.into_iter().filter(|route| route.key == *key);
        let foreign = present.clone().find(|route| route.protocol != own_protocol());
        if let Some(route) = foreign {
            let found = format!("a route of protocol {}", route.protocol);
            return Err(HostError::Foreign { object: format!("route {}", key.dst), found });
        }
        if present.clone().any(|route| route.spec.as_ref() == Some(spec)) {
            return Ok(());
        }
        self.socket.request(&what, message(), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// A route of another protocol is left alone, and counts as absent.
    pub(crate) async fn remove_route(&self, key: &RouteKey) -> Result<(), HostError> {
        let mut message = message(key, &RouteSpec::default(), None);
        // Any kind and any scope, as long as the protocol is ours.
        message.header.kind = RouteType::Unspec;
        message.header.scope = RouteScope::NoWhere;
        let what = format!("remove route {} (metric {}, table {})", key.dst, key.metric, key.table);
        absent_is_fine(self.socket.request(&what, RouteNetlinkMessage::DelRoute(message), 0).await)
    }
}

fn own_protocol() -> RouteProtocol {
    RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn message(key: &RouteKey, spec: &RouteSpec, device: Option<u32>) -> RouteMessage {
    let dst = key.dst.trunc();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family_of(dst.addr());
    header.destination_prefix_length = dst.prefix_len();
    // Larger numbers do not fit the header; the attribute rules.
    header.table = u8::try_from(key.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.protocol = own_protocol();
    header.scope = if spec.scope_link { RouteScope::Link } else { RouteScope::Universe };
    header.kind = match spec.kind {
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Unreachable => RouteType::Unreachable,
    };
    if spec.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(key.table));
    attributes.push(RouteAttribute::Priority(key.metric));
    if dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(dst.addr().into()));
    }
    attributes.extend(device.map(RouteAttribute::Oif));
    attributes.extend(spec.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(spec.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(spec.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

fn parse(reply: &RouteNetlinkMessage, family: AddressFamily, links: &LinkTable) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = reply else { return None };
    let header = &message.header;
    if header.address_family != family || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let any: IpAddr = if family == AddressFamily::Inet {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let (mut dst, mut table, mut metric) = (any, u32::from(header.table), 0);
    let mut spec = RouteSpec {
        onlink: header.flags.contains(RouteFlags::Onlink),
        scope_link: header.scope == RouteScope::Link,
        ..RouteSpec::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => dst = ip_of(ip)?,
            RouteAttribute::Gateway(ip) => spec.gateway = ip_of(ip),
            RouteAttribute::Metrics(metrics) => spec.mtu = metrics.iter().find_map(mtu_of),
            RouteAttribute::Oif(index) => spec.device = links.link(*index).map(|link| link.name.clone()),
            RouteAttribute::PrefSource(ip) => spec.source = ip_of(ip),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(value) => table = *value,
            _ => {}
        }
    }
    let kind = match header.kind {
        RouteType::BlackHole => Some(RouteKind::Blackhole),
        RouteType::Unicast => Some(RouteKind::Unicast),
        RouteType::Unreachable => Some(RouteKind::Unreachable),
        _ => None,
    };
    let dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
    let spec = kind.map(|kind| RouteSpec { kind, ..spec });
    Some(Route { key: RouteKey { dst, table, metric }, spec, protocol: header.protocol })
}

pub(crate) fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn mtu_of(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}
