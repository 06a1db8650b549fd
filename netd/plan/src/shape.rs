// SPDX-License-Identifier: Apache-2.0
//! Limits of a pod's traffic, and the kernel objects that keep them.
//!
//! What goes to the pod waits in a token bucket (`tbf`) on the host end of its veth. What the pod sends arrives there, and
//! arriving packets cannot wait: they are redirected to an IFB device of the pod's own, wait in its token bucket and go on.
//! Nothing of it is in the pod's netns, so no pod can take it away.

use thiserror::Error;

use crate::host::{HostObjects, LinkSpec};
use crate::links::ifb_name;

/// Longest time that a packet waits, in milliseconds; the queue has room for what passes in that time beside a burst.
/// The reference bandwidth plugin has the same.
pub const WAIT_MS_MAX: u64 = 25;

/// Smallest bucket in bytes. A packet that is larger than the bucket is dropped, always: it must hold one of a network with
/// jumbo frames.
pub const BURST_BYTES_MIN: u32 = 16 * 1024;

/// Smallest bucket in bytes where none is asked for: two of the kernel's largest packets.
pub const DEFAULT_BURST_BYTES_MIN: u64 = 128 * 1024;

/// What passes in so many milliseconds makes the bucket where none is asked for.
pub const DEFAULT_BURST_MS: u64 = 20;

/// Largest bucket where none is asked for, in bytes: more would let a pod go far over its rate for long.
pub const DEFAULT_BURST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Slowest rate: the kernel counts whole bytes.
pub const BITS_PER_SEC_MIN: u64 = 8;

/// How fast, and how much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    /// Bits per second in the long run.
    pub bits_per_sec: u64,
    /// Bits that may pass at full speed after a pause.
    pub burst_bits: u64,
}

/// Limits of one pod's traffic, as the pod sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// What others send to it (`ingressRate` of the capability); `None` for no limit.
    pub to_pod: Option<Rate>,
    /// What it sends (`egressRate`); `None` for no limit.
    pub from_pod: Option<Rate>,
}

/// A token bucket as the kernel has it (`net/sched/sch_tbf.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenBucket {
    /// Bytes per second.
    pub bytes_per_sec: u64,
    /// Size of the bucket in bytes.
    pub burst_bytes: u32,
}

/// A limit that cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BandwidthError {
    /// A burst without a rate.
    #[error("a burst of {burst_bits} bits without a rate: give both, or neither for no limit")]
    BurstAlone {
        /// The burst given.
        burst_bits: u64,
    },
    /// More than the kernel can queue.
    #[error("a burst of {burst_bits} bits at {bits_per_sec} bit/s needs a queue of 4 GiB or more: give less")]
    TooLarge {
        /// The rate given.
        bits_per_sec: u64,
        /// The burst given or chosen.
        burst_bits: u64,
    },
    /// Less than a byte a second.
    #[error(
        "a rate of {bits_per_sec} bit/s is too slow: give at least {BITS_PER_SEC_MIN}, or 0 for no limit"
    )]
    TooSlow {
        /// The rate given.
        bits_per_sec: u64,
    },
}

impl Rate {
    /// Checks one direction of the capability. 0 and 0 is no limit. A rate without a burst gets one of
    /// [`DEFAULT_BURST_MS`], where the reference plugin refuses; a burst without a rate is refused here too.
    pub fn checked(bits_per_sec: u64, burst_bits: u64) -> Result<Option<Self>, BandwidthError> {
        match (bits_per_sec, burst_bits) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(BandwidthError::BurstAlone { burst_bits }),
            (..BITS_PER_SEC_MIN, _) => return Err(BandwidthError::TooSlow { bits_per_sec }),
            _ => {}
        }
        let burst_bits = if burst_bits == 0 { default_burst_bits(bits_per_sec) } else { burst_bits };
        let rate = Rate { bits_per_sec, burst_bits };
        let fits = burst_bits / 8 < u64::from(u32::MAX) && rate.bucket().limit_bytes().is_some();
        if fits { Ok(Some(rate)) } else { Err(BandwidthError::TooLarge { bits_per_sec, burst_bits }) }
    }

    /// The bucket that keeps it.
    pub fn bucket(&self) -> TokenBucket {
        let burst_bytes = u32::try_from(self.burst_bits / 8).unwrap_or(u32::MAX);
        TokenBucket {
            bytes_per_sec: (self.bits_per_sec / 8).max(1),
            burst_bytes: burst_bytes.max(BURST_BYTES_MIN),
        }
    }
}

impl Bandwidth {
    /// Checks both directions, each as (bits per second, burst in bits), see [`Rate::checked`].
    pub fn checked(to_pod: (u64, u64), from_pod: (u64, u64)) -> Result<Self, BandwidthError> {
        Ok(Bandwidth {
            to_pod: Rate::checked(to_pod.0, to_pod.1)?,
            from_pod: Rate::checked(from_pod.0, from_pod.1)?,
        })
    }
}

impl TokenBucket {
    /// Bytes that may wait: a burst, and what passes in [`WAIT_MS_MAX`]. `None` where the kernel's 32 bits do not hold it.
    pub fn limit_bytes(&self) -> Option<u32> {
        let waiting = waiting_bytes(self.bytes_per_sec)?;
        u32::try_from(waiting.checked_add(u64::from(self.burst_bytes))?).ok()
    }

    /// The bucket with that limit: the inverse of [`Self::limit_bytes`]. The kernel tells the limit as it was given, and the
    /// burst only as a time, rounded.
    pub fn from_limit(bytes_per_sec: u64, limit_bytes: u32) -> Option<Self> {
        let burst = u64::from(limit_bytes).checked_sub(waiting_bytes(bytes_per_sec)?)?;
        Some(TokenBucket { bytes_per_sec, burst_bytes: u32::try_from(burst).ok()? })
    }
}

/// The objects that limit the pod behind `host_ifname`.
pub fn shape_objects(host_ifname: &str, bandwidth: &Bandwidth) -> HostObjects {
    let mut objects = HostObjects::new();
    if let Some(rate) = bandwidth.to_pod {
        objects.queues.insert(host_ifname.to_owned(), rate.bucket());
    }
    if let Some(rate) = bandwidth.from_pod {
        let ifb = ifb_name(host_ifname);
        objects.links.insert(ifb.clone(), LinkSpec::Ifb);
        objects.queues.insert(ifb.clone(), rate.bucket());
        objects.redirects.insert(host_ifname.to_owned(), ifb);
    }
    objects
}

fn default_burst_bits(bits_per_sec: u64) -> u64 {
    let passing = (bits_per_sec / 8).saturating_mul(DEFAULT_BURST_MS) / 1_000;
    passing.clamp(DEFAULT_BURST_BYTES_MIN, DEFAULT_BURST_BYTES_MAX) * 8
}

fn waiting_bytes(bytes_per_sec: u64) -> Option<u64> {
    Some(bytes_per_sec.checked_mul(WAIT_MS_MAX)? / 1_000)
}
