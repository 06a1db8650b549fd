// SPDX-License-Identifier: Apache-2.0
//! A map with its types: elements go in and out as values, many of them by few system calls.

use std::{io, marker::PhantomData, path::Path};

use crate::{
    error::{LoadError, MapAccessError},
    sys::{MapFd, Position, bytes_of, from_bytes},
};

/// Elements moved by one system call: a few hundred KiB of buffers, and the call's own cost is lost among them.
const BATCH: usize = 4_096;
/// No bucket of a map has so many entries.
const ROOM_MAX: usize = 1 << 20;
/// BPF_ANY and BPF_NOEXIST (linux/bpf.h).
const ANY: u64 = 0;
const NO_EXIST: u64 = 1;

/// A pinned map. In a per-CPU map `V` is one CPU's value, and only [`Self::sum`] and [`Self::clear_all`] may be used.
#[derive(Debug)]
pub(crate) struct BpfMap<K, V> {
    name: &'static str,
    fd: MapFd,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: aya::Pod, V: aya::Pod> BpfMap<K, V> {
    /// Opens `<dir>/<name>`, whose keys and values must be as long as ours.
    pub(crate) fn open(dir: &Path, name: &'static str) -> Result<Self, LoadError> {
        let path = dir.join(name);
        let fd = MapFd::open(&path).map_err(|source| LoadError::Pin { path: path.clone(), source })?;
        Self::of(name, fd).ok_or_else(|| {
            LoadError::Object(format!("map {name} has keys or values of other lengths than this crate"))
        })
    }

    /// `None` when keys or values of the map have other lengths.
    pub(crate) fn of(name: &'static str, fd: MapFd) -> Option<Self> {
        let shape = fd.shape();
        let fits = shape.key_bytes as usize == size_of::<K>() && shape.value_bytes as usize == size_of::<V>();
        fits.then_some(Self { name, fd, types: PhantomData })
    }

    pub(crate) fn fd(&self) -> &MapFd {
        &self.fd
    }

    /// Entries that it was made for.
    pub(crate) fn max_entries(&self) -> u32 {
        self.fd.shape().max_entries
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, MapAccessError> {
        let mut value = vec![0_u8; self.fd.value_bytes()];
        let found = self.fd.lookup(bytes_of(std::slice::from_ref(key)), &mut value);
        let found = found.map_err(|source| self.failed("read", source))?;
        Ok(found.then(|| from_bytes(&value)).and_then(|values: Vec<V>| values.into_iter().next()))
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> Result<(), MapAccessError> {
        let (key, value) = (bytes_of(std::slice::from_ref(key)), bytes_of(std::slice::from_ref(value)));
        self.fd.update(key, value, ANY).map_err(|source| self.failed("write", source))
    }

    /// Writes an entry that is not there yet; `false` when it is, and stays as it is.
    pub(crate) fn insert_new(&self, key: &K, value: &V) -> Result<bool, MapAccessError> {
        let (key, value) = (bytes_of(std::slice::from_ref(key)), bytes_of(std::slice::from_ref(value)));
        match self.fd.update(key, value, NO_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(source) => Err(self.failed("write", source)),
        }
    }

    /// Removes an entry; `false` when there was none.
    pub(crate) fn remove(&self, key: &K) -> Result<bool, MapAccessError> {
        let key = bytes_of(std::slice::from_ref(key));
        self.fd.delete(key).map_err(|source| self.failed("remove an entry of", source))
    }

    /// Writes all of them, in order; what was written before an error stays.
    pub(crate) fn put_all<'a>(
        &self,
        entries: impl Iterator<Item = (&'a K, &'a V)>,
    ) -> Result<usize, MapAccessError>
    where
        K: 'a,
        V: 'a,
    {
        let mut entries = entries.peekable();
        let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), Vec::new());
        let mut written = 0;
        while entries.peek().is_some() {
            keys.clear();
            values.clear();
            for (key, value) in entries.by_ref().take(BATCH) {
                keys.push(*key);
                values.push(*value);
            }
            // One is cheaper alone: the batch calls allocate.
            if let ([key], [value]) = (keys.as_slice(), values.as_slice()) {
                self.set(key, value)?;
            } else {
                self.fd
                    .update_batch(bytes_of(&keys), bytes_of(&values), keys.len())
                    .map_err(|cut| self.failed("write", cut.error))?;
            }
            written += keys.len();
        }
        Ok(written)
    }

    /// Removes all of them, whether they are there or not; returns how many were.
    pub(crate) fn remove_all<'a>(&self, keys: impl Iterator<Item = &'a K>) -> Result<usize, MapAccessError>
    where
        K: 'a,
    {
        let keys: Vec<K> = keys.copied().collect();
        let mut removed = 0;
        for chunk in keys.chunks(BATCH) {
            let mut rest = chunk;
            while let Some(first) = rest.first() {
                if rest.len() == 1 {
                    removed += usize::from(self.remove(first)?);
                    break;
                }
                match self.fd.delete_batch(bytes_of(rest), rest.len()) {
                    Ok(()) => {
                        removed += rest.len();
                        break;
                    }
                    // It stands before the one that is not there.
                    Err(cut) if cut.error.raw_os_error() == Some(libc::ENOENT) && cut.done < rest.len() => {
                        removed += cut.done;
                        rest = rest.get(cut.done + 1..).unwrap_or_default();
                    }
                    Err(cut) => return Err(self.failed("remove entries of", cut.error)),
                }
            }
        }
        Ok(removed)
    }

    /// Every entry. Of a map that others write at the same time: every entry that was there all the while.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, MapAccessError> {
        let mut all = Vec::new();
        let mut walk = Walk::default();
        while let Some(entries) = self.step(&mut walk, BATCH)? {
            all.extend(entries);
        }
        Ok(all)
    }

    /// The next entries of a walk, `wanted` or somewhat more; `None` at its end, after which it begins anew.
    pub(crate) fn step(&self, walk: &mut Walk, wanted: usize) -> Result<Option<Vec<(K, V)>>, MapAccessError> {
        if std::mem::take(&mut walk.at_end) {
            walk.position = None;
            return Ok(None);
        }
        let mut room = wanted.max(1);
        let batch = loop {
            walk.keys.resize(room * self.fd.key_bytes(), 0);
            walk.values.resize(room * self.fd.value_bytes(), 0);
            let position = walk.position.as_ref();
            match self.fd.lookup_batch(position, &mut walk.keys, &mut walk.values, room) {
                Ok(batch) => break batch,
                // More in one bucket than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < ROOM_MAX => room *= 2,
                Err(source) => return Err(self.failed("list", source)),
            }
        };
        walk.at_end = batch.next.is_none();
        walk.position = batch.next;
        let keys: Vec<K> = from_bytes(&walk.keys);
        let values: Vec<V> = from_bytes(&walk.values);
        Ok(Some(keys.into_iter().zip(values).take(batch.count).collect()))
    }

    /// Adds up a per-CPU value.
    pub(crate) fn sum<T: Default>(
        &self,
        key: &K,
        add: impl Fn(T, V) -> T,
    ) -> Result<Option<T>, MapAccessError> {
        let mut bytes = vec![0_u8; self.fd.value_bytes()];
        let found = self.fd.lookup(bytes_of(std::slice::from_ref(key)), &mut bytes);
        if !found.map_err(|source| self.failed("read", source))? {
            return Ok(None);
        }
        let per_cpu = bytes.chunks(size_of::<V>().next_multiple_of(8));
        let values = per_cpu.filter_map(|bytes| from_bytes::<V>(bytes.get(..size_of::<V>())?).pop());
        Ok(Some(values.fold(T::default(), add)))
    }

    /// Zeroes these, on every CPU.
    pub(crate) fn clear_all<'a>(&self, keys: impl Iterator<Item = &'a K>) -> Result<(), MapAccessError>
    where
        K: 'a,
    {
        let keys: Vec<K> = keys.copied().collect();
        let zeroes = vec![0_u8; self.fd.value_bytes() * keys.len().min(BATCH)];
        for chunk in keys.chunks(BATCH) {
            let values = zeroes.get(..self.fd.value_bytes() * chunk.len()).unwrap_or_default();
            self.fd
                .update_batch(bytes_of(chunk), values, chunk.len())
                .map_err(|cut| self.failed("clear entries of", cut.error))?;
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> MapAccessError {
        if is_full(&source) {
            return MapAccessError::Full { map: self.name, max_entries: self.max_entries() };
        }
        MapAccessError::Kernel { map: self.name, action, source }
    }
}

/// A walk through a map, in steps.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    position: Option<Position>,
    at_end: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// How much of a map was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Entries copied.
    pub(crate) copied: usize,
    /// Entries that found no room: the new map is smaller than what was in the old one.
    pub(crate) left_out: usize,
}

/// Copies every entry into a map that nobody writes yet. Keys and values must be of one length (per-CPU maps on one kernel
/// are).
pub(crate) fn copy_entries(name: &'static str, old: &MapFd, new: &MapFd) -> Result<Copied, MapAccessError> {
    let mut copied = Copied::default();
    each_batch(name, old, |keys, values, count| {
        match new.update_batch(keys, values, count) {
            Ok(()) => copied.copied += count,
            Err(cut) if is_full(&cut.error) => {
                copied.copied += cut.done.min(count);
                copied.left_out += count - cut.done.min(count);
            }
            Err(cut) => {
                return Err(MapAccessError::Kernel { map: name, action: "copy into", source: cut.error });
            }
        }
        Ok(())
    })?;
    Ok(copied)
}

/// Copies the entries that the new map does not have, while programs use both.
pub(crate) fn copy_missing(name: &'static str, old: &MapFd, new: &MapFd) -> Result<Copied, MapAccessError> {
    let mut copied = Copied::default();
    let (key_bytes, value_bytes) = (old.key_bytes(), old.value_bytes());
    each_batch(name, old, |keys, values, _| {
        for (key, value) in keys.chunks_exact(key_bytes).zip(values.chunks_exact(value_bytes)) {
            match new.update(key, value, NO_EXIST) {
                Ok(()) => copied.copied += 1,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) if is_full(&error) => copied.left_out += 1,
                Err(source) => {
                    return Err(MapAccessError::Kernel { map: name, action: "copy into", source });
                }
            }
        }
        Ok(())
    })?;
    Ok(copied)
}

/// The same; of two entries with one key the later one stays, which `is_later` says of the old map's and the new one's.
pub(crate) fn copy_later<K: aya::Pod, V: aya::Pod>(
    old: &BpfMap<K, V>,
    new: &BpfMap<K, V>,
    is_later: impl Fn(&V, &V) -> bool,
) -> Result<Copied, MapAccessError> {
    let mut copied = Copied::default();
    let mut walk = Walk::default();
    while let Some(entries) = old.step(&mut walk, BATCH)? {
        for (key, value) in entries {
            let written = match new.insert_new(&key, &value) {
                Ok(false) => match new.get(&key)? {
                    Some(known) if !is_later(&value, &known) => continue,
                    _ => new.set(&key, &value),
                },
                inserted => inserted.map(drop),
            };
            match written {
                Ok(()) => copied.copied += 1,
                Err(MapAccessError::Full { .. }) => copied.left_out += 1,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(copied)
}

fn each_batch(
    name: &'static str,
    map: &MapFd,
    mut each: impl FnMut(&[u8], &[u8], usize) -> Result<(), MapAccessError>,
) -> Result<(), MapAccessError> {
    let mut room = BATCH;
    let mut position: Option<Position> = None;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    loop {
        keys.resize(room * map.key_bytes(), 0);
        values.resize(room * map.value_bytes(), 0);
        let batch = match map.lookup_batch(position.as_ref(), &mut keys, &mut values, room) {
            Ok(batch) => batch,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < ROOM_MAX => {
                room *= 2;
                continue;
            }
            Err(source) => return Err(MapAccessError::Kernel { map: name, action: "list", source }),
        };
        let found_keys = keys.get(..batch.count * map.key_bytes()).unwrap_or_default();
        let found_values = values.get(..batch.count * map.value_bytes()).unwrap_or_default();
        if batch.count > 0 {
            each(found_keys, found_values, batch.count)?;
        }
        match batch.next {
            Some(next) => position = Some(next),
            None => return Ok(()),
        }
    }
}

/// Hash maps and tries say so in their own ways.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}
