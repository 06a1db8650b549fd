// SPDX-License-Identifier: Apache-2.0
//! From a packet to a question (RFC 1035, 6891, 8906, 9619). Nothing is allocated, and nothing from outside is trusted.
//!
//! Left out on purpose: a packet without a question that asks for a cookie (RFC 7873, 5.4) is FORMERR like any other without one,
//! and what is rejected gets no cookie. Who wants one asks a question.

use crate::{Edns, Folded, Name, Rcode, RecordType};

const HEADER: usize = 12;
/// Behind the name of a question: type and class.
const QUESTION_FIELDS: usize = 4;
/// Behind the name of a record: type, class, TTL, length of its data.
const RECORD_FIELDS: usize = 10;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_CHECKING_DISABLED: u16 = 0x0010;
const OPCODE: u16 = 0x7800;

/// UDP answer to a client without EDNS (RFC 1035, 4.2.1); no limit is below it.
pub(crate) const UDP_PLAIN: u16 = 512;

/// What a packet is.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lies on the stack; a box would be an allocation for each question"
)]
pub enum Incoming<'p> {
    /// No question, or itself an answer: nothing is to be sent.
    Ignore,
    /// A question to be answered.
    Query(Query<'p>),
    /// To be told why not.
    Reject(Reject<'p>),
}

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// With a length in front; TLS too.
    Tcp,
    /// A datagram.
    Udp,
}

/// One question with what its client can take.
#[derive(Debug)]
pub struct Query<'p> {
    pub(crate) head: Head,
    question: &'p [u8],
    name: Folded,
    record_type: RecordType,
    class: u16,
    edns: Option<Edns>,
}

/// What is refused before it is a question; [`Reject::encode`] makes the answer.
#[derive(Debug)]
pub struct Reject<'p> {
    pub(crate) head: Head,
    /// Why.
    pub rcode: Rcode,
    /// To be said back, where it could be read.
    pub(crate) question: Option<&'p [u8]>,
    pub(crate) edns: bool,
}

/// Of a request, what its answer repeats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) id: u16,
    flags: u16,
}

impl Head {
    /// Opcode, RD and CD, with QR set.
    pub(crate) fn answer_flags(self) -> u16 {
        FLAG_RESPONSE | self.flags & (OPCODE | FLAG_RECURSION_DESIRED | FLAG_CHECKING_DISABLED)
    }
}

/// Reads a packet from a client. An answer is never answered, so two servers never talk to each other.
#[must_use]
pub fn parse(packet: &[u8]) -> Incoming<'_> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let fields = (word(0), word(2), word(4), word(6), word(8), word(10));
    let (Some(id), Some(flags), Some(questions), Some(answers), Some(authorities), Some(additionals)) =
        fields
    else {
        return Incoming::Ignore;
    };
    let head = Head { id, flags };
    if flags & FLAG_RESPONSE != 0 {
        return Incoming::Ignore;
    }
    let reject = |rcode| Incoming::Reject(Reject { head, rcode, question: None, edns: false });
    if flags & OPCODE != 0 {
        return reject(Rcode::NOTIMP);
    }
    if questions != 1 {
        return reject(Rcode::FORMERR);
    }
    let Some((name, question)) = read_question(packet) else { return reject(Rcode::FORMERR) };
    let fields = &question[question.len() - QUESTION_FIELDS..];
    let [record_type, class] = [[fields[0], fields[1]], [fields[2], fields[3]]].map(u16::from_be_bytes);
    let records = [answers, authorities, additionals].map(usize::from);
    let rest = &packet[HEADER + question.len()..];
    match read_edns(rest, records[0] + records[1], records[2]) {
        None => {
            Incoming::Reject(Reject { head, rcode: Rcode::FORMERR, question: Some(question), edns: false })
        }
        Some(Some(edns)) if edns.version != 0 => {
            Incoming::Reject(Reject { head, rcode: Rcode::BADVERS, question: Some(question), edns: true })
        }
        Some(edns) => {
            Incoming::Query(Query { head, question, name, record_type: RecordType(record_type), class, edns })
        }
    }
}

fn read_question(packet: &[u8]) -> Option<(Folded, &[u8])> {
    let rest = packet.get(HEADER..)?;
    let name = Folded::read(rest)?;
    let question = rest.get(..name.as_wire().len() + QUESTION_FIELDS)?;
    Some((name, question))
}

/// The OPT record among the additional ones, if any; `None` where the records cannot be read, or one too many is OPT.
fn read_edns(mut rest: &[u8], before: usize, additional: usize) -> Option<Option<Edns>> {
    let mut found = None;
    for index in 0..before + additional {
        let is_root = *rest.first()? == 0;
        rest = skip_name(rest)?;
        let (fields, data) = rest.split_first_chunk::<RECORD_FIELDS>()?;
        let word = |at: usize| u16::from_be_bytes([fields[at], fields[at + 1]]);
        let data_len = usize::from(word(8));
        let data_of = data.get(..data_len)?;
        rest = &data[data_len..];
        if RecordType(word(0)) == RecordType::OPT && index >= before {
            if found.is_some() || !is_root {
                return None;
            }
            let ttl = u32::from(word(4)) << 16 | u32::from(word(6));
            found = Some(Edns::read(word(2), ttl, data_of)?);
        }
    }
    Some(found)
}

/// What stands behind a name, which may end in a pointer; the pointer is not followed.
fn skip_name(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        match *rest.first()? {
            0 => return rest.get(1..),
            length @ 1..=63 => rest = rest.get(1 + usize::from(length)..)?,
            192.. => return rest.get(2..),
            _ => return None,
        }
    }
}

impl Query<'_> {
    /// The number by which the client knows its answer.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.head.id
    }

    /// Asked for.
    #[must_use]
    pub fn record_type(&self) -> RecordType {
        self.record_type
    }

    /// 1 is IN.
    #[must_use]
    pub fn class(&self) -> u16 {
        self.class
    }

    /// RD.
    #[must_use]
    pub fn recursion_desired(&self) -> bool {
        self.head.flags & FLAG_RECURSION_DESIRED != 0
    }

    /// CD.
    #[must_use]
    pub fn checking_disabled(&self) -> bool {
        self.head.flags & FLAG_CHECKING_DISABLED != 0
    }

    /// Its OPT record.
    #[must_use]
    pub fn edns(&self) -> Option<&Edns> {
        self.edns.as_ref()
    }

    /// The name in lower case.
    #[must_use]
    pub fn name(&self) -> &Folded {
        &self.name
    }

    /// The name in the case that it was asked in. Allocates.
    #[must_use]
    pub fn name_as_asked(&self) -> Name {
        let wire = &self.question[..self.question.len() - QUESTION_FIELDS];
        Name::from_wire(wire).unwrap_or_else(|_| Name::root())
    }

    /// Name, type and class as they came.
    #[must_use]
    pub fn question(&self) -> &[u8] {
        self.question
    }

    /// How long the answer may be, in octets. `udp_max`: the largest UDP answer that we send at all.
    #[must_use]
    pub fn limit(&self, transport: Transport, udp_max: u16) -> usize {
        let size = match transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => {
                let taken = self.edns.as_ref().map_or(UDP_PLAIN, |edns| edns.udp_size);
                taken.min(udp_max).max(UDP_PLAIN)
            }
        };
        usize::from(size)
    }
}
