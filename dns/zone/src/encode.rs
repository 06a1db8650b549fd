// SPDX-License-Identifier: Apache-2.0
//! Answers on the wire, written straight into a caller's buffer: compressed names, EDNS, and TC where not all fits.

use std::net::IpAddr;

use crate::compress::Places;
use crate::edns::{OPTION_COOKIE, OPTION_ERROR};
use crate::query::{Head, UDP_PLAIN};
use crate::sink::{Data, NAME_MAX, NameRef, Owner, Sink};
use crate::{Folded, Query, Rcode, Record, RecordType, Reject};

const HEADER: usize = 12;
const CLASS_IN: u16 = 1;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
/// An OPT record without options.
const OPT: usize = 11;
/// The head of an option.
const OPTION: usize = 4;
/// Octets of one string of a TXT record.
const STRING_MAX: usize = 255;
/// Points to the question's name, which stands behind the header.
const QUESTION_POINTER: [u8; 2] = [0xC0, HEADER as u8];

/// What an answer carries besides its records.
#[derive(Clone, Copy, Debug)]
pub struct ReplyOptions<'a> {
    /// Octets that the answer may have ([`Query::limit`]); the buffer is at least 512 octets long and a limit too.
    pub limit: usize,
    /// UDP questions that we take, in octets; said in our OPT record.
    pub udp_size: u16,
    /// RA.
    pub recursion_available: bool,
    /// The cookie option's content: the client's part and ours. Left out where the client did not send EDNS.
    pub cookie: Option<&'a [u8]>,
    /// A code of RFC 8914.
    pub extended_error: Option<u16>,
}

/// An answer that lies in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Octets of it; 0 where the buffer is shorter than 512.
    pub len: usize,
    /// What it says.
    pub rcode: Rcode,
    /// Not all records fit: TC is set.
    pub truncated: bool,
}

/// Writes one answer. Records come in the order of their sections; one that does not fit leaves no trace.
pub struct Encoder<'a> {
    out: &'a mut [u8],
    len: usize,
    /// Records end here: behind it is the room for OPT.
    limit: usize,
    question: &'a Folded,
    places: Places,
    /// Of answer, authority and additional records.
    counts: [u16; 3],
    truncated: bool,
    head: Head,
    opt: Option<Opt<'a>>,
    recursion_available: bool,
}

struct Opt<'a> {
    udp_size: u16,
    dnssec_ok: bool,
    cookie: Option<&'a [u8]>,
    extended_error: Option<u16>,
}

impl<'a> Encoder<'a> {
    /// Begins the answer to `query` in `out`.
    pub fn new(query: &'a Query<'_>, options: &ReplyOptions<'a>, out: &'a mut [u8]) -> Self {
        let opt = query.edns().map(|edns| Opt {
            udp_size: options.udp_size,
            dnssec_ok: edns.dnssec_ok,
            cookie: options.cookie,
            extended_error: options.extended_error,
        });
        let room = opt.as_ref().map_or(0, Opt::len);
        let limit = if out.len() < usize::from(UDP_PLAIN) {
            0
        } else {
            options.limit.max(UDP_PLAIN.into()).min(out.len())
        };
        let mut encoder = Self {
            out,
            len: HEADER.min(limit),
            limit: limit.saturating_sub(room),
            question: query.name(),
            places: Places::new(),
            counts: [0; 3],
            truncated: false,
            head: query.head,
            opt,
            recursion_available: options.recursion_available,
        };
        encoder.put(query.question());
        encoder
    }

    /// Adds to the answer section. `false`: it does not fit, and TC is set.
    pub fn answer(&mut self, record: &Record) -> bool {
        let owner = if is_question(self.question, &record.name) {
            Owner::Question
        } else {
            Owner::Name((&record.name).into())
        };
        Sink::answer(self, owner, record.ttl_secs, (&record.data).into())
    }

    /// Adds to the authority section. `false`: it does not fit, and TC is set.
    pub fn authority(&mut self, record: &Record) -> bool {
        self.section(1, Owner::Name((&record.name).into()), record.ttl_secs, (&record.data).into())
    }

    /// Adds to the additional section. `false`: it does not fit and is left out.
    pub fn additional(&mut self, record: &Record) -> bool {
        self.record(2, Owner::Name((&record.name).into()), record.ttl_secs, (&record.data).into())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.counts == [0; 3]
    }

    /// Completes the answer. `authoritative`: AA.
    pub fn finish(mut self, rcode: Rcode, authoritative: bool) -> Written {
        if self.out.len() < usize::from(UDP_PLAIN) {
            return Written { len: 0, rcode, truncated: false };
        }
        if let Some(opt) = self.opt.take() {
            let end = self.len + opt.len();
            opt.write(rcode, &mut self.out[self.len..end]);
            self.len = end;
            self.counts[2] += 1;
        }
        let mut flags = self.head.answer_flags() | rcode.0 & 0xF;
        for (is, flag) in [
            (authoritative, FLAG_AUTHORITATIVE),
            (self.truncated, FLAG_TRUNCATED),
            (self.recursion_available, FLAG_RECURSION_AVAILABLE),
        ] {
            flags |= if is { flag } else { 0 };
        }
        let words = [self.head.id, flags, 1, self.counts[0], self.counts[1], self.counts[2]];
        for (place, word) in self.out.chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        Written { len: self.len, rcode, truncated: self.truncated }
    }

    /// A record that has to be there: TC without it.
    fn section(&mut self, section: usize, owner: Owner<'_>, ttl_secs: u32, data: Data<'_>) -> bool {
        let fits = !self.truncated && self.record(section, owner, ttl_secs, data);
        self.truncated |= !fits;
        fits
    }

    fn record(&mut self, section: usize, owner: Owner<'_>, ttl_secs: u32, data: Data<'_>) -> bool {
        let (len, places) = (self.len, self.places.len());
        let mut whole = match owner {
            Owner::Name(name) => self.name(name, true),
            Owner::Question => self.put(&QUESTION_POINTER),
        };
        let mut fields = [0; 10];
        for (place, word) in fields.chunks_exact_mut(2).zip([
            data.record_type().0,
            CLASS_IN,
            (ttl_secs >> 16) as u16,
            ttl_secs as u16,
        ]) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        whole = whole && self.put(&fields);
        let start = self.len;
        whole = whole && self.data(data);
        let written = self.len - start;
        match u16::try_from(written) {
            Ok(length) if whole && self.counts[section] < u16::MAX => {
                self.out[start - 2..start].copy_from_slice(&length.to_be_bytes());
                self.counts[section] += 1;
                true
            }
            _ => {
                self.len = len;
                self.places.forget(places);
                false
            }
        }
    }

    fn data(&mut self, data: Data<'_>) -> bool {
        match data {
            Data::A(ip) => self.put(&ip.octets()),
            Data::Aaaa(ip) => self.put(&ip.octets()),
            Data::Cname(name) | Data::Ns(name) | Data::Ptr(name) => self.name(name, true),
            Data::Mx { preference, exchange } => {
                self.put(&preference.to_be_bytes()) && self.name(exchange, true)
            }
            Data::Other { data, .. } => self.put(data),
            Data::Soa { mname, rname, numbers } => {
                self.name(mname, true)
                    && self.name(rname, true)
                    && numbers.iter().all(|number| self.put(&number.to_be_bytes()))
            }
            // RFC 2782: the target is not compressed.
            Data::Srv { priority, weight, port, target } => {
                [priority, weight, port].iter().all(|number| self.put(&number.to_be_bytes()))
                    && self.name(target, false)
            }
            Data::Txt("") => self.put(&[0]),
            Data::Txt(text) => {
                text.as_bytes().chunks(STRING_MAX).all(|part| self.put(&[part.len() as u8]) && self.put(part))
            }
        }
    }

    fn name(&mut self, name: NameRef<'_>, compressed: bool) -> bool {
        let mut buffer = [0; NAME_MAX];
        let mut rest = name.write(&mut buffer);
        let mut known = false;
        while rest.first().is_some_and(|length| *length != 0) {
            if !known {
                match self.find(rest) {
                    Some(pointer) if compressed => return self.put(&(0xC000 | pointer).to_be_bytes()),
                    Some(_) => known = true,
                    None => self.places.note(self.len, rest.len()),
                }
            }
            let octets = 1 + usize::from(rest[0]);
            if !self.put(&rest[..octets]) {
                return false;
            }
            rest = &rest[octets..];
        }
        self.put(&[0])
    }

    /// Where a name stands already.
    fn find(&self, name: &[u8]) -> Option<u16> {
        let question = self.question.as_wire();
        match question.len().checked_sub(name.len()) {
            Some(front) if question[front..].eq_ignore_ascii_case(name) => Some((HEADER + front) as u16),
            _ => self.places.find(&self.out[..self.len], name),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> bool {
        let end = self.len + bytes.len();
        if end > self.limit {
            return false;
        }
        self.out[self.len..end].copy_from_slice(bytes);
        self.len = end;
        true
    }
}

/// In any case: a record of the name asked takes the case that it was asked in.
fn is_question(question: &Folded, name: &crate::Name) -> bool {
    question.as_wire().eq_ignore_ascii_case(name.as_wire())
}

impl Sink for Encoder<'_> {
    fn answer(&mut self, owner: Owner<'_>, ttl_secs: u32, data: Data<'_>) -> bool {
        self.section(0, owner, ttl_secs, data)
    }

    fn authority(&mut self, owner: NameRef<'_>, ttl_secs: u32, data: Data<'_>) {
        self.section(1, Owner::Name(owner), ttl_secs, data);
    }

    fn additional(
        &mut self,
        owner: NameRef<'_>,
        ttl_secs: u32,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> bool {
        let (len, places, count) = (self.len, self.places.len(), self.counts[2]);
        for ip in addresses {
            // RFC 2181, 9: what is only additional goes without TC; a part of a name's addresses would pass for all.
            if self.truncated || !self.record(2, Owner::Name(owner), ttl_secs, ip.into()) {
                self.len = len;
                self.places.forget(places);
                self.counts[2] = count;
                return false;
            }
        }
        true
    }
}

impl Opt<'_> {
    fn len(&self) -> usize {
        OPT + self.cookie.map_or(0, |cookie| OPTION + cookie.len())
            + self.extended_error.map_or(0, |_| OPTION + 2)
    }

    /// `out` has exactly [`Self::len`] octets.
    fn write(&self, rcode: Rcode, out: &mut [u8]) {
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            out[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        put(&[0]);
        put(&RecordType::OPT.0.to_be_bytes());
        put(&self.udp_size.to_be_bytes());
        put(&[(rcode.0 >> 4) as u8, 0, if self.dnssec_ok { 0x80 } else { 0 }, 0]);
        put(&((self.len() - OPT) as u16).to_be_bytes());
        if let Some(cookie) = self.cookie {
            put(&OPTION_COOKIE.to_be_bytes());
            put(&(cookie.len() as u16).to_be_bytes());
            put(cookie);
        }
        if let Some(code) = self.extended_error {
            put(&OPTION_ERROR.to_be_bytes());
            put(&2u16.to_be_bytes());
            put(&code.to_be_bytes());
        }
    }
}

impl Query<'_> {
    /// Writes an answer without records: SERVFAIL, REFUSED and the like. Returns its length.
    pub fn reply(&self, rcode: Rcode, options: &ReplyOptions<'_>, out: &mut [u8]) -> usize {
        Encoder::new(self, options, out).finish(rcode, false).len
    }
}

impl Reject<'_> {
    /// Writes the answer that says why. Returns its length; 0 where `out` is shorter than 512 octets.
    pub fn encode(&self, options: &ReplyOptions<'_>, out: &mut [u8]) -> usize {
        if out.len() < usize::from(UDP_PLAIN) {
            return 0;
        }
        let question = self.question.unwrap_or_default();
        let flags = self.head.answer_flags() | self.rcode.0 & 0xF;
        let counts = [u16::from(!question.is_empty()), 0, 0, u16::from(self.edns)];
        let words = [self.head.id, flags].into_iter().chain(counts);
        for (place, word) in out.chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        let mut len = HEADER + question.len();
        out[HEADER..len].copy_from_slice(question);
        if self.edns {
            let opt =
                Opt { udp_size: options.udp_size, dnssec_ok: false, cookie: None, extended_error: None };
            opt.write(self.rcode, &mut out[len..len + OPT]);
            len += OPT;
        }
        len
    }
}
