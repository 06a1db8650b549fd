// SPDX-License-Identifier: Apache-2.0
//! Which devices are in use: the kernel's byte counters (/proc/net/dev) from look to look.

use std::collections::BTreeMap;

const COUNTERS: &str = "/proc/net/dev";
/// More than this since the last look is use, in bytes: keepalives and single questions are less.
const BUSY_BYTES: u64 = 4_096;
/// Counters of received bytes and packets, errors and so on stand before that of sent bytes.
const TX_BYTES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Traffic {
    now: BTreeMap<String, u64>,
    before: BTreeMap<String, u64>,
    /// What probes were sent since the last look and before it.
    own: BTreeMap<String, u64>,
    own_before: BTreeMap<String, u64>,
}

impl Traffic {
    pub(super) fn look(&mut self) {
        let text = std::fs::read_to_string(COUNTERS).unwrap_or_default();
        self.counted(parse(&text));
    }

    /// So many bytes of this device were our own.
    pub(super) fn own(&mut self, device: &str, bytes: u64) {
        *self.own.entry(device.to_owned()).or_default() += bytes;
    }

    /// Others sent by this device between the last two looks.
    pub(super) fn is_busy(&self, device: &str) -> bool {
        let (Some(now), Some(before)) = (self.now.get(device), self.before.get(device)) else { return false };
        let own = self.own_before.get(device).copied().unwrap_or_default();
        now.saturating_sub(*before) > own + BUSY_BYTES
    }

    fn counted(&mut self, now: BTreeMap<String, u64>) {
        self.before = std::mem::replace(&mut self.now, now);
        self.own_before = std::mem::take(&mut self.own);
    }
}

/// Sent bytes by device.
fn parse(text: &str) -> BTreeMap<String, u64> {
    let counter = |line: &str| {
        let (device, counters) = line.rsplit_once(':')?;
        Some((device.trim().to_owned(), counters.split_whitespace().nth(TX_BYTES)?.parse().ok()?))
    };
    text.lines().filter_map(counter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_what_others_sent() {
        let text = |bytes: u64| {
            format!(
                "Inter-|   Receive                                                |  Transmit\n \
                 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n\
                 weft.wg0: 9999999 3 0 0 0 0 0 0 {bytes} 3 0 0 0 0 0 0\n"
            )
        };
        let mut traffic = Traffic::default();
        traffic.counted(parse(&text(100_000)));
        assert!(!traffic.is_busy("weft.wg0"), "one look says nothing");
        traffic.own("weft.wg0", 1_440);
        traffic.counted(parse(&text(102_000)));
        assert!(!traffic.is_busy("weft.wg0"));
        traffic.own("weft.wg0", 40_000);
        traffic.counted(parse(&text(142_000)));
        assert!(!traffic.is_busy("weft.wg0"), "our own questions are no use");
        traffic.counted(parse(&text(148_000)));
        assert!(traffic.is_busy("weft.wg0"));
        assert!(!traffic.is_busy("weft.wg1"));
    }
}
