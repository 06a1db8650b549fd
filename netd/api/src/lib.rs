// SPDX-License-Identifier: Apache-2.0
//! netd's API: HTTP/1.1 and JSON over a Unix socket. Requests, answers, errors, and the client.
//!
//! | Path | Request | Answer | Who asks |
//! | --- | --- | --- | --- |
//! | POST [`paths::ALLOCATE`] | [`AllocateRequest`] | [`AllocateReply`] | weft-cni ADD |
//! | POST [`paths::COMMIT`] | [`CommitRequest`] | `{}` | weft-cni ADD |
//! | POST [`paths::RELEASE`] | [`ReleaseRequest`] | `{}` | weft-cni DEL, and the undo of ADD |
//! | POST [`paths::CHECK`] | [`CheckRequest`] | [`CheckReply`] | weft-cni CHECK |
//! | GET [`paths::STATUS`] | | [`Status`] | weft-cni STATUS, `weft status` |
//! | GET [`paths::DOCTOR`] | | [`DoctorReply`] | `weft doctor` |
//! | GET [`paths::NODES`], [`paths::PODS`], [`paths::SERVICES`], [`paths::IPAM`] | | lists | `weft` |
//! | GET [`paths::service`] | | [`ServiceDetail`] | `weft service get` |
//! | GET [`paths::FLOWS`], [`paths::service_flows`] | | [`FlowInfo`] list | `weft flows` |
//! | POST [`paths::DNS_QUERY`] | [`DnsQueryRequest`] | [`DnsQueryReply`] | `weft dns query` |
//! | POST [`paths::DNS_QUESTIONS`] | [`DnsQuestionsRequest`] | [`DnsQuestionsReply`] | `weft dns compare` |
//! | GET [`paths::IPAM_CHECK`], POST [`paths::IPAM_REPAIR`] | | [`IpamCheckReply`] | `weft ipam check`, `weft ipam repair` |
//! | POST [`paths::POOL_ADD`] and so on | [`PoolAddRequest`], [`PoolRequest`], [`StickyRequest`] | [`PoolReply`] | `weft ipam pool`, `weft ipam sticky` |
//! | POST [`paths::NODE_REMOVE`] | [`NodeRemoveRequest`] | [`NodeRemoveReply`] | `weft node rm` |
//! | POST [`paths::POD_LABEL`] | [`PodLabelRequest`] | [`PodLabelReply`] | `weft pod label` |
//! | GET, POST [`paths::CONFIG`] | [`ConfigRequest`] | [`ConfigReply`] | `weft config show`, `weft config set` |
//! | POST [`paths::KEY_ROTATE`] | [`KeyRotateRequest`] | [`KeyRotateReply`] | `weft key rotate` |
//! | GET [`paths::MEMBERS`], [`paths::member`] | | list of [`MemberInfo`], [`MemberReply`] | `weft member ls`, `weft member show` |
//! | POST [`paths::MEMBER_ADD`], [`paths::MEMBER_REMOVE`] | [`MemberAddRequest`], [`MemberRequest`] | [`MemberReply`], `{}` | `weft member add`, `weft member rm` |
//! | POST [`paths::APPLY`], [`paths::DELETE`] | [`ApplyRequest`], [`DeleteRequest`] | [`ApplyReply`], [`DeleteReply`] | `weft apply`, `weft delete` |
//!
//! A failure is a 4xx or 5xx status with an [`ApiError`]. Unknown fields are ignored on both sides and new fields
//! have defaults, so that a client of version N talks to a netd of version N−1 and the other way round.
//! [`deferred`] is the queue of DELs that found no netd: the only part of the API that is files.

mod admin;
mod attachment;
mod client;
pub mod deferred;
mod dns;
mod doctor;
mod error;
mod ipam;
mod member;
mod object;
mod overlay;
pub mod paths;
mod service;
mod status;

pub use admin::{
    IpamCheckReply, IpamFinding, NodeRemoveReply, NodeRemoveRequest, PodLabelReply, PodLabelRequest,
    PoolAddRequest, PoolReply, PoolRequest, StickyRequest,
};
pub use attachment::{
    AdoptedLink, AllocateReply, AllocateRequest, AttachmentId, Bandwidth, CheckReply, CheckRequest,
    CommitRequest, DnsReply, Empty, IpRange, PodIdentity, PodInfo, PortMapping, PortProtocol, ReleaseRequest,
};
pub use client::{Client, ClientError, DEFAULT_TIMEOUT, TRACEPARENT};
pub use cni_types::{Code, ErrorClass};
pub use dns::{
    DnsAnswer, DnsQueryReply, DnsQueryRequest, DnsQuestion, DnsQuestionsReply, DnsQuestionsRequest,
};
pub use doctor::{DoctorCheck, DoctorReply, Verdict};
pub use error::ApiError;
pub use ipam::{AddressInfo, BlockInfo, IpamInfo, PoolInfo, StickyInfo};
pub use member::{MemberAddRequest, MemberInfo, MemberReply, MemberRequest};
pub use object::{
    ApplyAction, ApplyReply, ApplyRequest, ApplyResult, DeleteReply, DeleteRequest, NodePortInfo,
};
pub use overlay::{ConfigReply, ConfigRequest, KeyRotateReply, KeyRotateRequest};
pub use service::{
    BackendInfo, BackendShare, FlowInfo, FrontendInfo, FrontendVerdict, PortInfo, ServiceDetail, ServiceInfo,
};
pub use status::{BadValue, NodeInfo, OverlayStatus, PeerInfo, PeerTunnel, PendingItem, Status, StoreStatus};

/// Where netd listens when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weft/netd.sock";

/// The largest request body, in bytes: a manifest of thousands of objects fits, a runaway client does not fill memory.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The largest answer that the client reads, in bytes: the list of 30,000 pods fits.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
