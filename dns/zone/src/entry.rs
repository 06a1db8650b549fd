// SPDX-License-Identifier: Apache-2.0
//! One service as it is asked for: small, and found in without a search through names that are not stored. The names of a
//! service (SRV, endpoints) follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::sink::{IP_LABEL_MAX, Label, NameRef, ip_label, ip_of_label};
use crate::{LeftOut, Name, NameError, Views, ZoneProtocol};

/// Of an endpoint without a hostname.
pub(crate) const NO_HOST: u32 = u32::MAX;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// In lower case.
    pub(crate) name: Arc<Name>,
    pub(crate) kind: Kind,
    /// What the name answers: ClusterIPs or all endpoints, sorted, each once.
    pub(crate) v4: Box<[Ipv4Addr]>,
    pub(crate) v6: Box<[Ipv6Addr]>,
    pub(crate) views: Option<Views>,
    pub(crate) left_out: Box<[LeftOut]>,
    /// In lower case.
    pub(crate) aliases: Box<[Name]>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp { ports: Ports },
    ExternalName(Name),
    Headless(Endpoints),
}

/// Ports with names.
pub(crate) type Ports = Arc<[NamedPort]>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NamedPort {
    pub(crate) protocol: ZoneProtocol,
    /// In lower case, without the underscore.
    pub(crate) name: Box<[u8]>,
    pub(crate) port: u16,
}

/// One address of an endpoint on the way to [`Endpoints`].
#[derive(Debug)]
pub(crate) struct Addressed {
    /// In lower case.
    pub(crate) host: Option<Box<[u8]>>,
    pub(crate) ip: IpAddr,
    pub(crate) ports: Ports,
}

/// Endpoints with names of their own.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    /// By host, then by address, each once; those without a host last.
    pub(crate) all: Box<[Endpoint]>,
    /// Sorted, in lower case. Each has endpoints.
    hosts: Box<[Box<[u8]>]>,
    /// Those with a host, by address.
    hosted: Box<[u32]>,
    /// Few: most endpoints have the same.
    ports: Box<[Ports]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Index, or [`NO_HOST`].
    host: u32,
    pub(crate) ip: IpAddr,
    /// Those of all endpoints of its name.
    ports: u32,
}

impl Entry {
    /// Addresses with a PTR record, each once, sorted.
    pub(crate) fn named_ips(&self) -> Vec<IpAddr> {
        match &self.kind {
            Kind::ClusterIp { .. } => self.ips().collect(),
            Kind::ExternalName(_) => Vec::new(),
            Kind::Headless(endpoints) => {
                let mut ips: Vec<IpAddr> = endpoints.all.iter().map(|endpoint| endpoint.ip).collect();
                ips.sort_unstable();
                ips.dedup();
                ips
            }
        }
    }

    pub(crate) fn ips(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.v6.iter().copied().map(IpAddr::V6))
    }

    /// Whether its name is there: a headless service has one as long as it has an address.
    pub(crate) fn exists(&self) -> bool {
        !matches!(self.kind, Kind::Headless(_)) || !self.v4.is_empty() || !self.v6.is_empty()
    }

    /// Its named ports, of whichever endpoint.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &NamedPort> {
        let (own, of_endpoints) = match &self.kind {
            // No address, nothing to be located.
            Kind::ClusterIp { ports } if !(self.v4.is_empty() && self.v6.is_empty()) => (&ports[..], &[][..]),
            Kind::Headless(endpoints) => (&[][..], &endpoints.ports[..]),
            _ => (&[][..], &[][..]),
        };
        own.iter().chain(of_endpoints.iter().flat_map(|ports| ports.iter()))
    }

    /// The endpoints that `label` names.
    pub(crate) fn endpoints(&self, label: &[u8]) -> &[Endpoint] {
        let Kind::Headless(endpoints) = &self.kind else { return &[] };
        endpoints.of_label(label)
    }

    /// The own name of an endpoint.
    pub(crate) fn endpoint_name(&self, endpoint: &Endpoint) -> NameRef<'_> {
        let label = match &self.kind {
            Kind::Headless(endpoints) => match endpoints.hosts.get(endpoint.host as usize) {
                Some(host) => Label::Text(host),
                None => Label::Ip(endpoint.ip),
            },
            _ => Label::None,
        };
        NameRef { label, rest: self.name.as_wire() }
    }
}

impl Endpoints {
    pub(crate) fn new(mut addressed: Vec<Addressed>) -> Self {
        addressed.sort_by(|a, b| (a.host.is_none(), &a.host, a.ip).cmp(&(b.host.is_none(), &b.host, b.ip)));
        let has_same_name =
            |a: &Addressed, b: &Addressed| a.host == b.host && (a.host.is_some() || a.ip == b.ip);
        let (mut all, mut hosts, mut ports) = (Vec::with_capacity(addressed.len()), Vec::new(), Vec::new());
        let mut known: BTreeMap<Ports, u32> = BTreeMap::new();
        let mut last: Option<(Ports, u32)> = None;
        for same in addressed.chunk_by(has_same_name) {
            let Some(first) = same.first() else { continue };
            let of_name = union(same, &first.ports);
            let index = match &last {
                Some((last, index)) if Arc::ptr_eq(last, &of_name) => *index,
                _ => *known.entry(of_name.clone()).or_insert_with(|| {
                    ports.push(of_name.clone());
                    (ports.len() - 1) as u32
                }),
            };
            last = Some((of_name, index));
            let host = first.host.as_ref().map_or(NO_HOST, |host| {
                hosts.push(host.clone());
                (hosts.len() - 1) as u32
            });
            for one in same {
                if all.last().is_none_or(|last: &Endpoint| (last.host, last.ip) != (host, one.ip)) {
                    all.push(Endpoint { host, ip: one.ip, ports: index });
                }
            }
        }
        let unhosted = all.partition_point(|endpoint| endpoint.host < NO_HOST);
        let mut hosted: Vec<u32> = (0..unhosted as u32).collect();
        // Stable: by host where the address is the same.
        hosted.sort_by_key(|index| all[*index as usize].ip);
        Self { all: all.into(), hosts: hosts.into(), hosted: hosted.into(), ports: ports.into() }
    }

    /// How many names there are.
    pub(crate) fn names(&self) -> usize {
        self.hosts.len() + self.unhosted().len()
    }

    /// The endpoints of one name, by address.
    pub(crate) fn named(&self, index: usize) -> &[Endpoint] {
        match index.checked_sub(self.hosts.len()) {
            None => self.of_host(index as u32),
            Some(index) => self.unhosted().get(index).map_or(&[], std::slice::from_ref),
        }
    }

    /// Those that have an address: with hosts, each once, and without.
    pub(crate) fn of_ip(&self, ip: IpAddr) -> (impl Iterator<Item = &Endpoint> + Clone, Option<&Endpoint>) {
        let ip_of = |index: &u32| self.all[*index as usize].ip;
        let from = self.hosted.partition_point(|index| ip_of(index) < ip);
        let hosted = self.hosted[from..].iter().map(|index| &self.all[*index as usize]);
        let unhosted = self.unhosted();
        let place = unhosted.binary_search_by(|endpoint| endpoint.ip.cmp(&ip));
        (hosted.take_while(move |endpoint| endpoint.ip == ip), place.ok().map(|place| &unhosted[place]))
    }

    pub(crate) fn ports(&self, endpoint: &Endpoint) -> &[NamedPort] {
        self.ports.get(endpoint.ports as usize).map_or(&[], |ports| ports)
    }

    fn unhosted(&self) -> &[Endpoint] {
        &self.all[self.hosted.len()..]
    }

    fn of_host(&self, host: u32) -> &[Endpoint] {
        let begin = self.all.partition_point(|endpoint| endpoint.host < host);
        let end = self.all.partition_point(|endpoint| endpoint.host <= host);
        &self.all[begin..end]
    }

    fn of_label(&self, label: &[u8]) -> &[Endpoint] {
        if let Ok(host) = self.hosts.binary_search_by(|host| (**host).cmp(label)) {
            return self.of_host(host as u32);
        }
        let mut buffer = [0; IP_LABEL_MAX];
        let is_its_label = |ip: &IpAddr| ip_label(*ip, &mut buffer) == label;
        let Some(ip) = ip_of_label(label).filter(is_its_label) else { return &[] };
        self.of_ip(ip).1.map_or(&[], std::slice::from_ref)
    }
}

/// The ports of all endpoints of one name.
fn union(same: &[Addressed], first: &Ports) -> Ports {
    if same.iter().all(|one| Arc::ptr_eq(&one.ports, first) || one.ports == *first) {
        return first.clone();
    }
    let all: BTreeSet<&NamedPort> = same.iter().flat_map(|one| one.ports.iter()).collect();
    all.into_iter().cloned().collect()
}

/// A text that is to be one label: a dot in it would make names in other places of the zone.
pub(crate) fn label(text: &str) -> Result<&str, NameError> {
    if text.contains('.') { Err(NameError::LabelWithDot(text.to_owned())) } else { Ok(text) }
}
