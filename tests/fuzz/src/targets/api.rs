// SPDX-License-Identifier: Apache-2.0
//! Bodies of netd's API: what decodes as a request or an answer is written and read again without a change.

use netd_api::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

macro_rules! decoders {
    ($($body:ty),* $(,)?) => { [$((stringify!($body), stable::<$body> as fn(&[u8]) -> bool)),*] };
}

pub(super) fn check(input: &[u8]) -> String {
    let decoders = decoders![
        AllocateReply,
        AllocateRequest,
        ApiError,
        ApplyReply,
        ApplyRequest,
        CheckReply,
        CheckRequest,
        CommitRequest,
        DeleteReply,
        DeleteRequest,
        IpamCheckReply,
        IpamInfo,
        NodeInfo,
        NodeRemoveReply,
        NodeRemoveRequest,
        PodInfo,
        PodLabelReply,
        PodLabelRequest,
        PoolAddRequest,
        PoolRequest,
        ReleaseRequest,
        ServiceDetail,
        ServiceInfo,
        Status,
        StickyRequest,
    ];
    let readers = decoders.into_iter().filter(|(_, stable)| stable(input)).map(|(name, _)| name);
    readers.collect::<Vec<_>>().join(" ")
}

/// Whether the bytes are a `T`; fails where what is written for it is not read as the same.
fn stable<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(input) else { return false };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, value, "read again");
    assert_eq!(serde_json::to_vec(&again).unwrap(), written, "written again");
    true
}
