// SPDX-License-Identifier: Apache-2.0
//! IP address management: pools, blocks, claims and allocations, as values.
//!
//! Pure: no clock (time is an argument), no files, no store. The shells around it are `netd-store`, which carries
//! [`BlockRecord`]s by transaction, and `netd`, which writes [`JournalEntry`] lines to disk.
//!
//! Two families: an owner has at most one address of each, and gets what it wants of them together or not at all
//! ([`Want`]).
//!
//! A [`Pool`] is cut into blocks; a node claims blocks, in the order of [`claim_candidates`]; inside its blocks the
//! node's [`Allocator`] hands out addresses without asking anyone. Each change of the allocator is a
//! [`JournalEntry`]: write it durably, then answer. [`journal::read`] and [`Allocator::rebuild`] bring the same
//! allocator back after a crash.

mod address;
pub mod allocator;
pub mod block;
pub mod check;
pub mod claim;
pub mod error;
pub mod family;
pub mod forecast;
pub mod gc;
mod hash;
pub mod journal;
pub mod node_port;
pub mod owner;
pub mod pool;
pub mod reconcile;
mod replay;
pub mod service;
pub mod service_family;
pub mod service_ip;
pub mod time;
pub mod want;

pub use allocator::{Allocation, Allocator, Phase, SPARE_MIN};
pub use block::{BlockRecord, BlockState, Usage};
pub use check::{Action, Finding, FindingKind, Witnesses, check};
pub use claim::{claim_candidates, claim_candidates_within, free_block_in};
pub use error::{AddBlockError, AllocateError};
pub use family::Family;
pub use forecast::forecast;
pub use gc::PendingWatch;
pub use journal::{JournalEntry, JournalError};
pub use node_port::{NodePortError, NodePortRange};
pub use owner::{AttachmentKey, Owner, OwnerError};
pub use pool::{Pool, PoolError, PoolState, default_block_prefix, validate_pools};
pub use reconcile::{LostWatch, Sight};
pub use replay::ReplayError;
pub use service::{
    ServiceAllocateError, ServiceHoldings, ServiceKind, ServicePortWish, ServiceRange, ServiceRanges,
    ServiceWish,
};
pub use service_family::{FamilyError, FamilyPolicy, FamilyWish};
pub use service_ip::ServiceIpError;
pub use time::Timestamp;
pub use want::{AddressRange, Want};
