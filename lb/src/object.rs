// SPDX-License-Identifier: Apache-2.0
//! From JSON to a checked object, with every ignored field by name.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kubernetes::Metadata;
use crate::shape::{Field, Mismatch, Shape};
use crate::{
    EndpointSlice, IgnoredField, ObjectError, Service, extras, fields, shape, validate, validate_service,
};

/// Namespace of an object whose manifest names none.
const DEFAULT_NAMESPACE: &str = "default";

/// An object that Weft understands. Displays as `Service default/web`.
#[allow(clippy::large_enum_variant, reason = "one at a time, between a manifest and the store")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice(EndpointSlice),
    /// `v1` `Service`.
    Service(Service),
}

impl Object {
    /// `Service` or `EndpointSlice`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::Service(_) => "Service",
        }
    }

    /// Name, namespace, labels, annotations.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::Service(service) => &service.metadata,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metadata = self.metadata();
        write!(f, "{} {}/{}", self.kind(), metadata.namespace, metadata.name)
    }
}

/// Reads one object as Kubernetes writes it, fills in the namespace, and checks types, ranges and what the fields
/// say together.
///
/// Returns the paths of all fields that nothing here acts upon, sorted by their place in the object. They are kept
/// in the object.
///
/// # Errors
/// The first thing that is wrong, with object and field path. Unknown kinds are errors.
pub fn parse_object(mut json: Value) -> Result<(Object, Vec<IgnoredField>), ObjectError> {
    shape::strip_nulls(&mut json);
    let api_version = text_at(&json, "/apiVersion").unwrap_or_default().to_owned();
    let kind = text_at(&json, "/kind").unwrap_or_default().to_owned();
    let mut ignored = Vec::new();
    let object = match (api_version.as_str(), kind.as_str()) {
        ("v1", "Service") => {
            let mut service: Service = read(&json, "Service", fields::SERVICE, &mut ignored)?;
            default_namespace(&mut service.metadata);
            // As in Kubernetes, 0 is the same as not given.
            service.spec.health_check_node_port.take_if(|port| *port == 0);
            for port in &mut service.spec.ports {
                port.node_port.take_if(|port| *port == 0);
            }
            validate_service::check(&service)?;
            without_effect(&service, &mut ignored);
            Object::Service(service)
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let mut slice: EndpointSlice =
                read(&json, "EndpointSlice", fields::ENDPOINT_SLICE, &mut ignored)?;
            default_namespace(&mut slice.metadata);
            validate::slice(&slice)?;
            // All addresses of one endpoint reach the same backend, so the first is enough.
            for (index, _) in slice.endpoints.iter().enumerate().filter(|(_, e)| e.addresses.len() > 1) {
                ignored.push(IgnoredField { path: format!("endpoints[{index}].addresses[1]") });
            }
            Object::EndpointSlice(slice)
        }
        _ => {
            let kind_shown = if kind.is_empty() { "(no kind)" } else { &kind };
            let version_shown = if api_version.is_empty() { "(none)" } else { &api_version };
            return Err(ObjectError {
                object: object_name(&json, kind_shown),
                field: "kind".to_owned(),
                reason: format!(
                    "apiVersion {version_shown} kind {kind_shown} is not supported; use v1 Service or \
                     discovery.k8s.io/v1 EndpointSlice"
                ),
            });
        }
    };
    let is_service = matches!(object, Object::Service(_));
    extras::check(&object.metadata().annotations, is_service, &mut ignored)
        .map_err(|mismatch| with_object(object.to_string(), mismatch))?;
    Ok((object, ignored))
}

fn read<T: DeserializeOwned>(
    json: &Value,
    kind: &str,
    fields: &'static [Field],
    ignored: &mut Vec<IgnoredField>,
) -> Result<T, ObjectError> {
    shape::check(json, Shape::Object(fields), "", ignored)
        .map_err(|mismatch| with_object(object_name(json, kind), mismatch))?;
    // The shapes above are stricter than the types, so this fails only where the two disagree.
    T::deserialize(json).map_err(|error| ObjectError {
        object: object_name(json, kind),
        field: "(the whole object)".to_owned(),
        reason: error.to_string(),
    })
}

/// Fields that say something only to Services of another type.
fn without_effect(service: &Service, ignored: &mut Vec<IgnoredField>) {
    let mut ignore = |path: &str, is_set: bool| {
        if is_set {
            ignored.push(IgnoredField { path: path.to_owned() });
        }
    };
    let spec = &service.spec;
    if service.is_headless() || service.is_external_name() {
        ignore("spec.sessionAffinity", spec.session_affinity == "ClientIP");
        ignore("spec.internalTrafficPolicy", spec.internal_traffic_policy == "Local");
        ignore("spec.externalIPs", !spec.external_ips.is_empty());
    }
    let balanced = service.kind() == "LoadBalancer";
    ignore(
        "spec.allocateLoadBalancerNodePorts",
        spec.allocate_load_balancer_node_ports.is_some() && !balanced,
    );
    ignore("status.loadBalancer", !service.status.load_balancer.ingress.is_empty() && !balanced);
}

fn default_namespace(metadata: &mut Metadata) {
    if metadata.namespace.is_empty() {
        DEFAULT_NAMESPACE.clone_into(&mut metadata.namespace);
    }
}

fn object_name(json: &Value, kind: &str) -> String {
    let namespace = text_at(json, "/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE);
    let name = text_at(json, "/metadata/name").unwrap_or("(no name)");
    format!("{kind} {namespace}/{name}")
}

fn text_at<'a>(json: &'a Value, pointer: &str) -> Option<&'a str> {
    json.pointer(pointer)?.as_str()
}

fn with_object(object: String, mismatch: Mismatch) -> ObjectError {
    ObjectError { object, field: mismatch.field, reason: mismatch.reason }
}
