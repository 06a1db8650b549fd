// SPDX-License-Identifier: Apache-2.0

//! The kernel's side of the delta: read back, and apply one operation.

use netd_plan::{HostObject, HostObjects, HostOp};

use crate::{Events, HostError, link::LinkTable, netns::Netns, socket::Socket};

/// The network objects of one netns. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) socket: Socket,
}

impl Host {
    /// Connects to the netns of the calling thread, inside a tokio runtime; the connection is a task on it that ends
    /// with the last clone.
    ///
    /// # Errors
    /// [`HostError::Setup`] without a runtime, or when the kernel refuses the socket.
    pub fn open() -> Result<Self, HostError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Connects to another netns. Sysctls that go with a link are not written through it: that is for the netns of the
    /// calling thread only.
    pub(crate) fn open_in(netns: &Netns) -> Result<Self, HostError> {
        Ok(Self { socket: Socket::open_in(netns)? })
    }

    /// What the kernel has of ours: VXLAN, WireGuard, TUN and IFB devices named `weft…`; addresses on devices named `weft…` (not the
    /// kernel's own link-local ones) and addresses anywhere with our protocol mark; routes of [`crate::ROUTE_PROTOCOL`] in
    /// any table; permanent neighbours on devices named `weft…`; permanent FDB entries of our VXLAN devices; token buckets
    /// with our handle and redirections with our priority on devices named `weft…` ([`crate::traffic`]); policy rules of
    /// [`crate::ROUTE_PROTOCOL`].
    ///
    /// A device of ours that is down or learns addresses is left out, so that applying it repairs it.
    pub async fn observe(&self) -> Result<HostObjects, HostError> {
        let links = LinkTable::new(self.links().await?);
        let mut objects = HostObjects {
            links: links.own_specs(),
            addresses: self.own_addresses(&links).await?,
            routes: self.own_routes(&links).await?,
            neighbours: self.own_neighbours(&links).await?,
            rules: self.own_rules().await?,
            ..HostObjects::default()
        };
        for link in links.own_vxlans() {
            objects.fdb.extend(self.fdb_entries(link).await?);
        }
        let traffic = self.own_traffic(&links).await?;
        objects.queues = traffic.queues;
        objects.redirects = traffic.redirects;
        Ok(objects)
    }

    /// Makes one change. Idempotent: adding what is there as wanted, or removing what is absent, is success; what is
    /// there with another value is replaced.
    ///
    /// # Errors
    /// [`HostError::Foreign`] where an object without our mark is in the way; [`HostError::NoDevice`] where the device
    /// it stands on is missing; the kernel's refusal.
    pub async fn apply(&self, op: &HostOp) -> Result<(), HostError> {
        match op {
            HostOp::Add(object) | HostOp::Replace(object) => match object {
                HostObject::Address(spec) => self.set_address(spec).await,
                HostObject::Fdb(key, spec) => self.set_fdb(key, spec).await,
                HostObject::Link(name, spec) => self.set_link(name, spec).await,
                HostObject::Neighbour(key, spec) => self.set_neighbour(key, spec).await,
                HostObject::Queue(device, bucket) => self.set_queue(device, bucket).await,
                HostObject::Redirect(device, to) => self.set_redirect(device, to).await,
                HostObject::Route(key, spec) => self.set_route(key, spec).await,
                HostObject::Rule(spec) => self.set_rule(spec).await,
            },
            HostOp::Remove(object) => match object {
                HostObject::Address(spec) => self.remove_address(spec).await,
                HostObject::Fdb(key, _) => self.remove_fdb(key).await,
                HostObject::Link(name, _) => self.remove_device(name).await,
                HostObject::Neighbour(key, _) => self.remove_neighbour(key).await,
                HostObject::Queue(device, _) => self.remove_queue(device).await,
                HostObject::Redirect(device, _) => self.remove_redirect(device).await,
                HostObject::Route(key, _) => self.remove_route(key).await,
                HostObject::Rule(spec) => self.remove_rule(spec).await,
            },
        }
    }

    /// Subscribes to changes of our kinds of objects in the netns of the calling thread. Subscribe before
    /// [`Self::observe`], so that nothing between is missed.
    pub async fn events(&self) -> Result<Events, HostError> {
        Events::subscribe(self).await
    }
}
