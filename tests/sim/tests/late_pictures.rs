// SPDX-License-Identifier: Apache-2.0
//! What a node sees of the store is always older than the store: nothing that is in use is given away for that.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use ipam::{AttachmentKey, Owner, Pool, PoolState, Timestamp};
use netd::addressing::{Addressing, GiveError, Picture, Wish};
use netd_store::records::encode;
use netd_store::{Keys, Memory, Store};
use tempfile::TempDir;
use uuid::Uuid;
use weft_sim::node::picture;

const NODE: Uuid = Uuid::from_u128(1);

/// One node, whose pictures the test chooses.
struct Bench {
    store: Arc<Memory>,
    keys: Keys,
    addressing: Arc<Addressing>,
    _dir: TempDir,
}

impl Bench {
    async fn new(pools: &[Pool]) -> Result<Bench> {
        let (store, keys, dir) = (Arc::new(Memory::new()), Keys::new("late")?, tempfile::tempdir()?);
        let clock = Arc::new(|| Timestamp(1_000_000));
        let (cool_down, backing) = (Duration::from_secs(30), store.clone());
        let addressing = Addressing::open(dir.path(), NODE, cool_down, keys.clone(), backing, clock)?;
        let bench = Bench { store, keys, addressing: Arc::new(addressing), _dir: dir };
        for pool in pools {
            bench.put_pool(pool).await?;
        }
        bench.addressing.observe(bench.picture().await?);
        Ok(bench)
    }

    async fn put_pool(&self, pool: &Pool) -> Result<()> {
        let key = self.keys.pool(&pool.name);
        self.store.put(&key, encode(&key, pool)?, None).await?;
        Ok(())
    }

    /// The store as it is now.
    async fn picture(&self) -> Result<Picture> {
        Ok(picture(&self.store.list(self.keys.root()).await?, &self.keys, NODE))
    }

    fn owners(&self) -> Vec<Owner> {
        self.addressing.allocations().into_iter().map(|(_, owner)| owner).collect()
    }
}

fn key(id: &str) -> AttachmentKey {
    AttachmentKey::new("late", id, "eth0")
}

fn sticky(name: &str) -> Wish {
    Wish { sticky: Some(name.into()), ..Wish::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_the_picture_does_not_have_yet_keeps_its_address() -> Result<()> {
    let bench = Bench::new(&[Pool::new("a", "10.1.0.0/24".parse()?, Some(26))]).await?;
    let before = bench.picture().await?;
    drop(bench.addressing.give(&key("c1"), &sticky("db-0")).await?);
    bench.addressing.observe(before);
    bench.addressing.settle(|_| true).await?;
    assert!(bench.owners().contains(&Owner::Sticky("db-0".into())), "{:?}", bench.owners());

    bench.store.delete(&bench.keys.sticky("db-0")).await?;
    bench.addressing.observe(bench.picture().await?);
    bench.addressing.settle(|_| true).await?;
    assert!(!bench.owners().contains(&Owner::Sticky("db-0".into())), "its record is gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_take_a_new_name_at_once_one_gets_it_and_nothing_else_is_held() -> Result<()> {
    let bench = Bench::new(&[Pool::new("a", "10.1.0.0/24".parse()?, Some(26))]).await?;
    for round in 0..20 {
        let (name, wish) = (format!("db-{round}"), sticky(&format!("db-{round}")));
        let (one, two) = (key(&format!("one-{round}")), key(&format!("two-{round}")));
        let (one, two) = tokio::join!(bench.addressing.give(&one, &wish), bench.addressing.give(&two, &wish));
        let refused = if one.is_ok() { two.map(drop) } else { one.map(drop) };
        assert!(matches!(refused, Err(GiveError::Later(_))), "{refused:?}");
        let owners = bench.owners();
        assert!(owners.contains(&Owner::Sticky(name)), "{owners:?}");
        assert!(!owners.iter().any(|owner| matches!(owner, Owner::Attachment(_))), "{owners:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_given_back_does_not_return_with_an_older_picture() -> Result<()> {
    let drained = Pool::new("a", "10.1.0.0/24".parse()?, Some(26));
    let bench = Bench::new(std::slice::from_ref(&drained)).await?;
    // The block of the pool that drains, then one of another: the overlay address moves there.
    drop(bench.addressing.give(&key("c1"), &Wish::default()).await?);
    bench.addressing.take_back(&key("c1"))?;
    bench.put_pool(&Pool { state: PoolState::Draining, ..drained.clone() }).await?;
    bench.put_pool(&Pool::new("b", "10.2.0.0/24".parse()?, Some(26))).await?;
    bench.addressing.observe(bench.picture().await?);
    drop(bench.addressing.give(&key("c2"), &Wish::default()).await?);
    let before = bench.picture().await?;
    assert_eq!(before.blocks.len(), 2);
    for _ in 0..2 {
        bench.addressing.observe(bench.picture().await?);
        bench.addressing.settle(|_| true).await?;
    }
    assert_eq!(bench.picture().await?.blocks.len(), 1, "it went back");

    bench.addressing.observe(before);
    bench.put_pool(&drained).await?;
    bench.addressing.observe(bench.picture().await?);
    for id in 0..61 {
        let given = bench.addressing.give(&key(&format!("p{id}")), &Wish::default()).await?;
        assert!(given.ips[0].to_string().starts_with("10.2."), "{:?} is in a block of nobody", given.ips);
    }
    Ok(())
}
