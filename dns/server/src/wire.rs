// SPDX-License-Identifier: Apache-2.0
//! DNS messages as bytes (RFC 1035 section 4), as far as `dns-zone` does not read and write them: answers of others, that
//! are kept and sent as they came. No allocation, no name is followed through a pointer.

use std::cell::RefCell;
use std::ops::Deref;

use dns_zone::Query;

/// Largest UDP answer that we send or ask for: fits an Ethernet frame without fragments (DNS flag day 2020).
pub(crate) const UDP_BYTES_MAX: u16 = 1232;
/// Largest message over a stream.
pub(crate) const STREAM_BYTES_MAX: usize = 65_535;
/// Octets of a header.
pub(crate) const HEADER: usize = 12;
/// Octets of our OPT record (RFC 6891 section 6.1.2) without options.
pub(crate) const OPT_BYTES: usize = 11;
/// Octets of a name on the wire (RFC 1035 section 2.3.4).
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// Flags in the third and fourth octet of a header.
pub(crate) const QR: u8 = 0x80;
pub(crate) const TC: u8 = 0x02;
pub(crate) const RD: u8 = 0x01;
pub(crate) const RA: u8 = 0x80;
pub(crate) const CD: u8 = 0x10;

/// Types that the server itself must know.
pub(crate) mod qtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const MX: u16 = 15;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
}

/// An OPT record without options, as we send it.
pub(crate) fn opt(dnssec_ok: bool) -> [u8; OPT_BYTES] {
    let [high, low] = UDP_BYTES_MAX.to_be_bytes();
    [0, 0, qtype::OPT as u8, high, low, 0, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]
}

/// Room for the largest answer, of the thread and not of each question: most answers are small. Not to be nested.
pub(crate) fn with_room<T>(write: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    ROOM.with_borrow_mut(|room| {
        room.resize(STREAM_BYTES_MAX, 0);
        write(room)
    })
}

/// The response code in the header.
pub(crate) fn code_of(message: &[u8]) -> u16 {
    message.get(3).map_or(0, |flags| u16::from(flags & 0x0F))
}

/// Name, type and DNSSEC flags of a question; without the case of the name.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    bytes: [u8; NAME_BYTES_MAX + 3],
    len: usize,
}

impl Key {
    /// What the same answer serves for.
    pub(crate) fn of(query: &Query<'_>) -> Self {
        let dnssec = u8::from(query.edns().is_some_and(|edns| edns.dnssec_ok));
        Key::new(
            query.name().as_wire(),
            query.record_type().0,
            dnssec | u8::from(query.checking_disabled()) << 1,
        )
    }

    pub(crate) fn new(name: &[u8], qtype: u16, flags: u8) -> Self {
        let mut bytes = [0; NAME_BYTES_MAX + 3];
        let len = name.len().min(NAME_BYTES_MAX);
        // Lengths of labels are below 64, so folding ASCII case leaves them.
        bytes[..len].copy_from_slice(&name[..len]);
        bytes[..len].make_ascii_lowercase();
        bytes[len..len + 2].copy_from_slice(&qtype.to_be_bytes());
        bytes[len + 2] = flags;
        Key { bytes, len: len + 3 }
    }

    /// The same question about another name.
    pub(crate) fn of_name(&self, name: &[u8]) -> Self {
        Key::new(name, self.qtype(), self.bytes[self.len - 1])
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.bytes[..self.len - 3]
    }

    pub(crate) fn qtype(&self) -> u16 {
        u16::from_be_bytes([self.bytes[self.len - 3], self.bytes[self.len - 2]])
    }

    /// The client wants DNSSEC records.
    pub(crate) fn dnssec_ok(&self) -> bool {
        self.bytes[self.len - 1] & 1 != 0
    }

    /// The client validates by itself.
    pub(crate) fn checking_disabled(&self) -> bool {
        self.bytes[self.len - 1] & 2 != 0
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Where a record lies in a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordAt {
    /// Behind the owner's name: type, class, TTL and length of the data, ten octets.
    pub(crate) fixed: usize,
    /// Behind the data.
    pub(crate) end: usize,
}

impl RecordAt {
    /// The record at `at`, if there is a whole one.
    pub(crate) fn read(message: &[u8], at: usize) -> Option<Self> {
        let fixed = any_name(message, at)?;
        let length = message.get(fixed + 8..fixed + 10)?;
        let end = fixed + 10 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        (end <= message.len()).then_some(RecordAt { fixed, end })
    }

    pub(crate) fn rtype(&self, message: &[u8]) -> u16 {
        u16::from_be_bytes([message[self.fixed], message[self.fixed + 1]])
    }

    #[cfg(test)]
    pub(crate) fn ttl(&self, message: &[u8]) -> u32 {
        let at = self.fixed + 4;
        u32::from_be_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
    }
}

/// Where the name at `at` ends, if it is one without pointers.
pub(crate) fn plain_name(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        match *message.get(end)? {
            0 if end - at < NAME_BYTES_MAX => return Some(end + 1),
            length @ 1..=63 => end += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// Where the name at `at` ends; a pointer (which is not followed) ends it too.
fn any_name(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        match *message.get(end)? {
            0 => return Some(end + 1),
            length @ 1..=63 => end += 1 + usize::from(length),
            0xC0..=0xFF => return Some(end + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_knows_no_case() {
        let key = Key::new(b"\x03WeB\x07example\0", 28, 1);
        assert_eq!((key.name(), key.qtype()), (&b"\x03web\x07example\0"[..], 28));
        assert!(key.dnssec_ok() && !key.checking_disabled());
    }

    proptest! {
        #[test]
        fn a_record_lies_within_its_message(bytes in prop::collection::vec(any::<u8>(), 0..100), at in 0usize..120) {
            if let Some(record) = RecordAt::read(&bytes, at) {
                prop_assert!(record.fixed + 10 <= record.end && record.end <= bytes.len());
                record.ttl(&bytes);
            }
        }
    }
}
