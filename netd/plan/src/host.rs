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
use crate::shape::TokenBucket;

/// The kernel's main routing table, `RT_TABLE_MAIN` of `linux/rtnetlink.h`.
pub const TABLE_MAIN: u32 = 254;

/// What the kernel makes of an IPv6 route without a metric: `IP6_RT_PRIO_USER` of `linux/ipv6_route.h`.
pub const METRIC_V6: u32 = 1024;

/// Routing table of what only packets of trusted hosts look up. The routes in it have our protocol number, as all of ours.
pub const TABLE_TRUSTED: u32 = 157;

/// Priority of our rules: after the kernel's own for local addresses (0), before those of most VPN software (5,000 and
/// more) and the main table (32,766).
pub const RULE_PRIORITY: u32 = 1_570;

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
    /// Limits of what leaves by a device, by device: a token bucket as its root queueing discipline.
    pub queues: BTreeMap<String, TokenBucket>,
    /// Devices whose arriving packets all pass through another one first (an IFB, where they wait their turn).
    pub redirects: BTreeMap<String, String>,
    /// Policy rules of our protocol number.
    pub rules: BTreeSet<RuleSpec>,
}

/// A device that netd owns. Pod veths belong to weft-cni; only what stands on them is desired here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkSpec {
    /// An intermediate functional block: packets that are redirected to it pass its queue and go on as if nothing had
    /// been (`drivers/net/ifb.c`).
    Ifb,
    /// The TUN of a WireGuard device in user space (`drivers/net/tun.c`). `weft-wireguard` makes it and keeps it; here it
    /// gets its MTU and comes up, and where it is not wanted it goes down.
    Tun {
        /// Device MTU in bytes, without the outer headers.
        mtu: u32,
    },
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
    /// A VXLAN device whose packets each say where they go and came from (collect metadata): programs fill it and empty it, it
    /// has no destination of its own. It listens in both families.
    VxlanExternal {
        /// UDP destination port.
        port: u16,
        /// Device MTU in bytes, without the outer headers.
        mtu: u32,
    },
    /// A WireGuard device of the kernel (`drivers/net/wireguard`). Keys and peers are set by generic netlink and are no
    /// part of it.
    Wireguard {
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
    /// Not a source towards others where true: `RT_SCOPE_HOST`. IPv6 has no such scope for an address of this kind; there
    /// it is a deprecated one, preferred for no time, which the kernel takes only for a socket that asks for it.
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
    /// Look on in the tables of later rules, `RTN_THROW`.
    Throw,
    /// Forward, `RTN_UNICAST`.
    #[default]
    Unicast,
    /// Refuse with host unreachable, `RTN_UNREACHABLE`.
    Unreachable,
}

/// A policy rule: packets from there look their route up in another table first. Nothing of it changes in place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSpec {
    /// Source prefix.
    pub source: IpNet,
    /// Routing table.
    pub table: u32,
    /// The lowest is asked first.
    pub priority: u32,
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
    /// The queue of a device.
    Queue(String),
    /// The redirection of what arrives at a device.
    Redirect(String),
    /// A policy rule.
    Rule(RuleSpec),
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
    /// The queue of a device.
    Queue(String, TokenBucket),
    /// What arrives at the first device passes through the second.
    Redirect(String, String),
    /// A policy rule.
    Rule(RuleSpec),
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
    /// The route to `dst` in the main table with the metric that is the kernel's default: 0, for IPv6 [`METRIC_V6`].
    pub fn main(dst: IpNet) -> Self {
        let metric = if dst.addr().is_ipv4() { 0 } else { METRIC_V6 };
        RouteKey { dst, table: TABLE_MAIN, metric }
    }
}

impl LinkSpec {
    /// Whether a link that looks like `self` can become `wanted` without being made anew. Everything on a link that
    /// is made anew (addresses, routes, neighbours, FDB) goes with the old one.
    pub fn changes_in_place(&self, wanted: &LinkSpec) -> bool {
        match (self, wanted) {
            (LinkSpec::Ifb, LinkSpec::Ifb)
            | (LinkSpec::Tun { .. }, LinkSpec::Tun { .. })
            | (LinkSpec::Wireguard { .. }, LinkSpec::Wireguard { .. }) => true,
            (
                LinkSpec::Vxlan { vni, port, local, .. },
                LinkSpec::Vxlan { vni: to_vni, port: to_port, local: to_local, .. },
            ) => vni == to_vni && port == to_port && local == to_local,
            (LinkSpec::VxlanExternal { port, .. }, LinkSpec::VxlanExternal { port: to_port, .. }) => {
                port == to_port
            }
            (
                LinkSpec::Ifb
                | LinkSpec::Tun { .. }
                | LinkSpec::Vxlan { .. }
                | LinkSpec::VxlanExternal { .. }
                | LinkSpec::Wireguard { .. },
                _,
            ) => false,
        }
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
        self.queues.extend(other.queues);
        self.redirects.extend(other.redirects);
        self.rules.extend(other.rules);
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
        let queues = self.queues.iter().map(|(device, bucket)| HostObject::Queue(device.clone(), *bucket));
        let redirects =
            self.redirects.iter().map(|(device, to)| HostObject::Redirect(device.clone(), to.clone()));
        let rules = self.rules.iter().cloned().map(HostObject::Rule);
        let on_devices = neighbours.chain(fdb).chain(queues).chain(redirects);
        links.chain(addresses).chain(routes).chain(on_devices).chain(rules)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        let on_ip = self.addresses.len() + self.routes.len() + self.neighbours.len() + self.rules.len();
        self.links.len() + on_ip + self.fdb.len() + self.queues.len() + self.redirects.len()
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
            HostObject::Queue(device, bucket) => drop(self.queues.insert(device, bucket)),
            HostObject::Redirect(device, to) => drop(self.redirects.insert(device, to)),
            HostObject::Rule(spec) => drop(self.rules.insert(spec)),
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
            ObjectKey::Queue(device) => drop(self.queues.remove(device)),
            ObjectKey::Redirect(device) => drop(self.redirects.remove(device)),
            ObjectKey::Rule(spec) => drop(self.rules.remove(spec)),
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
            HostObject::Queue(device, _) => ObjectKey::Queue(device.clone()),
            HostObject::Redirect(device, _) => ObjectKey::Redirect(device.clone()),
            HostObject::Rule(spec) => ObjectKey::Rule(spec.clone()),
        }
    }

    /// The device that the object stands on, and with which it goes; `None` for links themselves, for rules and for
    /// routes without a device.
    pub fn device(&self) -> Option<&str> {
        match self {
            HostObject::Link(..) | HostObject::Rule(_) => None,
            HostObject::Address(spec) => Some(&spec.device),
            HostObject::Route(_, spec) => spec.device.as_deref(),
            HostObject::Neighbour(key, _) => Some(&key.device),
            HostObject::Fdb(key, _) => Some(&key.device),
            HostObject::Queue(device, _) | HostObject::Redirect(device, _) => Some(device),
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
            ObjectKey::Queue(device) => write!(f, "rate limit on {device}"),
            ObjectKey::Redirect(device) => write!(f, "redirection of what arrives at {device}"),
            ObjectKey::Rule(spec) => {
                write!(f, "rule {}: from {} table {}", spec.priority, spec.source, spec.table)
            }
        }
    }
}
