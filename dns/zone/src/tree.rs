// SPDX-License-Identifier: Apache-2.0
//! A map by hash of which a copy costs nothing and a change little: readers keep the zone that they have while the next one
//! is made, and one change among 100,000 copies one leaf and the two tables above it.

use std::array;
use std::sync::Arc;

/// Children of an inner table. With two levels there are 4,096 leaves: some 25 values in one at 100,000.
const FAN: usize = 64;

type Leaf<V> = Arc<[(u64, V)]>;
type Inner<V> = Arc<[Leaf<V>; FAN]>;

/// Values by the hash of their key; who asks says which of those with one hash is meant.
pub(crate) struct Tree<V> {
    root: Arc<[Inner<V>; FAN]>,
    len: usize,
}

/// Of a key: eight octets at a time, mixed by multiplication. Keys are made by users of the cluster; whoever makes many of one
/// hash slows down the search for exactly those.
pub(crate) fn hash(key: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| {
        let product = (hash ^ word).wrapping_mul(FACTOR);
        product ^ (product >> 29)
    };
    let mut words = key.chunks_exact(8);
    let mut hash = key.len() as u64;
    for word in &mut words {
        hash = mix(hash, word.try_into().map_or(0, u64::from_le_bytes));
    }
    let tail = words.remainder().iter().fold(1, |word: u64, octet| word << 8 | u64::from(*octet));
    // Twice: the upper bits, which choose the leaf, depend on all of the last octets.
    mix(mix(hash, tail), FACTOR)
}

impl<V: Clone> Tree<V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn find(&self, hash: u64, is: impl Fn(&V) -> bool) -> Option<&V> {
        let (outer, inner) = places(hash);
        let leaf = &self.root[outer][inner];
        let from = leaf.partition_point(|(known, _)| *known < hash);
        let alike = leaf[from..].iter().take_while(|(known, _)| *known == hash);
        alike.map(|(_, value)| value).find(|value| is(value))
    }

    /// Puts a value in the place of the one that `is` means, or takes that one out; returns what was there.
    pub(crate) fn replace(&mut self, hash: u64, is: impl Fn(&V) -> bool, new: Option<V>) -> Option<V> {
        let (outer, inner) = places(hash);
        let here = &self.root[outer][inner];
        let from = here.partition_point(|(known, _)| *known < hash);
        let alike = here[from..].iter().take_while(|(known, _)| *known == hash);
        let found = alike.enumerate().find(|(_, (_, value))| is(value));
        let (at, old) = match found {
            Some((offset, (_, value))) => (from + offset, Some(value.clone())),
            None if new.is_none() => return None,
            None => (from, None),
        };
        let behind = at + usize::from(old.is_some());
        let added = usize::from(new.is_some());
        let middle = new.map(|value| (hash, value));
        let leaf: Leaf<V> =
            here[..at].iter().cloned().chain(middle).chain(here[behind..].iter().cloned()).collect();
        Arc::make_mut(&mut Arc::make_mut(&mut self.root)[outer])[inner] = leaf;
        self.len = self.len + added - usize::from(old.is_some());
        old
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &V> {
        self.root.iter().flat_map(|inner| inner.iter()).flat_map(|leaf| leaf.iter()).map(|(_, value)| value)
    }
}

fn places(hash: u64) -> (usize, usize) {
    ((hash >> 58) as usize, (hash >> 52) as usize % FAN)
}

impl<V> Default for Tree<V> {
    fn default() -> Self {
        let leaf: Leaf<V> = Arc::new([]);
        let inner: Inner<V> = Arc::new(array::from_fn(|_| leaf.clone()));
        Self { root: Arc::new(array::from_fn(|_| inner.clone())), len: 0 }
    }
}

impl<V> Clone for Tree<V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<V: Clone + PartialEq> PartialEq for Tree<V> {
    /// Which of two with one hash came first does not matter.
    fn eq(&self, other: &Self) -> bool {
        let within = |value: &(u64, V), leaf: &Leaf<V>| leaf.contains(value);
        let same = |a: &Leaf<V>, b: &Leaf<V>| {
            Arc::ptr_eq(a, b) || a.len() == b.len() && a.iter().all(|value| within(value, b))
        };
        let mut both = self.root.iter().zip(other.root.iter());
        both.all(|(a, b)| Arc::ptr_eq(a, b) || a.iter().zip(b.iter()).all(|(a, b)| same(a, b)))
    }
}

impl<V> std::fmt::Debug for Tree<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a BTreeMap, also where keys have one hash; copies stay as they were.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), 0u16..400, any::<u8>()), 1..600)) {
            let hash_of = |key: u16| if key < 20 { 7 } else { hash(&key.to_be_bytes()) };
            let (mut tree, mut model) = (Tree::default(), BTreeMap::new());
            let mut copy = (tree.clone(), model.clone());
            for (step, (put, key, value)) in steps.into_iter().enumerate() {
                let new = put.then_some((key, value));
                let old = tree.replace(hash_of(key), |(known, _)| *known == key, new);
                let expected = if put { model.insert(key, value) } else { model.remove(&key) };
                prop_assert_eq!(old.map(|(_, value)| value), expected);
                if step == 100 {
                    copy = (tree.clone(), model.clone());
                }
            }
            for (tree, model) in [(tree, model), copy] {
                prop_assert_eq!(tree.len(), model.len());
                prop_assert_eq!(tree.iter().copied().collect::<BTreeMap<_, _>>(), model.clone());
                for (key, value) in &model {
                    let found = tree.find(hash_of(*key), |(known, _)| known == key);
                    prop_assert_eq!(found, Some(&(*key, *value)));
                }
                let mut again = Tree::default();
                for (key, value) in model.into_iter().rev() {
                    again.replace(hash_of(key), |(known, _)| *known == key, Some((key, value)));
                }
                prop_assert!(again == tree);
            }
        }
    }

    #[test]
    fn names_spread_over_the_leaves() {
        let mut leaves = BTreeMap::new();
        for number in 0..40_960 {
            let name = format!("\x06s{number:05}\x07default\x03svc\x07cluster\x05local\0");
            *leaves.entry(places(hash(name.as_bytes()))).or_insert(0) += 1;
        }
        assert!(leaves.len() > 4_000, "{}", leaves.len());
        assert!(leaves.values().all(|count| *count < 40), "{:?}", leaves.values().max());
    }
}
