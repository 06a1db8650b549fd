// SPDX-License-Identifier: Apache-2.0
//! What Kubernetes lets labels and namespaces be: a text that is neither is a slip of whoever wrote it, and matches nothing.

/// Octets of a label's value, of its key without the prefix, and of one label of DNS (RFC 1123, 2.1).
const LABEL_MAX: usize = 63;
/// Octets of a label key's prefix.
const PREFIX_MAX: usize = 253;

/// A namespace, or the name of a Service: `a-z`, `0-9`, and `-` between them.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let of_it = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    (1..=LABEL_MAX).contains(&text.len())
        && text.bytes().all(of_it)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The key of a label: `app`, `app.kubernetes.io/name`.
pub(crate) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let is_prefix = |prefix: &str| prefix.len() <= PREFIX_MAX && prefix.split('.').all(is_dns_label);
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_prefix)
}

/// The value of a label, which may be empty.
pub(crate) fn is_label_value(text: &str) -> bool {
    let of_it = |octet: u8| octet.is_ascii_alphanumeric() || b"._-".contains(&octet);
    text.len() <= LABEL_MAX && text.bytes().all(of_it)
}

/// The label of a link or an alias: names of hosts, and `_` as some programs have it.
pub(crate) fn is_plain_label(text: &str) -> bool {
    !text.is_empty() && !text.contains('.') && is_label_value(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_as_kubernetes_has_them() {
        let long = "a".repeat(63);
        for key in ["app", "app.kubernetes.io/name", "a_B-9.z", &long, &format!("x.y/{long}")] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "a b", "a!", "a/", "/a", "a/b/c", "A.b/c", "a..b/c", &format!("{long}a"), "ä", "*"] {
            assert!(!is_label_key(key), "{key}");
        }
        assert!(is_label_value("") && is_label_value("1.2_3-x") && is_label_value(&long));
        assert!(!is_label_value("=x") && !is_label_value("a/b") && !is_label_value(&format!("{long}a")));
        assert!(is_dns_label("shop-2") && is_dns_label(&long));
        for text in ["", "Shop", "shop_x", "-a", "a-", "a.b", "a b", &format!("{long}a")] {
            assert!(!is_dns_label(text), "{text}");
        }
    }
}
