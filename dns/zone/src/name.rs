// SPDX-License-Identifier: Apache-2.0
//! Domain names.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use thiserror::Error;

/// RFC 1035, 2.3.4: octets of one label.
const MAX_LABEL: usize = 63;
/// RFC 1035, 2.3.4: octets of a name on the wire, with the root's.
const MAX_WIRE: usize = 255;

/// An absolute domain name. Keeps the case it was given; comparison, order and hash ignore ASCII case (RFC 4343).
///
/// Displays with a final dot; octets other than letters, digits, `-` and `_` are shown as `\DDD`.
#[derive(Clone)]
pub struct Name {
    /// Each label behind its length, then the root's zero. Lengths are below 64, so folding ASCII case leaves them.
    wire: Box<[u8]>,
}

/// Why something is not a domain name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Two dots in a row, or one in front.
    #[error("{0:?} has an empty label")]
    EmptyLabel(String),
    /// A label of more than 63 octets.
    #[error("{0:?} has a label longer than 63 octets")]
    LabelTooLong(String),
    /// A dot where one label is wanted.
    #[error("{0:?} has a dot in it and is not one label")]
    LabelWithDot(String),
    /// More than 255 octets on the wire.
    #[error("{0:?} is longer than 255 octets on the wire")]
    TooLong(String),
    /// Not one uncompressed name from start to end.
    #[error("not one uncompressed name")]
    Wire,
}

impl Name {
    /// From text such as `web.default.svc.cluster.local`, with or without the final dot. There are no escapes.
    ///
    /// # Errors
    /// An empty label, or more octets than RFC 1035 allows.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let trimmed = text.strip_suffix('.').unwrap_or(text);
        if trimmed.is_empty() {
            return Ok(Self::root());
        }
        Self::from_labels(trimmed.split('.').map(str::as_bytes))
    }

    /// From labels, the leftmost first, without the root's empty one.
    ///
    /// # Errors
    /// An empty label, or more octets than RFC 1035 allows.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            match label.len() {
                0 => return Err(NameError::EmptyLabel(show(&wire, label))),
                length @ 1..=MAX_LABEL => wire.push(length as u8),
                _ => return Err(NameError::LabelTooLong(show(&wire, label))),
            }
            wire.extend_from_slice(label);
            if wire.len() >= MAX_WIRE {
                return Err(NameError::TooLong(show(&wire, &[])));
            }
        }
        wire.push(0);
        Ok(Self { wire: wire.into() })
    }

    /// From the wire form (RFC 1035, 3.1) without compression, with the root's zero.
    ///
    /// # Errors
    /// Anything but exactly one name.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        if wire.len() > MAX_WIRE {
            return Err(NameError::Wire);
        }
        let mut rest = wire;
        loop {
            match rest {
                [0] => return Ok(Self { wire: wire.into() }),
                [length @ 1..=63, tail @ ..] if tail.len() > usize::from(*length) => {
                    rest = &tail[usize::from(*length)..];
                }
                _ => return Err(NameError::Wire),
            }
        }
    }

    /// The empty name.
    #[must_use]
    pub fn root() -> Self {
        Self { wire: Box::new([0]) }
    }

    /// The wire form, uncompressed, with the root's zero; at most 255 octets.
    #[must_use]
    pub fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// The labels, the leftmost first, without the root's.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        let mut starts = Vec::new();
        let mut at = 0;
        while self.wire[at] != 0 {
            starts.push(at);
            at += 1 + usize::from(self.wire[at]);
        }
        starts.into_iter().map(|start| &self.wire[start + 1..start + 1 + usize::from(self.wire[start])])
    }

    /// Whether this is `ancestor` or lies below it.
    #[must_use]
    pub fn is_at_or_below(&self, ancestor: &Self) -> bool {
        let mut rest = &*self.wire;
        while rest.len() > ancestor.wire.len() {
            rest = &rest[1 + usize::from(rest[0])..];
        }
        rest.eq_ignore_ascii_case(&ancestor.wire)
    }

    /// Without the leftmost label; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        match self.wire[0] {
            0 => None,
            length => Some(Self { wire: self.wire[1 + usize::from(length)..].into() }),
        }
    }

    /// Number of labels without the root's.
    pub(crate) fn depth(&self) -> usize {
        let (mut at, mut labels) = (0, 0);
        while let Some(length) = self.wire.get(at).filter(|length| **length != 0) {
            at += 1 + usize::from(*length);
            labels += 1;
        }
        labels
    }

    /// Whether labels of these lengths fit in front.
    pub(crate) fn has_room(&self, labels: &[usize]) -> bool {
        let octets: usize = labels.iter().map(|length| 1 + length).sum();
        labels.iter().all(|length| (1..=MAX_LABEL).contains(length)) && self.wire.len() + octets <= MAX_WIRE
    }

    /// In lower case.
    #[must_use]
    pub fn to_lower(&self) -> Self {
        Self { wire: self.wire.to_ascii_lowercase().into() }
    }

    /// With `label` in front.
    ///
    /// # Errors
    /// An empty label, or more octets than RFC 1035 allows.
    pub fn child(&self, label: &str) -> Result<Self, NameError> {
        Self::from_labels(std::iter::once(label.as_bytes()).chain(self.labels()))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.wire.eq_ignore_ascii_case(&other.wire)
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    /// By the lower-case wire form: good for maps, not the canonical order of RFC 4034.
    fn cmp(&self, other: &Self) -> Ordering {
        self.wire.iter().map(u8::to_ascii_lowercase).cmp(other.wire.iter().map(u8::to_ascii_lowercase))
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.wire.iter().for_each(|octet| state.write_u8(octet.to_ascii_lowercase()));
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wire[0] == 0 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for octet in label {
                match octet {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                        write!(f, "{}", char::from(*octet))?
                    }
                    other => write!(f, "\\{other:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The part of a name that was read when it turned out to be wrong; for messages.
fn show(wire: &[u8], label: &[u8]) -> String {
    let mut so_far = wire.to_vec();
    so_far.push(0);
    let read = Name::from_wire(&so_far).map(|name| name.to_string()).unwrap_or_default();
    format!("{}{}", read.trim_start_matches('.'), String::from_utf8_lossy(label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn case_does_not_matter_but_is_kept() {
        assert_eq!(name("WeB.Default"), name("web.default."));
        assert_eq!(name("WeB.Default").to_string(), "WeB.Default.");
        assert_eq!(name("").to_string(), ".");
    }

    #[test]
    fn below_means_whole_labels() {
        assert!(name("a.cluster.LOCAL").is_at_or_below(&name("cluster.local")));
        assert!(name("cluster.local").is_at_or_below(&name("cluster.local")));
        assert!(!name("xcluster.local").is_at_or_below(&name("cluster.local")));
        assert!(!name("local").is_at_or_below(&name("cluster.local")));
        assert!(name("local").is_at_or_below(&Name::root()));
    }

    #[test]
    fn names_that_are_too_long_or_have_holes_are_refused() {
        assert!(matches!(Name::parse("a..b"), Err(NameError::EmptyLabel(_))));
        assert!(matches!(Name::parse(&"x".repeat(64)), Err(NameError::LabelTooLong(_))));
        assert!(Name::parse(&"x".repeat(63)).is_ok());
        let long = |last: usize| format!("{0}.{0}.{0}.{1}", "x".repeat(63), "y".repeat(last));
        assert_eq!(name(&long(61)).as_wire().len(), 255);
        assert!(matches!(Name::parse(&long(62)), Err(NameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_name_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = Name::from_wire(&bytes) {
                prop_assert_eq!(name.as_wire(), &bytes[..]);
                prop_assert_eq!(Name::from_labels(name.labels()), Ok(name.clone()));
                if let Some(parent) = name.parent() {
                    prop_assert!(name.is_at_or_below(&parent) && !parent.is_at_or_below(&name));
                }
            }
        }
    }
}
