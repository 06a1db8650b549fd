// SPDX-License-Identifier: Apache-2.0
//! Direct server return: a node that got a client's packet for a backend of another node hands it over untouched, in VXLAN
//! between overlay addresses, and the backend's node answers the client itself. Programs on the device say for each packet
//! where it goes; here is only the device.

use crate::links::DSR_DEVICE;
use crate::{HostObjects, LinkSpec};

/// Bytes. The device refuses nothing that an uplink may bring: what fits between nodes is for the program to say, which
/// tells the client.
const DEVICE_MTU: u32 = 65_000;

/// VXLAN's headers around an IP packet (RFC 7348): Ethernet, VXLAN, UDP, IPv4.
const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
/// The same with IPv6 outside.
const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;

/// The device, where some service wants it.
pub fn dsr_objects(port: Option<u16>) -> HostObjects {
    let mut objects = HostObjects::new();
    let link = |port| (DSR_DEVICE.to_owned(), LinkSpec::VxlanExternal { port, mtu: DEVICE_MTU });
    objects.links.extend(port.map(link));
    objects
}

/// The longest packet that can be handed over where packets of `mtu` bytes go from node to node between overlay addresses of
/// that family.
pub fn dsr_mtu(mtu: u32, is_ipv4: bool) -> u16 {
    let overhead = if is_ipv4 { OVERHEAD_V4 } else { OVERHEAD_V6 };
    u16::try_from(mtu.saturating_sub(overhead)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ethernet_frame_needs_room_for_the_headers() {
        assert_eq!((dsr_mtu(1_550, true), dsr_mtu(1_550, false)), (1_500, 1_480));
        assert_eq!(dsr_mtu(20, true), 0);
        assert_eq!(dsr_objects(None), HostObjects::new());
        assert_eq!(dsr_objects(Some(51_823)).links.len(), 1);
    }
}
