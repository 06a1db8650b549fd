// SPDX-License-Identifier: Apache-2.0
//! An attachment gets its addresses: one of each family, all or none.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipam::{AllocateError, AttachmentKey, Family, Owner, Want};
use netd_store::claim::{
    AddressClaimError, ChangeError, ClaimError, StickyError, StickyHolder, give_back_sticky, release_address,
    request_address, take_sticky,
};
use netd_store::records::{AddressRecord, decode};
use thiserror::Error;

use super::addresses::AddressError;
use super::turns::InFlight;
use super::{Addressing, Picture, Wish};
use crate::node::lock;

/// Blocks claimed for one request at most: one of each family, and as many again lost to somebody faster.
const CLAIMS_MAX: usize = 4;
/// The owner of a block answers a wish for one of its addresses within this, or is not there.
const GRANT_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at the answer.
const GRANT_POLL: Duration = Duration::from_millis(20);

/// What an attachment got.
#[derive(Debug)]
pub struct Given {
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// The sticky name that they follow.
    pub sticky: Option<String>,
    /// Until the attachment is on record, nobody takes its addresses for left over.
    _in_flight: Vec<InFlight>,
}

/// Why an attachment got no addresses.
#[derive(Debug, Error)]
pub enum GiveError {
    /// The request cannot be fulfilled as it is.
    #[error("{0}")]
    Invalid(String),
    /// Somebody has the address, or it rests.
    #[error("{0}")]
    Taken(String),
    /// The same request may succeed a little later.
    #[error("{0}")]
    Later(String),
    /// Every pool is full.
    #[error("{0}")]
    Exhausted(String),
    /// A block could not be claimed.
    #[error("no free address in this node's blocks, and claiming another failed: {0}")]
    Claim(ClaimError),
    /// The store is needed and is not there.
    #[error("{what} while the store is not followed: {why}")]
    StoreAway {
        /// What cannot be done.
        what: &'static str,
        /// Why the store is away.
        why: String,
    },
    /// The cluster has no configuration yet.
    #[error("the cluster has no configuration yet; try again")]
    Unconfigured,
    /// This node was removed from the cluster.
    #[error(
        "this node was removed from the cluster (`weft node rm`): it gives no addresses; `weft status` has the way back"
    )]
    Removed,
    /// The disk does not take the change.
    #[error("the address journal cannot be written: {0:#}")]
    Journal(anyhow::Error),
}

impl Addressing {
    /// Addresses for an attachment that has none, pending until [`Addressing::commit`], durable on return. One that has some
    /// already (its ADD died) gets the same again. Keep what is returned until the attachment is on record.
    ///
    /// # Errors
    /// See [`GiveError`]; nothing is kept then.
    pub async fn give(self: &Arc<Self>, key: &AttachmentKey, wish: &Wish) -> Result<Given, GiveError> {
        let outcome = self.try_give(key, wish).await;
        match &outcome {
            Ok(_) => self.exhausted.store(false, Ordering::Relaxed),
            // Once for each time that addresses run out, however often a runtime tries.
            Err(GiveError::Exhausted(text)) if !self.exhausted.swap(true, Ordering::Relaxed) => {
                tracing::error!("{text}; ADD is refused until addresses are free again");
            }
            Err(_) => {}
        }
        outcome
    }

    async fn try_give(self: &Arc<Self>, key: &AttachmentKey, wish: &Wish) -> Result<Given, GiveError> {
        let picture = self.picture.load_full();
        if picture.removed {
            return Err(GiveError::Removed);
        }
        if picture.families().is_empty() {
            return Err(if picture.configured {
                GiveError::Exhausted(
                    "no pool gives addresses: every one is drained, or there is none; add one with `weft ipam pool add`".into(),
                )
            } else {
                GiveError::Unconfigured
            });
        }
        let owner = Owner::Attachment(key.clone());
        let in_flight = self.turns.give(owner.clone()).await;
        let given = match &wish.sticky {
            Some(name) => self.give_sticky(key, name, wish, &picture).await?,
            None => Given {
                ips: self.give_plain(&owner, wish, &picture).await?,
                sticky: None,
                _in_flight: Vec::new(),
            },
        };
        let Given { ips, sticky, _in_flight: mut held } = given;
        held.push(in_flight);
        Ok(Given { ips, sticky, _in_flight: held })
    }

    async fn give_plain(
        &self,
        owner: &Owner,
        wish: &Wish,
        picture: &Picture,
    ) -> Result<Vec<IpAddr>, GiveError> {
        let mut families = picture.families();
        let (mut local, mut borrowed) = (Vec::new(), Vec::new());
        for ip in &wish.requested {
            if !families.contains(&Family::of(ip)) {
                return Err(GiveError::Invalid(format!(
                    "requested {ip}: no pool in use has {} addresses",
                    Family::of(ip)
                )));
            }
            if self.reach(*ip, picture).await? {
                local.push(*ip);
            } else {
                borrowed.push(*ip);
            }
        }
        for ip in &borrowed {
            self.borrow(*ip, owner, picture).await?;
            families.remove(&Family::of(ip));
        }
        let want = Want { families, requested: local, ranges: wish.ranges.clone() };
        match self.give_own(owner, want, picture).await {
            Ok(mut ips) => {
                ips.extend(&borrowed);
                ips.sort_by_key(Family::of);
                Ok(ips)
            }
            Err(error) => {
                for ip in borrowed {
                    self.hand_back(ip, owner).await;
                }
                Err(error)
            }
        }
    }

    /// From own blocks; from freshly claimed ones when these are full.
    pub(super) async fn give_own(
        &self,
        owner: &Owner,
        want: Want,
        picture: &Picture,
    ) -> Result<Vec<IpAddr>, GiveError> {
        if want.families.is_empty() {
            return Ok(Vec::new());
        }
        for _ in 0..CLAIMS_MAX {
            let now = self.now();
            let outcome = tokio::task::block_in_place(|| lock(&self.addresses).allocate(owner, &want, now));
            let missing = match outcome {
                Ok(ips) | Err(AddressError::Allocate(AllocateError::AlreadyAllocated(ips))) => {
                    return Ok(ips);
                }
                Err(AddressError::Allocate(AllocateError::Exhausted { family, .. })) => family,
                Err(AddressError::Allocate(AllocateError::RangesUnmet { family, .. })) => {
                    self.claim_in_ranges(family, &want, picture).await?;
                    continue;
                }
                Err(error) => return Err(refusal(error)),
            };
            let one = Want { families: [missing].into(), ..Want::default() };
            let now = self.now();
            self.claim(missing, |addresses| addresses.allocator().can_allocate(&one, now)).await?;
        }
        Err(GiveError::Later("other requests were faster for each block that was claimed; try again".into()))
    }

    /// A block with addresses of the ranges that nobody has yet.
    async fn claim_in_ranges(&self, family: Family, want: &Want, picture: &Picture) -> Result<(), GiveError> {
        let of_family = || want.ranges.iter().flatten().filter(|range| Family::of(&range.first) == family);
        if of_family().next().is_some()
            && !of_family().any(|range| picture.pools.values().any(|pool| range.meets(&pool.cidr)))
        {
            let ranges: Vec<String> = of_family().map(ToString::to_string).collect();
            let pools: Vec<String> = picture.pools.values().map(|pool| pool.cidr.to_string()).collect();
            return Err(GiveError::Invalid(format!(
                "requested range {} lies in no pool ({})",
                ranges.join(", "),
                pools.join(", ")
            )));
        }
        let taken: BTreeSet<_> =
            picture.blocks.keys().copied().chain(lock(&self.addresses).blocks()).collect();
        let pools: Vec<_> = picture.pools.values().cloned().collect();
        let free = of_family().find_map(|range| ipam::free_block_in(&pools, &taken, range));
        match free {
            Some(ip) => self.claim_containing(ip).await,
            None => {
                let ranges: Vec<String> =
                    of_family().map(|range| format!("{}-{}", range.first, range.last)).collect();
                Err(GiveError::Exhausted(format!(
                    "no free {family} address on this node in {}: every block there is full or another node's, and a range is \
                     served from this node's blocks alone; widen the range, or ask for one address (ips), which another node \
                     lends",
                    ranges.join(", ")
                )))
            }
        }
    }

    /// Whether the address lies in an own block; a block that nobody has is claimed for it.
    async fn reach(&self, ip: IpAddr, picture: &Picture) -> Result<bool, GiveError> {
        let own = || lock(&self.addresses).blocks().iter().any(|block| block.contains(&ip));
        if own() {
            return Ok(true);
        }
        if picture.pool_of(&ip).is_none() {
            let pools: Vec<String> = picture.pools.values().map(|pool| pool.cidr.to_string()).collect();
            return Err(GiveError::Invalid(format!("requested {ip} lies in no pool ({})", pools.join(", "))));
        }
        if picture.block_of(&ip).is_some_and(|block| block.owner != self.node) {
            return Ok(false);
        }
        match self.claim_containing(ip).await {
            Ok(()) => Ok(own()),
            // Somebody was faster: then it is theirs to lend.
            Err(GiveError::Claim(ClaimError::Taken { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the owner of the block for one of its addresses.
    async fn borrow(&self, ip: IpAddr, owner: &Owner, picture: &Picture) -> Result<(), GiveError> {
        if let Some(why) = &picture.away {
            return Err(GiveError::StoreAway {
                what: "an address in another node's block cannot be had",
                why: why.clone(),
            });
        }
        let asked = request_address(self.store.as_ref(), &self.keys, ip, owner, self.node).await;
        let mut record = asked.map_err(|error| match error {
            AddressClaimError::InUse { owner, node, .. } => {
                let on = node.map(|node| format!(" on node {}", picture.name_of(node))).unwrap_or_default();
                GiveError::Taken(format!("{ip} belongs to {owner}{on}"))
            }
            AddressClaimError::Change(_) => GiveError::Later(format!("borrowing {ip}: {error}")),
            other => GiveError::Invalid(other.to_string()),
        })?;
        let deadline = tokio::time::Instant::now() + GRANT_WAIT;
        while !record.granted {
            if tokio::time::Instant::now() >= deadline {
                self.hand_back(ip, owner).await;
                return Err(GiveError::Later(format!(
                    "{ip} lies in a block of node {}, which did not answer within {GRANT_WAIT:?}; is its netd running? try \
                     again",
                    picture.name_of(record.block_owner)
                )));
            }
            tokio::time::sleep(GRANT_POLL).await;
            record = match self.borrowed(ip).await {
                Ok(Some(record)) if record.owner == *owner && record.node == Some(self.node) => record,
                Ok(_) => {
                    let owner = picture.name_of(record.block_owner);
                    return Err(GiveError::Taken(format!(
                        "{ip} is in use on node {owner}, which owns its block, or rests there after a DEL"
                    )));
                }
                Err(error) => {
                    self.hand_back(ip, owner).await;
                    return Err(GiveError::Later(format!("borrowing {ip}: {error}")));
                }
            };
        }
        Ok(())
    }

    async fn borrowed(&self, ip: IpAddr) -> Result<Option<AddressRecord>, ChangeError> {
        let key = self.keys.address(ip);
        let item = self.store.get(&key).await?;
        Ok(item.map(|item| decode(&key, &item.value)).transpose()?)
    }

    async fn hand_back(&self, ip: IpAddr, owner: &Owner) {
        if let Err(error) = release_address(self.store.as_ref(), &self.keys, ip, owner, self.node).await {
            tracing::warn!(%ip, %error, "a borrowed address was not given back; that follows");
        }
    }

    /// The addresses of a name: those that it has, wherever they came from, or new ones that are its from now on.
    async fn give_sticky(
        self: &Arc<Self>,
        key: &AttachmentKey,
        name: &str,
        wish: &Wish,
        picture: &Picture,
    ) -> Result<Given, GiveError> {
        if let Some(why) = &picture.away {
            return Err(GiveError::StoreAway { what: "a sticky address cannot be had", why: why.clone() });
        }
        let owner = Owner::Sticky(name.to_owned());
        let _turn = self.sticky_turn.lock().await;
        let in_flight = self.turns.give(owner.clone()).await;
        let holder = StickyHolder { node: self.node, attachment: key.clone() };
        let take = async |ips: &[IpAddr]| {
            take_sticky(self.store.as_ref(), &self.keys, name, &holder, ips, self.now().0).await
        };
        let taken = match take(&[]).await {
            Err(StickyError::Unknown(_)) => {
                let ips = self.reserve_new(key, &owner, wish, picture).await?;
                let taken = take(&ips).await;
                // Another node may have named it first. After an error nobody knows: the reservation then stays until the
                // store is read again.
                let lost = match &taken {
                    Ok(record) => record.ips != ips,
                    Err(error) => matches!(error, StickyError::HeldBy { .. }),
                };
                if lost {
                    let now = self.now();
                    tokio::task::block_in_place(|| lock(&self.addresses).release(&owner, now))
                        .map_err(GiveError::Journal)?;
                }
                taken
            }
            known => known,
        };
        let record = taken.map_err(|error| GiveError::Later(picture.explain(&error)))?;
        if let Some(other) = wish.requested.iter().find(|ip| !record.ips.contains(ip)) {
            let given_back =
                give_back_sticky(self.store.as_ref(), &self.keys, name, &holder, self.now().0).await;
            if let Err(error) = given_back {
                tracing::warn!(name, %error, "a sticky name was not given back; that follows");
            }
            return Err(GiveError::Invalid(format!(
                "requested {other}, but the sticky name {name} has {:?}; `weft ipam sticky rm {name}` frees them",
                record.ips
            )));
        }
        self.reserve_own(&owner, &record.ips);
        Ok(Given { ips: record.ips, sticky: Some(name.to_owned()), _in_flight: vec![in_flight] })
    }

    /// Addresses for a name that is new: from own blocks, reserved for it before anybody hears of them.
    async fn reserve_new(
        &self,
        key: &AttachmentKey,
        owner: &Owner,
        wish: &Wish,
        picture: &Picture,
    ) -> Result<Vec<IpAddr>, GiveError> {
        let present = lock(&self.addresses).addresses_of(owner);
        if !present.is_empty() {
            return Ok(present);
        }
        for ip in &wish.requested {
            if !self.reach(*ip, picture).await? {
                return Err(GiveError::Invalid(format!(
                    "requested {ip} for a new sticky name: it lies in another node's block; start there first"
                )));
            }
        }
        let mine = Owner::Attachment(key.clone());
        let want = Want {
            families: picture.families(),
            requested: wish.requested.clone(),
            ranges: wish.ranges.clone(),
        };
        let ips = self.give_own(&mine, want, picture).await?;
        tokio::task::block_in_place(|| lock(&self.addresses).rename(&mine, owner))
            .map_err(GiveError::Journal)?;
        Ok(ips)
    }

    /// A sticky address that lies in an own block is reserved there, should it not be (a restored journal).
    fn reserve_own(&self, owner: &Owner, ips: &[IpAddr]) {
        let mut addresses = lock(&self.addresses);
        let own = addresses.blocks();
        let requested: Vec<IpAddr> =
            ips.iter().filter(|ip| own.iter().any(|block| block.contains(*ip))).copied().collect();
        if requested.is_empty() || !addresses.addresses_of(owner).is_empty() {
            return;
        }
        let families = requested.iter().map(Family::of).collect();
        let want = Want { families, requested, ranges: Vec::new() };
        let now = self.now();
        let outcome = tokio::task::block_in_place(|| addresses.allocate(owner, &want, now).map(drop));
        if let Err(error) = outcome {
            tracing::error!(%owner, %error, "a sticky address is not reserved in its own block; see `weft ipam check`");
        }
    }
}

fn refusal(error: AddressError) -> GiveError {
    let text = error.to_string();
    match error {
        AddressError::Journal(error) => GiveError::Journal(error),
        AddressError::Allocate(AllocateError::CoolingDown { .. }) => GiveError::Later(text),
        AddressError::Allocate(AllocateError::InUse { .. }) => GiveError::Taken(text),
        AddressError::Allocate(_) => GiveError::Invalid(text),
    }
}
