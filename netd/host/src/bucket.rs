// SPDX-License-Identifier: Apache-2.0

//! A token bucket in the kernel's words: `struct tc_tbf_qopt` and its attributes (include/uapi/linux/pkt_sched.h).

use netd_plan::TokenBucket;
use netlink_packet_core::{DefaultNla, Nla, NlasIterator};
use netlink_packet_route::tc::TcOption;

pub(crate) const KIND: &str = "tbf";

/// TCA_TBF_PARMS, TCA_TBF_RATE64 and TCA_TBF_BURST.
const PARMS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// Length of `struct tc_tbf_qopt`: two `struct tc_ratespec` of 12 bytes, limit, buffer and MTU.
const PARMS_LEN: usize = 36;
/// Where in it the rate, the limit and the buffer are.
const RATE_AT: usize = 8;
const LIMIT_AT: usize = 24;
const BUFFER_AT: usize = 28;
/// TC_LINKLAYER_ETHERNET: the kernel computes times itself, without a table.
const LINK_LAYER_ETHERNET: u8 = 1;
/// The kernel's tick for times of queueing disciplines, 1 << PSCHED_SHIFT nanoseconds (include/net/pkt_sched.h).
const TICK_NS: u64 = 64;

/// Options for RTM_NEWQDISC; `None` where the limit does not fit the kernel's 32 bits.
pub(crate) fn emit(bucket: &TokenBucket) -> Option<Vec<DefaultNla>> {
    let mut parms = vec![0; PARMS_LEN];
    parms[1] = LINK_LAYER_ETHERNET;
    let rate = u32::try_from(bucket.bytes_per_sec).unwrap_or(u32::MAX);
    parms[RATE_AT..RATE_AT + 4].copy_from_slice(&rate.to_ne_bytes());
    parms[LIMIT_AT..LIMIT_AT + 4].copy_from_slice(&bucket.limit_bytes()?.to_ne_bytes());
    Some(vec![
        DefaultNla::new(PARMS, parms),
        DefaultNla::new(RATE64, bucket.bytes_per_sec.to_ne_bytes().to_vec()),
        DefaultNla::new(BURST, bucket.burst_bytes.to_ne_bytes().to_vec()),
    ])
}

/// The bucket that these options of a listed qdisc describe; `None` where it is none that [`emit`] makes.
pub(crate) fn parse(options: &[TcOption]) -> Option<TokenBucket> {
    let nested = options.iter().find_map(|option| match option {
        TcOption::Other(nested) => Some(nested),
        _ => None,
    })?;
    let mut value = vec![0; nested.value_len()];
    nested.emit_value(&mut value);
    let (mut parms, mut rate64) = (None, None);
    for attribute in NlasIterator::new(&value[..]).flatten() {
        match attribute.kind() {
            PARMS => parms = Some(attribute.value().to_vec()),
            RATE64 => rate64 = <[u8; 8]>::try_from(attribute.value()).ok().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    let parms = parms?;
    let field = |at: usize| {
        let bytes = parms.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(u32::from_ne_bytes)
    };
    let bytes_per_sec = rate64.unwrap_or(field(RATE_AT)?.into());
    let bucket = TokenBucket::from_limit(bytes_per_sec, field(LIMIT_AT)?)?;
    is_near(&bucket, field(BUFFER_AT)?).then_some(bucket)
}

/// Whether the time in which the bucket fills, which the kernel has rounded and cut to 32 bits, is that of this bucket.
fn is_near(bucket: &TokenBucket, ticks: u32) -> bool {
    let ns = u128::from(bucket.burst_bytes) * 1_000_000_000 / u128::from(bucket.bytes_per_sec.max(1));
    let expected = ns / u128::from(TICK_NS);
    // Beyond 32 bits the kernel tells the rest of a division: nothing to compare with.
    expected > u128::from(u32::MAX) || expected.abs_diff(ticks.into()) <= 2 + expected / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel tells of a bucket: the nested options with the buffer as ticks.
    fn listed(bucket: &TokenBucket, ticks: u32) -> Vec<TcOption> {
        let mut nested = Vec::new();
        for attribute in emit(bucket).unwrap() {
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            if attribute.kind() == PARMS {
                value[BUFFER_AT..BUFFER_AT + 4].copy_from_slice(&ticks.to_ne_bytes());
            }
            let length = u16::try_from(4 + value.len()).unwrap();
            nested.extend_from_slice(&length.to_ne_bytes());
            nested.extend_from_slice(&attribute.kind().to_ne_bytes());
            nested.extend_from_slice(&value);
        }
        vec![TcOption::Other(DefaultNla::new(2, nested))]
    }

    #[test]
    fn a_bucket_is_read_back_and_another_burst_is_noticed() {
        let bucket = TokenBucket { bytes_per_sec: 1_000_000, burst_bytes: 100_000 };
        // 100 ms in ticks of 64 ns.
        let ticks = 100_000_000 / 64;
        assert_eq!(parse(&listed(&bucket, ticks)), Some(bucket));
        assert_eq!(parse(&listed(&bucket, ticks + 900)), Some(bucket), "rounded");
        assert_eq!(parse(&listed(&bucket, ticks * 2)), None, "somebody changed it");
        let fast = TokenBucket { bytes_per_sec: 12_500_000_000, burst_bytes: 1_000_000 };
        assert_eq!(parse(&listed(&fast, 1_250)), Some(fast), "rates of more than 32 bits");
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[TcOption::Other(DefaultNla::new(2, vec![1, 2, 3]))]), None);
    }
}
