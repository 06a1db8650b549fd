// SPDX-License-Identifier: Apache-2.0
//! What one core can seal and open with ring, WireGuard's cipher and packet size: the ceiling of any tunnel in user space.

use std::time::Duration;

use anyhow::{Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// A full packet inside.
const PACKET: usize = 1_420;
/// Long enough for a steady figure.
const LENGTH: Duration = Duration::from_millis(300);
/// Packets between two looks at the clock.
const BATCH: u64 = 256;

/// Each packet is sealed and opened on this thread; Mbit/s of what is inside, by the time that the thread had.
pub(super) fn seal_and_open_mbit() -> Result<f64> {
    let wrong = |_| anyhow!("ring refuses its own packet");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(wrong)?);
    let mut packet = vec![0x5a; PACKET];
    let (start, mut packets) = (thread_time()?, 0_u64);
    while thread_time()? - start < LENGTH {
        for _ in 0..BATCH {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&packets.to_le_bytes());
            let seal = Nonce::assume_unique_for_key(nonce);
            key.seal_in_place_append_tag(seal, Aad::empty(), &mut packet).map_err(wrong)?;
            let open = Nonce::assume_unique_for_key(nonce);
            key.open_in_place(open, Aad::empty(), &mut packet).map_err(wrong)?;
            packet.truncate(PACKET);
            packets += 1;
        }
    }
    Ok(packets as f64 * PACKET as f64 * 8.0 / (thread_time()? - start).as_secs_f64() / 1e6)
}

fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
