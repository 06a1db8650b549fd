// SPDX-License-Identifier: Apache-2.0
//! A netd that only remembers: hands out 10.244.0.2, .3, …, keeps what it was told, and fails on demand.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::IpNet;
use netd_api::{
    AllocateReply, AllocateRequest, ApiError, AttachmentId, CheckReply, CheckRequest, CommitRequest,
    DnsReply, Empty, NodeInfo, OverlayStatus, PodInfo, ReleaseRequest, Status, StoreStatus, TRACEPARENT,
    paths,
};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use uuid::Uuid;

/// MTU that the fake hands out, in bytes.
pub(crate) const MTU: u32 = 1450;

/// An attachment as the fake knows it.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) request: AllocateRequest,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) commit: Option<CommitRequest>,
}

/// What the fake knows and shall do.
#[derive(Default)]
pub(crate) struct Book {
    /// The calls, in order: path tail and attachment.
    pub(crate) calls: Vec<String>,
    pub(crate) attachments: BTreeMap<AttachmentId, Known>,
    /// The trace headers of all requests.
    pub(crate) traces: Vec<String>,
    pub(crate) fail_allocate: Option<ApiError>,
    pub(crate) fail_commit: Option<ApiError>,
    pub(crate) fail_release: Option<ApiError>,
    /// CHECK is answered with it, once.
    pub(crate) fail_check: Option<ApiError>,
    /// What CHECK finds on netd's side.
    pub(crate) differences: Vec<String>,
    /// For how many more looks CHECK finds something on netd's side.
    pub(crate) passing: u32,
    pub(crate) not_ready: Option<&'static str>,
    pub(crate) limited: bool,
    /// The path whose requests are carried out and never answered.
    pub(crate) mute: Option<&'static str>,
    /// Hand out IPv6, too.
    pub(crate) dual: bool,
    given: u8,
}

impl Book {
    /// The only attachment.
    pub(crate) fn only(&self) -> &Known {
        assert_eq!(self.attachments.len(), 1);
        self.attachments.values().next().unwrap()
    }
}

type Shared = Arc<Mutex<Book>>;
type Reply<T> = Result<Json<T>, (StatusCode, Json<ApiError>)>;

/// A running fake; stops when dropped.
pub(crate) struct Fake {
    book: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start(socket: &Path) -> Self {
        let book = Shared::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (path, state) = (socket.to_owned(), book.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _ = std::fs::remove_file(&path);
                let listener = UnixListener::bind(&path).unwrap();
                ready.send(()).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router(state)) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self { book, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn router(book: Shared) -> Router {
    Router::new()
        .route(paths::ALLOCATE, post(allocate))
        .route(paths::COMMIT, post(commit))
        .route(paths::RELEASE, post(release))
        .route(paths::CHECK, post(check))
        .route(paths::PODS, get(pods))
        .route(paths::STATUS, get(status))
        .layer(middleware::from_fn_with_state(book.clone(), around))
        .with_state(book)
}

/// What is the same for every path: notes the trace, and keeps an answer back where it shall.
async fn around(State(book): State<Shared>, request: Request, next: Next) -> Response {
    if let Some(value) = request.headers().get(TRACEPARENT) {
        book.lock().unwrap().traces.push(value.to_str().unwrap().to_owned());
    }
    let path = request.uri().path().to_owned();
    let answer = next.run(request).await;
    let is_mute = book.lock().unwrap().mute == Some(path.as_str());
    if is_mute {
        std::future::pending::<()>().await;
    }
    answer
}

fn refuse<T>(error: ApiError) -> Reply<T> {
    Err((error.http_status(), Json(error)))
}

async fn allocate(State(book): State<Shared>, Json(request): Json<AllocateRequest>) -> Reply<AllocateReply> {
    let mut book = book.lock().unwrap();
    let id = request.id();
    book.calls.push(format!("allocate {}", id.container_id));
    if let Some(error) = book.fail_allocate.take() {
        return refuse(error);
    }
    if book.attachments.contains_key(&id) {
        return refuse(ApiError::conflict(format!("attachment {id} exists already")));
    }
    let (addresses, host_ifname) = match &request.adopted {
        // As netd keeps them: without their prefix lengths.
        Some(link) => (link.addresses.iter().map(|net| IpNet::from(net.addr())).collect(), String::new()),
        None => {
            book.given += 1;
            let last = book.given + 1;
            let mut addresses = vec![IpNet::from(IpAddr::V4(Ipv4Addr::new(10, 244, 0, last)))];
            if book.dual {
                let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, last.into());
                addresses.push(IpNet::from(IpAddr::V6(v6)));
            }
            (addresses, netd_plan::host_veth_name(&id.network, &id.container_id, &id.ifname))
        }
    };
    let gateways = if request.adopted.is_some() { Vec::new() } else { gateways(&addresses) };
    book.attachments.insert(id, Known { request, addresses: addresses.clone(), commit: None });
    let dns = DnsReply { nameservers: vec![Ipv4Addr::new(10, 96, 0, 10).into()], ..DnsReply::default() };
    Ok(Json(AllocateReply { addresses, gateways, mtu: MTU, gso_max_segs: None, host_ifname, dns }))
}

fn gateways(addresses: &[IpNet]) -> Vec<IpAddr> {
    let of = |net: &IpNet| match net {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    };
    addresses.iter().map(of).collect()
}

async fn commit(State(book): State<Shared>, Json(request): Json<CommitRequest>) -> Reply<Empty> {
    let mut book = book.lock().unwrap();
    book.calls.push(format!("commit {}", request.container_id));
    if let Some(error) = book.fail_commit.take() {
        return refuse(error);
    }
    let id = request.id();
    book.attachments.get_mut(&id).unwrap().commit = Some(request);
    Ok(Json(Empty {}))
}

async fn release(State(book): State<Shared>, Json(request): Json<ReleaseRequest>) -> Reply<Empty> {
    let mut book = book.lock().unwrap();
    book.calls.push(format!("release {}", request.container_id));
    if let Some(error) = book.fail_release.take() {
        return refuse(error);
    }
    book.attachments.remove(&request);
    Ok(Json(Empty {}))
}

async fn check(State(book): State<Shared>, Json(request): Json<CheckRequest>) -> Reply<CheckReply> {
    let mut book = book.lock().unwrap();
    if let Some(error) = book.fail_check.take() {
        return refuse(error);
    }
    let Some(known) = book.attachments.get(&request) else {
        return refuse(ApiError::not_found(format!("no attachment {request}")));
    };
    let known = known.clone();
    let adopted = known.request.adopted.is_some();
    let mut differences = book.differences.clone();
    if book.passing > 0 {
        book.passing -= 1;
        differences.push("the next pass repairs it".into());
    }
    let host_ifname = netd_plan::host_veth_name(&request.network, &request.container_id, &request.ifname);
    Ok(Json(CheckReply {
        addresses: known.addresses.clone(),
        gateways: if adopted { Vec::new() } else { gateways(&known.addresses) },
        host_ifname: if adopted { String::new() } else { host_ifname },
        container_mac: known.commit.as_ref().map(|commit| commit.container_mac.clone()),
        mtu: MTU,
        attached: known.commit.is_some(),
        adopted,
        differences,
    }))
}

async fn pods(State(book): State<Shared>) -> Reply<Vec<PodInfo>> {
    let book = book.lock().unwrap();
    let pods = book.attachments.iter().map(|(id, known)| PodInfo {
        namespace: "default".into(),
        name: id.container_id.clone(),
        node: "n1".into(),
        node_uuid: Uuid::nil(),
        network: id.network.clone(),
        container_id: id.container_id.clone(),
        ifname: id.ifname.clone(),
        ips: known.addresses.iter().map(IpNet::addr).collect(),
        host_ifname: String::new(),
        labels: BTreeMap::new(),
        aliases: Vec::new(),
        // By convention of these tests.
        cgroup_path: None,
        sticky: None,
        port_mappings: Vec::new(),
        bandwidth: None,
        mac: None,
        local: !id.container_id.starts_with("elsewhere"),
    });
    Ok(Json(pods.collect()))
}

async fn status(State(book): State<Shared>) -> Reply<Status> {
    let book = book.lock().unwrap();
    Ok(Json(Status {
        version: "0.1.0".into(),
        abi: 1,
        cluster: "weft".into(),
        node: NodeInfo {
            uuid: Uuid::nil(),
            name: "n1".into(),
            underlay: None,
            overlay: None,
            alive: true,
            removing: false,
            blocks: Vec::new(),
            version: "0.1.0".into(),
        },
        ready: book.not_ready.is_none(),
        reasons: book.not_ready.iter().map(ToString::to_string).collect(),
        limited_connectivity: book.limited,
        store: StoreStatus::default(),
        programmed_revision: 0,
        named_revision: 0,
        published_revision: 0,
        overlay: OverlayStatus::default(),
        pods: book.attachments.len(),
        services: 0,
        members: 0,
        pending: Vec::new(),
        bad_values: Vec::new(),
        uptime_secs: 1,
    }))
}
