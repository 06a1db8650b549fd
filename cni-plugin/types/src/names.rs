// SPDX-License-Identifier: Apache-2.0
//! Which strings may be a container ID, a network name, an ifname.

/// The longest link name in bytes: the kernel's IFNAMSIZ (linux/if.h) less the NUL.
pub const IFNAME_BYTES_MAX: usize = 15;

/// The longest DNS label in bytes (RFC 1035).
const DNS_LABEL_BYTES_MAX: usize = 63;

/// The longest container ID and network name in bytes: what a file name holds. The specification sets no limit; runtimes
/// use 64 digits, and the lines of the address journal have one.
const CONTAINER_ID_BYTES_MAX: usize = 255;

/// Whether `text` may be a container ID: an ASCII letter or digit, then those and `_ . -`, at most
/// 255 bytes.
pub fn is_container_id(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= CONTAINER_ID_BYTES_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Whether `text` may be a network's name: the rule of container IDs.
pub fn is_network_name(text: &str) -> bool {
    is_container_id(text)
}

/// Whether `text` is a DNS label in lower case: letters, digits and hyphens, none of these at the ends (RFC 1123).
pub fn is_dns_label(text: &str) -> bool {
    (1..=DNS_LABEL_BYTES_MAX).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Whether `text` may be a link's name: the kernel's `dev_valid_name` (net/core/dev.c), and no `%`, which the
/// kernel takes as a pattern and replaces by a number. The kernel looks at bytes and takes 0xa0 for a blank, also in
/// the middle of a UTF-8 letter.
pub fn is_ifname(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= IFNAME_BYTES_MAX
        && text != "."
        && text != ".."
        && !text.as_bytes().contains(&0xa0)
        && !text
            .contains(|c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn container_ids() {
        for good in ["a", "0", "a_b.c-d", &"f".repeat(64)] {
            assert!(is_container_id(good), "{good}");
        }
        for bad in ["", "-a", "_a", ".", "..", "a/b", "a b", "a\n", "é", "a:b", &"f".repeat(256)] {
            assert!(!is_container_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn ifnames() {
        for good in ["e", "eth0", "net1.100", "fifteen-bytes-x", "é0"] {
            assert!(is_ifname(good), "{good}");
        }
        for bad in
            ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-bytes-xx", "eth%d", "\u{a0}", "\u{e0}"]
        {
            assert!(!is_ifname(bad), "{bad:?}");
        }
    }

    #[test]
    fn dns_labels() {
        for good in ["a", "0", "db-1", &"a".repeat(63)] {
            assert!(is_dns_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "é", &"a".repeat(64)] {
            assert!(!is_dns_label(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_safe_in_paths_and_keys(text in any::<String>()) {
            if is_container_id(&text) {
                prop_assert!(text.is_ascii() && !text.contains(['/', '\0', ' ', ':', ';', '=']));
                prop_assert!(!text.starts_with(['.', '-']));
            }
            if is_ifname(&text) {
                prop_assert!(text.len() <= 15 && !text.contains(['/', ':', '\0', '\n', '%']));
                prop_assert!(text != "." && text != "..");
            }
        }

        #[test]
        fn what_runtimes_make_passes(id in "[0-9a-f]{64}", ifname in "[a-z]{1,8}[0-9]{0,7}") {
            prop_assert!(is_container_id(&id));
            prop_assert!(is_ifname(&ifname));
        }
    }
}
