// SPDX-License-Identifier: Apache-2.0

//! Who computes checksums: as `ethtool` would show and change it.

use netd_host::offload::{set_tx_checksum, tx_checksum};

use crate::ground::{in_fresh_netns, ip};

#[test]
fn the_checksum_offload_of_a_vxlan_device_is_switched() {
    in_fresh_netns(|| async {
        ip("link add weft.vxlan type vxlan id 7 dstport 4789 nolearning");
        assert!(tx_checksum("weft.vxlan").unwrap(), "a new device has it");
        for on in [false, false, true] {
            set_tx_checksum("weft.vxlan", on).unwrap();
            assert_eq!(tx_checksum("weft.vxlan").unwrap(), on);
        }
        for absent in ["weft.none", "a-name-that-is-longer-than-any-device-has"] {
            assert!(tx_checksum(absent).unwrap_err().to_string().contains("checksum offload"));
        }
    });
}
