// SPDX-License-Identifier: Apache-2.0
//! Which names a message holds already (RFC 1035, 4.1.4), without allocation.

/// Places remembered besides the question's: later names are written out, which is right and only longer.
const PLACES_MAX: usize = 48;
/// Two bits of a pointer are its mark.
const OFFSET_MAX: usize = 0x3FFF;
const POINTER: u8 = 0xC0;

/// Where names, and endings of names, begin in a message.
pub(crate) struct Places {
    /// Offset, and octets up to the root's as if uncompressed.
    places: [(u16, u8); PLACES_MAX],
    len: usize,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self { places: [(0, 0); PLACES_MAX], len: 0 }
    }

    /// How many there are now; for [`Self::forget`].
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Goes back to `len` places: what stood there was taken out of the message.
    pub(crate) fn forget(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A name of `octets` octets begins at `offset`.
    pub(crate) fn note(&mut self, offset: usize, octets: usize) {
        if let Some(place) = self.places.get_mut(self.len).filter(|_| offset <= OFFSET_MAX) {
            *place = (offset as u16, octets as u8);
            self.len += 1;
        }
    }

    /// Where `name` (uncompressed, to the root) stands in `message`, in any case.
    pub(crate) fn find(&self, message: &[u8], name: &[u8]) -> Option<u16> {
        let places = self.places.get(..self.len)?;
        let mut alike = places.iter().filter(|(_, octets)| usize::from(*octets) == name.len());
        alike.find(|(offset, _)| is_at(message, usize::from(*offset), name)).map(|(offset, _)| *offset)
    }
}

/// Whether `name` stands at `offset`. Pointers in a message of ours lead backwards, so this ends.
fn is_at(message: &[u8], mut offset: usize, mut name: &[u8]) -> bool {
    loop {
        let Some(length) = message.get(offset).copied() else { return false };
        if length >= POINTER {
            let Some(low) = message.get(offset + 1) else { return false };
            offset = usize::from(length & !POINTER) << 8 | usize::from(*low);
            continue;
        }
        let octets = 1 + usize::from(length);
        match (message.get(offset..offset + octets), name.get(..octets)) {
            (Some(there), Some(here)) if there.eq_ignore_ascii_case(here) => {}
            _ => return false,
        }
        if length == 0 {
            return true;
        }
        offset += octets;
        name = &name[octets..];
    }
}
