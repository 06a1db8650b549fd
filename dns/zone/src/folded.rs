// SPDX-License-Identifier: Apache-2.0
//! A name in lower case on the stack: what a question is looked up by.

use std::fmt;

use crate::Name;

/// RFC 1035, 2.3.4: octets of a name on the wire.
const MAX_WIRE: usize = 255;
/// Labels that fit into so many octets: each has at least one octet and its length, and the root has one.
const MAX_LABELS: usize = 127;

/// A name in lower case with the places of its labels. It lies on the stack; nothing is allocated.
#[derive(Clone)]
pub struct Folded {
    wire: [u8; MAX_WIRE],
    starts: [u8; MAX_LABELS],
    len: u8,
    labels: u8,
}

impl Folded {
    /// Reads an uncompressed name from the front of `bytes`. `None` where there is none, or a compression pointer.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut folded = Self { wire: [0; MAX_WIRE], starts: [0; MAX_LABELS], len: 0, labels: 0 };
        let mut at = 0;
        loop {
            let length = usize::from(*bytes.get(at)?);
            if length == 0 {
                break;
            }
            if length > 63 || at + 1 + length >= MAX_WIRE {
                return None;
            }
            *folded.starts.get_mut(usize::from(folded.labels))? = at as u8;
            folded.labels += 1;
            at += 1 + length;
        }
        let source = bytes.get(..=at)?;
        let target = folded.wire.get_mut(..=at)?;
        target.copy_from_slice(source);
        // Lengths are below 64, so folding leaves them.
        target.make_ascii_lowercase();
        folded.len = (at + 1) as u8;
        Some(folded)
    }

    /// `front` (labels without the root's) in front of the name `rest`; `None` if that is too long.
    pub(crate) fn join(front: &[u8], rest: &[u8]) -> Option<Self> {
        let mut wire = [0; MAX_WIRE];
        let len = front.len() + rest.len();
        wire.get_mut(..front.len())?.copy_from_slice(front);
        wire.get_mut(front.len()..len)?.copy_from_slice(rest);
        Self::read(wire.get(..len)?)
    }

    /// The wire form in lower case, with the root's zero. Good as a key.
    #[must_use]
    pub fn as_wire(&self) -> &[u8] {
        self.wire.get(..usize::from(self.len)).unwrap_or(&[0])
    }

    /// As a name of its own, in lower case. Allocates.
    #[must_use]
    pub fn to_name(&self) -> Name {
        Name::from_wire(self.as_wire()).unwrap_or_else(|_| Name::root())
    }

    /// Number of labels without the root's.
    #[must_use]
    pub fn labels(&self) -> usize {
        usize::from(self.labels)
    }

    /// One label, the leftmost is 0; empty behind the last.
    #[must_use]
    pub fn label(&self, index: usize) -> &[u8] {
        let wire = self.from_label(index);
        wire.get(1..1 + usize::from(wire[0])).unwrap_or_default()
    }

    /// The name without its first `index` labels, in wire form; the root where there are no more.
    #[must_use]
    pub fn from_label(&self, index: usize) -> &[u8] {
        self.as_wire().get(self.start(index)..).unwrap_or(&[0])
    }

    /// The first `index` labels, in wire form without an end.
    pub(crate) fn until_label(&self, index: usize) -> &[u8] {
        self.as_wire().get(..self.start(index)).unwrap_or_default()
    }

    /// How many labels stand in front of `ancestor`, if this is `ancestor` or lies below it.
    pub(crate) fn labels_below(&self, ancestor: &Apex) -> Option<usize> {
        let front = self.labels().checked_sub(ancestor.labels)?;
        (self.from_label(front) == &*ancestor.wire).then_some(front)
    }

    fn start(&self, index: usize) -> usize {
        if index < self.labels() { usize::from(self.starts[index]) } else { usize::from(self.len) - 1 }
    }
}

impl From<&Name> for Folded {
    fn from(name: &Name) -> Self {
        // A name is at most as long as a folded one can be.
        Self::read(name.as_wire()).unwrap_or(Self {
            wire: [0; MAX_WIRE],
            starts: [0; MAX_LABELS],
            len: 1,
            labels: 0,
        })
    }
}

impl fmt::Debug for Folded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_name().fmt(f)
    }
}

/// A name that others lie below, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Apex {
    pub(crate) wire: Box<[u8]>,
    pub(crate) labels: usize,
}

impl Apex {
    pub(crate) fn new(name: &Name) -> Self {
        let folded = Folded::from(name);
        Self { wire: folded.as_wire().into(), labels: folded.labels() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(text: &str) -> Folded {
        Folded::from(&Name::parse(text).unwrap())
    }

    #[test]
    fn labels_and_endings_of_a_name() {
        let name = folded("WeB.Default.svc");
        assert_eq!(
            (name.labels(), name.label(0), name.label(2), name.label(3)),
            (3, &b"web"[..], &b"svc"[..], &b""[..])
        );
        assert_eq!((name.until_label(1), name.from_label(2)), (&b"\x03web"[..], &b"\x03svc\0"[..]));
        assert_eq!(name.labels_below(&Apex::new(&Name::parse("default.SVC").unwrap())), Some(1));
        assert_eq!(name.labels_below(&Apex::new(&Name::parse("t.svc").unwrap())), None);
        assert_eq!(name.labels_below(&Apex::new(&Name::root())), Some(3));
        let root = folded("");
        assert_eq!((root.labels(), root.as_wire(), root.from_label(4)), (0, &b"\0"[..], &b"\0"[..]));
    }

    #[test]
    fn a_pointer_a_long_label_and_a_cut_name_are_none() {
        assert!(Folded::read(b"\x03web\xc0\x0c").is_none());
        assert!(Folded::read(b"\x40web").is_none());
        assert!(Folded::read(b"\x03we").is_none());
        assert!(Folded::read(&[1; 300]).is_none());
        let longest = [&[1u8; 254][..], &[0]].concat();
        assert_eq!(Folded::read(&longest).unwrap().labels(), 127);
        assert!(Folded::join(&longest[..254], b"\x01a\0").is_none());
    }
}
