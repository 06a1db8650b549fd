// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Services, their backends, and who stays with which.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie},
};
use ebpf_abi::{
    Address, AffinityBackendKey, AffinityKey, AffinityValue, BackendValue, EndpointKey, FrontendKey,
    ServiceCounters, ServiceValue, SourceRangeKey,
    limits::{
        AFFINITY_BACKENDS_DEFAULT, AFFINITY_DEFAULT, BACKEND_ENDPOINTS_DEFAULT, BACKENDS_DEFAULT,
        FRONTENDS_DEFAULT, SERVICE_COUNTERS_DEFAULT, SLOTS_DEFAULT, SOURCE_RANGES_DEFAULT,
    },
    service::{BACKEND_AGENT, BACKEND_LOCAL},
};

use super::{ANY, NO_PREALLOC, NOEXIST, add_one, agent_is_there};

/// BPF_F_MMAPABLE (linux/bpf.h): user space maps the array into its memory.
const MMAPABLE: u32 = 1 << 10;
/// What a trie compares: [`SourceRangeKey`] without its length.
type RangeBits = [u8; size_of::<SourceRangeKey>() - size_of::<u32>()];

#[map]
static SERVICES: HashMap<FrontendKey, ServiceValue> = HashMap::with_max_entries(FRONTENDS_DEFAULT, 0);
#[map]
static BACKENDS: Array<BackendValue> = Array::with_max_entries(BACKENDS_DEFAULT, 0);
#[map]
static SLOTS: Array<u32> = Array::with_max_entries(SLOTS_DEFAULT, MMAPABLE);
#[map]
static BACKEND_LOAD: Array<u64> = Array::with_max_entries(BACKENDS_DEFAULT, 0);
#[map]
static BACKEND_ENDPOINTS: HashMap<EndpointKey, u32> =
    HashMap::with_max_entries(BACKEND_ENDPOINTS_DEFAULT, NO_PREALLOC);
#[map]
static SOURCE_RANGES: LpmTrie<RangeBits, u32> = LpmTrie::with_max_entries(SOURCE_RANGES_DEFAULT, 0);
#[map]
static SERVICE_COUNTERS: PerCpuArray<ServiceCounters> =
    PerCpuArray::with_max_entries(SERVICE_COUNTERS_DEFAULT, 0);
#[map]
static AFFINITY: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::with_max_entries(AFFINITY_DEFAULT, 0);
#[map]
static AFFINITY_BACKENDS: HashMap<AffinityBackendKey, u32> =
    HashMap::with_max_entries(AFFINITY_BACKENDS_DEFAULT, NO_PREALLOC);

/// The frontend with exactly this key.
#[inline(always)]
pub(crate) fn service(key: &FrontendKey) -> Option<ServiceValue> {
    let entry = SERVICES.get_ptr(key)?;
    // SAFETY: the pointer is to a live map value of this type, copied at once.
    let value = unsafe { entry.read() };
    // An entry that user space replaces meanwhile is reused at once, for any key: it must still be this one's after the copy.
    let again = SERVICES.get_ptr(key)?;
    // SAFETY: as above.
    if again == entry { Some(value) } else { Some(unsafe { again.read() }) }
}

/// The backend identifier in a slot.
#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<u32> {
    // SAFETY: as above; user space stores whole u32s through its mapping, so the read is of one of them.
    SLOTS.get_ptr(index).map(|value| unsafe { value.read_volatile() })
}

/// A backend in its place in BACKENDS, which changes only a grace period after nobody chooses it any more.
#[derive(Clone, Copy)]
pub(crate) struct Backend(*const BackendValue);

/// The backend with this identifier, when it is one.
#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<Backend> {
    let backend = BACKENDS.get_ptr(id)?;
    // SAFETY: as above.
    let (proto, flags) = unsafe { ((*backend).proto, (*backend).flags) };
    if proto == 0 || (flags & BACKEND_AGENT != 0 && !agent_is_there()) {
        None
    } else {
        Some(Backend(backend))
    }
}

impl Backend {
    /// Where connections go.
    #[inline(always)]
    pub(crate) fn addr(self) -> Address {
        // SAFETY: made by `backend` of this program run: the pointer is to a live map value.
        unsafe { (*self.0).addr }
    }

    /// The port, network order.
    #[inline(always)]
    pub(crate) fn port(self) -> [u8; 2] {
        // SAFETY: as above.
        unsafe { (*self.0).port }
    }

    /// Whether it is a pod of this node.
    #[inline(always)]
    pub(crate) fn is_local(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).flags & BACKEND_LOCAL != 0 }
    }

    /// Its node as an index into NODES.
    #[inline(always)]
    pub(crate) fn node(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).node }
    }
}

/// Open connections of a backend. Signed: one that was counted under the identifier's former owner may be taken off.
#[inline(always)]
pub(crate) fn load(backend_id: u32) -> i64 {
    // SAFETY: as above.
    BACKEND_LOAD.get_ptr(backend_id).map_or(0, |load| unsafe { load.read_volatile() } as i64)
}

/// One more, or one less, open connection of a backend.
#[inline(always)]
pub(super) fn add_load(backend_id: u32, change: i64) {
    if let Some(load) = BACKEND_LOAD.get_ptr_mut(backend_id) {
        // SAFETY: a live, aligned map value of this type. The result is not used: the instruction is one that every BPF
        // CPU version has.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
                load,
                change as u64,
            )
        };
    }
}

/// Whether a direct connection to this goes to a backend.
#[inline(always)]
pub(crate) fn is_backend(endpoint: &EndpointKey) -> bool {
    BACKEND_ENDPOINTS.get_ptr(endpoint).is_some()
}

/// Whether the client is in one of the frontend's ranges.
#[inline(always)]
pub(crate) fn is_in_ranges(service_id: u32, client: &Address) -> bool {
    let key = SourceRangeKey::client(service_id, *client);
    // SAFETY: both are their bytes in this order, without padding; aya has a type of its own for a trie's key.
    let key: lpm_trie::Key<RangeBits> = unsafe { core::mem::transmute(key) };
    SOURCE_RANGES.get(key).is_some()
}

/// One more connection or datagram to a backend.
#[inline(always)]
pub(crate) fn count_connection(service_id: u32) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service_id) {
        // SAFETY: a live, aligned map value of this type.
        add_one(unsafe { &raw mut (*counters).connections });
    }
}

/// One more connection or datagram refused or dropped.
#[inline(always)]
pub(crate) fn count_refusal(service_id: u32) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service_id) {
        // SAFETY: as above.
        add_one(unsafe { &raw mut (*counters).refused });
    }
}

/// A client that was given a backend before.
pub(crate) struct Affinity {
    entry: *mut AffinityValue,
    /// The backend.
    pub(crate) backend_id: u32,
    /// When it last began a connection.
    pub(crate) used_secs: u32,
}

/// Which backend a client was given.
#[inline(always)]
pub(crate) fn affinity(key: &AffinityKey) -> Option<Affinity> {
    let entry = AFFINITY.get_ptr_mut(key)?;
    // SAFETY: the pointer is to a live map value of this type.
    let AffinityValue { backend_id, used_secs } = unsafe { entry.read_volatile() };
    Some(Affinity { entry, backend_id, used_secs })
}

impl Affinity {
    /// The client begins a connection now. In place: to write the entry anew would take the LRU's lock.
    #[inline(always)]
    pub(crate) fn use_now(&self, now_secs: u32) {
        if self.used_secs != now_secs {
            // SAFETY: as above; one store. Should the entry be another client's by now, that one stays a little longer.
            unsafe { (&raw mut (*self.entry).used_secs).write_volatile(now_secs) };
        }
    }
}

/// The client stays with this backend from now on. `fresh` says that it had none: then whoever comes first wins.
#[inline(always)]
pub(crate) fn begin_affinity(key: &AffinityKey, value: &AffinityValue, fresh: bool) {
    // A failure (another CPU was first, or has all entries in use just now) leaves the choice to the next connection.
    let _ = AFFINITY.insert(key, value, if fresh { NOEXIST } else { ANY });
}

/// Whether clients may still stay with this backend.
#[inline(always)]
pub(crate) fn is_affine(key: &AffinityBackendKey) -> bool {
    AFFINITY_BACKENDS.get_ptr(key).is_some()
}
