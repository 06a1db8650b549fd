// SPDX-License-Identifier: Apache-2.0
//! What may be switched off, and how many threads work: the same for every device of a process.

use std::thread::available_parallelism;

/// More workers than this gain nothing: one thread feeds them all.
const WORKERS_MAX: usize = 8;

/// How a device moves packets. Each offload is also given up by itself where the kernel refuses it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EngineOptions {
    /// TCP segments of up to 64 KiB in and out of the TUN.
    pub tso: bool,
    /// The same for UDP (kernels from 6.2 on).
    pub uso: bool,
    /// Many datagrams of one size in one send (`UDP_SEGMENT`).
    pub udp_gso: bool,
    /// Many datagrams of one size in one receive (`UDP_GRO`).
    pub udp_gro: bool,
    /// Threads that seal and open; 1: the thread that reads does it all.
    pub workers: usize,
    /// The TUN outlives the process.
    pub persist: bool,
    /// Packets go in the clear, to measure what the cipher costs. Handshakes stay real.
    #[cfg(feature = "bench")]
    pub cipher_off: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            tso: true,
            uso: true,
            udp_gso: true,
            udp_gro: true,
            workers: workers_default(),
            persist: true,
            #[cfg(feature = "bench")]
            cipher_off: false,
        }
    }
}

impl EngineOptions {
    /// Whether packets go in the clear (never, unless built to measure).
    pub(crate) fn cipher_off(&self) -> bool {
        #[cfg(feature = "bench")]
        return self.cipher_off;
        #[cfg(not(feature = "bench"))]
        return false;
    }
}

/// On up to two cores a second thread costs more than it brings (the ends of the flows need the other core).
fn workers_default() -> usize {
    match available_parallelism().map_or(1, usize::from) {
        0..=2 => 1,
        cores => (cores - 1).min(WORKERS_MAX),
    }
}
