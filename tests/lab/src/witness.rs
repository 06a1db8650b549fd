// SPDX-License-Identifier: Apache-2.0
//! A witness on the underlay: packets there that show a pod's address to everybody.

use crate::lab::Lab;
use crate::running::{Capture, Packets};
use anyhow::Result;

/// tcpdump on the underlay's bridge, with an eye on pods' addresses only.
#[derive(Debug)]
pub struct Witness {
    capture: Capture,
}

/// What a witness saw.
#[derive(Debug)]
pub struct ClearText {
    /// Packets whose outermost IP header (or ARP) has an address of a pod.
    pub packets: usize,
    /// The same as tcpdump prints them, one line each.
    pub lines: String,
}

/// Watches the underlay from now on for packets with an address of `cidrs` in their outermost header. What is inside a
/// tunnel's packets does not count.
pub fn witness_clear_text<T: AsRef<str>>(lab: &Lab, cidrs: &[T]) -> Result<Witness> {
    Ok(Witness { capture: lab.capture(&filter(cidrs))? })
}

impl Witness {
    /// Ends it.
    pub fn stop(self) -> Result<ClearText> {
        let packets: Packets = self.capture.stop()?;
        let lines = packets.print("")?;
        Ok(ClearText { packets: lines.lines().count(), lines })
    }
}

fn filter<T: AsRef<str>>(cidrs: &[T]) -> String {
    cidrs.iter().map(|cidr| format!("net {}", cidr.as_ref())).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cidr_is_watched() {
        assert_eq!(
            filter(&["10.244.0.0/16", "fd00:10:244::/56"]),
            "net 10.244.0.0/16 or net fd00:10:244::/56"
        );
    }
}
