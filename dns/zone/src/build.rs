// SPDX-License-Identifier: Apache-2.0
//! Which names a service has.
//!
//! | Service | Names |
//! | --- | --- |
//! | with ClusterIPs | A, AAAA of the service; SRV for each named port; PTR for each ClusterIP |
//! | headless | A, AAAA of the service and of each endpoint's own name; SRV for each (endpoint, named port); PTR |
//! | ExternalName | CNAME of the service |
//!
//! A headless service without endpoints has no name: NXDOMAIN, as the specification says and as CoreDNS does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::zone::DNS_SCHEMA_VERSION;
use crate::{
    Name, NameError, RecordData, Srv, ZoneEndpoint, ZoneKind, ZonePort, ZoneProblem, ZoneService, reverse,
};

/// All targets are tried alike (RFC 2782: lower first).
const SRV_PRIORITY: u16 = 0;
/// All targets get the same share.
const SRV_WEIGHT: u16 = 100;

pub(crate) struct Builder<'a> {
    origin: Name,
    /// `svc.<origin>`
    services: Name,
    reverse_cidrs: &'a [IpNet],
    names: BTreeMap<Name, BTreeSet<RecordData>>,
    seen: BTreeSet<(String, String)>,
    problems: Vec<ZoneProblem>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(origin: Name, reverse_cidrs: &'a [IpNet]) -> Result<Self, NameError> {
        let services = origin.child("svc")?;
        let (version, server) = (origin.child("dns-version")?, origin.child("dns")?.child("ns")?);
        origin.child("hostmaster")?;
        let mut builder = Self {
            origin,
            services: services.clone(),
            reverse_cidrs,
            names: BTreeMap::new(),
            seen: BTreeSet::new(),
            problems: Vec::new(),
        };
        builder.touch(&services);
        builder.touch(&server);
        builder.insert(&version, RecordData::Txt(DNS_SCHEMA_VERSION.to_owned()));
        Ok(builder)
    }

    pub(crate) fn add(&mut self, service: &ZoneService) {
        if !self.seen.insert((service.namespace.clone(), service.name.clone())) {
            self.report(service, "given twice: the first one is used".to_owned());
            return;
        }
        let namespace = label(&service.namespace).and_then(|namespace| self.services.child(namespace));
        let name = namespace.and_then(|namespace| {
            self.touch(&namespace);
            label(&service.name).and_then(|name| namespace.child(name))
        });
        let name = match name {
            Ok(name) => name,
            Err(error) => return self.report(service, format!("has no name: {error}")),
        };
        match &service.kind {
            ZoneKind::ClusterIp(ips) => self.add_cluster_ips(service, &name, ips),
            ZoneKind::ExternalName(target) => match Name::parse(target) {
                Ok(target) => self.insert(&name, RecordData::Cname(target)),
                Err(error) => self.report(service, format!("external name: {error}")),
            },
            ZoneKind::Headless => {
                service.endpoints.iter().for_each(|endpoint| self.add_endpoint(service, &name, endpoint));
            }
        }
    }

    pub(crate) fn finish(self) -> (BTreeMap<Name, Vec<RecordData>>, Vec<ZoneProblem>) {
        let names = self.names.into_iter().map(|(name, records)| (name, records.into_iter().collect()));
        (names.collect(), self.problems)
    }

    fn add_cluster_ips(&mut self, service: &ZoneService, name: &Name, ips: &[IpAddr]) {
        // Also without an address yet: the service exists, so the answer is NODATA.
        self.touch(name);
        for ip in ips {
            self.insert(name, RecordData::from(*ip));
            self.insert_ptr(*ip, name);
        }
        if !ips.is_empty() {
            service.ports.iter().for_each(|port| self.insert_srv(service, name, port, name));
        }
    }

    fn add_endpoint(&mut self, service: &ZoneService, name: &Name, endpoint: &ZoneEndpoint) {
        for ip in &endpoint.addresses {
            let own = match &endpoint.hostname {
                Some(hostname) => label(hostname).and_then(|hostname| name.child(hostname)),
                None => name.child(&ip.to_string().replace(['.', ':'], "-")),
            };
            let own = match own {
                Ok(own) => own,
                Err(error) => {
                    self.report(service, format!("endpoint {ip} has no name of its own: {error}"));
                    self.insert(name, RecordData::from(*ip));
                    continue;
                }
            };
            self.insert(name, RecordData::from(*ip));
            self.insert(&own, RecordData::from(*ip));
            self.insert_ptr(*ip, &own);
            endpoint.ports.iter().for_each(|port| self.insert_srv(service, name, port, &own));
        }
    }

    fn insert_srv(&mut self, service: &ZoneService, name: &Name, port: &ZonePort, target: &Name) {
        let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) else { return };
        let owner = label(port_name).and_then(|port_name| {
            name.child(&format!("_{}", port.protocol)).and_then(|name| name.child(&format!("_{port_name}")))
        });
        let srv = Srv { priority: SRV_PRIORITY, weight: SRV_WEIGHT, port: port.port, target: target.clone() };
        match owner {
            Ok(owner) => self.insert(&owner, RecordData::Srv(srv)),
            Err(error) => self.report(service, format!("port {port_name:?} has no name: {error}")),
        }
    }

    fn insert_ptr(&mut self, ip: IpAddr, target: &Name) {
        if self.reverse_cidrs.iter().any(|cidr| cidr.contains(&ip)) {
            self.insert(&reverse::name(ip), RecordData::Ptr(target.clone()));
        }
    }

    fn insert(&mut self, name: &Name, data: RecordData) {
        self.touch(name);
        self.names.entry(name.clone()).or_default().insert(data);
    }

    /// Makes a name and everything between it and the top of its zone exist (RFC 8020: what has something below it
    /// exists).
    fn touch(&mut self, name: &Name) {
        let mut next = Some(name.clone());
        while let Some(name) = next {
            let in_zone =
                name.is_at_or_below(&self.origin) || reverse::apex(&name, self.reverse_cidrs).is_some();
            if !in_zone || self.names.contains_key(&name) {
                return;
            }
            next = name.parent();
            self.names.insert(name, BTreeSet::new());
        }
    }

    fn report(&mut self, service: &ZoneService, reason: String) {
        self.problems
            .push(ZoneProblem { service: format!("{}/{}", service.namespace, service.name), reason });
    }
}

/// A text that is to be one label: a dot in it would make names in other places of the zone.
fn label(text: &str) -> Result<&str, NameError> {
    if text.contains('.') { Err(NameError::LabelWithDot(text.to_owned())) } else { Ok(text) }
}
