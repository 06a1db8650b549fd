// SPDX-License-Identifier: Apache-2.0
//! `aya::Pod` for the map types: they may be read from and written to maps as bytes.

#![allow(unsafe_code, reason = "aya's Pod is an unsafe trait; the layouts are asserted beside the types")]

use crate::{
    AffinityBackendKey, AffinityKey, AffinityValue, BackendValue, CtKey, CtValue, DatapathConfig,
    EndpointKey, FlowKey, FlowValue, FragmentKey, FragmentValue, FrontendKey, NetnsValue, NodeValue, Pod6Key,
    PodAddressKey, PodKey, PodLink, PodValue, ServiceCounters, ServiceValue, SocketValue, SourceRangeKey, v1,
};

macro_rules! pods {
    ($($kind:ty),* $(,)?) => {
        $(
            // SAFETY: repr(C), integers only, no implicit padding (sizes asserted): every bit pattern is a value.
            unsafe impl aya::Pod for $kind {}
        )*
    };
}

pods!(FrontendKey, ServiceValue, BackendValue, EndpointKey, SourceRangeKey, ServiceCounters);
pods!(SocketValue, FlowKey, FlowValue, NetnsValue);
pods!(AffinityKey, AffinityValue, AffinityBackendKey);
pods!(NodeValue, DatapathConfig);
pods!(CtKey, CtValue, FragmentKey, FragmentValue);
pods!(PodKey, Pod6Key, PodAddressKey, PodValue, PodLink);
pods!(v1::ServiceKey, v1::ServiceValue, v1::BackendValue, v1::FlowKey, v1::FlowValue);
