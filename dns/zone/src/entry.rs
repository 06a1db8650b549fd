// SPDX-License-Identifier: Apache-2.0
//! One service as it is asked for: small, and found in without a search through names that are not stored. The names of a
//! service (SRV, endpoints) follow from it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::sink::{Label, NameRef, ip_of_label};
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
pub(crate) type Ports = Box<[NamedPort]>;

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
    /// By host, then by address; those without a host last.
    pub(crate) all: Box<[Endpoint]>,
    /// Sorted, in lower case.
    pub(crate) hosts: Box<[Box<[u8]>]>,
    /// Few: most endpoints have the same.
    ports: Box<[Ports]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    /// Index, or [`NO_HOST`].
    pub(crate) host: u32,
    pub(crate) ip: IpAddr,
    ports: u32,
}

impl Entry {
    /// Addresses with a PTR record, each once, sorted.
    pub(crate) fn named_ips(&self) -> BTreeSet<IpAddr> {
        match &self.kind {
            Kind::ClusterIp { .. } => self.ips().collect(),
            Kind::ExternalName(_) => BTreeSet::new(),
            Kind::Headless(endpoints) => endpoints.all.iter().map(|endpoint| endpoint.ip).collect(),
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
        own.iter().chain(of_endpoints.iter().flatten())
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
    pub(crate) fn new(all: Vec<Addressed>) -> Self {
        let hosts: BTreeSet<&[u8]> = all.iter().filter_map(|one| one.host.as_deref()).collect();
        let hosts: Box<[Box<[u8]>]> = hosts.into_iter().map(Into::into).collect();
        let ports: BTreeSet<&Ports> = all.iter().map(|one| &one.ports).collect();
        let ports: Box<[Ports]> = ports.into_iter().cloned().collect();
        let index = |found: Result<usize, usize>| found.map_or(NO_HOST, |index| index as u32);
        let endpoint = |one: &Addressed| Endpoint {
            host: one.host.as_ref().map_or(NO_HOST, |host| index(hosts.binary_search(host))),
            ip: one.ip,
            ports: index(ports.binary_search(&one.ports)),
        };
        let sorted: BTreeSet<Endpoint> = all.iter().map(endpoint).collect();
        Self { all: sorted.into_iter().collect(), hosts, ports }
    }

    pub(crate) fn ports(&self, endpoint: &Endpoint) -> &[NamedPort] {
        self.ports.get(endpoint.ports as usize).map_or(&[], |ports| ports)
    }

    /// All that share a host with the endpoint at `index`, or it alone.
    pub(crate) fn same_name(&self, index: usize) -> &[Endpoint] {
        let Some(one) = self.all.get(index) else { return &[] };
        let same = |other: &Endpoint| other.host == one.host && (one.host != NO_HOST || other.ip == one.ip);
        let begin = self.all[..index].iter().rev().take_while(|other| same(other)).count();
        let end = self.all[index..].iter().take_while(|other| same(other)).count();
        &self.all[index - begin..index + end]
    }

    fn of_label(&self, label: &[u8]) -> &[Endpoint] {
        let of_host = |host: u32| {
            let begin = self.all.partition_point(|endpoint| endpoint.host < host);
            let end = self.all.partition_point(|endpoint| endpoint.host <= host);
            &self.all[begin..end]
        };
        if let Ok(host) = self.hosts.binary_search_by(|host| (**host).cmp(label)) {
            return of_host(host as u32);
        }
        let mut buffer = [0; 40];
        let is_its_label = |ip: &IpAddr| crate::sink::ip_label(*ip, &mut buffer) == label;
        let Some(ip) = ip_of_label(label).filter(is_its_label) else { return &[] };
        let unnamed = of_host(NO_HOST);
        let begin = unnamed.partition_point(|endpoint| endpoint.ip < ip);
        let end = unnamed.partition_point(|endpoint| endpoint.ip <= ip);
        &unnamed[begin..end]
    }
}

/// A text that is to be one label: a dot in it would make names in other places of the zone.
pub(crate) fn label(text: &str) -> Result<&str, NameError> {
    if text.contains('.') { Err(NameError::LabelWithDot(text.to_owned())) } else { Ok(text) }
}
