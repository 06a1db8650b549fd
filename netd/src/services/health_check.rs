// SPDX-License-Identifier: Apache-2.0
//! `spec.healthCheckNodePort`: where a load balancer asks each node whether it has ready backends of a service with
//! `externalTrafficPolicy: Local`. Answers as kube-proxy does: 200 or 503, the number of local endpoints in the body and in a
//! header by which load balancers may weigh nodes.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lb::ServiceName;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::node::{Node, lock};
use crate::status;

/// The table may change without anybody waking this task.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Load balancers ask by new connections, a handful a second.
const BACKLOG: i32 = 128;

/// Anybody may connect, so of all ports together that many at a time: whoever asks is answered long before so many others came.
const CONNECTIONS_MAX: usize = 256;
/// For a question and its answer, from the connection on: probes give up within seconds themselves.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure to accept, which mostly is that netd has too many files open.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// A port that is served.
struct Served {
    name: ServiceName,
    stop: DropGuard,
    /// Holds the listener.
    task: JoinHandle<()>,
}

/// Open connections of all ports, the oldest first: it gives way to one too many, for who still has not asked is not going to.
struct Connections {
    max: usize,
    timeout: Duration,
    open: Mutex<VecDeque<AbortHandle>>,
}

/// Serves every service's port; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let connections = Arc::new(Connections::new(CONNECTIONS_MAX, CONNECTION_TIMEOUT));
    let mut served: BTreeMap<u16, Served> = BTreeMap::new();
    let mut refused: BTreeMap<u16, String> = BTreeMap::new();
    loop {
        let wanted = wanted(&node);
        release(&mut served, &wanted).await;
        refused.retain(|port, _| wanted.contains_key(port));
        for (port, name) in wanted {
            if served.contains_key(&port) {
                continue;
            }
            match listener(port) {
                Ok(listener) => {
                    refused.remove(&port);
                    let (of, node) = (name.clone(), node.clone());
                    let answer = move || reply(&of, ready(&node, &of), status::is_removed(&node));
                    served.insert(port, Served::begin(name, listener, connections.clone(), answer));
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
    let mut first = BTreeMap::new();
    for (name, port) in view.health_checked.iter() {
        // Two services cannot have one port; where somebody wrote it past the claims, the first by name has it.
        first.entry(*port).or_insert(name.clone());
    }
    first
}

/// Ends what is not wanted any more, or has ended by itself: afterwards those ports can be bound again, by another service, too.
async fn release(served: &mut BTreeMap<u16, Served>, wanted: &BTreeMap<u16, ServiceName>) {
    let is_over = |port: &u16, at: &mut Served| wanted.get(port) != Some(&at.name) || at.task.is_finished();
    let over: Vec<(u16, Served)> = served.extract_if(.., is_over).collect();
    for (port, Served { name, stop, task }) in over {
        drop(stop);
        if let Err(error) = task.await {
            tracing::warn!(%error, "healthCheckNodePort {port} of Service {name} was not served any more");
        }
    }
}

impl Served {
    fn begin(
        name: ServiceName,
        listener: TcpListener,
        connections: Arc<Connections>,
        answer: impl Fn() -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, connections, stop.clone(), answer));
        Self { name, stop: stop.drop_guard(), task }
    }
}

async fn serve(
    listener: TcpListener,
    connections: Arc<Connections>,
    stop: CancellationToken,
    answer: impl Fn() -> Response + Clone + Send + Sync + 'static,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connections.add(stream, stop.clone(), answer.clone()),
            Err(error) => {
                tracing::debug!(%error, "a health check was not accepted");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_AGAIN) => {}
                }
            }
        }
    }
}

impl Connections {
    fn new(max: usize, timeout: Duration) -> Self {
        Self { max, timeout, open: Mutex::default() }
    }

    /// Answers one question on it.
    fn add(
        &self,
        stream: TcpStream,
        stop: CancellationToken,
        answer: impl Fn() -> Response + Send + Sync + 'static,
    ) {
        let service =
            service_fn(move |_: Request<Incoming>| std::future::ready(Ok::<_, Infallible>(answer())));
        let connection =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        let connection = tokio::time::timeout(self.timeout, connection);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                // Whatever went wrong, it is over, and whoever asked asks again.
                _ = connection => {}
            }
        });
        let mut open = lock(&self.open);
        open.retain(|task| !task.is_finished());
        if open.len() >= self.max
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(task.abort_handle());
    }
}

/// How many ready backends this node has.
fn ready(node: &Node, name: &ServiceName) -> usize {
    let view = node.view.load();
    let entry = view.table.find(&name.namespace, &name.name);
    entry.map_or(0, |entry| entry.ready_local(&node.config.node_name))
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    /// Answers on a free port.
    fn served(name: &str, connections: Arc<Connections>) -> (u16, Served) {
        let listener = listener(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = ServiceName::new("default", name);
        let of = name.clone();
        (port, Served::begin(name, listener, connections, move || reply(&of, 2, false)))
    }

    /// What comes until the other side closes; what was not read when it did so is no matter.
    async fn all_of(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut text));
        drop(end.await.expect("it stays open"));
        String::from_utf8(text).unwrap()
    }

    async fn connected(port: u16) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap()
    }

    #[tokio::test]
    async fn a_port_that_changes_hands_is_free_at_once_and_one_whose_task_ended_is_served_again() {
        let connections = Arc::new(Connections::new(2, Duration::from_secs(60)));
        let (port, web) = served("web", connections.clone());
        let mut all = BTreeMap::from([(port, web)]);
        // Somebody is there, and does not ask.
        let idle = connected(port).await;
        let mut wanted = BTreeMap::from([(port, ServiceName::new("default", "web"))]);
        release(&mut all, &wanted).await;
        assert_eq!(all.len(), 1, "it stays");
        wanted.insert(port, ServiceName::new("default", "other"));
        release(&mut all, &wanted).await;
        assert!(all.is_empty());
        let listener = listener(port).unwrap();
        assert_eq!(all_of(idle).await, "");

        let other = ServiceName::new("default", "other");
        all.insert(port, Served::begin(other, listener, connections, || StatusCode::OK.into_response()));
        all[&port].task.abort();
        while !all[&port].task.is_finished() {
            tokio::task::yield_now().await;
        }
        release(&mut all, &wanted).await;
        assert!(all.is_empty(), "to be bound again");
    }

    #[tokio::test]
    async fn who_does_not_ask_gives_way_and_has_not_for_ever() {
        let (port, _served) = served("web", Arc::new(Connections::new(2, Duration::from_secs(60))));
        let silent = [connected(port).await, connected(port).await];
        let mut asking = connected(port).await;
        asking.write_all(b"GET / HTTP/1.1\r\nHost: lb\r\n\r\n").await.unwrap();
        let text = all_of(asking).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\"localEndpoints\":2"), "{text}");
        let [oldest, _younger] = silent;
        assert_eq!(all_of(oldest).await, "", "there was one too many");

        let (port, _served) = served("web", Arc::new(Connections::new(2, Duration::from_millis(100))));
        let mut slow = connected(port).await;
        slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        assert_eq!(all_of(slow).await, "", "a question that does not end");
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
