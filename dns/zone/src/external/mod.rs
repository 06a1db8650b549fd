// SPDX-License-Identifier: Apache-2.0
//! Names of services in a zone of somebody else, which is changed by messages (RFC 2136): which of its records are ours, and
//! what is to be changed.
//!
//! ```text
//!  Wish by name ──┐
//!                 ├─► plan ─► Update, one for each name: all of it or nothing, and only while its conditions hold
//!  Found by name ─┘
//! ```
//!
//! The zone itself says what is ours, so nothing else has to be kept, and nothing can disagree with it. A name that is
//! published has a *mark* beside it, TXT at `_weft.<name>`, that says for which cluster and Service; and it stands in the
//! *index*, TXT at `<00 to 3f>.<owner>._weft.<domain>`, by which all names of a cluster are found without a copy of the
//! zone. A name, its mark and its place in the index come and go in one update.
//!
//! Invariants:
//! - Who has the mark has all addresses and the alias at that name, and nothing else at it: other types (MX, TXT, …) and
//!   other names are never touched.
//! - A name is claimed only while it has neither addresses, nor an alias, nor a mark; changed and released only while the mark
//!   is the one that was read. The server compares, with the change in one step: nobody can come in between.
//! - A name of ours is never without records: what comes instead of them comes in the same update, or the update is refused.
//! - What plan gives, applied to any zone, leads to the wishes; planned again, there is nothing to do but what was refused.

mod domain;
mod mark;
mod plan;
#[cfg(test)]
mod tests;
mod update;
mod wish;

pub use domain::{Domain, DomainError, HostName, INDEX_SHARDS, NAMES_MAX};
pub use mark::Mark;
pub use plan::{Found, Plan, plan};
pub use update::{Action, Change, Condition, Update};
pub use wish::{Contested, Wish, choose};
