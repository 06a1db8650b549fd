// SPDX-License-Identifier: Apache-2.0
//! What an ADD asks for.

use std::net::IpAddr;

use ipam::AddressRange;
use netd::addressing::Wish;

/// Names that sticky attachments use: few, so that they meet.
const STICKY_NAMES: usize = 3;

/// Mostly nothing; sometimes a sticky name, an address or a range among the first `addresses` of 10.1.0.0/16.
pub fn any(random: &mut fastrand::Rng, addresses: u16) -> Wish {
    let in_pool = |last: u16| -> IpAddr { IpAddr::from([10, 1, (last >> 8) as u8, last as u8]) };
    match random.u32(0..100) {
        0..70 => Wish::default(),
        70..80 => Wish { sticky: Some(format!("name{}", random.usize(0..STICKY_NAMES))), ..Wish::default() },
        80..92 => Wish { requested: vec![in_pool(random.u16(0..addresses))], ..Wish::default() },
        _ => {
            let first = random.u16(0..addresses - 16);
            let range = AddressRange { first: in_pool(first), last: in_pool(first + 15) };
            Wish { ranges: vec![vec![range]], ..Wish::default() }
        }
    }
}
