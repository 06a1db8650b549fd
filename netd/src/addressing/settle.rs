// SPDX-License-Identifier: Apache-2.0
//! What this node owes others, read off the store and mended: wishes for addresses of its blocks are answered; what was
//! reserved for a record that is gone is free again; records in this node's name whose attachment is gone are given back.
//!
//! State, not messages: whatever was cut off half-way (a killed ADD, a DEL without the store) ends here.

use std::net::IpAddr;
use std::time::Duration;

use ipam::{AttachmentKey, Family, Owner, Want};
use netd_store::claim::{
    ChangeError, StickyHolder, deny_address, give_back_sticky, grant_address, release_address,
};
use netd_store::records::{AddressRecord, StickyRecord, decode};

use super::members::{MEMBER, member_owner};
use super::turns::Settling;
use super::{Addressing, Picture};
use crate::node::lock;

/// The store takes a name back within this, or it is not there.
const NAME_WAIT: Duration = Duration::from_secs(2);

/// Prefix of the reason under which an address is reserved that was lent to another node.
const LENT: &str = "address/";

impl Addressing {
    /// One round over what the last picture shows. `on_record` is asked for each attachment whose records may be left over:
    /// whether this node has it on record now, in any phase.
    ///
    /// # Errors
    /// The store did not take a write; the rest was done, and another round helps.
    pub async fn settle(&self, on_record: impl Fn(&AttachmentKey) -> bool) -> Result<(), ChangeError> {
        let picture = self.picture.load_full();
        if !picture.in_sync || picture.away.is_some() {
            return Ok(());
        }
        let mut outcome = self.settle_reservations(&picture).await;
        self.leave_drained(&picture).await;
        for record in picture.borrowed.values() {
            let done = if record.block_owner == self.node && !record.granted && !picture.removed {
                self.answer(record).await
            } else if record.node == Some(self.node)
                && let Some(_turn) = self.left(&record.owner, &on_record)
            {
                tracing::info!(ip = %record.ip, owner = %record.owner, "a borrowed address is given back");
                release_address(self.store.as_ref(), &self.keys, record.ip, &record.owner, self.node)
                    .await
                    .map(drop)
            } else {
                Ok(())
            };
            outcome = outcome.and(done);
        }
        for record in picture.sticky.values().filter(|record| record.node == Some(self.node)) {
            let Some(holder) = &record.attachment else { continue };
            let Some(_turn) = self.left(&Owner::Attachment(holder.clone()), &on_record) else { continue };
            let holder = StickyHolder { node: self.node, attachment: holder.clone() };
            let now = self.now().0;
            let done = give_back_sticky(self.store.as_ref(), &self.keys, &record.name, &holder, now).await;
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }

    /// The attachment is gone: its sticky name is free for whoever starts it elsewhere, before anybody is told so. False where
    /// the store does not take that in time; [`Addressing::settle`] does it then.
    pub async fn leave_name(&self, name: &str, attachment: &AttachmentKey) -> bool {
        if self.picture.load().away.is_some() {
            return false;
        }
        let holder = StickyHolder { node: self.node, attachment: attachment.clone() };
        let given_back = give_back_sticky(self.store.as_ref(), &self.keys, name, &holder, self.now().0);
        matches!(tokio::time::timeout(NAME_WAIT, given_back).await, Ok(Ok(_)))
    }

    /// An attachment that is neither on record nor being made; it is not made again before the result goes.
    fn left(&self, owner: &Owner, on_record: &impl Fn(&AttachmentKey) -> bool) -> Option<Settling> {
        let Owner::Attachment(key) = owner else { return None };
        // In this order: what is being made is on record before it is no longer in flight.
        let turn = self.turns.settle(owner)?;
        (!on_record(key)).then_some(turn)
    }

    /// Another node wants an address of ours: it is reserved before the answer says yes.
    async fn answer(&self, record: &AddressRecord) -> Result<(), ChangeError> {
        let owner = lent_owner(record.ip);
        let want = Want {
            families: [Family::of(&record.ip)].into(),
            requested: vec![record.ip],
            ranges: Vec::new(),
        };
        let now = self.now();
        let reserved = tokio::task::block_in_place(|| {
            let mut addresses = lock(&self.addresses);
            if addresses.addresses_of(&owner).contains(&record.ip) {
                return Ok(());
            }
            addresses.allocate(&owner, &want, now)?;
            addresses.commit(&owner, now).map_err(super::addresses::AddressError::Journal)
        });
        if let Err(error) = &reserved {
            tracing::info!(ip = %record.ip, wanted_by = %record.owner, %error, "an address of this node is not lent");
        }
        let (store, keys) = (self.store.as_ref(), &self.keys);
        let answered = match reserved {
            Ok(()) => grant_address(store, keys, record.ip, self.node).await,
            Err(_) => deny_address(store, keys, record.ip, self.node).await,
        };
        answered.map(drop)
    }

    /// Reservations whose record is gone are free, and a record in an own block without one gets it (a write that was given
    /// up and came late, a restored journal).
    async fn settle_reservations(&self, picture: &Picture) -> Result<(), ChangeError> {
        let (mut stale, mut stale_members) = (Vec::new(), Vec::new());
        for (ip, owner) in self.allocations() {
            match &owner {
                // The picture is in sync: the record was in it when this was reserved, and somebody deleted it since.
                Owner::Reserved(why) if why.starts_with(LENT) && !picture.borrowed.contains_key(&ip) => {
                    self.free(&owner);
                }
                Owner::Reserved(why) => {
                    let name = why.strip_prefix(MEMBER).filter(|name| !picture.members.contains_key(*name));
                    stale_members.extend(name.map(str::to_owned));
                }
                Owner::Sticky(name) if !has(picture.sticky.get(name), ip) => stale.push((ip, name.clone())),
                Owner::Attachment(_) | Owner::Node(_) | Owner::Sticky(_) => {}
            }
        }
        for (ip, name) in stale {
            // The name is reserved first and recorded then, so only the store itself can say that there is no record.
            let _turn = self.sticky_turn.lock().await;
            let key = self.keys.sticky(&name);
            let item = self.store.get(&key).await?;
            let record = item.map(|item| decode::<StickyRecord>(&key, &item.value)).transpose()?;
            if !has(record.as_ref(), ip) {
                self.free(&Owner::Sticky(name));
            }
        }
        for name in stale_members {
            // As with sticky names: reserved first, recorded then.
            let _turn = self.sticky_turn.lock().await;
            if self.store.get(&self.keys.member(&name)).await?.is_none() {
                self.free(&member_owner(&name));
            }
        }
        if picture.removed {
            return Ok(());
        }
        let lent =
            picture.borrowed.values().filter(|record| record.granted && record.block_owner == self.node);
        let mut known: Vec<(IpAddr, Owner)> = lent.map(|record| (record.ip, lent_owner(record.ip))).collect();
        for record in picture.sticky.values() {
            known.extend(record.ips.iter().map(|ip| (*ip, Owner::Sticky(record.name.clone()))));
        }
        for record in picture.members.values() {
            known.extend(record.ips.iter().map(|ip| (*ip, member_owner(&record.name))));
        }
        tokio::task::block_in_place(|| self.reserve_known(&known));
        Ok(())
    }

    fn reserve_known(&self, known: &[(IpAddr, Owner)]) {
        let mut addresses = lock(&self.addresses);
        let own = addresses.blocks();
        for (ip, owner) in known.iter().filter(|(ip, _)| own.iter().any(|block| block.contains(ip))) {
            if addresses.addresses_of(owner).contains(ip) {
                continue;
            }
            let now = self.now();
            match addresses.restore(*ip, owner, now) {
                Ok(true) => {
                    tracing::warn!(%ip, %owner, "an address on record was not reserved in its block, and is now")
                }
                // Somebody has it: `weft ipam check` tells.
                Ok(false) => {
                    tracing::debug!(%ip, %owner, "an address on record is not reserved in its block")
                }
                Err(error) => tracing::warn!(%ip, %owner, "an address was not reserved: {error:#}"),
            }
        }
    }

    fn free(&self, owner: &Owner) {
        let now = self.now();
        match tokio::task::block_in_place(|| lock(&self.addresses).release(owner, now)) {
            Ok(ips) => tracing::info!(%owner, ?ips, "a reservation that nobody needs any more is free"),
            Err(error) => tracing::warn!(%owner, "a reservation was not freed: {error:#}"),
        }
    }
}

fn has(record: Option<&StickyRecord>, ip: IpAddr) -> bool {
    record.is_some_and(|record| record.ips.contains(&ip))
}

fn lent_owner(ip: IpAddr) -> Owner {
    Owner::Reserved(format!("{LENT}{ip}"))
}
