// SPDX-License-Identifier: Apache-2.0
//! An ordered map of services of which a copy costs nothing and a change little: readers keep the table that they have
//! while the next one is made, and one change among 50,000 services copies one chunk of them.

use std::sync::Arc;

use crate::{ServiceEntry, ServiceName};

/// Entries of a chunk: copying one costs about as much as copying the list of all chunks, at 50,000 entries.
const CHUNK_MAX: usize = 128;
/// A chunk with fewer is joined with its neighbour where both fit.
const CHUNK_MIN: usize = 32;

/// Services by name, in order.
#[derive(Clone, Default)]
pub struct ServiceMap {
    /// In order, none empty.
    chunks: Arc<Vec<Arc<Chunk>>>,
    len: usize,
}

type Chunk = Vec<(Arc<ServiceName>, Arc<ServiceEntry>)>;

impl ServiceMap {
    /// Puts an entry in its place; returns the one that was there.
    pub fn insert(&mut self, name: ServiceName, entry: Arc<ServiceEntry>) -> Option<Arc<ServiceEntry>> {
        let index = self.chunk_of(&name);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(index) else {
            chunks.push(Arc::new(vec![(Arc::new(name), entry)]));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(known, _)| (**known).cmp(&name)) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, entry)),
            Err(at) => {
                chunk.insert(at, (Arc::new(name), entry));
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
    pub fn remove(&mut self, name: &ServiceName) -> Option<Arc<ServiceEntry>> {
        let index = self.chunk_of(name);
        let at = self.chunks.get(index)?.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(index)?);
        let (_, entry) = chunk.remove(at);
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
        Some(entry)
    }

    /// One entry.
    #[must_use]
    pub fn get(&self, name: &ServiceName) -> Option<&Arc<ServiceEntry>> {
        let chunk = self.chunks.get(self.chunk_of(name))?;
        let at = chunk.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        chunk.get(at).map(|(_, entry)| entry)
    }

    /// Whether there is one of this name.
    #[must_use]
    pub fn contains_key(&self, name: &ServiceName) -> bool {
        self.get(name).is_some()
    }

    /// All of them, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Arc<ServiceEntry>)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(name, entry)| (&**name, entry))
    }

    /// All names, in order.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceName> {
        self.iter().map(|(name, _)| name)
    }

    /// All entries, in order of their names.
    pub fn values(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.iter().map(|(_, entry)| entry)
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

    /// The chunk that has `name`, or that it belongs into.
    fn chunk_of(&self, name: &ServiceName) -> usize {
        let begins_after = |chunk: &Arc<Chunk>| chunk.first().is_some_and(|(first, _)| **first > *name);
        self.chunks.partition_point(|chunk| !begins_after(chunk)).saturating_sub(1)
    }
}

impl FromIterator<(ServiceName, Arc<ServiceEntry>)> for ServiceMap {
    fn from_iter<T: IntoIterator<Item = (ServiceName, Arc<ServiceEntry>)>>(items: T) -> Self {
        let mut map = Self::default();
        for (name, entry) in items {
            map.insert(name, entry);
        }
        map
    }
}

impl PartialEq for ServiceMap {
    fn eq(&self, other: &Self) -> bool {
        let same = |((a, x), (b, y)): ((&ServiceName, &Arc<ServiceEntry>), (_, &Arc<ServiceEntry>))| {
            a == b && (Arc::ptr_eq(x, y) || x == y)
        };
        Arc::ptr_eq(&self.chunks, &other.chunks)
            || (self.len == other.len && self.iter().zip(other.iter()).all(same))
    }
}

impl Eq for ServiceMap {}

impl std::fmt::Debug for ServiceMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a BTreeMap, with chunks that split and join; copies stay as they were.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), 0u16..600), 1..900)) {
            let (mut map, mut model) = (ServiceMap::default(), BTreeMap::new());
            let mut copy = (map.clone(), model.clone());
            for (step, (insert, number)) in steps.into_iter().enumerate() {
                let name = ServiceName::new("default", format!("s{number:04}"));
                let port = step as u16;
                if insert {
                    let entry = ServiceEntry { health_check_node_port: Some(port), ..ServiceEntry::default() };
                    let entry = Arc::new(entry);
                    prop_assert_eq!(map.insert(name.clone(), entry.clone()), model.insert(name, entry));
                } else {
                    prop_assert_eq!(map.remove(&name), model.remove(&name));
                }
                if step == 300 {
                    copy = (map.clone(), model.clone());
                }
            }
            for (map, model) in [(map, model), copy] {
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(model.iter().all(|(name, entry)| map.get(name) == Some(entry)));
                prop_assert_eq!(&model.into_iter().collect::<ServiceMap>(), &map);
            }
        }
    }
}
