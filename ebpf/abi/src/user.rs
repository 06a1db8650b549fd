// SPDX-License-Identifier: Apache-2.0
//! `aya::Pod` for the map types: they may be read from and written to maps as bytes.

#![allow(unsafe_code, reason = "aya's Pod is an unsafe trait; the layouts are asserted beside the types")]

use crate::{
    BackendValue, FlowKey, FlowValue, Pod6Key, PodAddressKey, PodKey, PodLink, PodValue, ServiceCounters,
    ServiceKey, ServiceValue,
};

// SAFETY: repr(C), integers only, no implicit padding (sizes asserted): every bit pattern is a value.
unsafe impl aya::Pod for ServiceKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ServiceValue {}
// SAFETY: as above.
unsafe impl aya::Pod for BackendValue {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowValue {}
// SAFETY: as above.
unsafe impl aya::Pod for ServiceCounters {}
// SAFETY: as above.
unsafe impl aya::Pod for PodKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Pod6Key {}
// SAFETY: as above.
unsafe impl aya::Pod for PodAddressKey {}
// SAFETY: as above.
unsafe impl aya::Pod for PodValue {}
// SAFETY: as above.
unsafe impl aya::Pod for PodLink {}
