// SPDX-License-Identifier: Apache-2.0
//! The store: what the cluster wishes and what the nodes tell each other.
//!
//! - [`Store`] is the seam: get, list at one revision, watch from a revision, compare-and-swap transactions, leases.
//!   [`Etcd`] is what clusters run; [`FileStore`] is for one host without etcd; [`Memory`] is the deterministic twin for
//!   tests, with injected faults. All pass one contract battery (`tests/store`).
//! - [`Keys`] is the only place that knows how keys look; [`records`] says what the values are.
//! - [`Tail`] keeps a [`Mirror`] of a prefix in step and publishes it; there is one code path for the first listing, a
//!   lost connection, compaction and an asked-for resync.
//! - [`claim`] takes blocks and ClusterIPs by transaction.
//!
//! Nothing that a store returns makes this crate panic: a value that does not parse is a [`records::BadRecord`] with its
//! key, and the rest goes on.

pub mod claim;
mod error;
mod etcd;
mod file;
mod keys;
mod memory;
mod mirror;
pub mod records;
mod state;
mod store;
mod tail;
mod transaction;
mod watch;

pub use error::{Class, StoreError};
pub use etcd::{DEFAULT_REQUEST_TIMEOUT, Etcd, EtcdConfig};
pub use file::FileStore;
pub use keys::{Key, Keys, KeysError};
pub use memory::{Faults, Memory};
pub use mirror::{Applied, Items, Mirror};
pub use store::{Event, KeyValue, Lease, LeaseId, Listing, Store, WatchBatch};
pub use tail::{MirrorState, Tail};
pub use transaction::{
    Compare, MAX_KEY_BYTES, MAX_TRANSACTION_BYTES, MAX_TRANSACTION_OPERATIONS, Put, Transacted, Transaction,
};
pub use watch::Watch;
