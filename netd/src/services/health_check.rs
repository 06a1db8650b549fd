// SPDX-License-Identifier: Apache-2.0
//! `spec.healthCheckNodePort`: where a load balancer asks each node whether it has ready backends of a service with
//! `externalTrafficPolicy: Local`. Answers as kube-proxy does: 200 or 503, the number of local endpoints in the body and in a
//! header by which load balancers may weigh nodes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lb::ServiceName;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::status;

/// The table may change without anybody waking this task.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Load balancers ask by new connections, a handful a second.
const BACKLOG: i32 = 128;

/// A port that is served.
struct Served {
    name: ServiceName,
    stop: CancellationToken,
}

/// Serves every service's port; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut served: BTreeMap<u16, Served> = BTreeMap::new();
    let mut refused: BTreeMap<u16, String> = BTreeMap::new();
    loop {
        let wanted = wanted(&node);
        served.retain(|port, at| {
            let stays = wanted.get(port) == Some(&at.name);
            if !stays {
                at.stop.cancel();
            }
            stays
        });
        refused.retain(|port, _| wanted.contains_key(port));
        for (port, name) in wanted {
            if served.contains_key(&port) {
                continue;
            }
            match listener(port) {
                Ok(listener) => {
                    refused.remove(&port);
                    let stop = CancellationToken::new();
                    tokio::spawn(serve(node.clone(), name.clone(), listener, stop.clone()));
                    served.insert(port, Served { name, stop });
                }
                Err(error) => {
                    let reason =
                        format!("healthCheckNodePort {port} of Service {name} cannot be served: {error}");
                    if refused.get(&port) != Some(&reason) {
                        tracing::warn!("{reason}");
                    }
                    refused.insert(port, reason);
                }
            }
        }
        tokio::select! {
            () = node.health_check_wake.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn wanted(node: &Node) -> BTreeMap<u16, ServiceName> {
    let view = node.view.load();
    let ports = view.table.services.iter();
    let ports = ports.filter_map(|(name, entry)| Some((entry.health_check_node_port?, name.clone())));
    let mut first = BTreeMap::new();
    for (port, name) in ports {
        // Two services cannot have one port; where somebody wrote it past the claims, the first by name has it.
        first.entry(port).or_insert(name);
    }
    first
}

async fn serve(node: Arc<Node>, name: ServiceName, listener: TcpListener, stop: CancellationToken) {
    let answer = move || {
        let (node, name) = (node.clone(), name.clone());
        async move {
            let ready = node
                .view
                .load()
                .table
                .find(&name.namespace, &name.name)
                .map_or(0, |entry| entry.ready_local(&node.config.node_name));
            reply(&name, ready, status::is_removed(&node))
        }
    };
    let router = Router::new().fallback(answer);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::warn!(%error, "a health check's port is not served any more");
    }
}

/// A node that is being removed answers no, however many backends it has: traffic has to go elsewhere before it does.
fn reply(name: &ServiceName, ready: usize, removing: bool) -> Response {
    let status = if ready > 0 && !removing { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": {"namespace": name.namespace, "name": name.name},
        "localEndpoints": ready,
        "serviceProxyHealthy": !removing,
    });
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/json".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", ready.to_string()),
    ];
    (status, headers, format!("{body}\n")).into_response()
}

/// On every address of both families, as far as the kernel has them. Others may have bound the port before a service got it:
/// then that is told.
fn listener(port: u16) -> std::io::Result<TcpListener> {
    let dual = || -> nix::Result<std::os::fd::OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet6, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        let any = std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn6::from(any))?;
        listen(&fd, nix::sys::socket::Backlog::new(BACKLOG)?)?;
        Ok(fd)
    };
    let listener = match dual() {
        Ok(fd) => std::net::TcpListener::from(fd),
        Err(nix::errno::Errno::EADDRINUSE) => return Err(nix::errno::Errno::EADDRINUSE.into()),
        // A kernel without IPv6.
        Err(_) => {
            let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
            listener.set_nonblocking(true)?;
            listener
        }
    };
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(ready: usize, removing: bool) -> (u16, String, String) {
        let response = reply(&ServiceName::new("default", "web"), ready, removing);
        let weight = response.headers()["x-load-balancing-endpoint-weight"].to_str().unwrap().to_owned();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 4_096).await.unwrap();
        (status, weight, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn answers_as_kube_proxy_does() {
        let (status, weight, body) = answer(2, false).await;
        assert_eq!((status, weight.as_str()), (200, "2"));
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["service"], json!({"namespace": "default", "name": "web"}));
        assert_eq!((&body["localEndpoints"], &body["serviceProxyHealthy"]), (&json!(2), &json!(true)));
        assert_eq!(answer(0, false).await.0, 503);
        assert_eq!(answer(2, true).await.0, 503, "the node is being removed");
    }

    #[tokio::test]
    async fn a_port_that_somebody_has_is_refused() {
        let first = listener(0).unwrap();
        let port = first.local_addr().unwrap().port();
        assert!(listener(port).is_err());
        drop(first);
        listener(port).unwrap();
    }
}
