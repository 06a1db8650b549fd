// SPDX-License-Identifier: Apache-2.0

//! Notice when somebody, we included, changes an object of ours, or something that takes objects of ours along.
//!
//! One task reads the kernel's multicast messages and marks a `watch` channel of depth one: events coalesce, and a slow
//! reader costs no memory. The task ends when [`Events`] is dropped.

use std::collections::BTreeSet;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteProtocol};
use netlink_sys::SocketAddr;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use crate::{
    Host, HostError, ROUTE_PROTOCOL,
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
        let own = host.links().await?.iter().filter(|link| link.is_own()).map(|link| link.index).collect();
        let (mark, changes) = watch::channel(());
        let reader = runtime.spawn(async move {
            // The handle keeps the connection open.
            let _handle = handle;
            read(messages, Filter { own }, mark).await;
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
                was_own || link.is_own() || !link.is_up
            }
            RouteNetlinkMessage::DelLink(link) => {
                self.own.remove(&link.header.index);
                true
            }
            RouteNetlinkMessage::NewAddress(address) => {
                address.header.index == LOOPBACK_INDEX || self.own.contains(&address.header.index)
            }
            // The same for routes with that source.
            RouteNetlinkMessage::DelAddress(_) => true,
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
