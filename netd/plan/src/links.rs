// SPDX-License-Identifier: Apache-2.0
//! Names of links.

use sha2::{Digest, Sha256};

/// All links of ours begin so; nft rules and the sweep go by it.
pub const LINK_PREFIX: &str = "weft";

/// Name of the VXLAN device.
pub const VXLAN_DEVICE: &str = "weft.vxlan";

/// Names of the WireGuard devices, of either kind. The keys of even generations live on the first, those of odd ones on
/// the second, so that a key and its successor stand side by side.
pub const WIREGUARD_DEVICES: [&str; 2] = ["weft.wg0", "weft.wg1"];

/// Name of the VXLAN device inside WireGuard, by which trusted hosts' packets reach the pods of other nodes.
pub const GATE_DEVICE: &str = "weft.gate";

/// Name of the VXLAN device by which a node hands packets for direct server return to the backend's node.
pub const DSR_DEVICE: &str = "weft.dsr";

/// UDP port of the first WireGuard device where nothing else is configured; the second has the next one.
pub const WIREGUARD_PORT: u16 = 51820;

/// What names of IFB devices begin with. No host veth's does: `q` is no hex digit.
pub const IFB_PREFIX: &str = "weftq";

/// Longest link name in bytes: `IFNAMSIZ` less the final zero (`linux/if.h`).
pub const LINK_NAME_BYTES_MAX: usize = 15;

/// Hex digits of the hash in a host veth's name: what the prefix leaves of [`LINK_NAME_BYTES_MAX`]. 44 bits, so that
/// among ten thousand attachments on a node the chance of an equal pair is about 3 in a million.
const HASH_DIGITS: usize = LINK_NAME_BYTES_MAX - LINK_PREFIX.len();

/// Name of the host end of an attachment's veth: `weft` and 11 hex digits of
/// `sha256("network/container ID/ifname")`. The same attachment always has the same name, so DEL needs no memory.
pub fn host_veth_name(network: &str, container_id: &str, ifname: &str) -> String {
    let digest = Sha256::digest(format!("{network}/{container_id}/{ifname}").as_bytes());
    let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(HASH_DIGITS);
    format!("{LINK_PREFIX}{hex}")
}

/// Name of the WireGuard device on which the keys of that generation live.
pub fn wireguard_device(generation: u64) -> &'static str {
    if generation.is_multiple_of(2) { WIREGUARD_DEVICES[0] } else { WIREGUARD_DEVICES[1] }
}

/// UDP port on which the keys of that generation are spoken for. A `base` of 65535 has no next one and is refused where it
/// is configured; here both devices then have it.
pub fn wireguard_port(base: u16, generation: u64) -> u16 {
    if generation.is_multiple_of(2) { base } else { base.saturating_add(1) }
}

/// UDP ports of both WireGuard devices.
pub fn wireguard_ports(base: u16) -> [u16; 2] {
    [wireguard_port(base, 0), wireguard_port(base, 1)]
}

/// UDP port of the gate, spoken to on overlay addresses only: the one behind WireGuard's two, or before them where none is.
pub fn gate_port(base: u16) -> u16 {
    base.checked_add(2).unwrap_or_else(|| base.saturating_sub(1))
}

/// UDP port of the device for direct server return, spoken to on overlay addresses only: the one behind the gate's, or before
/// it where none is.
pub fn dsr_port(base: u16) -> u16 {
    base.checked_add(3).unwrap_or_else(|| base.saturating_sub(2))
}

/// Name of the IFB device through which what a pod sends passes: `weftq` and the first 10 digits of the hash in its host
/// veth's name, so that people find one from the other.
pub fn ifb_name(host_ifname: &str) -> String {
    let hash = host_ifname.strip_prefix(LINK_PREFIX).unwrap_or(host_ifname);
    let mut name = IFB_PREFIX.to_owned();
    name.extend(hash.chars().filter(char::is_ascii).take(LINK_NAME_BYTES_MAX - IFB_PREFIX.len()));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_stable_and_fits() {
        let name = host_veth_name("weft", "c0ffee", "eth0");
        assert_eq!(name, host_veth_name("weft", "c0ffee", "eth0"));
        assert_eq!(name.len(), LINK_NAME_BYTES_MAX);
        assert!(name.starts_with(LINK_PREFIX));
    }

    #[test]
    fn ifb_is_known_by_its_veth() {
        assert_eq!(ifb_name("weft0123456789a"), "weftq0123456789");
        assert_eq!(ifb_name("weftéa"), "weftqa", "bytes are counted");
    }

    #[test]
    fn a_generation_and_the_next_are_on_different_devices() {
        for generation in 0..6 {
            assert_ne!(wireguard_device(generation), wireguard_device(generation + 1));
            assert_ne!(wireguard_port(51820, generation), wireguard_port(51820, generation + 1));
            assert!(wireguard_device(generation).starts_with(LINK_PREFIX));
        }
        assert_eq!((wireguard_device(1), wireguard_port(WIREGUARD_PORT, 1)), ("weft.wg1", 51821));
        assert_eq!(wireguard_ports(u16::MAX), [u16::MAX; 2]);
        for base in [1, WIREGUARD_PORT, u16::MAX - 2, u16::MAX - 1, u16::MAX] {
            assert!(!wireguard_ports(base).contains(&gate_port(base)), "{base}");
        }
        for base in [3, WIREGUARD_PORT, u16::MAX - 3, u16::MAX - 2, u16::MAX - 1, u16::MAX] {
            assert!(!wireguard_ports(base).contains(&dsr_port(base)), "{base}");
            assert_ne!(gate_port(base), dsr_port(base), "{base}");
        }
    }

    #[test]
    fn every_part_of_the_attachment_counts() {
        let name = host_veth_name("weft", "c0ffee", "eth0");
        for other in [
            host_veth_name("other", "c0ffee", "eth0"),
            host_veth_name("weft", "c0ffef", "eth0"),
            host_veth_name("weft", "c0ffee", "eth1"),
        ] {
            assert_ne!(name, other);
        }
    }
}
