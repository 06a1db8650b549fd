// SPDX-License-Identifier: Apache-2.0
//! An ordered map of which a copy costs nothing and a change little: readers keep what they have while the next one is made,
//! one change among 50,000 entries copies one chunk of them, and two copies are compared without a look at what they share.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::{ServiceEntry, ServiceName};

/// Entries of a chunk: copying one costs about as much as copying the list of all chunks, at 50,000 entries.
const CHUNK_MAX: usize = 128;
/// A chunk with fewer is joined with its neighbour where both fit.
const CHUNK_MIN: usize = 32;
/// Of a map that is made at once: neither one more nor one less makes its chunks split or join.
const CHUNK_FILL: usize = 96;

/// Services by name, in order.
pub type ServiceMap = ChunkMap<ServiceName, ServiceEntry>;

/// Values by key, in order.
pub struct ChunkMap<K, T> {
    /// In order, none empty.
    chunks: Arc<Vec<Arc<Chunk<K, T>>>>,
    len: usize,
}

type Chunk<K, T> = Vec<(Arc<K>, Arc<T>)>;

/// An entry that is in one of two maps only, or is another in each.
#[derive(Debug)]
pub struct Difference<'a, K, T> {
    /// Its key.
    pub key: &'a Arc<K>,
    /// In the older map.
    pub before: Option<&'a Arc<T>>,
    /// In the newer one.
    pub now: Option<&'a Arc<T>>,
}

impl<K: Ord, T> ChunkMap<K, T> {
    /// Puts an entry in its place; returns the one that was there.
    pub fn insert(&mut self, key: K, value: Arc<T>) -> Option<Arc<T>> {
        let index = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(index) else {
            chunks.push(Arc::new(vec![(Arc::new(key), value)]));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(known, _)| (**known).cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => {
                chunk.insert(at, (Arc::new(key), value));
                self.len += 1;
                if chunk.len() > CHUNK_MAX {
                    let rest = chunk.split_off(CHUNK_MAX / 2);
                    chunks.insert(index + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Takes an entry out.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<Arc<T>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (index, at) = self.find(key)?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(index)?);
        let (_, value) = chunk.remove(at);
        self.len -= 1;
        let len = chunk.len();
        let next = chunks.get(index + 1).map_or(CHUNK_MAX, |next| next.len());
        if len == 0 {
            chunks.remove(index);
        } else if len < CHUNK_MIN && len + next <= CHUNK_MAX {
            let next = chunks.remove(index + 1);
            if let Some(chunk) = chunks.get_mut(index) {
                Arc::make_mut(chunk).extend(next.iter().cloned());
            }
        }
        Some(value)
    }

    /// One entry.
    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> Option<&Arc<T>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (index, at) = self.find(key)?;
        self.chunks.get(index)?.get(at).map(|(_, value)| value)
    }

    /// Whether there is one of this name.
    #[must_use]
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.find(key).is_some()
    }

    /// Those from a key on (it included), in order.
    pub fn range_from<'a, Q>(
        &'a self,
        from: &Q,
    ) -> impl Iterator<Item = (&'a K, &'a Arc<T>)> + use<'a, K, T, Q>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (index, at) = self.position(from);
        let first = self.chunks.get(index).and_then(|chunk| chunk.get(at..)).unwrap_or_default();
        let rest = self.chunks.get(index + 1..).unwrap_or_default();
        first.iter().chain(rest.iter().flat_map(|chunk| chunk.iter())).map(|(key, value)| (&**key, value))
    }

    /// What differs from an older copy, in order of keys: from `from` on as long as keys are `within`, which all of them are that
    /// lie between two that are. A value that was put anew differs, though it may be equal. What both share is passed over
    /// chunk by chunk.
    pub fn differences<'a, Q>(
        &'a self,
        before: &'a Self,
        from: &Q,
        within: impl Fn(&K) -> bool,
    ) -> Vec<Difference<'a, K, T>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let mut found = Vec::new();
        let (mut old, mut new) =
            (Cursor::at(before, before.position(from)), Cursor::at(self, self.position(from)));
        loop {
            let then = old.entry().filter(|(key, _)| within(key));
            let now = new.entry().filter(|(key, _)| within(key));
            let order = match (then, now) {
                (None, None) => return found,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), Some(_)) if old.is_like(&new) => {
                    old.leave_chunk();
                    new.leave_chunk();
                    continue;
                }
                (Some((a, _)), Some((b, _))) if Arc::ptr_eq(a, b) => Ordering::Equal,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let then = then.filter(|_| order.is_le());
            let now = now.filter(|_| order.is_ge());
            let is_same = matches!((then, now), (Some((_, a)), Some((_, b))) if Arc::ptr_eq(a, b));
            if let Some((key, _)) = now.or(then).filter(|_| !is_same) {
                let (before, now) = (then.map(|(_, value)| value), now.map(|(_, value)| value));
                found.push(Difference { key, before, now });
            }
            old.step(order.is_le());
            new.step(order.is_ge());
        }
    }

    fn find<Q>(&self, key: &Q) -> Option<(usize, usize)>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let index = self.chunk_of(key);
        let chunk = self.chunks.get(index)?;
        let at = chunk.binary_search_by(|(known, _)| known_as(known).cmp(key)).ok()?;
        Some((index, at))
    }

    /// Of the first entry that is not before `key`; perhaps behind the last one of a chunk.
    fn position<Q>(&self, key: &Q) -> (usize, usize)
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let index = self.chunk_of(key);
        let is_before = |(known, _): &(Arc<K>, Arc<T>)| known_as(known) < key;
        (index, self.chunks.get(index).map_or(0, |chunk| chunk.partition_point(is_before)))
    }

    /// The chunk that has `key`, or that it belongs into.
    fn chunk_of<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let begins_after =
            |chunk: &Arc<Chunk<K, T>>| chunk.first().is_some_and(|(first, _)| known_as(first) > key);
        self.chunks.partition_point(|chunk| !begins_after(chunk)).saturating_sub(1)
    }
}

impl<K, T> ChunkMap<K, T> {
    /// All of them, in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<T>)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(key, value)| (&**key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.iter().map(|(_, value)| value)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nothing was changed between the two copies.
    #[must_use]
    pub fn is_copy_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }
}

fn known_as<K: Borrow<Q>, Q: ?Sized>(key: &Arc<K>) -> &Q {
    (**key).borrow()
}

/// Where one of two maps that are compared is.
struct Cursor<'a, K, T> {
    chunks: &'a [Arc<Chunk<K, T>>],
    at: usize,
}

impl<'a, K, T> Cursor<'a, K, T> {
    fn at(map: &'a ChunkMap<K, T>, (index, at): (usize, usize)) -> Self {
        let mut cursor = Self { chunks: map.chunks.get(index..).unwrap_or_default(), at };
        cursor.settle();
        cursor
    }

    fn entry(&self) -> Option<(&'a Arc<K>, &'a Arc<T>)> {
        self.chunks.first()?.get(self.at).map(|(key, value)| (key, value))
    }

    /// What follows in both is the same memory, to the end of the chunk.
    fn is_like(&self, other: &Self) -> bool {
        let (own, others) = (self.chunks.first(), other.chunks.first());
        self.at == other.at && matches!((own, others), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }

    fn leave_chunk(&mut self) {
        self.chunks = self.chunks.get(1..).unwrap_or_default();
        self.at = 0;
    }

    fn step(&mut self, goes: bool) {
        self.at += usize::from(goes);
        self.settle();
    }

    fn settle(&mut self) {
        if self.chunks.first().is_some_and(|chunk| self.at >= chunk.len()) {
            self.leave_chunk();
        }
    }
}

impl<K, T> Clone for ChunkMap<K, T> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K, T> Default for ChunkMap<K, T> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

impl<K: Ord, T> FromIterator<(K, Arc<T>)> for ChunkMap<K, T> {
    /// Of several with one key the last stays.
    fn from_iter<I: IntoIterator<Item = (K, Arc<T>)>>(items: I) -> Self {
        let mut all: Vec<(K, Arc<T>)> = items.into_iter().collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut chunks: Vec<Arc<Chunk<K, T>>> = Vec::with_capacity(all.len().div_ceil(CHUNK_FILL));
        let mut chunk: Chunk<K, T> = Vec::new();
        let mut len = 0;
        for (key, value) in all {
            match chunk.last_mut() {
                Some((known, last)) if **known == key => {
                    *last = value;
                    continue;
                }
                _ => {}
            }
            // Only a full one whose last key is settled is closed.
            if chunk.len() == CHUNK_FILL {
                chunks.push(Arc::new(std::mem::take(&mut chunk)));
            }
            chunk.push((Arc::new(key), value));
            len += 1;
        }
        if !chunk.is_empty() {
            chunks.push(Arc::new(chunk));
        }
        Self { chunks: Arc::new(chunks), len }
    }
}

impl<K: PartialEq, T: PartialEq> PartialEq for ChunkMap<K, T> {
    fn eq(&self, other: &Self) -> bool {
        let (own, others) = (self.chunks.iter(), other.chunks.iter());
        self.is_copy_of(other)
            || (self.len == other.len
                && own
                    .flat_map(|chunk| chunk.iter())
                    .zip(others.flat_map(|chunk| chunk.iter()))
                    .all(|((a, x), (b, y))| a == b && (Arc::ptr_eq(x, y) || x == y)))
    }
}

impl<K: Eq, T: Eq> Eq for ChunkMap<K, T> {}

impl<K: fmt::Debug, T: fmt::Debug> fmt::Debug for ChunkMap<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<String, Arc<u16>>;

    fn put(map: &mut ChunkMap<String, u16>, model: &mut Model, (insert, number): (bool, u16), step: usize) {
        let name = format!("s{number:04}");
        if insert {
            let value = Arc::new(step as u16);
            assert_eq!(map.insert(name.clone(), value.clone()), model.insert(name, value));
        } else {
            assert_eq!(map.remove(name.as_str()), model.remove(&name));
        }
    }

    proptest! {
        /// Against a BTreeMap, with chunks that split and join; copies stay as they were.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), 0u16..600), 1..900), from in 0u16..700) {
            let (mut map, mut model) = (ChunkMap::default(), Model::new());
            let mut copy = (map.clone(), model.clone());
            for (step, change) in steps.into_iter().enumerate() {
                put(&mut map, &mut model, change, step);
                if step == 300 {
                    copy = (map.clone(), model.clone());
                }
            }
            let from = format!("s{from:04}");
            for (map, model) in [(map, model), copy] {
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(model.iter().all(|(name, entry)| map.get(name) == Some(entry)));
                prop_assert!(map.range_from(from.as_str()).eq(model.range(from.clone()..)));
                prop_assert_eq!(&model.into_iter().collect::<ChunkMap<_, _>>(), &map);
            }
        }

        /// Whatever was done between two copies, in bulk or one by one, is found, and nothing else.
        #[test]
        fn differences_are_found(
            first in prop::collection::vec(0u16..2_000, 0..1_500),
            steps in prop::collection::vec((any::<bool>(), 0u16..2_000), 0..400),
            from in 0u16..2_000,
            tens in 1u16..200,
        ) {
            let mut model: Model = first.into_iter().map(|n| (format!("s{n:04}"), Arc::new(n))).collect();
            let mut map: ChunkMap<String, u16> = model.clone().into_iter().collect();
            let before = (map.clone(), model.clone());
            for (step, change) in steps.into_iter().enumerate() {
                put(&mut map, &mut model, change, step);
            }
            let (from, to) = (format!("s{from:04}"), format!("s{:04}", from + tens));
            let found = map.differences(&before.0, from.as_str(), |key| *key < to);
            let found = found.into_iter().map(|d| (d.key.to_string(), d.before.cloned(), d.now.cloned()));
            let keys: std::collections::BTreeSet<&String> =
                model.keys().chain(before.1.keys()).filter(|key| (&from..&to).contains(key)).collect();
            let is_same = |a: Option<&Arc<u16>>, b: Option<&Arc<u16>>| {
                matches!((a, b), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
            };
            let expected = keys.into_iter().filter(|key| !is_same(before.1.get(*key), model.get(*key)));
            let expected =
                expected.map(|key| (key.clone(), before.1.get(key).cloned(), model.get(key).cloned()));
            prop_assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn of_several_with_one_key_the_last_stays() {
        let items = (0..CHUNK_FILL * 2 + 1).flat_map(|n| [(n, Arc::new(0)), (n, Arc::new(n))]);
        let map: ChunkMap<usize, usize> = items.collect();
        assert_eq!(map.len(), CHUNK_FILL * 2 + 1);
        assert!(map.iter().all(|(key, value)| key == &**value));
    }
}
