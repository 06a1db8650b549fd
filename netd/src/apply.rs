// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/apply` and `/v1/delete`: objects in Kubernetes' shapes into the store, a Service with what it holds (ClusterIPs,
//! node ports) in one transaction.

mod slices;

use std::sync::Arc;
use std::time::Duration;

use lb::{EndpointSlice, Object, Service, fault_field, parse_object};
use netd_api::{
    ApiError, ApplyAction, ApplyReply, ApplyRequest, ApplyResult, DeleteReply, DeleteRequest, ErrorClass,
    NodePortInfo,
};
use netd_store::claim::{
    ServiceClaimError, ServiceClaims, carried_over, claim_service_among, delete_service, node_ports,
};
use netd_store::records::decode;
use netd_store::{Class, KeyValue, MirrorState, StoreError};

use crate::node::Node;
use crate::{desired, dns, zone};

/// Objects of one request, so that an answer comes before the client's time is over.
const OBJECTS_MAX: usize = 1_000;
/// A write is answered once this node has seen it, so that the next question finds it; longer than this nobody waits.
const SEEN_WAIT: Duration = Duration::from_secs(1);
/// Somebody else may write the same object at the same time; more often than this is a fight.
const TRIES: usize = 5;

/// Writes the objects in order. Validation of all comes before the first write.
pub(crate) async fn apply(node: &Node, request: ApplyRequest) -> Result<ApplyReply, ApiError> {
    if request.objects.len() > OBJECTS_MAX {
        return Err(ApiError::invalid(format!(
            "{} objects in one request, at most {OBJECTS_MAX}; send several",
            request.objects.len()
        )));
    }
    let mut parsed = Vec::with_capacity(request.objects.len());
    for (index, json) in request.objects.into_iter().enumerate() {
        let one = parse_object(json).map_err(|error| {
            ApiError::invalid(error.to_string()).with_details(format!("object {} of the request", index + 1))
        })?;
        if let Object::Service(service) = &one.0 {
            let annotations = &service.metadata.annotations;
            let checked =
                zone::check_annotations(annotations).and_then(|()| dns::check_annotations(annotations));
            checked.map_err(|reason| {
                ApiError::invalid(format!("{}: {reason}", service.display_name()))
                    .with_details(format!("object {} of the request", index + 1))
            })?;
        }
        parsed.push(one);
    }
    let mut claims = None;
    let mut slices = slices::Names::new();
    let mut reply = ApplyReply { results: Vec::with_capacity(parsed.len()), revision: 0 };
    for (object, ignored) in parsed {
        let (name, fault) = match &object {
            Object::EndpointSlice(slice) => (slice.display_name(), None),
            Object::Service(service) => (service.display_name(), fault_field(service)),
        };
        let fault = fault.filter(|_| !node.config.services.fault_injection);
        let (action, revision, given) = match object {
            Object::EndpointSlice(slice) => {
                let written = put_slice(node, &slice).await?;
                if written.0 != ApplyAction::Unchanged {
                    slices.insert((slice.metadata.namespace, slice.metadata.name));
                }
                written
            }
            Object::Service(service) => put_service(node, service, &mut claims).await?,
        };
        reply.revision = reply.revision.max(revision);
        let ignored = ignored.into_iter().chain(fault).map(|field| field.path).collect();
        reply.results.push(result(name, action, ignored, given.as_ref()));
    }
    node.wait_seen(reply.revision, SEEN_WAIT).await;
    if !slices.is_empty() {
        settle_slices(node, &slices, reply.revision).await;
    }
    Ok(reply)
}

/// After the writes up to `revision`: they stand, whatever becomes of this.
async fn settle_slices(node: &Node, slices: &slices::Names, revision: u64) {
    let mirror = current(node).filter(|mirror| mirror.revision >= revision);
    if let Err(error) = slices::settle(node.store.as_ref(), &node.keys, mirror.as_deref(), slices).await {
        tracing::warn!(
            %error,
            "EndpointSlices were applied, but one that was of another Service before may still be there: apply them again"
        );
    }
}

/// With what a Service was given.
fn result(object: String, action: ApplyAction, ignored: Vec<String>, given: Option<&Service>) -> ApplyResult {
    let cluster_ips = given.map(Service::cluster_ips).unwrap_or_default();
    let (ports, health_check_node_port) = given.map(node_ports).unwrap_or_default();
    let port = |(port, protocol, node_port): (u16, lb::Protocol, u16)| NodePortInfo {
        port,
        protocol: protocol.to_string(),
        node_port,
    };
    ApplyResult {
        object,
        action,
        ignored,
        cluster_ip: cluster_ips.first().copied(),
        cluster_ips,
        node_ports: ports.into_iter().map(port).collect(),
        health_check_node_port,
    }
}

type Written = (ApplyAction, u64, Option<Service>);

/// `claims` are read at the first service of a request and serve the others too.
async fn put_service(
    node: &Node,
    wanted: Service,
    claims: &mut Option<ServiceClaims>,
) -> Result<Written, ApiError> {
    let view = node.view.load_full();
    if !view.configured {
        return Err(ApiError::retry("the cluster has no configuration yet; try again"));
    }
    let ranges = view.config.service_ranges();
    let key = node.keys.service(&wanted.metadata.namespace, &wanted.metadata.name);
    for attempt in 0..TRIES {
        let known = known(node, &key, attempt).await?;
        // One that does not read had nothing that could be taken over; its write is compared all the same.
        let before = known
            .as_ref()
            .map(|item| (decode::<Service>(&item.key, &item.value).unwrap_or_default(), item.mod_revision));
        if let Some((before, revision)) = &before
            && carried_over(&wanted, before).is_some_and(|carried| carried == *before)
        {
            if attempt == 0 {
                // "Unchanged" writes nothing, so nothing would notice a mirror that is behind: ask the store.
                continue;
            }
            return Ok((ApplyAction::Unchanged, *revision, Some(before.clone())));
        }
        let claims = match claims {
            Some(claims) => claims,
            None => claims
                .insert(ServiceClaims::read(node.store.as_ref(), &node.keys).await.map_err(store_error)?),
        };
        let (store, seen) = (node.store.as_ref(), before.as_ref().map(|(before, at)| (before, *at)));
        match claim_service_among(store, &node.keys, &ranges, claims, wanted.clone(), seen).await {
            Ok(stored) => {
                let action = if seen.is_none() { ApplyAction::Created } else { ApplyAction::Configured };
                return Ok((action, stored.revision, Some(stored.service)));
            }
            Err(ServiceClaimError::ServiceChanged { .. }) => {}
            Err(error) => return Err(claim_error(&wanted.display_name(), &error)),
        }
    }
    Err(ApiError::retry(format!("{} is being changed by somebody else; try again", wanted.display_name())))
}

/// The object as the mirror has it, which saves a round trip and is usually current; the write compares, and when it
/// finds the mirror behind, the store itself is asked.
async fn known(node: &Node, key: &str, attempt: usize) -> Result<Option<KeyValue>, ApiError> {
    let mirror = node.mirror.borrow().clone();
    if attempt == 0 && mirror.in_sync && mirror.connected {
        return Ok(mirror.items.get(key).map(|item| KeyValue::clone(item)));
    }
    node.store.get(key).await.map_err(store_error)
}

async fn put_slice(node: &Node, slice: &EndpointSlice) -> Result<Written, ApiError> {
    slices::put(node.store.as_ref(), &node.keys, current(node).as_deref(), slice).await
}

/// The mirror, while it is not known to be behind.
fn current(node: &Node) -> Option<Arc<MirrorState>> {
    let mirror = node.mirror.borrow().clone();
    (mirror.in_sync && mirror.connected).then_some(mirror)
}

/// Deletes one object; absent is fine.
pub(crate) async fn delete(node: &Node, request: &DeleteRequest) -> Result<DeleteReply, ApiError> {
    let (namespace, name) = (request.namespace.as_str(), request.name.as_str());
    match request.kind.to_ascii_lowercase().as_str() {
        "service" | "services" | "svc" => {
            let gone = delete_service(node.store.as_ref(), &node.keys, namespace, name).await;
            let gone = gone.map_err(|error| claim_error(&format!("Service {namespace}/{name}"), &error))?;
            if gone.is_none() && node.view.load().table.find(namespace, name).is_some_and(is_built_in) {
                return Err(ApiError::invalid(format!(
                    "Service {namespace}/{name} is built in; it cannot be deleted"
                )));
            }
            node.wait_seen(gone.unwrap_or(0), SEEN_WAIT).await;
            Ok(DeleteReply { revision: gone.unwrap_or(0), existed: gone.is_some() })
        }
        "endpointslice" | "endpointslices" => delete_slice(node, namespace, name).await,
        other => {
            Err(ApiError::invalid(format!("kind {other:?} is not known here; Service and EndpointSlice are")))
        }
    }
}

/// The cluster's DNS as netd provides it: its backend is no endpoint of the store.
fn is_built_in(entry: &lb::ServiceEntry) -> bool {
    entry.backends.iter().any(|backend| backend.verdict.source == desired::OWN_SERVER)
}

async fn delete_slice(node: &Node, namespace: &str, name: &str) -> Result<DeleteReply, ApiError> {
    let store = node.store.as_ref();
    let gone = slices::delete(store, &node.keys, namespace, name).await?;
    node.wait_seen(gone.unwrap_or(0), SEEN_WAIT).await;
    Ok(DeleteReply { revision: gone.unwrap_or(0), existed: gone.is_some() })
}

fn claim_error(object: &str, error: &ServiceClaimError) -> ApiError {
    ApiError::new(class(error.class()), format!("{object}: {error}"))
}

fn store_error(error: StoreError) -> ApiError {
    ApiError::new(class(error.class()), format!("the store: {error}"))
}

fn class(class: Class) -> ErrorClass {
    match class {
        Class::Conflict => ErrorClass::Conflict,
        Class::Fatal => ErrorClass::Fatal,
        Class::Invalid => ErrorClass::Invalid,
        Class::Retry => ErrorClass::Retry,
    }
}
