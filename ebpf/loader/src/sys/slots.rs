// SPDX-License-Identifier: Apache-2.0
//! The SLOTS array in our own memory: a slot is written by one store, not by one system call.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
};

/// A mapping of the whole array. The kernel keeps the memory as long as the map or the mapping lives.
#[derive(Debug)]
pub(crate) struct Slots {
    first: NonNull<AtomicU32>,
    len: usize,
}

// SAFETY: the memory is shared with the kernel anyway and is only touched by atomic loads and stores.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// Maps an array of `len` values of 4 bytes that was created with BPF_F_MMAPABLE.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = len as usize;
        // The kernel refuses a map without the flag, and a length beyond the map's rounded up to pages.
        // SAFETY: a fresh mapping chosen by the kernel; no memory of ours is touched.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len * STRIDE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { first, len })
    }

    /// Number of slots.
    pub(crate) fn len(&self) -> u32 {
        self.len as u32
    }

    /// The backend identifier in a slot; 0 beyond the end.
    pub(crate) fn load(&self, slot: u32) -> u32 {
        self.slot(slot).map_or(0, |slot| slot.load(Ordering::Acquire))
    }

    /// Writes a slot; programs see the old identifier or the new one. Beyond the end nothing happens.
    pub(crate) fn store(&self, slot: u32, backend_id: u32) {
        if let Some(slot) = self.slot(slot) {
            slot.store(backend_id, Ordering::Release);
        }
    }

    /// Writes slots that follow each other.
    pub(crate) fn store_run(&self, offset: u32, backends: &[u32]) {
        for (slot, backend_id) in (offset..).zip(backends) {
            self.store(slot, *backend_id);
        }
    }

    fn slot(&self, slot: u32) -> Option<&AtomicU32> {
        let index = slot as usize;
        if index >= self.len {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as self; mappings are page aligned, so this is aligned to 8.
        Some(unsafe { self.first.byte_add(index * STRIDE).as_ref() })
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives self.
        unsafe {
            libc::munmap(self.first.as_ptr().cast(), self.len * STRIDE);
        }
    }
}

/// Array maps round values up to 8 bytes (kernel/bpf/arraymap.c, `array_map_alloc`).
const STRIDE: usize = 8;
