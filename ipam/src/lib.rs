// SPDX-License-Identifier: Apache-2.0
//! IP address management: pools, blocks, claims and allocations, as values.
//!
//! Pure: no clock (time is an argument), no files, no store. The shells around it are `netd-store`, which carries
//! [`BlockRecord`]s by transaction, and `netd`, which writes [`JournalEntry`] lines to disk.
//!
//! A [`Pool`] is cut into blocks; a node claims blocks, in the order of [`claim_candidates`]; inside its blocks the
//! node's [`Allocator`] hands out addresses without asking anyone. Each change of the allocator is a
//! [`JournalEntry`]: write it durably, then answer. [`journal::read`] and [`Allocator::rebuild`] bring the same
//! allocator back after a crash.

mod address;
pub mod allocator;
pub mod block;
pub mod claim;
pub mod error;
pub mod gc;
mod hash;
pub mod journal;
pub mod owner;
pub mod pool;
mod replay;
pub mod service_ip;
pub mod time;

pub use allocator::{Allocation, Allocator, Phase, SPARE_MIN};
pub use block::{BlockRecord, BlockState, Usage};
pub use claim::claim_candidates;
pub use error::{AddBlockError, AllocateError};
pub use gc::PendingWatch;
pub use journal::{JournalEntry, JournalError};
pub use owner::{AttachmentKey, Owner, OwnerError};
pub use pool::{Pool, PoolError, validate_pools};
pub use replay::ReplayError;
pub use service_ip::ServiceIpError;
pub use time::Timestamp;
