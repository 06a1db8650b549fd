// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The pods of this node, and what their links may send.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use ebpf_abi::{
    Pod6Key, PodAddressKey, PodKey, PodLink, PodValue,
    limits::{POD_ADDRESSES_MAX, POD_LINKS_MAX, PODS_MAX},
};

#[map]
static PODS: HashMap<PodKey, PodValue> = HashMap::with_max_entries(PODS_MAX, 0);
#[map]
static PODS6: HashMap<Pod6Key, PodValue> = HashMap::with_max_entries(PODS_MAX, 0);
#[map]
static POD_LINKS: HashMap<u32, PodLink> = HashMap::with_max_entries(POD_LINKS_MAX, 0);
#[map]
static POD_ADDRESSES: HashMap<PodAddressKey, u32> = HashMap::with_max_entries(POD_ADDRESSES_MAX, 0);
#[map]
static OVERLAY: Array<u32> = Array::with_max_entries(1, 0);

/// How to reach a pod of this node.
#[inline(always)]
pub(crate) fn pod(key: &PodKey) -> Option<&'static PodValue> {
    // SAFETY: a live map value of this type, which stays readable until the program ends.
    PODS.get_ptr(key).map(|value| unsafe { &*value })
}

/// How to reach a pod of this node by IPv6.
#[inline(always)]
pub(crate) fn pod6(key: &Pod6Key) -> Option<&'static PodValue> {
    // SAFETY: as above.
    PODS6.get_ptr(key).map(|value| unsafe { &*value })
}

/// What a pod link may send.
#[inline(always)]
pub(crate) fn pod_link(ifindex: u32) -> Option<&'static PodLink> {
    // SAFETY: as above.
    POD_LINKS.get_ptr(ifindex).map(|value| unsafe { &*value })
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
