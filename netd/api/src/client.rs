// SPDX-License-Identifier: Apache-2.0
//! The client: one connection and one time-out for each request.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cni_types::{Code, ErrorClass};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::admin::{
    IpamCheckReply, NodeRemoveReply, NodeRemoveRequest, PodLabelReply, PodLabelRequest, PoolAddRequest,
    PoolReply, PoolRequest, StickyRequest,
};
use crate::attachment::{
    AllocateReply, AllocateRequest, CheckReply, CheckRequest, CommitRequest, Empty, PodInfo, ReleaseRequest,
};
use crate::dns::{DnsQueryReply, DnsQueryRequest, DnsQuestionsReply, DnsQuestionsRequest};
use crate::doctor::DoctorReply;
use crate::ipam::IpamInfo;
use crate::member::{MemberAddRequest, MemberInfo, MemberReply, MemberRequest};
use crate::object::{ApplyReply, ApplyRequest, DeleteReply, DeleteRequest};
use crate::overlay::{ConfigReply, ConfigRequest, KeyRotateReply, KeyRotateRequest};
use crate::service::{FlowInfo, ServiceDetail, ServiceInfo};
use crate::status::{NodeInfo, Status};
use crate::{ApiError, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, paths};

/// How long a request may take when the caller has no opinion: netd itself waits at most 5 s for the store.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The header that carries a trace (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// How much of an answer that is not ours goes into an error message, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

/// Asks netd over its Unix socket. Cheap to make and to clone; nothing is connected until a request is sent, and
/// each request has a connection of its own. Dropping a request's future closes its connection.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
    traceparent: Option<String>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// netd answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// netd went away during the request; whether it was carried out is unknown.
    #[error("netd at {socket} closed the connection during {path}: {reason}; is it restarting?", socket = socket.display())]
    Disconnected {
        /// The socket.
        socket: PathBuf,
        /// The request's path.
        path: String,
        /// hyper's words.
        reason: String,
    },
    /// The socket is there and may not be used.
    #[error("cannot open netd's socket {socket}: {source}; it belongs to root", socket = socket.display())]
    Forbidden {
        /// The socket.
        socket: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody listens on the socket.
    #[error("netd is not running: {socket}: {source}; start it and try again", socket = socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The answer is not one of netd's, or the request cannot be sent as it is.
    #[error("{socket}: {path}: {reason}", socket = socket.display())]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// The request's path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// No complete answer in time; whether the request was carried out is unknown.
    #[error("netd at {socket} did not answer {path} within {timeout:?}; see its log, then try again", socket = socket.display())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// The request's path.
        path: String,
        /// How long we waited.
        timeout: Duration,
    },
}

impl ClientError {
    /// What the caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class,
            Self::Disconnected { .. } | Self::NotRunning { .. } | Self::TimedOut { .. } => ErrorClass::Retry,
            Self::Forbidden { .. } | Self::Protocol { .. } => ErrorClass::Fatal,
        }
    }

    /// The code that weft-cni prints: netd's own, 11 where netd is not there, 5 otherwise.
    pub fn cni_code(&self) -> Code {
        match self {
            Self::Api(error) => Code(error.cni_code),
            other => other.class().code(),
        }
    }

    /// Whether netd said that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if error.class == ErrorClass::NotFound)
    }
}

impl Client {
    /// A client for `socket`; `timeout` bounds each request from connect to the last byte.
    pub fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout, traceparent: None }
    }

    /// The same client, whose requests belong to a trace: netd's span becomes a child of `traceparent` (W3C Trace Context,
    /// `00-<trace id>-<span id>-<flags>`). A value that cannot be a header is left out.
    #[must_use]
    pub fn in_trace(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reserves addresses for an attachment.
    pub async fn allocate(&self, request: &AllocateRequest) -> Result<AllocateReply, ClientError> {
        self.post(paths::ALLOCATE, request).await
    }

    /// Tells netd that the links of an attachment exist.
    pub async fn commit(&self, request: &CommitRequest) -> Result<(), ClientError> {
        self.post::<Empty>(paths::COMMIT, request).await.map(drop)
    }

    /// Gives up an attachment; idempotent.
    pub async fn release(&self, request: &ReleaseRequest) -> Result<(), ClientError> {
        self.post::<Empty>(paths::RELEASE, request).await.map(drop)
    }

    /// What netd knows of an attachment; [`ClientError::is_not_found`] when nothing.
    pub async fn check(&self, request: &CheckRequest) -> Result<CheckReply, ClientError> {
        self.post(paths::CHECK, request).await
    }

    /// How the node is doing.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.fetch(paths::STATUS).await
    }

    /// What the node finds when it looks at itself and at the ways to the others.
    pub async fn doctor(&self) -> Result<DoctorReply, ClientError> {
        self.fetch(paths::DOCTOR).await
    }

    /// Every node of the cluster.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, ClientError> {
        self.fetch(paths::NODES).await
    }

    /// Every pod of the cluster.
    pub async fn pods(&self) -> Result<Vec<PodInfo>, ClientError> {
        self.fetch(paths::PODS).await
    }

    /// Every service.
    pub async fn services(&self) -> Result<Vec<ServiceInfo>, ClientError> {
        self.fetch(paths::SERVICES).await
    }

    /// One service; [`ClientError::is_not_found`] when there is none of that name.
    pub async fn service(&self, namespace: &str, name: &str) -> Result<ServiceDetail, ClientError> {
        self.fetch(&paths::service(namespace, name)).await
    }

    /// Connections through services, of one or of all.
    pub async fn flows(&self, of: Option<(&str, &str)>) -> Result<Vec<FlowInfo>, ClientError> {
        let path = of.map_or_else(|| paths::FLOWS.to_owned(), |(ns, name)| paths::service_flows(ns, name));
        self.fetch(&path).await
    }

    /// What the node's DNS answers to somebody, and why.
    pub async fn dns_query(&self, request: &DnsQueryRequest) -> Result<DnsQueryReply, ClientError> {
        self.post(paths::DNS_QUERY, request).await
    }

    /// Every question that the node's DNS answers itself, a part at a time.
    pub async fn dns_questions(
        &self,
        request: &DnsQuestionsRequest,
    ) -> Result<DnsQuestionsReply, ClientError> {
        self.post(paths::DNS_QUESTIONS, request).await
    }

    /// Pools, blocks and this node's addresses.
    pub async fn ipam(&self) -> Result<IpamInfo, ClientError> {
        self.fetch(paths::IPAM).await
    }

    /// Compares all witnesses of the addresses.
    pub async fn ipam_check(&self) -> Result<IpamCheckReply, ClientError> {
        self.fetch(paths::IPAM_CHECK).await
    }

    /// Mends what the check has proven.
    pub async fn ipam_repair(&self) -> Result<IpamCheckReply, ClientError> {
        self.post(paths::IPAM_REPAIR, &Empty {}).await
    }

    /// The cluster's settings.
    pub async fn config(&self) -> Result<ConfigReply, ClientError> {
        self.fetch(paths::CONFIG).await
    }

    /// Changes the cluster's settings.
    pub async fn config_set(&self, request: &ConfigRequest) -> Result<ConfigReply, ClientError> {
        self.post(paths::CONFIG, request).await
    }

    /// Makes a new WireGuard key, or asks how far that has come.
    pub async fn key_rotate(&self, request: &KeyRotateRequest) -> Result<KeyRotateReply, ClientError> {
        self.post(paths::KEY_ROTATE, request).await
    }

    /// Every member.
    pub async fn members(&self) -> Result<Vec<MemberInfo>, ClientError> {
        self.fetch(paths::MEMBERS).await
    }

    /// One member with its configuration, without its private key.
    pub async fn member(&self, name: &str) -> Result<MemberReply, ClientError> {
        self.fetch(&paths::member(name)).await
    }

    /// Adds a member.
    pub async fn member_add(&self, request: &MemberAddRequest) -> Result<MemberReply, ClientError> {
        self.post(paths::MEMBER_ADD, request).await
    }

    /// Removes a member.
    pub async fn member_remove(&self, request: &MemberRequest) -> Result<Empty, ClientError> {
        self.post(paths::MEMBER_REMOVE, request).await
    }

    /// Adds a pool.
    pub async fn pool_add(&self, request: &PoolAddRequest) -> Result<PoolReply, ClientError> {
        self.post(paths::POOL_ADD, request).await
    }

    /// Stops a pool from giving anything new.
    pub async fn pool_drain(&self, request: &PoolRequest) -> Result<PoolReply, ClientError> {
        self.post(paths::POOL_DRAIN, request).await
    }

    /// Takes a drained pool into use again.
    pub async fn pool_undrain(&self, request: &PoolRequest) -> Result<PoolReply, ClientError> {
        self.post(paths::POOL_UNDRAIN, request).await
    }

    /// Removes an empty pool.
    pub async fn pool_remove(&self, request: &PoolRequest) -> Result<PoolReply, ClientError> {
        self.post(paths::POOL_REMOVE, request).await
    }

    /// Makes a sticky name give its addresses up.
    pub async fn sticky_remove(&self, request: &StickyRequest) -> Result<Empty, ClientError> {
        self.post(paths::STICKY_REMOVE, request).await
    }

    /// Removes a node for good; ask again until the answer says done.
    pub async fn node_remove(&self, request: &NodeRemoveRequest) -> Result<NodeRemoveReply, ClientError> {
        self.post(paths::NODE_REMOVE, request).await
    }

    /// Sets and drops labels of a pod on this node.
    pub async fn pod_label(&self, request: &PodLabelRequest) -> Result<PodLabelReply, ClientError> {
        self.post(paths::POD_LABEL, request).await
    }

    /// Creates or changes objects.
    pub async fn apply(&self, request: &ApplyRequest) -> Result<ApplyReply, ClientError> {
        self.post(paths::APPLY, request).await
    }

    /// Deletes one object; one that is not there is a success.
    pub async fn delete(&self, request: &DeleteRequest) -> Result<DeleteReply, ClientError> {
        self.post(paths::DELETE, request).await
    }

    async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Vec::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.protocol(path, error))?;
        if body.len() > REQUEST_BYTES_MAX {
            let reason =
                format!("the request has {} bytes, netd takes {REQUEST_BYTES_MAX}: split it", body.len());
            return Err(self.protocol(path, reason));
        }
        self.request(Method::POST, path, body).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let (status, body) = match tokio::time::timeout(self.timeout, self.exchange(method, path, body)).await
        {
            Ok(answer) => answer?,
            Err(_) => {
                let (socket, path) = (self.socket.clone(), path.to_owned());
                return Err(ClientError::TimedOut { socket, path, timeout: self.timeout });
            }
        };
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| self.protocol(path, format!("the answer does not decode: {error}")));
        }
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => Err(ClientError::Api(error)),
            Err(_) => {
                let excerpt: String =
                    String::from_utf8_lossy(&body).chars().take(EXCERPT_CHARS_MAX).collect();
                Err(self
                    .protocol(path, format!("HTTP status {status} without an error of netd's: {excerpt:?}")))
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "netd")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        let trace = self.traceparent.as_deref().map(header::HeaderValue::from_str);
        if let Some(Ok(value)) = trace {
            request = request.header(TRACEPARENT, value);
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| self.protocol(path, error))?;

        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unconnected(source))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.disconnected(path, &error))?;
        // The connection's task ends with this function, however it ends: a JoinSet aborts what it holds.
        let mut driver = JoinSet::new();
        driver.spawn(connection);

        let answer = sender.send_request(request).await.map_err(|error| self.disconnected(path, &error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), REPLY_BYTES_MAX).collect().await.map_err(|error| {
            match error.downcast::<hyper::Error>() {
                Ok(error) => self.disconnected(path, &error),
                Err(_) => self.protocol(path, format!("the answer has more than {REPLY_BYTES_MAX} bytes")),
            }
        })?;
        Ok((status, body.to_bytes()))
    }

    fn unconnected(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket, source },
            // No such file, nobody listening, a full backlog: to the caller all of these are "not there now".
            _ => ClientError::NotRunning { socket, source },
        }
    }

    fn disconnected(&self, path: &str, error: &hyper::Error) -> ClientError {
        ClientError::Disconnected {
            socket: self.socket.clone(),
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }

    fn protocol(&self, path: &str, reason: impl ToString) -> ClientError {
        ClientError::Protocol {
            socket: self.socket.clone(),
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}
