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

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::entry::{Addressed, Endpoints, Entry, Kind, NamedPort, Ports, label};
use crate::sink::{IP_LABEL_MAX, ip_label};
use crate::syntax::is_plain_label;
use crate::{Name, NameError, ZoneEndpoint, ZoneKind, ZonePort, ZoneService};

type Report<'a> = &'a mut dyn FnMut(String);

/// `None` where nothing of it can be named.
pub(crate) fn entry(service: &ZoneService, name: Arc<Name>, report: Report<'_>) -> Option<Entry> {
    let mut ips = BTreeSet::new();
    let kind = match &service.kind {
        ZoneKind::ClusterIp(cluster_ips) => {
            ips.extend(cluster_ips);
            Kind::ClusterIp { ports: named(&service.ports, &name, report) }
        }
        ZoneKind::ExternalName(target) => match Name::parse(target) {
            Ok(target) => Kind::ExternalName(target),
            Err(error) => {
                report(format!("external name: {error}"));
                return None;
            }
        },
        ZoneKind::Headless => {
            ips.extend(service.endpoints.iter().flat_map(|endpoint| &endpoint.addresses));
            Kind::Headless(endpoints(&service.endpoints, &name, report))
        }
    };
    let v4 = ips.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
    let v6 = ips.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
    Some(Entry {
        kind,
        v4: v4.collect(),
        v6: v6.collect(),
        views: service.views.clone(),
        left_out: service.left_out.as_slice().into(),
        aliases: aliases(service, &name, report),
        name,
    })
}

fn endpoints(endpoints: &[ZoneEndpoint], name: &Name, report: Report<'_>) -> Endpoints {
    let mut all = Vec::with_capacity(endpoints.len());
    let mut last: Option<(&[ZonePort], Ports)> = None;
    for endpoint in endpoints {
        // Most have the same ports.
        let ports = match last {
            Some((known, ports)) if *known == *endpoint.ports => ports,
            _ => named(&endpoint.ports, name, report),
        };
        for ip in &endpoint.addresses {
            match host(endpoint.hostname.as_deref(), *ip, name) {
                Ok(host) => all.push(Addressed { host, ip: *ip, ports: ports.clone() }),
                Err(error) => report(format!("endpoint {ip} has no name of its own: {error}")),
            }
        }
        last = Some((endpoint.ports.as_slice(), ports));
    }
    Endpoints::new(all)
}

/// First label of an endpoint's name, in lower case; `None` where it is made of the address.
fn host(hostname: Option<&str>, ip: IpAddr, name: &Name) -> Result<Option<Box<[u8]>>, NameError> {
    let mut buffer = [0; IP_LABEL_MAX];
    let text = match hostname {
        Some(host) => label(host)?.as_bytes(),
        None => ip_label(ip, &mut buffer),
    };
    if !name.has_room(&[text.len()]) {
        name.child(&String::from_utf8_lossy(text))?;
    }
    Ok(hostname.map(|_| text.to_ascii_lowercase().into()))
}

fn named(ports: &[ZonePort], name: &Name, report: Report<'_>) -> Ports {
    let mut known = BTreeSet::new();
    for port in ports {
        let Some(text) = port.name.as_deref().filter(|text| !text.is_empty()) else { continue };
        let owner = label(text).and_then(|text| {
            let protocol = format!("_{}", port.protocol);
            if name.has_room(&[protocol.len(), 1 + text.len()]) {
                return Ok(());
            }
            name.child(&protocol)?.child(&format!("_{text}")).map(|_| ())
        });
        match owner {
            Ok(()) => drop(known.insert(NamedPort {
                protocol: port.protocol,
                name: text.to_ascii_lowercase().into_bytes().into(),
                port: port.port,
            })),
            Err(error) => report(format!("port {text:?} has no name: {error}")),
        }
    }
    known.into_iter().collect()
}

/// `NAME` lies in the service's own namespace, `NAME.NAMESPACE` in another.
fn aliases(service: &ZoneService, name: &Name, report: Report<'_>) -> Box<[Name]> {
    let namespace = name.parent().unwrap_or_else(Name::root);
    let services = namespace.parent().unwrap_or_else(Name::root);
    let alias = |text: &str| -> Result<Name, String> {
        let alias = || match text.split_once('.') {
            None => namespace.child(text),
            Some((own, namespace)) => services.child(label(namespace)?)?.child(own),
        };
        let alias = alias().map_err(|error| error.to_string())?;
        if text.split('.').all(is_plain_label) {
            Ok(alias)
        } else {
            Err("has other than letters, digits, '-' and '_' (a comma is missing?)".to_owned())
        }
    };
    let mut made = BTreeSet::new();
    for text in &service.aliases {
        match alias(text) {
            Ok(alias) if alias == *name => {}
            Ok(alias) => drop(made.insert(alias.to_lower())),
            Err(error) => report(format!("alias {text:?}: {error}; write NAME or NAME.NAMESPACE")),
        }
    }
    made.into_iter().collect()
}
