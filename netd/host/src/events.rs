// SPDX-License-Identifier: Apache-2.0

//! Notice when somebody, we included, changes an object of ours, or something that takes objects of ours along.
//!
//! One task reads the kernel's multicast messages and marks a `watch` channel of depth one: events coalesce, and a slow
//! reader costs no memory. The task ends when [`Events`] is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressScope,
    route::{RouteHeader, RouteProtocol},
};
use netlink_sys::SocketAddr;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use crate::{
    Host, HostError, Link, ROUTE_PROTOCOL,
    address::{Address, parse_address},
    link::{LOOPBACK_INDEX, parse_link},
    rule::is_own_rule,
    socket::{Task, current_runtime},
};

/// The kinds of objects that we have.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Tc,
];

/// A subscription to changes of our kinds of objects.
#[derive(Debug)]
pub struct Events {
    changes: watch::Receiver<()>,
    _tasks: [Task; 2],
}

impl Events {
    pub(crate) async fn subscribe(host: &Host) -> Result<Self, HostError> {
        let runtime = current_runtime()?;
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)
            .map_err(|source| HostError::Setup { what: "subscribe to netlink events", source })?;
        let connection = Task(runtime.spawn(connection));
        // After the subscription, so that no link falls between.
        let links = host.links().await?;
        let own = links.iter().filter(|link| link.is_own()).map(|link| link.index).collect();
        let others =
            links.iter().filter(|link| !link.is_own()).map(|link| (link.index, shape(link))).collect();
        let addresses = host.addresses().await?.iter().filter_map(others_address).collect();
        let (mark, changes) = watch::channel(());
        let reader = runtime.spawn(async move {
            // The handle keeps the connection open.
            let _handle = handle;
            read(messages, Filter { own, others, addresses }, mark).await;
        });
        Ok(Self { changes, _tasks: [connection, Task(reader)] })
    }

    /// Waits for the next change; all since the last call count as one. `None` when the connection is closed: subscribe
    /// again. Cancel safe.
    pub async fn next(&mut self) -> Option<()> {
        self.changes.changed().await.ok()
    }
}

async fn read(
    mut messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    mut filter: Filter,
    mark: watch::Sender<()>,
) {
    while let Some((message, _)) = messages.next().await {
        let is_ours = match &message.payload {
            NetlinkPayload::InnerMessage(object) => filter.is_ours(object),
            // The kernel dropped messages: anything may have changed.
            NetlinkPayload::Overrun(_) => true,
            _ => false,
        };
        if is_ours && mark.send(()).is_err() {
            return;
        }
    }
}

struct Filter {
    /// Numbers of links with our prefix.
    own: BTreeSet<u32>,
    /// All others with what may change of them: one may carry the overlay.
    others: BTreeMap<u32, (u32, bool)>,
    /// Addresses that others may reach this node by. The kernel tells of an IPv6 one with each router advertisement.
    addresses: BTreeSet<(u32, IpAddr)>,
}

/// MTU in bytes, and whether it is up.
fn shape(link: &Link) -> (u32, bool) {
    (link.mtu, link.is_up)
}

fn others_address(address: &Address) -> Option<(u32, IpAddr)> {
    (address.scope == AddressScope::Universe).then_some((address.index, address.net.addr()))
}

impl Filter {
    fn is_ours(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(message_of_link) => {
                let Some(link) = parse_link(message) else { return false };
                let index = message_of_link.header.index;
                // A link that loses our prefix is a change too.
                let was_own = if link.is_own() { self.own.insert(index) } else { self.own.remove(&index) };
                // The kernel drops the routes over a link that goes down without a word about them.
                let known = match link.is_own() {
                    true => self.others.remove(&index),
                    false => self.others.insert(index, shape(&link)),
                };
                let changed = known.is_some_and(|known| known != shape(&link));
                was_own || link.is_own() || !link.is_up || changed
            }
            RouteNetlinkMessage::DelLink(link) => {
                let index = link.header.index;
                self.own.remove(&index);
                self.others.remove(&index);
                self.addresses.retain(|(of, _)| *of != index);
                true
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let index = message.header.index;
                let address = parse_address(message).as_ref().and_then(others_address);
                let is_new = address.is_some_and(|address| self.addresses.insert(address));
                index == LOOPBACK_INDEX || self.own.contains(&index) || is_new
            }
            // The same for routes with that source.
            RouteNetlinkMessage::DelAddress(message) => {
                if let Some(address) = parse_address(message).as_ref().and_then(others_address) {
                    self.addresses.remove(&address);
                }
                true
            }
            // What the underlay was chosen by may be another now.
            RouteNetlinkMessage::NewRoute(route) if is_default_v4(&route.header) => true,
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
            }
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => is_own_rule(rule),
            RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) => {
                self.own.contains(&entry.header.ifindex)
            }
            RouteNetlinkMessage::NewQueueDiscipline(entry)
            | RouteNetlinkMessage::DelQueueDiscipline(entry)
            | RouteNetlinkMessage::NewTrafficFilter(entry)
            | RouteNetlinkMessage::DelTrafficFilter(entry) => {
                u32::try_from(entry.header.index).is_ok_and(|index| self.own.contains(&index))
            }
            _ => false,
        }
    }
}

fn is_default_v4(header: &RouteHeader) -> bool {
    header.address_family == AddressFamily::Inet
        && header.destination_prefix_length == 0
        && u32::from(header.table) == netd_plan::host::TABLE_MAIN
}
