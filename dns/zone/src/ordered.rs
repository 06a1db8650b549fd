// SPDX-License-Identifier: Apache-2.0
//! An ordered map of octets of which a copy costs nothing and a change little. With names as [`key`] writes them, all that lies
//! below a name stands in one row behind it.

use std::sync::Arc;

use crate::Folded;

/// Entries of a chunk: copying one costs about as much as copying the list of all chunks, at some 20,000 entries.
const CHUNK_MAX: usize = 128;

type Entry<V> = (Arc<[u8]>, V);
type Chunk<V> = Arc<Vec<Entry<V>>>;

/// Values by key, in order.
#[derive(Clone)]
pub(crate) struct Ordered<V> {
    /// None empty.
    chunks: Arc<Vec<Chunk<V>>>,
}

/// Labels from the right to the left, each behind its length: the key of a name is the start of the keys of all below it.
pub(crate) fn key(name: &Folded, buffer: &mut [u8; 255]) -> usize {
    let mut len = 0;
    for index in (0..name.labels()).rev() {
        let label = name.label(index);
        buffer[len] = label.len() as u8;
        buffer[len + 1..len + 1 + label.len()].copy_from_slice(label);
        len += 1 + label.len();
    }
    len
}

impl<V: Clone> Ordered<V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn find(&self, key: &[u8]) -> Option<&V> {
        let first = self.from(key).next()?;
        (*first.0 == *key).then_some(&first.1)
    }

    /// What has `key` at the start of its own, in order.
    pub(crate) fn below<'a, 'k>(
        &'a self,
        key: &'k [u8],
    ) -> impl Iterator<Item = &'a Entry<V>> + use<'a, 'k, V> {
        self.from(key).take_while(move |(known, _)| known.starts_with(key))
    }

    pub(crate) fn replace(&mut self, key: &[u8], new: Option<V>) -> Option<V> {
        let index = self.chunk_of(key);
        let Some(chunk) = self.chunks.get(index) else {
            if let Some(value) = new {
                Arc::make_mut(&mut self.chunks).push(Arc::new(vec![(key.into(), value)]));
            }
            return None;
        };
        let found = chunk.binary_search_by(|(known, _)| (**known).cmp(key));
        if found.is_err() && new.is_none() {
            return None;
        }
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        let old = match (found, new) {
            (Ok(at), Some(value)) => Some(std::mem::replace(&mut chunk[at].1, value)),
            (Ok(at), None) => Some(chunk.remove(at).1),
            (Err(at), Some(value)) => {
                chunk.insert(at, (key.into(), value));
                None
            }
            (Err(_), None) => None,
        };
        if chunk.is_empty() {
            chunks.remove(index);
        } else if chunk.len() > CHUNK_MAX {
            let rest = chunk.split_off(CHUNK_MAX / 2);
            chunks.insert(index + 1, Arc::new(rest));
        }
        old
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry<V>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    fn from<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = &'a Entry<V>> + use<'a, V> {
        let index = self.chunk_of(key);
        let rest = self.chunks.get(index..).unwrap_or_default();
        let skipped = rest.first().map_or(0, |chunk| chunk.partition_point(|(known, _)| **known < *key));
        rest.iter().flat_map(|chunk| chunk.iter()).skip(skipped)
    }

    /// The chunk that has `key`, or that it belongs into.
    fn chunk_of(&self, key: &[u8]) -> usize {
        let begins_after = |chunk: &Chunk<V>| chunk.first().is_some_and(|(first, _)| **first > *key);
        self.chunks.partition_point(|chunk| !begins_after(chunk)).saturating_sub(1)
    }
}

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Self { chunks: Arc::default() }
    }
}

impl<V: Clone + PartialEq> PartialEq for Ordered<V> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks) || self.iter().eq(other.iter())
    }
}

impl<V: Clone> std::fmt::Debug for Ordered<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.iter().count())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a BTreeMap, with chunks that split and go; copies stay as they were.
        #[test]
        fn it_is_an_ordered_map(steps in prop::collection::vec((any::<bool>(), 0u16..600), 1..900), prefix: u8) {
            let (mut map, mut model) = (Ordered::default(), BTreeMap::new());
            let mut copy = (map.clone(), model.clone());
            for (step, (put, number)) in steps.into_iter().enumerate() {
                let key = number.to_be_bytes();
                let expected = if put { model.insert(key.to_vec(), step) } else { model.remove(&key[..]) };
                prop_assert_eq!(map.replace(&key, put.then_some(step)), expected);
                if step == 300 {
                    copy = (map.clone(), model.clone());
                }
            }
            for (map, model) in [(map, model), copy] {
                prop_assert_eq!(map.is_empty(), model.is_empty());
                let all: Vec<_> = map.iter().map(|(key, value)| (key.to_vec(), *value)).collect();
                prop_assert_eq!(&all, &model.clone().into_iter().collect::<Vec<_>>());
                let start = [prefix % 3];
                let below: Vec<usize> = map.below(&start).map(|(_, value)| *value).collect();
                let expected: Vec<usize> =
                    model.iter().filter(|(key, _)| key.starts_with(&start)).map(|(_, value)| *value).collect();
                prop_assert_eq!(below, expected);
                prop_assert!(model.iter().all(|(key, value)| map.find(key) == Some(value)));
            }
        }
    }
}
