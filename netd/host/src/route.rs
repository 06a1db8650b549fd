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

use crate::{Host, HostError, Link, address::family_of, error::absent_is_fine, link::LinkTable};

/// The protocol number of our routes and addresses: their ownership mark (DESIGN: route protocol 157).
pub const ROUTE_PROTOCOL: u8 = 157;

/// A route as the kernel has it; the spec is `None` for a kind that we never make.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) key: RouteKey,
    pub(crate) spec: Option<RouteSpec>,
    protocol: RouteProtocol,
}

/// Metric of a route that stands for a moment; nobody desires one with it.
const HOP_METRIC: u32 = 157;

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
        let link = match &spec.device {
            Some(name) => Some(self.existing_link(name).await?),
            None => None,
        };
        // Not replaced at once: the kernel's replace takes any route of that key, whoever made it.
        match self.add_route(key, spec, link.as_ref().map(|link| link.index)).await {
            Err(error) if error.errno() == Some(Errno::EEXIST) => self.replace_route(key, spec, link).await,
            Err(error) if is_refused_hop(&error, key) => self.replace_route(key, spec, link).await,
            other => other,
        }
    }

    /// # Errors
    /// EEXIST where a route of that key is there, ours or not.
    pub(crate) async fn add_route(
        &self,
        key: &RouteKey,
        spec: &RouteSpec,
        device: Option<u32>,
    ) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::NewRoute(message(key, spec, device));
        self.socket.request(&adding(key), request, NLM_F_CREATE | NLM_F_EXCL).await
    }

    async fn replace_route(
        &self,
        key: &RouteKey,
        spec: &RouteSpec,
        link: Option<Link>,
    ) -> Result<(), HostError> {
        let device = link.as_ref().map(|link| link.index);
        let present = self.present_routes(key, link).await?;
        if let Some(route) = present.iter().find(|route| route.protocol != own_protocol()) {
            let found = format!("a route of protocol {}", route.protocol);
            return Err(HostError::Foreign { object: format!("route {}", key.dst), found });
        }
        if present.iter().any(|route| route.spec.as_ref() == Some(spec)) {
            return Ok(());
        }
        let replace = async || {
            let request = RouteNetlinkMessage::NewRoute(message(key, spec, device));
            self.socket.request(&adding(key), request, NLM_F_CREATE | NLM_F_REPLACE).await
        };
        match (replace().await, spec.gateway) {
            // The old route to the next hop itself is in the way. One for the hop alone lets the new one by, so that nothing
            // is refused meanwhile; it is not left behind, also not by one who is killed here: it is not desired.
            (Err(error), Some(hop)) if is_refused_hop(&error, key) && !present.is_empty() => {
                let hop_key = RouteKey { dst: hop.into(), table: key.table, metric: HOP_METRIC };
                let direct = RouteSpec { device: spec.device.clone(), ..RouteSpec::default() };
                match self.add_route(&hop_key, &direct, device).await {
                    Err(error) if error.errno() != Some(Errno::EEXIST) => return Err(error),
                    _ => {}
                }
                let replaced = replace().await;
                self.remove_route(&hop_key).await?;
                replaced
            }
            (other, _) => other,
        }
    }

    /// Routes of that key. Most stand on the device where they are wanted; a host may have a million on others.
    async fn present_routes(&self, key: &RouteKey, link: Option<Link>) -> Result<Vec<Route>, HostError> {
        let of_key = |routes: Vec<Route>| -> Vec<Route> {
            routes.into_iter().filter(|route| route.key == *key).collect()
        };
        if let Some(link) = link {
            let mut message = RouteMessage::default();
            message.header.address_family = family_of(key.dst.addr());
            message.attributes.push(RouteAttribute::Oif(link.index));
            let replies = self.socket.dump("list routes", RouteNetlinkMessage::GetRoute(message)).await?;
            let links = LinkTable::new(vec![link]);
            let family = family_of(key.dst.addr());
            let found = of_key(replies.iter().filter_map(|reply| parse(reply, family, &links)).collect());
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let links = LinkTable::new(self.links().await?);
        Ok(of_key(self.routes(&links, None).await?))
    }

    /// The route that the kernel takes towards `destination`; `None` where there is none.
    pub(crate) async fn route_to(&self, destination: IpAddr) -> Result<Option<RouteMessage>, HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let what = format!("look up the route to {destination}");
        match self.socket.get(&what, RouteNetlinkMessage::GetRoute(message)).await {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(Some(route)),
            // No route is an answer.
            Ok(_) | Err(HostError::Netlink { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether packets to this address of the netns are taken in. The kernel puts the route for that beside an IPv6
    /// address a little after it has acknowledged the address (addrconf_dad_start of net/ipv6/addrconf.c).
    pub(crate) async fn takes_in(&self, address: IpAddr) -> Result<bool, HostError> {
        let route = self.route_to(address).await?;
        Ok(route.is_some_and(|route| route.header.kind == RouteType::Local))
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

fn adding(key: &RouteKey) -> String {
    format!("add route {} (metric {}, table {})", key.dst, key.metric, key.table)
}

/// IPv6 takes no `onlink` next hop to which a route over another device leads (ip6_route_check_nh_onlink of
/// net/ipv6/route.c), as after a change of the overlay's backend, when the old route to a block leads to the block's node.
fn is_refused_hop(error: &HostError, key: &RouteKey) -> bool {
    key.dst.addr().is_ipv6() && error.errno() == Some(Errno::EINVAL)
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
        RouteKind::Throw => RouteType::Throw,
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
        RouteType::Throw => Some(RouteKind::Throw),
        RouteType::Unicast => Some(RouteKind::Unicast),
        RouteType::Unreachable => Some(RouteKind::Unreachable),
        _ => None,
    };
    if kind.is_some_and(|kind| kind != RouteKind::Unicast) {
        // IPv6 puts them on `lo`.
        spec.device = None;
    }
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
