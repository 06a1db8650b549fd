// SPDX-License-Identifier: Apache-2.0
//! A netd that only remembers: hands out 10.244.0.2, .3, …, keeps what it was told, and fails on demand.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::IpNet;
use netd_api::{
    AllocateReply, AllocateRequest, ApiError, AttachmentId, CheckReply, CheckRequest, CommitRequest,
    DnsReply, Empty, NodeInfo, OverlayStatus, PodInfo, ReleaseRequest, Status, StoreStatus, paths,
};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use uuid::Uuid;

/// MTU that the fake hands out, in bytes.
pub(crate) const MTU: u32 = 1450;

/// What the fake knows and shall do.
#[derive(Default)]
pub(crate) struct Book {
    /// The calls, in order: path tail and attachment.
    pub(crate) calls: Vec<String>,
    pub(crate) attachments: BTreeMap<AttachmentId, (AllocateRequest, IpNet, Option<CommitRequest>)>,
    pub(crate) fail_allocate: Option<ApiError>,
    pub(crate) fail_commit: Option<ApiError>,
    pub(crate) fail_release: Option<ApiError>,
    pub(crate) not_ready: Option<&'static str>,
    pub(crate) limited: bool,
    given: u8,
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
        .with_state(book)
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
    book.given += 1;
    let address = IpNet::from(IpAddr::V4(Ipv4Addr::new(10, 244, 0, book.given + 1)));
    let host_ifname = netd_plan::host_veth_name(&id.network, &id.container_id, &id.ifname);
    book.attachments.insert(id, (request, address, None));
    let dns = DnsReply { nameservers: vec![Ipv4Addr::new(10, 96, 0, 10).into()], ..DnsReply::default() };
    let gateway = Ipv4Addr::new(169, 254, 1, 1).into();
    Ok(Json(AllocateReply { addresses: vec![address], gateway, mtu: MTU, host_ifname, dns }))
}

async fn commit(State(book): State<Shared>, Json(request): Json<CommitRequest>) -> Reply<Empty> {
    let mut book = book.lock().unwrap();
    book.calls.push(format!("commit {}", request.container_id));
    if let Some(error) = book.fail_commit.take() {
        return refuse(error);
    }
    let id = request.id();
    book.attachments.get_mut(&id).unwrap().2 = Some(request);
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
    let book = book.lock().unwrap();
    let Some((_, address, committed)) = book.attachments.get(&request) else {
        return refuse(ApiError::not_found(format!("no attachment {request}")));
    };
    Ok(Json(CheckReply {
        addresses: vec![*address],
        gateway: Ipv4Addr::new(169, 254, 1, 1).into(),
        host_ifname: netd_plan::host_veth_name(&request.network, &request.container_id, &request.ifname),
        container_mac: committed.as_ref().map(|commit| commit.container_mac.clone()),
        mtu: MTU,
        attached: committed.is_some(),
    }))
}

async fn pods(State(book): State<Shared>) -> Reply<Vec<PodInfo>> {
    let book = book.lock().unwrap();
    let pods = book.attachments.iter().map(|(id, (_, address, _))| PodInfo {
        namespace: "default".into(),
        name: id.container_id.clone(),
        node: "n1".into(),
        node_uuid: Uuid::nil(),
        network: id.network.clone(),
        container_id: id.container_id.clone(),
        ifname: id.ifname.clone(),
        ips: vec![address.addr()],
        host_ifname: String::new(),
        labels: BTreeMap::new(),
        // By convention of these tests.
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
            blocks: Vec::new(),
            version: "0.1.0".into(),
        },
        ready: book.not_ready.is_none(),
        reasons: book.not_ready.iter().map(ToString::to_string).collect(),
        limited_connectivity: book.limited,
        store: StoreStatus::default(),
        programmed_revision: 0,
        published_revision: 0,
        overlay: OverlayStatus::default(),
        pods: book.attachments.len(),
        services: 0,
        pending: Vec::new(),
        bad_values: Vec::new(),
        uptime_secs: 1,
    }))
}
