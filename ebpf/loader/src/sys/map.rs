// SPDX-License-Identifier: Apache-2.0
//! Elements of maps, one by one and in batches (BPF_MAP_*_BATCH, Linux 5.6).
//!
//! A [`MapFd`] knows the sizes that the kernel told for its map, and each function compares the caller's buffers with
//! them before the kernel reads or writes there.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{bpf, map_info, obj_get, own};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY and _LRU_PERCPU_HASH.
const PER_CPU: [u32; 3] = [5, 6, 10];
/// Longest name of a map without its NUL (BPF_OBJ_NAME_LEN).
const NAME_MAX: usize = 15;

/// What distinguishes one map from another that cannot stand in for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapShape {
    pub(crate) map_type: u32,
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// An open map.
#[derive(Debug)]
pub(crate) struct MapFd {
    fd: OwnedFd,
    shape: MapShape,
    /// Bytes of one value as system calls move it: all CPUs' in a per-CPU map.
    value_bytes: usize,
}

/// Where a walk through a map is; as large as the largest key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position([u8; 64]);

/// What one step of a walk gave.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Number of entries.
    pub(crate) count: usize,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<Position>,
}

/// How far a batch came: elements done, and why no further.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) done: usize,
    pub(crate) error: io::Error,
}

impl MapFd {
    /// Opens the map pinned at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::of(obj_get(path)?)
    }

    /// Makes a map, not pinned yet.
    pub(crate) fn create(shape: MapShape, name: &str) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            map_flags: u32,
            inner_map_fd: u32,
            numa_node: u32,
            map_name: [u8; 16],
        }
        let mut map_name = [0; 16];
        for (to, from) in map_name.iter_mut().zip(name.bytes().take(NAME_MAX)) {
            *to = from;
        }
        let mut attr = Attr {
            map_type: shape.map_type,
            key_size: shape.key_bytes,
            value_size: shape.value_bytes,
            max_entries: shape.max_entries,
            map_flags: shape.flags,
            inner_map_fd: 0,
            numa_node: 0,
            map_name,
        };
        // SAFETY: the attr is the one of BPF_MAP_CREATE and holds no pointers.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr) }?;
        Self::of(own(fd))
    }

    pub(crate) fn of(fd: OwnedFd) -> io::Result<Self> {
        let [map_type, key_bytes, value_bytes, max_entries, flags] = map_info(fd.as_fd())?;
        let shape = MapShape { map_type, key_bytes, value_bytes, max_entries, flags };
        let value_bytes = if PER_CPU.contains(&map_type) {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            (value_bytes as usize).next_multiple_of(8) * cpus
        } else {
            value_bytes as usize
        };
        if shape.key_bytes as usize > size_of::<Position>() {
            return Err(io::Error::other("its keys are longer than any of ours"));
        }
        Ok(Self { fd, shape, value_bytes })
    }

    pub(crate) fn shape(&self) -> MapShape {
        self.shape
    }

    pub(crate) fn key_bytes(&self) -> usize {
        self.shape.key_bytes as usize
    }

    pub(crate) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Bytes that the kernel has put aside for it, as it says in fdinfo; 0 when it does not.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
    }

    /// Reads one value; `false` when there is none.
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.fits(key, value, 1)?;
        let mut attr = self.element(key.as_ptr() as u64, value.as_mut_ptr() as u64, 0);
        // SAFETY: the attr is the one of BPF_MAP_LOOKUP_ELEM; key and value are as long as the map's, and outlive the call.
        match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes one value; flags are BPF_ANY, BPF_NOEXIST or BPF_EXIST.
    pub(crate) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.fits(key, value, 1)?;
        let mut attr = self.element(key.as_ptr() as u64, value.as_ptr() as u64, flags);
        // SAFETY: as for lookup; the kernel only reads both.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes one entry; `false` when there was none.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        if key.len() != self.key_bytes() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = self.element(key.as_ptr() as u64, 0, 0);
        // SAFETY: the attr is the one of BPF_MAP_DELETE_ELEM; the key is as long as the map's, and outlives the call.
        match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes `count` values, in order.
    pub(crate) fn update_batch(&self, keys: &[u8], values: &[u8], count: usize) -> Result<(), Cut> {
        self.fits(keys, values, count).map_err(|error| Cut { done: 0, error })?;
        let mut attr = self.batch(keys.as_ptr() as u64, values.as_ptr() as u64, count);
        // SAFETY: the attr is the one of BPF_MAP_UPDATE_BATCH; keys and values hold count of the map's, outlive the call, and
        // are only read.
        finish(unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }, &attr)
    }

    /// Removes `count` entries, in order, up to the first that is not there (ENOENT).
    pub(crate) fn delete_batch(&self, keys: &[u8], count: usize) -> Result<(), Cut> {
        if Some(keys.len()) != count.checked_mul(self.key_bytes()) {
            return Err(Cut { done: 0, error: io::ErrorKind::InvalidInput.into() });
        }
        let mut attr = self.batch(keys.as_ptr() as u64, 0, count);
        // SAFETY: the attr is the one of BPF_MAP_DELETE_BATCH; keys hold count of the map's, and outlive the call.
        finish(unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut attr) }, &attr)
    }

    /// Reads up to `count` entries, from the beginning or where a step before ended. ENOSPC: `count` is less than what lies
    /// in one place of the map.
    pub(crate) fn lookup_batch(
        &self,
        from: Option<&Position>,
        keys: &mut [u8],
        values: &mut [u8],
        count: usize,
    ) -> io::Result<Batch> {
        self.fits(keys, values, count)?;
        let mut next = Position([0; 64]);
        let mut attr = self.batch(keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64, count);
        attr.in_batch = from.map_or(0, |from| from.0.as_ptr() as u64);
        attr.out_batch = next.0.as_mut_ptr() as u64;
        // SAFETY: the attr is the one of BPF_MAP_LOOKUP_BATCH; keys and values hold count of the map's; a position is a key or a
        // u32, and ours have room for either (checked at the opening); all outlive the call.
        match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => Ok(Batch { count: attr.count as usize, next: Some(next) }),
            // The end of the map: count says how many there were.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Batch { count: attr.count as usize, next: None })
            }
            Err(error) => Err(error),
        }
    }

    fn fits(&self, keys: &[u8], values: &[u8], count: usize) -> io::Result<()> {
        let fits = Some(keys.len()) == count.checked_mul(self.key_bytes())
            && Some(values.len()) == count.checked_mul(self.value_bytes);
        if fits { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn element(&self, key: u64, value: u64, flags: u64) -> ElementAttr {
        ElementAttr { map_fd: self.fd.as_raw_fd() as u32, pad: 0, key, value, flags }
    }

    fn batch(&self, keys: u64, values: u64, count: usize) -> BatchAttr {
        BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count: count as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        }
    }
}

impl AsFd for MapFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn finish(result: io::Result<i32>, attr: &BatchAttr) -> Result<(), Cut> {
    // On an error the kernel has written how many it had done.
    result.map(drop).map_err(|error| Cut { done: attr.count as usize, error })
}

/// The bytes of values.
pub(crate) fn bytes_of<T: aya::Pod>(values: &[T]) -> &[u8] {
    // SAFETY: Pod: no padding, every byte is initialised; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Values from their bytes; what is left over at the end is no value.
pub(crate) fn from_bytes<T: aya::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        // SAFETY: Pod: every bit pattern is a value; the chunk is as long as one, and the read need not be aligned.
        .map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
        .collect()
}
