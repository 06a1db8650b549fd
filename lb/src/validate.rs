// SPDX-License-Identifier: Apache-2.0
//! What the fields of an EndpointSlice must say, each alone and together, and what names and addresses look like; after
//! Kubernetes' own validation.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::kubernetes::{LABEL_SERVICE_NAME, Metadata};
use crate::{Endpoint, EndpointSlice, ObjectError};

/// As in Kubernetes: bounds what one object can cost.
const MAX_ENDPOINTS: usize = 1_000;
/// As in Kubernetes: ports of one slice, and of one Service here.
pub(crate) const MAX_PORTS: usize = 100;
/// As in Kubernetes: addresses of one endpoint.
const MAX_ADDRESSES: usize = 100;
/// RFC 1035: longest label.
const MAX_LABEL: usize = 63;
/// RFC 1035: longest name in text form.
const MAX_NAME: usize = 253;
/// RFC 6335: longest service name.
const MAX_PORT_NAME: usize = 15;

/// Field and reason.
pub(crate) type Check = Result<(), (String, String)>;

/// Checks an EndpointSlice, wherever it came from.
pub(crate) fn slice(slice: &EndpointSlice) -> Result<(), ObjectError> {
    check_slice(slice).map_err(|(field, reason)| ObjectError {
        object: name_or_placeholder("EndpointSlice", &slice.metadata),
        field,
        reason,
    })
}

fn check_slice(slice: &EndpointSlice) -> Check {
    subdomain("metadata.name", &slice.metadata.name)?;
    label("metadata.namespace", &slice.metadata.namespace)?;
    let label_field = format!("metadata.labels[{LABEL_SERVICE_NAME:?}]");
    match slice.service_name() {
        None => {
            return fail(
                &label_field,
                "missing: it names the Service that the endpoints belong to".to_owned(),
            );
        }
        Some(service) => label(&label_field, service)?,
    }
    let family = slice.address_type.as_str();
    if !["FQDN", "IPv4", "IPv6"].contains(&family) {
        return fail("addressType", format!("{family:?} is not one of IPv4, IPv6, FQDN"));
    }
    if slice.endpoints.len() > MAX_ENDPOINTS {
        return fail("endpoints", format!("{} endpoints; at most {MAX_ENDPOINTS}", slice.endpoints.len()));
    }
    if slice.ports.len() > MAX_PORTS {
        return fail("ports", format!("{} ports; at most {MAX_PORTS} are allowed", slice.ports.len()));
    }
    let mut names = BTreeSet::new();
    for (index, port) in slice.ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            label(&format!("ports[{index}].name"), name)?;
        }
        if !names.insert(name) {
            return fail(&format!("ports[{index}].name"), format!("{name:?} is used by two ports"));
        }
        if port.port == Some(0) {
            return fail(&format!("ports[{index}].port"), "0 is not in 1..=65535".to_owned());
        }
    }
    let mut endpoints = slice.endpoints.iter().enumerate();
    endpoints
        .try_for_each(|(index, endpoint)| check_endpoint(&format!("endpoints[{index}]"), endpoint, family))
}

fn check_endpoint(at: &str, endpoint: &Endpoint, family: &str) -> Check {
    let field = format!("{at}.addresses");
    if endpoint.addresses.is_empty() || endpoint.addresses.len() > MAX_ADDRESSES {
        let count = endpoint.addresses.len();
        return fail(&field, format!("{count} addresses; between 1 and {MAX_ADDRESSES} are allowed"));
    }
    for (index, text) in endpoint.addresses.iter().enumerate().filter(|_| family != "FQDN") {
        let field = format!("{field}[{index}]");
        let ip = address(&field, text)?;
        if ip.is_ipv4() != (family == "IPv4") {
            return fail(&field, format!("{text} is not an {family} address, as addressType says"));
        }
    }
    let hints = endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().chain(&hints.for_nodes));
    for hint in hints {
        if hint.name.is_empty() {
            return fail(&format!("{at}.hints"), "a zone or node without a name".to_owned());
        }
    }
    match endpoint.hostname.as_deref() {
        Some(hostname) => label(&format!("{at}.hostname"), hostname),
        None => Ok(()),
    }
}

/// An address that can belong to a backend or a Service: not unspecified, loopback, link-local, multicast or
/// broadcast. A loopback backend would send a client to itself.
pub(crate) fn address(field: &str, text: &str) -> Result<IpAddr, (String, String)> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        return Err((field.to_owned(), format!("{text:?} is not an IP address")));
    };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local {
        let reason = "is loopback, link-local, multicast, IPv4-mapped or unspecified, and cannot be reached from other hosts";
        return Err((field.to_owned(), format!("{text} {reason}")));
    }
    Ok(ip)
}

/// No single host answers there.
pub(crate) fn is_multicast_or_unspecified(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    ip.is_multicast() || ip.is_unspecified() || broadcast
}

pub(crate) fn label(field: &str, text: &str) -> Check {
    if is_label(text) {
        return Ok(());
    }
    if text.is_empty() {
        return fail(field, "missing".to_owned());
    }
    let rule = "is not a DNS label: at most 63 of a-z, 0-9 and -, with a letter or digit at both ends";
    fail(field, format!("{text:?} {rule}"))
}

pub(crate) fn subdomain(field: &str, text: &str) -> Check {
    if text.is_empty() {
        return fail(field, "missing".to_owned());
    }
    if text.len() <= MAX_NAME && text.split('.').all(is_label) {
        return Ok(());
    }
    fail(
        field,
        format!("{text:?} is not a DNS name: at most {MAX_NAME} characters, labels of a-z, 0-9 and -"),
    )
}

pub(crate) fn port_name(field: &str, text: &str) -> Check {
    let short = (1..=MAX_PORT_NAME).contains(&text.len());
    if short && is_label(text) && text.bytes().any(|b| b.is_ascii_lowercase()) && !text.contains("--") {
        return Ok(());
    }
    let rule =
        "is neither a number in 1..=65535 nor a port name: at most 15 of a-z, 0-9 and -, with a letter";
    fail(field, format!("{text:?} {rule}"))
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub(crate) fn name_or_placeholder(kind: &str, metadata: &Metadata) -> String {
    let name = if metadata.name.is_empty() { "(no name)" } else { &metadata.name };
    format!("{kind} {}/{name}", metadata.namespace)
}

pub(crate) fn fail(field: &str, reason: String) -> Check {
    Err((field.to_owned(), reason))
}
