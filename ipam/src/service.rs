// SPDX-License-Identifier: Apache-2.0
//! What a service is given: addresses, node ports, the port of its health check. One decision from what its object asks for,
//! what it had, and what everybody holds; who writes it compares and swaps, and decides again when somebody was faster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Family;
use crate::node_port::{self, NodePortError, NodePortRange};
use crate::service_family::{self, FamilyError, FamilyPolicy, FamilyWish};
use crate::service_ip::{self, ServiceIpError};

/// Where addresses of one family come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    /// The service CIDR.
    pub cidr: IpNet,
    /// Addresses that no service gets, such as the DNS VIP.
    pub reserved: Vec<IpAddr>,
}

/// Where everything comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRanges {
    /// One of a family at most, the primary one first.
    pub cidrs: Vec<ServiceRange>,
    /// Where node ports come from.
    pub node_ports: NodePortRange,
}

impl ServiceRanges {
    fn of(&self, family: Family) -> Option<&ServiceRange> {
        self.cidrs.iter().find(|range| Family::of_net(&range.cidr) == family)
    }

    fn families(&self) -> Vec<Family> {
        self.cidrs.iter().map(|range| Family::of_net(&range.cidr)).collect()
    }
}

/// What kind of service it is, as far as allocation goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceKind {
    /// Addresses of its own.
    #[default]
    ClusterIp,
    /// A name for a name outside: nothing is allocated.
    ExternalName,
    /// `clusterIP: None`: nothing is allocated.
    Headless,
    /// Also an address of somebody else's, and a port of every node unless it wants none.
    LoadBalancer {
        /// Ports that ask for none get one (`allocateLoadBalancerNodePorts`).
        node_ports: bool,
        /// Only backends of the node that was asked (`externalTrafficPolicy: Local`): its load balancer needs a health check.
        local: bool,
    },
    /// Also a port of every node.
    NodePort,
}

impl ServiceKind {
    /// It has addresses of its own.
    pub fn has_addresses(self) -> bool {
        !matches!(self, Self::ExternalName | Self::Headless)
    }

    /// Its ports may be reached at the nodes.
    pub fn may_have_node_ports(self) -> bool {
        matches!(self, Self::LoadBalancer { .. } | Self::NodePort)
    }

    fn gets_node_ports(self) -> bool {
        matches!(self, Self::LoadBalancer { node_ports: true, .. } | Self::NodePort)
    }

    fn needs_health_port(self) -> bool {
        matches!(self, Self::LoadBalancer { local: true, .. })
    }
}

/// A port of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServicePortWish {
    /// IP protocol number.
    pub protocol: u8,
    /// Port of its addresses.
    pub port: u16,
    /// Port of the nodes; 0: none, or any.
    pub node_port: u16,
}

/// What of an object allocation reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceWish {
    /// What kind of service.
    pub kind: ServiceKind,
    /// Asked for, or given; in the order of `families`.
    pub addresses: Vec<IpAddr>,
    /// `spec.ipFamilies`.
    pub families: Vec<Family>,
    /// `spec.ipFamilyPolicy`.
    pub policy: Option<FamilyPolicy>,
    /// In the object's order.
    pub ports: Vec<ServicePortWish>,
    /// `spec.healthCheckNodePort`; 0: none, or any.
    pub health_port: u16,
}

/// What is held in the cluster, and what of it by this service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceHoldings {
    /// Addresses that anybody holds.
    pub addresses: BTreeSet<IpAddr>,
    /// Node ports that anybody holds.
    pub ports: BTreeSet<u16>,
    /// Those of the addresses that this service holds.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Those of the ports that this service holds.
    pub own_ports: BTreeSet<u16>,
}

/// Why a service is not given what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceAllocateError {
    /// An address.
    #[error(transparent)]
    Address(#[from] ServiceIpError),
    /// The first address of a service stays as long as the service.
    #[error(
        "spec.clusterIPs[0]: the service has {had} and keeps it; delete it and create it anew to change that"
    )]
    AddressChanged {
        /// What it has; `None` for headless.
        had: String,
    },
    /// Its families.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// A port of the load balancer's health check that is not to be had.
    #[error("spec.healthCheckNodePort: {0}")]
    HealthPort(NodePortError),
    /// It stays as long as it is needed.
    #[error("spec.healthCheckNodePort: the service has {0} and keeps it")]
    HealthPortChanged(u16),
    /// It is for load balancers with `externalTrafficPolicy: Local`.
    #[error("spec.healthCheckNodePort: {0}: only type LoadBalancer with externalTrafficPolicy Local has one")]
    NoHealthPort(u16),
    /// A node port where the type has none.
    #[error("spec.ports[{index}].nodePort: {port}: only types NodePort and LoadBalancer have node ports")]
    NoNodePort {
        /// Which port of the service.
        index: usize,
        /// The node port.
        port: u16,
    },
    /// A node port that is not to be had.
    #[error("spec.ports[{index}].nodePort: {error}")]
    NodePort {
        /// Which port of the service.
        index: usize,
        /// Why.
        error: NodePortError,
    },
    /// Two ports of one protocol have one node port.
    #[error("spec.ports[{index}].nodePort: {port} is given twice for one protocol")]
    NodePortTwice {
        /// The second of them.
        index: usize,
        /// The node port.
        port: u16,
    },
}

/// What stays where the object says nothing of it: as in Kubernetes, what was allocated is kept when a manifest does not name
/// it. `before` is the service as it was.
pub fn carry_over(wish: &mut ServiceWish, before: &ServiceWish) {
    if wish.kind.has_addresses() && before.kind.has_addresses() {
        if wish.policy.is_none() && wish.families.len() < 2 && wish.addresses.len() < 2 {
            wish.policy = before.policy;
        }
        let one = wish.policy == Some(FamilyPolicy::Single);
        if wish.families.is_empty() && wish.addresses.is_empty() {
            wish.families.clone_from(&before.families);
            wish.addresses.clone_from(&before.addresses);
        } else if wish.addresses.is_empty() {
            wish.addresses.clone_from(&before.addresses);
            wish.addresses.truncate(wish.families.len().max(1));
        } else if wish.addresses.len() == 1 && wish.addresses.first() == before.addresses.first() {
            wish.addresses.clone_from(&before.addresses);
            if wish.families.len() < 2 {
                wish.families.clone_from(&before.families);
            }
        }
        if one {
            wish.families.truncate(1);
            wish.addresses.truncate(1);
        }
    }
    if wish.kind.gets_node_ports() && before.kind.may_have_node_ports() {
        for port in wish.ports.iter_mut().filter(|port| port.node_port == 0) {
            let same = |old: &&ServicePortWish| (old.protocol, old.port) == (port.protocol, port.port);
            port.node_port = before.ports.iter().find(same).map_or(0, |old| old.node_port);
        }
    }
    if wish.kind.needs_health_port() && wish.health_port == 0 && before.kind.needs_health_port() {
        wish.health_port = before.health_port;
    }
    drop_unneeded(wish, before);
}

/// What the type needed before and does not now goes without being asked about, where the object still has it as it was.
fn drop_unneeded(wish: &mut ServiceWish, before: &ServiceWish) {
    if !wish.kind.may_have_node_ports() && before.kind.may_have_node_ports() {
        let had: BTreeSet<u16> = before.ports.iter().map(|port| port.node_port).collect();
        for port in wish.ports.iter_mut().filter(|port| had.contains(&port.node_port)) {
            port.node_port = 0;
        }
    }
    if !wish.kind.needs_health_port() && wish.health_port == before.health_port {
        wish.health_port = 0;
    }
}

/// Gives the service what it asks for and what it needs. `wish` has taken over from `before` ([`carry_over`]); `before` is
/// the service as it was, where it was there.
///
/// # Errors
/// It asks for what is not to be had, for what contradicts itself, or to change what stays.
pub fn allocate(
    mut wish: ServiceWish,
    before: Option<&ServiceWish>,
    held: &ServiceHoldings,
    ranges: &ServiceRanges,
    namespace: &str,
    name: &str,
) -> Result<ServiceWish, ServiceAllocateError> {
    addresses(&mut wish, before, held, ranges, namespace, name)?;
    let used = node_ports(&mut wish, held, ranges, namespace, name)?;
    health_port(&mut wish, before, held, ranges, &used, (namespace, name))?;
    Ok(wish)
}

/// Whether there is nothing left to allocate: every service that was written through [`allocate`] is so.
pub fn is_complete(wish: &ServiceWish) -> bool {
    let addresses = !wish.kind.has_addresses() || !wish.addresses.is_empty();
    let ports = !wish.kind.gets_node_ports() || wish.ports.iter().all(|port| port.node_port != 0);
    addresses && ports && (!wish.kind.needs_health_port() || wish.health_port != 0)
}

/// The node ports that the service holds, its health check's among them.
pub fn ports_of(wish: &ServiceWish) -> BTreeSet<u16> {
    let ports = wish.ports.iter().map(|port| port.node_port);
    ports.chain([wish.health_port]).filter(|port| *port != 0).collect()
}

fn addresses(
    wish: &mut ServiceWish,
    before: Option<&ServiceWish>,
    held: &ServiceHoldings,
    ranges: &ServiceRanges,
    namespace: &str,
    name: &str,
) -> Result<(), ServiceAllocateError> {
    if let Some(before) = before {
        stays(wish, before)?;
    }
    if !wish.kind.has_addresses() {
        wish.addresses.clear();
        if wish.kind == ServiceKind::Headless {
            // Its names have addresses of these families.
            let asked =
                FamilyWish { policy: wish.policy, families: wish.families.clone(), ..FamilyWish::default() };
            let (families, policy) = service_family::families(&asked, &ranges.families())?;
            (wish.families, wish.policy) = (families, Some(policy));
        }
        return Ok(());
    }
    let had = before.filter(|before| before.kind.has_addresses());
    let asked = FamilyWish {
        policy: wish.policy,
        families: wish.families.clone(),
        addresses: wish.addresses.iter().map(Family::of).collect(),
        had: had.and_then(|before| before.addresses.first()).map(Family::of),
    };
    let (families, policy) = service_family::families(&asked, &ranges.families())?;
    let mut given = Vec::with_capacity(families.len());
    for family in &families {
        let Some(range) = ranges.of(*family) else { return Err(FamilyError::NotInCluster(*family).into()) };
        let named = wish.addresses.iter().find(|ip| Family::of(ip) == *family).copied();
        let kept = || {
            let own = held.own_addresses.iter().filter(|ip| range.cidr.contains(*ip));
            own.filter(|ip| !range.reserved.contains(ip)).min().copied()
        };
        given.push(match named {
            Some(ip) => {
                if !held.own_addresses.contains(&ip) {
                    service_ip::check_requested(&range.cidr, &held.addresses, &range.reserved, ip)?;
                }
                ip
            }
            None => match kept() {
                Some(ip) => ip,
                None => service_ip::pick(&range.cidr, &held.addresses, &range.reserved, namespace, name)?,
            },
        });
    }
    (wish.addresses, wish.families, wish.policy) = (given, families, Some(policy));
    Ok(())
}

/// The first address, and that there is none, stay; but a name for a name outside may become a service, and the other way.
fn stays(wish: &ServiceWish, before: &ServiceWish) -> Result<(), ServiceAllocateError> {
    let changed = match (before.kind, wish.kind) {
        (ServiceKind::ExternalName, _) | (_, ServiceKind::ExternalName) => None,
        (ServiceKind::Headless, ServiceKind::Headless) => None,
        (ServiceKind::Headless, _) => Some("None".to_owned()),
        (_, ServiceKind::Headless) => before.addresses.first().map(IpAddr::to_string),
        _ => match (before.addresses.first(), wish.addresses.first()) {
            (Some(had), Some(first)) if had != first => Some(had.to_string()),
            _ => None,
        },
    };
    changed.map_or(Ok(()), |had| Err(ServiceAllocateError::AddressChanged { had }))
}

fn node_ports(
    wish: &mut ServiceWish,
    held: &ServiceHoldings,
    ranges: &ServiceRanges,
    namespace: &str,
    name: &str,
) -> Result<BTreeSet<u16>, ServiceAllocateError> {
    let mut used = BTreeSet::new();
    let mut by_protocol = BTreeSet::new();
    let mut of_port: BTreeMap<u16, u16> = BTreeMap::new();
    for (index, wanted) in wish.ports.iter().enumerate().filter(|(_, wanted)| wanted.node_port != 0) {
        let port = wanted.node_port;
        if !wish.kind.may_have_node_ports() {
            return Err(ServiceAllocateError::NoNodePort { index, port });
        }
        if !by_protocol.insert((wanted.protocol, port)) {
            return Err(ServiceAllocateError::NodePortTwice { index, port });
        }
        if !held.own_ports.contains(&port) {
            node_port::check_requested(&ranges.node_ports, &held.ports, port)
                .map_err(|error| ServiceAllocateError::NodePort { index, error })?;
        }
        used.insert(port);
        of_port.entry(wanted.port).or_insert(port);
    }
    if !wish.kind.gets_node_ports() {
        return Ok(used);
    }
    let asked: BTreeSet<u16> = used.iter().copied().chain([wish.health_port]).collect();
    for (index, port) in wish.ports.iter_mut().enumerate().filter(|(_, port)| port.node_port == 0) {
        // As in Kubernetes: one number for TCP and UDP of one port.
        let shared = of_port.get(&port.port).copied();
        port.node_port = match shared.filter(|shared| by_protocol.insert((port.protocol, *shared))) {
            Some(shared) => shared,
            None => {
                let also = used.union(&asked).copied().collect();
                node_port::pick(&ranges.node_ports, &held.ports, &also, namespace, name)
                    .map_err(|error| ServiceAllocateError::NodePort { index, error })?
            }
        };
        by_protocol.insert((port.protocol, port.node_port));
        used.insert(port.node_port);
        of_port.entry(port.port).or_insert(port.node_port);
    }
    Ok(used)
}

fn health_port(
    wish: &mut ServiceWish,
    before: Option<&ServiceWish>,
    held: &ServiceHoldings,
    ranges: &ServiceRanges,
    used: &BTreeSet<u16>,
    (namespace, name): (&str, &str),
) -> Result<(), ServiceAllocateError> {
    let port = wish.health_port;
    if !wish.kind.needs_health_port() {
        return if port == 0 { Ok(()) } else { Err(ServiceAllocateError::NoHealthPort(port)) };
    }
    let had = before.filter(|before| before.kind.needs_health_port()).map_or(0, |before| before.health_port);
    if had != 0 && port != had {
        return Err(ServiceAllocateError::HealthPortChanged(had));
    }
    if port == 0 {
        wish.health_port = node_port::pick(&ranges.node_ports, &held.ports, used, namespace, name)
            .map_err(ServiceAllocateError::HealthPort)?;
    } else if used.contains(&port) {
        return Err(ServiceAllocateError::HealthPort(NodePortError::Taken(port)));
    } else if !held.own_ports.contains(&port) {
        node_port::check_requested(&ranges.node_ports, &held.ports, port)
            .map_err(ServiceAllocateError::HealthPort)?;
    }
    Ok(())
}
