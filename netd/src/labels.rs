// SPDX-License-Identifier: Apache-2.0
//! What a pod's label may be: as Kubernetes has it, so that any selector can name it.

/// A name, and a value (Kubernetes: Labels and Selectors, "Syntax and character set").
const NAME_MAX: usize = 63;
/// A prefix is a DNS subdomain (RFC 1123).
const PREFIX_MAX: usize = 253;
/// Prefix of labels that every pod has implicitly, with its own name and namespace.
const OWN_PREFIX: &str = "weft.dev";

/// Why this cannot be a label; `None` as a value means that it is dropped, which must be possible whatever it is.
pub(crate) fn objection(key: &str, value: Option<&str>) -> Option<String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix == Some(OWN_PREFIX) {
        return Some(format!(
            "label {key}: {OWN_PREFIX}/ is what netd says of a pod itself; choose another prefix"
        ));
    }
    let value = value?;
    let prefixed = prefix.is_none_or(|prefix| {
        let part = |part: &str| {
            is_name(part) && !part.bytes().any(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'.'))
        };
        prefix.len() <= PREFIX_MAX && prefix.split('.').all(part)
    });
    if !prefixed || !is_name(name) {
        return Some(format!(
            "label {key:?}: a key has at most {NAME_MAX} letters, digits, '-', '_' and '.', begins and ends with a letter or \
             digit, and may have a DNS name and '/' before it"
        ));
    }
    (!value.is_empty() && !is_name(value)).then(|| {
        format!(
            "label {key}: the value {value:?} must be empty, or at most {NAME_MAX} letters, digits, '-', '_' and '.', with a \
             letter or digit first and last"
        )
    })
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()].iter().all(|byte| byte.is_some_and(u8::is_ascii_alphanumeric));
    ends && bytes.len() <= NAME_MAX
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_what_a_selector_can_name() {
        let long = "x".repeat(64);
        for (key, value) in
            [("app", "web"), ("app", ""), ("a.b/c-d", "1.2_3"), ("App_1", "A"), ("app", &long[..63])]
        {
            assert_eq!(objection(key, Some(value)), None, "{key}={value}");
        }
        for (key, value) in [
            ("a", "b c"),
            ("a", long.as_str()),
            ("a", "-b"),
            ("a", "b."),
            ("a b", "c"),
            ("", "c"),
            ("x/", "c"),
            ("a/b/c", "d"),
            ("A.b/c", "d"),
            ("weft.dev/name", "zzz"),
        ] {
            assert!(objection(key, Some(value)).is_some(), "{key}={value}");
        }
        assert_eq!(objection("a b", None), None, "an old mistake can be dropped");
        assert!(objection("weft.dev/namespace", None).is_some());
    }
}
