// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The maps, and a safe function for each thing the programs do with one.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use ebpf_abi::{
    DropReason, Pod6Key, PodAddressKey, PodKey, PodLink, PodValue, ServiceCounters,
    v1::{BackendValue, FlowKey, FlowValue, ServiceKey, ServiceValue},
    limits::{
        BACKENDS_MAX, DROPS_MAX, FLOWS_MAX, POD_ADDRESSES_MAX, POD_LINKS_MAX, PODS_MAX, SERVICE_COUNTERS_MAX,
        SERVICES_MAX, SLOTS_MAX,
    },
};

/// BPF_F_MMAPABLE (linux/bpf.h): user space maps the array into its memory.
const MMAPABLE: u32 = 1 << 10;
/// BPF_ANY (linux/bpf.h): create or replace.
const ANY: u64 = 0;

#[map]
static SERVICES: HashMap<ServiceKey, ServiceValue> = HashMap::with_max_entries(SERVICES_MAX, 0);
#[map]
static BACKENDS: Array<BackendValue> = Array::with_max_entries(BACKENDS_MAX, 0);
#[map]
static SLOTS: Array<u32> = Array::with_max_entries(SLOTS_MAX, MMAPABLE);
#[map]
static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::with_max_entries(FLOWS_MAX, 0);
#[map]
static SERVICE_COUNTERS: PerCpuArray<ServiceCounters> =
    PerCpuArray::with_max_entries(SERVICE_COUNTERS_MAX, 0);
#[map]
static PODS: HashMap<PodKey, PodValue> = HashMap::with_max_entries(PODS_MAX, 0);
#[map]
static PODS6: HashMap<Pod6Key, PodValue> = HashMap::with_max_entries(PODS_MAX, 0);
#[map]
static POD_LINKS: HashMap<u32, PodLink> = HashMap::with_max_entries(POD_LINKS_MAX, 0);
#[map]
static POD_ADDRESSES: HashMap<PodAddressKey, u32> = HashMap::with_max_entries(POD_ADDRESSES_MAX, 0);
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROPS_MAX, 0);
#[map]
static OVERLAY: Array<u32> = Array::with_max_entries(1, 0);

/// The frontend with exactly this key.
#[inline(always)]
pub(crate) fn service(key: &ServiceKey) -> Option<ServiceValue> {
    // SAFETY: the pointer is to a live map value of this type; it is copied before anything else happens.
    SERVICES.get_ptr(key).map(|value| unsafe { value.read_volatile() })
}

/// The backend identifier in a slot.
#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<u32> {
    // SAFETY: as above; user space stores whole u32s through its mapping, so the read is of one of them.
    SLOTS.get_ptr(index).map(|value| unsafe { value.read_volatile() })
}

/// The backend with this identifier, when it is one.
#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<BackendValue> {
    // SAFETY: as above.
    let backend = BACKENDS.get_ptr(id).map(|value| unsafe { value.read_volatile() })?;
    if backend.is_unused() { None } else { Some(backend) }
}

/// The frontend that a socket's peer stands for.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<FlowValue> {
    // SAFETY: as above.
    FLOWS.get_ptr(key).map(|value| unsafe { value.read_volatile() })
}

/// Remembers which frontend a socket's peer stands for.
#[inline(always)]
pub(crate) fn remember_flow(key: &FlowKey, value: &FlowValue) {
    // Every datagram to one backend comes by here: an equal entry stays, a write would take the LRU's lock.
    if flow(key).as_ref() != Some(value) {
        // A failure (all entries in use on other CPUs just now) costs the peer's name, not the connection.
        let _ = FLOWS.insert(key, value, ANY);
    }
}

/// One more connection or datagram to a backend.
#[inline(always)]
pub(crate) fn count_connection(service_id: u32) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service_id) {
        // SAFETY: a live, aligned map value of this type.
        add_one(unsafe { &raw mut (*counters).connections });
    }
}

/// One more connection or datagram refused.
#[inline(always)]
pub(crate) fn count_refusal(service_id: u32) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service_id) {
        // SAFETY: as above.
        add_one(unsafe { &raw mut (*counters).refused });
    }
}

/// One more dropped packet.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    if let Some(counter) = DROPS.get_ptr_mut(reason.index()) {
        add_one(counter);
    }
}

/// How to reach a pod of this node.
#[inline(always)]
pub(crate) fn pod(key: &PodKey) -> Option<PodValue> {
    // SAFETY: as above.
    PODS.get_ptr(key).map(|value| unsafe { value.read() })
}

/// How to reach a pod of this node by IPv6.
#[inline(always)]
pub(crate) fn pod6(key: &Pod6Key) -> Option<PodValue> {
    // SAFETY: as above.
    PODS6.get_ptr(key).map(|value| unsafe { value.read() })
}

/// What a pod link may send.
#[inline(always)]
pub(crate) fn pod_link(ifindex: u32) -> Option<PodLink> {
    // SAFETY: as above.
    POD_LINKS.get_ptr(ifindex).map(|value| unsafe { value.read() })
}

/// Whether a pod link may send from this address.
#[inline(always)]
pub(crate) fn may_send_from(ifindex: u32, addr: [u8; 16]) -> bool {
    POD_ADDRESSES.get_ptr(PodAddressKey { ifindex, addr }).is_some()
}

/// Interface index of the overlay device, while there is one.
#[inline(always)]
pub(crate) fn overlay() -> Option<u32> {
    // SAFETY: as above.
    let ifindex = OVERLAY.get_ptr(0).map(|value| unsafe { value.read_volatile() })?;
    if ifindex == 0 { None } else { Some(ifindex) }
}

#[inline(always)]
fn add_one(counter: *mut u64) {
    // Not atomic (Rust offers no fetch_add for this target): per CPU, so that only a socket program preempted between
    // the two steps by another on the same CPU loses a count.
    // SAFETY: callers pass a pointer into a live map value; map values are aligned to 8.
    unsafe { counter.write(counter.read().wrapping_add(1)) };
}
