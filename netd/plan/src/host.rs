// SPDX-License-Identifier: Apache-2.0
//! Kernel objects of a node as values, shared by the plan (desired) and `netd-host` (observed).
//!
//! Both sides use one vocabulary, so that comparing them is `==`. Every object has an [`ObjectKey`] (which one) and
//! a spec (how it should be).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Mac;

/// The kernel's main routing table, `RT_TABLE_MAIN` of `linux/rtnetlink.h`.
pub const TABLE_MAIN: u32 = 254;

/// A set of kernel objects: all that a node should have (desired), or all of ours that it has (observed).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostObjects {
    /// Devices that netd owns, by name.
    pub links: BTreeMap<String, LinkSpec>,
    /// Addresses on our devices and on `lo`.
    pub addresses: BTreeSet<AddressSpec>,
    /// Routes of our route protocol.
    pub routes: BTreeMap<RouteKey, RouteSpec>,
    /// Permanent neighbours on our devices.
    pub neighbours: BTreeMap<NeighbourKey, NeighbourSpec>,
    /// Permanent forwarding entries of our VXLAN devices.
    pub fdb: BTreeMap<FdbKey, FdbSpec>,
}

/// A device that netd owns. Pod veths belong to weft-cni; only their routes and neighbours are desired here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkSpec {
    /// A VXLAN device without learning and without a default destination (RFC 7348).
    Vxlan {
        /// VXLAN network identifier, 24 bits.
        vni: u32,
        /// UDP destination port.
        port: u16,
        /// Underlay address that the outer packets leave from.
        local: IpAddr,
        /// Ethernet address of the device: this node's VTEP.
        mac: Mac,
        /// Device MTU in bytes, without the outer headers.
        mtu: u32,
    },
}

/// One address on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressSpec {
    /// Device name.
    pub device: String,
    /// Address with its prefix length.
    pub address: IpNet,
    /// `RT_SCOPE_HOST` where true (never used as a source towards others), else global.
    pub scope_host: bool,
}

/// Which route: what the kernel treats as one entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Destination prefix.
    pub dst: IpNet,
    /// Routing table, [`TABLE_MAIN`] unless said otherwise.
    pub table: u32,
    /// Metric; the lowest wins among equal prefixes.
    pub metric: u32,
}

/// How a route forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteSpec {
    /// Forward or refuse.
    pub kind: RouteKind,
    /// Outgoing device; `None` lets the kernel find it from the gateway.
    pub device: Option<String>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// `RTNH_F_ONLINK`: take the gateway as reachable on the device, whatever the routes say.
    pub onlink: bool,
    /// Preferred source for packets of this node.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_LINK` where true: the destination is on the link itself.
    pub scope_link: bool,
    /// MTU of the route in bytes.
    pub mtu: Option<u32>,
}

/// Route types of `linux/rtnetlink.h` that we use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Drop in silence, `RTN_BLACKHOLE`.
    Blackhole,
    /// Forward, `RTN_UNICAST`.
    #[default]
    Unicast,
    /// Refuse with host unreachable, `RTN_UNREACHABLE`.
    Unreachable,
}

/// Which neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// Device name.
    pub device: String,
    /// Address of the neighbour.
    pub ip: IpAddr,
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourSpec {
    /// Its Ethernet address.
    pub mac: Mac,
}

/// Which forwarding entry of a VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbKey {
    /// VXLAN device name.
    pub device: String,
    /// Ethernet address behind it.
    pub mac: Mac,
}

/// Where frames to that Ethernet address are sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbSpec {
    /// Underlay address of the remote VTEP.
    pub dst: IpAddr,
}

/// Which object, over all kinds. Its text names the object for people and metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKey {
    /// A device, by name.
    Link(String),
    /// An address on a device.
    Address {
        /// Device name.
        device: String,
        /// Address with its prefix length.
        address: IpNet,
    },
    /// A route.
    Route(RouteKey),
    /// A neighbour.
    Neighbour(NeighbourKey),
    /// A forwarding entry.
    Fdb(FdbKey),
}

/// One object with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostObject {
    /// A device, by name.
    Link(String, LinkSpec),
    /// An address.
    Address(AddressSpec),
    /// A route.
    Route(RouteKey, RouteSpec),
    /// A neighbour.
    Neighbour(NeighbourKey, NeighbourSpec),
    /// A forwarding entry.
    Fdb(FdbKey, FdbSpec),
}

/// One change to the kernel. Each is idempotent in `netd-host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostOp {
    /// The object is absent: make it.
    Add(HostObject),
    /// The object is there with another value: make it this one.
    Replace(HostObject),
    /// The object should not be there. Carries the observed value, because the kernel wants more than the key
    /// (the kind of a route, the destination of a forwarding entry).
    Remove(HostObject),
}

impl RouteKey {
    /// The route to `dst` in the main table with metric 0.
    pub fn main(dst: IpNet) -> Self {
        RouteKey { dst, table: TABLE_MAIN, metric: 0 }
    }
}

impl LinkSpec {
    /// Whether a link that looks like `self` can become `wanted` without being made anew. Everything on a link that
    /// is made anew (addresses, routes, neighbours, FDB) goes with the old one.
    pub fn changes_in_place(&self, wanted: &LinkSpec) -> bool {
        let LinkSpec::Vxlan { vni, port, local, mac: _, mtu: _ } = self;
        let LinkSpec::Vxlan { vni: to_vni, port: to_port, local: to_local, mac: _, mtu: _ } = wanted;
        vni == to_vni && port == to_port && local == to_local
    }
}

impl HostObjects {
    /// Nothing at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds everything of `other`; where both have an object, `other` wins.
    pub fn merge(&mut self, other: HostObjects) {
        self.links.extend(other.links);
        self.addresses.extend(other.addresses);
        self.routes.extend(other.routes);
        self.neighbours.extend(other.neighbours);
        self.fdb.extend(other.fdb);
    }

    /// All objects by key, as the delta tracker wants them.
    pub fn to_map(&self) -> BTreeMap<ObjectKey, HostObject> {
        self.objects().map(|object| (object.key(), object)).collect()
    }

    /// All objects, kind by kind, each kind in key order.
    pub fn objects(&self) -> impl Iterator<Item = HostObject> {
        let links = self.links.iter().map(|(name, spec)| HostObject::Link(name.clone(), spec.clone()));
        let addresses = self.addresses.iter().cloned().map(HostObject::Address);
        let routes = self.routes.iter().map(|(key, spec)| HostObject::Route(key.clone(), spec.clone()));
        let neighbours =
            self.neighbours.iter().map(|(key, spec)| HostObject::Neighbour(key.clone(), spec.clone()));
        let fdb = self.fdb.iter().map(|(key, spec)| HostObject::Fdb(key.clone(), spec.clone()));
        links.chain(addresses).chain(routes).chain(neighbours).chain(fdb)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.links.len() + self.addresses.len() + self.routes.len() + self.neighbours.len() + self.fdb.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Does to this set what the operation does to the kernel: the model for tests and for `netd-host`'s twin.
    pub fn apply(&mut self, op: &HostOp) {
        match op {
            HostOp::Add(object) | HostOp::Replace(object) => self.insert(object.clone()),
            HostOp::Remove(object) => self.remove(&object.key()),
        }
    }

    /// Puts one object in, over a former one with the same key.
    pub fn insert(&mut self, object: HostObject) {
        self.remove(&object.key());
        match object {
            HostObject::Link(name, spec) => drop(self.links.insert(name, spec)),
            HostObject::Address(spec) => drop(self.addresses.insert(spec)),
            HostObject::Route(key, spec) => drop(self.routes.insert(key, spec)),
            HostObject::Neighbour(key, spec) => drop(self.neighbours.insert(key, spec)),
            HostObject::Fdb(key, spec) => drop(self.fdb.insert(key, spec)),
        }
    }

    /// Takes one object out; absent is fine.
    pub fn remove(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Link(name) => drop(self.links.remove(name)),
            ObjectKey::Address { device, address } => {
                self.addresses.retain(|spec| spec.device != *device || spec.address != *address);
            }
            ObjectKey::Route(key) => drop(self.routes.remove(key)),
            ObjectKey::Neighbour(key) => drop(self.neighbours.remove(key)),
            ObjectKey::Fdb(key) => drop(self.fdb.remove(key)),
        }
    }
}

impl HostObject {
    /// Which object this is.
    pub fn key(&self) -> ObjectKey {
        match self {
            HostObject::Link(name, _) => ObjectKey::Link(name.clone()),
            HostObject::Address(spec) => {
                ObjectKey::Address { device: spec.device.clone(), address: spec.address }
            }
            HostObject::Route(key, _) => ObjectKey::Route(key.clone()),
            HostObject::Neighbour(key, _) => ObjectKey::Neighbour(key.clone()),
            HostObject::Fdb(key, _) => ObjectKey::Fdb(key.clone()),
        }
    }

    /// The device that the object stands on, and with which it goes; `None` for links themselves and for routes
    /// without a device.
    pub fn device(&self) -> Option<&str> {
        match self {
            HostObject::Link(..) => None,
            HostObject::Address(spec) => Some(&spec.device),
            HostObject::Route(_, spec) => spec.device.as_deref(),
            HostObject::Neighbour(key, _) => Some(&key.device),
            HostObject::Fdb(key, _) => Some(&key.device),
        }
    }
}

impl HostOp {
    /// The object that is changed.
    pub fn object(&self) -> &HostObject {
        match self {
            HostOp::Add(object) | HostOp::Remove(object) | HostOp::Replace(object) => object,
        }
    }

    /// Which object is changed.
    pub fn key(&self) -> ObjectKey {
        self.object().key()
    }

    /// `add`, `replace` or `remove`.
    pub fn verb(&self) -> &'static str {
        match self {
            HostOp::Add(_) => "add",
            HostOp::Remove(_) => "remove",
            HostOp::Replace(_) => "replace",
        }
    }
}

impl fmt::Display for HostOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb(), self.key())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectKey::Link(name) => write!(f, "link {name}"),
            ObjectKey::Address { device, address } => write!(f, "address {address} on {device}"),
            ObjectKey::Route(key) if key.table == TABLE_MAIN => {
                write!(f, "route {} metric {}", key.dst, key.metric)
            }
            ObjectKey::Route(key) => {
                write!(f, "route {} metric {} table {}", key.dst, key.metric, key.table)
            }
            ObjectKey::Neighbour(key) => write!(f, "neighbour {} on {}", key.ip, key.device),
            ObjectKey::Fdb(key) => write!(f, "FDB entry {} on {}", key.mac, key.device),
        }
    }
}
