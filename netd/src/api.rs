// SPDX-License-Identifier: Apache-2.0
//! The API: HTTP/1.1 and JSON over the Unix socket. The socket is root's (0660); who connects is asked of the kernel
//! (SO_PEERCRED), and only root writes.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use ipam::PoolState;
use netd_api::{ApiError, Empty, REQUEST_BYTES_MAX, paths};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};

use crate::node::Node;
use crate::{
    admin, apply, attach, cluster_config, dns, doctor, inspect, members, removal, services, status, trace,
    tunnel, usage,
};

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// `None` where the kernel would not say: then nobody.
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let stream: &UnixStream = stream.io();
        Self { uid: stream.peer_cred().ok().map(|cred| cred.uid()) }
    }
}

/// Opens the socket; one that a killed netd left is replaced, one that answers belongs to a running netd.
pub(crate) async fn bind(node: &Node) -> Result<UnixListener> {
    let path = node.config.socket();
    if UnixStream::connect(&path).await.is_ok() {
        anyhow::bail!("another netd answers on {}; stop it first", path.display());
    }
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves until `shutdown`; requests under way are finished.
pub(crate) async fn serve(
    node: Arc<Node>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let router = Router::new()
        .route(paths::ALLOCATE, post(allocate))
        .route(paths::COMMIT, post(commit))
        .route(paths::RELEASE, post(release))
        .route(paths::CHECK, post(check))
        .route(paths::STATUS, get(|State(n): State<Arc<Node>>| async move { Json(status::status(&n)) }))
        .route(
            paths::DOCTOR,
            get(|State(n): State<Arc<Node>>| async move { Json(doctor::examine(&n).await) }),
        )
        .route(paths::NODES, get(|State(n): State<Arc<Node>>| async move { Json(status::nodes(&n)) }))
        .route(paths::PODS, get(|State(n): State<Arc<Node>>| async move { Json(status::pods(&n)) }))
        .route(paths::SERVICES, get(|State(n): State<Arc<Node>>| async move { Json(services::list(&n)) }))
        .route(paths::SERVICE, get(service))
        .route(
            paths::FLOWS,
            get(|State(n): State<Arc<Node>>| async move { answer(services::flows(&n, None)) }),
        )
        .route(paths::SERVICE_FLOWS, get(service_flows))
        .route(paths::DNS_QUERY, post(dns_query))
        .route(paths::DNS_QUESTIONS, post(dns_questions))
        .route(paths::APPLY, post(apply_objects))
        .route(paths::DELETE, post(delete_object))
        .route(paths::IPAM, get(|State(n): State<Arc<Node>>| async move { Json(usage::ipam(&n)) }))
        .route(
            paths::IPAM_CHECK,
            get(|State(n): State<Arc<Node>>| async move { answer(inspect::check(&n).await) }),
        )
        .route(paths::IPAM_REPAIR, post(repair))
        .route(paths::POOL_ADD, post(pool_add))
        .route(paths::POOL_DRAIN, post(pool_drain))
        .route(paths::POOL_UNDRAIN, post(pool_undrain))
        .route(paths::POOL_REMOVE, post(pool_remove))
        .route(paths::STICKY_REMOVE, post(sticky_remove))
        .route(paths::NODE_REMOVE, post(node_remove))
        .route(paths::POD_LABEL, post(pod_label))
        .route(
            paths::CONFIG,
            get(|State(n): State<Arc<Node>>| async move { Json(cluster_config::show(&n)) }).post(config_set),
        )
        .route(paths::KEY_ROTATE, post(key_rotate))
        .route(paths::MEMBERS, get(|State(n): State<Arc<Node>>| async move { Json(members::list(&n)) }))
        .route(
            paths::MEMBER,
            get(|State(n): State<Arc<Node>>, Path(name): Path<String>| async move {
                answer(members::show(&n, &name))
            }),
        )
        .route(paths::MEMBER_ADD, post(member_add))
        .route(paths::MEMBER_REMOVE, post(member_remove))
        .fallback(|| async { error(&ApiError::not_found("no such path in this version of the API")) })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .layer(axum::middleware::from_fn(trace::layer))
        .with_state(node)
        .into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await.context("the API server ended")
}

type Answer = Response;

async fn allocate(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(attach::allocate(&node, request).await),
        Err(refused) => error(&refused),
    }
}

async fn commit(State(node): State<Arc<Node>>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(attach::commit(&node, request).await.map(|()| Empty {})),
        Err(refused) => error(&refused),
    }
}

async fn release(State(node): State<Arc<Node>>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(attach::release(&node, request).await.map(|()| Empty {})),
        Err(refused) => error(&refused),
    }
}

async fn check(State(node): State<Arc<Node>>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(attach::check(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

async fn pool_add(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(admin::add_pool(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

async fn pool_drain(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(admin::set_pool_state(&node, &request, PoolState::Draining).await),
        Err(refused) => error(&refused),
    }
}

async fn pool_undrain(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(admin::set_pool_state(&node, &request, PoolState::Active).await),
        Err(refused) => error(&refused),
    }
}

async fn pool_remove(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(admin::remove_pool(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

async fn sticky_remove(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(admin::remove_sticky_name(&node, &request).await.map(|()| Empty {})),
        Err(refused) => error(&refused),
    }
}

async fn config_set(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(cluster_config::set(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

async fn key_rotate(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(tunnel::rotate(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

async fn member_add(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(members::add(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

async fn member_remove(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(members::remove(&node, &request).await.map(|()| Empty {})),
        Err(refused) => error(&refused),
    }
}

async fn node_remove(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(removal::remove(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

async fn pod_label(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(attach::label(&node, &request)),
        Err(refused) => error(&refused),
    }
}

async fn repair(State(node): State<Arc<Node>>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    match request::<Empty>(peer, &body) {
        Ok(_) => answer(inspect::repair(&node).await),
        Err(refused) => error(&refused),
    }
}

async fn service(State(node): State<Arc<Node>>, Path((namespace, name)): Path<(String, String)>) -> Answer {
    answer(services::one(&node, &namespace, &name))
}

async fn service_flows(
    State(node): State<Arc<Node>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Answer {
    answer(services::flows(&node, Some(&lb::ServiceName::new(namespace, name))))
}

/// A question changes nothing: whoever may open the socket may ask.
async fn dns_query(State(node): State<Arc<Node>>, body: Bytes) -> Answer {
    match parsed(&body) {
        Ok(request) => answer(dns::query(&node, &request)),
        Err(refused) => error(&refused),
    }
}

async fn dns_questions(State(node): State<Arc<Node>>, body: Bytes) -> Answer {
    match parsed(&body) {
        Ok(request) => answer(tokio::task::block_in_place(|| dns::questions(&node, &request))),
        Err(refused) => error(&refused),
    }
}

async fn apply_objects(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(apply::apply(&node, request).await),
        Err(refused) => error(&refused),
    }
}

async fn delete_object(
    State(node): State<Arc<Node>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Answer {
    match request(peer, &body) {
        Ok(request) => answer(apply::delete(&node, &request).await),
        Err(refused) => error(&refused),
    }
}

/// A write: root only, and the body must be what the path wants.
fn request<T: DeserializeOwned>(peer: Peer, body: &[u8]) -> Result<T, ApiError> {
    if peer.uid != Some(0) {
        return Err(ApiError::invalid(format!("only root may do this, not uid {:?}", peer.uid)));
    }
    parsed(body)
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("the request body: {e}")))
}

fn answer<T: Serialize>(outcome: Result<T, ApiError>) -> Answer {
    match outcome {
        Ok(value) => Json(value).into_response(),
        Err(refused) => error(&refused),
    }
}

fn error(refused: &ApiError) -> Answer {
    let status =
        StatusCode::from_u16(refused.http_status().as_u16()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if refused.cni_code == netd_api::Code::POOL_EXHAUSTED.0 {
        // Said once for each time that addresses run out, by who gives them; a runtime tries again and again.
        tracing::debug!(%status, "refused: {refused}");
    } else if status.is_server_error() {
        tracing::warn!(%status, class = ?refused.class, "not done: {refused}");
    } else {
        tracing::info!(%status, class = ?refused.class, "refused: {refused}");
    }
    (status, Json(refused.clone())).into_response()
}
