// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The maps of the packet path, and a safe function for each thing the programs do with one.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray},
};
use ebpf_abi::{
    CtKey, CtState, CtValue, FragmentKey, FragmentValue,
    limits::{CT_LIVE_DEFAULT, CT_NEW_DEFAULT, FRAGMENTS_DEFAULT},
};

use crate::scratch::Scratch;

/// BPF_ANY (linux/bpf.h): create or replace.
const ANY: u64 = 0;
/// BPF_NOEXIST (linux/bpf.h): only create.
const NO_EXIST: u64 = 1;
/// asm-generic/errno-base.h.
const EEXIST: i32 = 17;

#[map]
static CT_LIVE: LruHashMap<CtKey, CtValue> = LruHashMap::with_max_entries(CT_LIVE_DEFAULT, 0);
#[map]
static CT_NEW: LruHashMap<CtKey, CtValue> = LruHashMap::with_max_entries(CT_NEW_DEFAULT, 0);
#[map]
static CT_ACTIVE: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> = LruHashMap::with_max_entries(FRAGMENTS_DEFAULT, 0);
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// An entry of CT_LIVE or CT_NEW, in its place. Packets of one flow on several CPUs write to it at once: each field is a number
/// of its own, and the last one wins.
#[derive(Clone, Copy)]
pub(crate) struct Entry(*mut CtValue);

impl Entry {
    /// Copies it out.
    #[inline(always)]
    pub(crate) fn copy_to(&self, value: &mut CtValue) {
        // SAFETY: made from a pointer to a live map value of this type, which stays readable until the program ends.
        unsafe { core::ptr::copy_nonoverlapping(self.0, value, 1) };
    }

    #[inline(always)]
    pub(crate) fn state(&self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).state).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn flags(&self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).flags).read_volatile() }
    }

    /// Whether another flow may have its addresses and ports at this time.
    #[inline(always)]
    pub(crate) fn is_free(&self, proto: u8, now_secs: u32) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).is_free(proto, now_secs) }
    }

    /// Whether its flow is over.
    #[inline(always)]
    pub(crate) fn is_expired(&self, proto: u8, now_secs: u32) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).is_expired(proto, now_secs) }
    }

    /// Whether a SYN between the same ports begins another connection.
    #[inline(always)]
    pub(crate) fn is_over(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).is_over() }
    }

    /// Whether its packets become the same as those of `value`.
    #[inline(always)]
    pub(crate) fn is_like(&self, value: &CtValue) -> bool {
        // SAFETY: as above.
        unsafe {
            (*self.0).src == value.src
                && (*self.0).dst == value.dst
                && (*self.0).sport == value.sport
                && (*self.0).dport == value.dport
        }
    }

    #[inline(always)]
    pub(crate) fn set_state(&self, state: CtState) {
        // SAFETY: as above, and writable.
        unsafe { (&raw mut (*self.0).state).write_volatile(state.number()) };
    }

    /// The same, unless the flow has come to its end meanwhile.
    #[inline(always)]
    pub(crate) fn go_on_to(&self, state: CtState) {
        if self.state() != CtState::Closed.number() {
            self.set_state(state);
        }
    }

    /// See [`CtValue::node`].
    #[inline(always)]
    pub(crate) fn node(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).node).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn set_node(&self, node: u32) {
        // SAFETY: as above, and writable.
        unsafe { (&raw mut (*self.0).node).write_volatile(node) };
    }

    #[inline(always)]
    pub(crate) fn set_flags(&self, flags: u8) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).flags).write_volatile(flags) };
    }

    /// When a packet was last seen, with the state and flags behind it.
    #[inline(always)]
    pub(crate) fn age(&self) -> u64 {
        // SAFETY: as above; the time is the lower half of the last of its eight-byte words.
        unsafe { (&raw const (*self.0).seen_secs).cast::<u64>().read_volatile() }
    }

    /// Says that a packet is seen now, if nobody else has said anything since `age`; `false` where somebody has.
    #[inline(always)]
    pub(crate) fn take(&self, age: u64, now_secs: u32) -> bool {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};
        let now = age & !u64::from(u32::MAX) | u64::from(now_secs);
        // SAFETY: as above, and writable. The instruction is there since Linux 5.12.
        unsafe {
            atomic_cxchg::<u64, { SeqCst }, { SeqCst }>((&raw mut (*self.0).seen_secs).cast(), age, now).1
        }
    }

    #[inline(always)]
    pub(crate) fn set_seen(&self, now_secs: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).seen_secs).write_volatile(now_secs) };
    }
}

/// What came of an insertion.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Inserted {
    /// There is room, and it is in.
    Yes,
    /// Somebody else's is there.
    Taken,
    /// No room.
    Full,
}

/// A flow that goes on, and what its entry says. An entry that is evicted is reused at once, for any key: it must still be this
/// one's after the copy.
#[inline(always)]
pub(crate) fn read_live(key: &CtKey, value: &mut CtValue) -> Option<Entry> {
    let entry = live(key)?;
    entry.copy_to(value);
    let again = live(key)?;
    if again.0 != entry.0 {
        again.copy_to(value);
    }
    Some(again)
}

/// The same for a flow that has only begun.
#[inline(always)]
pub(crate) fn read_fresh(key: &CtKey, value: &mut CtValue) -> Option<Entry> {
    let entry = fresh(key)?;
    entry.copy_to(value);
    let again = fresh(key)?;
    if again.0 != entry.0 {
        again.copy_to(value);
    }
    Some(again)
}

/// The same for either; a flow that moves is in CT_LIVE before it is gone from CT_NEW.
#[inline(always)]
pub(crate) fn read(key: &CtKey, value: &mut CtValue) -> bool {
    read_live(key, value).is_some() || read_fresh(key, value).is_some() || read_live(key, value).is_some()
}

/// A flow that goes on.
#[inline(always)]
pub(crate) fn live(key: &CtKey) -> Option<Entry> {
    CT_LIVE.get_ptr_mut(key).map(Entry)
}

/// A flow that has only begun.
#[inline(always)]
pub(crate) fn fresh(key: &CtKey) -> Option<Entry> {
    CT_NEW.get_ptr_mut(key).map(Entry)
}

/// Writes an entry of CT_LIVE; `false` without room.
#[inline(always)]
pub(crate) fn set_live(key: &CtKey, value: &CtValue) -> bool {
    CT_LIVE.insert(key, value, ANY).is_ok()
}

/// Writes an entry of CT_LIVE where there is none.
#[inline(always)]
pub(crate) fn add_live(key: &CtKey, value: &CtValue) -> Inserted {
    added(CT_LIVE.insert(key, value, NO_EXIST))
}

/// Writes an entry of CT_NEW; `false` without room.
#[inline(always)]
pub(crate) fn set_fresh(key: &CtKey, value: &CtValue) -> bool {
    CT_NEW.insert(key, value, ANY).is_ok()
}

/// Writes an entry of CT_NEW where there is none.
#[inline(always)]
pub(crate) fn add_fresh(key: &CtKey, value: &CtValue) -> Inserted {
    added(CT_NEW.insert(key, value, NO_EXIST))
}

#[inline(always)]
fn added(outcome: Result<(), i32>) -> Inserted {
    match outcome {
        Ok(()) => Inserted::Yes,
        Err(error) if error == -EEXIST => Inserted::Taken,
        Err(_) => Inserted::Full,
    }
}

#[inline(always)]
pub(crate) fn remove_live(key: &CtKey) {
    // Gone already is as good.
    let _ = CT_LIVE.remove(key);
}

#[inline(always)]
pub(crate) fn remove_fresh(key: &CtKey) {
    // As above.
    let _ = CT_NEW.remove(key);
}

/// Whether there ever was a flow: until then nobody pays for looking.
#[inline(always)]
pub(crate) fn is_active() -> bool {
    // SAFETY: a live map value of this type.
    CT_ACTIVE.get_ptr(0).is_some_and(|value| unsafe { value.read_volatile() } != 0)
}

/// There is one now.
#[inline(always)]
pub(crate) fn activate() {
    if let Some(value) = CT_ACTIVE.get_ptr_mut(0) {
        // SAFETY: as above. Written once: the line stays in every CPU's cache.
        unsafe {
            if value.read_volatile() == 0 {
                value.write_volatile(1);
            }
        }
    }
}

/// The ports of a packet whose first fragment was seen.
#[inline(always)]
pub(crate) fn fragment(key: &FragmentKey) -> Option<FragmentValue> {
    let entry = FRAGMENTS.get_ptr(key)?;
    // SAFETY: as above.
    let ports = unsafe { entry.read_volatile() };
    // See [`read_live`].
    if FRAGMENTS.get_ptr(key)? == entry { Some(ports) } else { None }
}

/// They are not known any more.
#[inline(always)]
pub(crate) fn forget_fragment(key: &FragmentKey) {
    // Gone already is as good.
    let _ = FRAGMENTS.remove(key);
}

/// Remembers them.
#[inline(always)]
pub(crate) fn remember_fragment(key: &FragmentKey, value: &FragmentValue) {
    // Without room the other fragments are dropped and counted.
    let _ = FRAGMENTS.insert(key, value, ANY);
}

/// This CPU's working memory: TC programs are neither preempted by each other nor nested.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: a live, aligned map value of this type, per CPU; each program takes it once.
    SCRATCH.get_ptr_mut(0).map(|value| unsafe { &mut *value })
}
