// SPDX-License-Identifier: Apache-2.0
//! A machine outside the cluster gets addresses: from this node's blocks, reserved before anybody hears of them, and freed by
//! whoever owns the block once the record is gone.

use std::collections::BTreeMap;

use ipam::{Owner, Want};
use netd_store::claim::{ChangeError, MemberError, add_member};
use netd_store::records::{Extra, MemberRecord, SCHEMA};
use thiserror::Error;

use super::{Addressing, GiveError};
use crate::node::lock;

/// Prefix of the reason under which the addresses of a member are reserved.
pub(super) const MEMBER: &str = "member/";

/// Why a member was not added.
#[derive(Debug, Error)]
pub enum MemberAddError {
    /// There are no addresses for it.
    #[error(transparent)]
    Give(#[from] GiveError),
    /// It could not be put on record.
    #[error(transparent)]
    Record(#[from] MemberError),
}

/// Who has a member's addresses in the books of their block.
pub(super) fn member_owner(name: &str) -> Owner {
    Owner::Reserved(format!("{MEMBER}{name}"))
}

impl Addressing {
    /// One address of each family for a new member, and its record in the store. `endpoints`: as in [`MemberRecord`].
    ///
    /// # Errors
    /// No addresses, a name that is taken, or a store that cannot be written. After the last nobody knows whether the record
    /// is there; the reservation then stays until the store says so.
    pub async fn add_member(
        &self,
        name: &str,
        public_key: &str,
        endpoints: BTreeMap<String, String>,
    ) -> Result<MemberRecord, MemberAddError> {
        let picture = self.picture.load_full();
        if picture.removed {
            return Err(GiveError::Removed.into());
        }
        if let Some(why) = &picture.away {
            let what = "a member cannot be added";
            return Err(GiveError::StoreAway { what, why: why.clone() }.into());
        }
        let families = picture.families();
        if families.is_empty() {
            return Err(GiveError::Unconfigured.into());
        }
        let owner = member_owner(name);
        let _turn = self.sticky_turn.lock().await;
        // The store, not the picture, which may be behind: what is reserved already must not be taken for this wish's.
        let known = self.store.get(&self.keys.member(name)).await.map_err(ChangeError::from);
        if known.map_err(MemberError::from)?.is_some() {
            return Err(MemberError::Exists(name.to_owned()).into());
        }
        let ips = self.give_own(&owner, Want { families, ..Want::default() }, &picture).await?;
        let now = self.now();
        tokio::task::block_in_place(|| lock(&self.addresses).commit(&owner, now))
            .map_err(GiveError::Journal)?;
        let (name, public_key) = (name.to_owned(), public_key.to_owned());
        let record = MemberRecord { schema: SCHEMA, name, public_key, ips, endpoints, extra: Extra::new() };
        match add_member(self.store.as_ref(), &self.keys, &record).await {
            Ok(()) => Ok(record),
            Err(error) => {
                if matches!(error, MemberError::Exists(_)) {
                    let now = self.now();
                    tokio::task::block_in_place(|| lock(&self.addresses).release(&owner, now))
                        .map_err(GiveError::Journal)?;
                }
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ipam::{BlockRecord, Pool, Timestamp};
    use netd_store::claim::remove_member;
    use netd_store::{Keys, Memory, Store};
    use uuid::Uuid;

    use super::*;
    use crate::addressing::Picture;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_addresses_of_a_member_are_kept_as_long_as_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let (node, keys) = (Uuid::from_u128(1), Keys::new("weft").unwrap());
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let clock = Arc::new(|| Timestamp(1));
        let (path, none) = (folder.path(), Duration::ZERO);
        let addressing = Addressing::open(path, node, none, keys.clone(), store.clone(), clock).unwrap();
        let pool = Pool::new("default", "10.244.0.0/16".parse().unwrap(), None);
        let block = BlockRecord::claimed(&pool, "10.244.0.0/26".parse().unwrap(), node);
        let mut picture = Picture { in_sync: true, configured: true, ..Picture::default() };
        picture.blocks.insert(block.cidr, block);
        picture.pools.insert(pool.name.clone(), pool);
        addressing.observe(picture.clone());
        let kept = || {
            let of_members = |(ip, owner)| (owner == member_owner("laptop")).then_some(ip);
            addressing.allocations().into_iter().filter_map(of_members).collect::<Vec<_>>()
        };

        let record = addressing.add_member("laptop", "key", BTreeMap::new()).await.unwrap();
        assert_eq!(kept(), record.ips);
        // The picture is behind: the store has the last word.
        let again = addressing.add_member("laptop", "other", BTreeMap::new()).await;
        assert!(matches!(again, Err(MemberAddError::Record(MemberError::Exists(_)))), "{again:?}");
        assert_eq!(kept(), record.ips, "the second wish costs the first nothing");
        addressing.settle(|_| false).await.unwrap();
        assert_eq!(kept(), record.ips);
        picture.members.insert(record.name.clone(), record.clone());
        addressing.observe(picture.clone());
        addressing.settle(|_| false).await.unwrap();
        assert_eq!(kept(), record.ips);

        remove_member(store.as_ref(), &keys, "laptop").await.unwrap();
        picture.members.clear();
        addressing.observe(picture);
        addressing.settle(|_| false).await.unwrap();
        assert!(kept().is_empty());
    }
}
