// SPDX-License-Identifier: Apache-2.0
//! A question as it goes to an upstream, and whether an answer belongs to it.
//!
//! Against forged answers: a random identifier and a port of its own (the kernel's choice) for each question, random case
//! in the name (draft-vixie-dnsext-dns0x20), and a cookie (RFC 7873).

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use crate::wire::{CD, HEADER, Key, QR, RD, UDP_BYTES_MAX, qtype};

/// The number of the cookie option.
const COOKIE: u16 = 10;
/// Octets of a client cookie.
pub(super) const CLIENT_COOKIE: usize = 8;
/// Extended code of RFC 7873 section 5.2.3.
const BADCOOKIE: u16 = 23;

/// How an upstream likes to be asked now; learnt from its answers.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// Without an OPT record: it does not know EDNS.
    pub(crate) plain: bool,
    /// It changes the case of names.
    pub(crate) folds_case: bool,
    /// Ours for this upstream.
    pub(crate) client_cookie: [u8; CLIENT_COOKIE],
    /// What it gave us last; empty before.
    pub(crate) server_cookie: Vec<u8>,
}

/// The bytes of one question.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) bytes: Vec<u8>,
    question_end: usize,
    manner: Manner,
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Received {
    /// The answer.
    Answer(Box<Message>),
    /// Not to this question: somebody guesses, or a late answer to an earlier one.
    Foreign,
    /// Ours but for the case of the name: over UDP as good as forged.
    CaseLost(Box<Message>),
    /// It wants its new cookie.
    BadCookie,
    /// Ours, but no message; in words.
    Broken(String),
}

impl Asked {
    /// For this key; the random source is the system's.
    pub(crate) fn new(key: &Key, manner: Manner, case: bool) -> Self {
        let mut random = [0; 2 + 32];
        if getrandom::fill(&mut random).is_err() {
            // Only before the kernel's pool is ready, at boot; the port is random too.
            random.iter_mut().for_each(|byte| *byte = fastrand::u8(..));
        }
        let mut bytes = Vec::with_capacity(HEADER + key.name().len() + 4 + 11 + 4 + 40);
        bytes.extend_from_slice(&random[..2]);
        let cd = if key.checking_disabled() { CD } else { 0 };
        bytes.extend_from_slice(&[RD, cd, 0, 1, 0, 0, 0, 0, 0, u8::from(!manner.plain)]);
        bytes.extend_from_slice(key.name());
        if case && !manner.folds_case {
            shuffle_case(&mut bytes[HEADER..], &random[2..]);
        }
        bytes.extend_from_slice(&key.qtype().to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        let question_end = bytes.len();
        if !manner.plain {
            let cookie = CLIENT_COOKIE + manner.server_cookie.len();
            bytes.extend_from_slice(&[0, 0, qtype::OPT as u8]);
            bytes.extend_from_slice(&UDP_BYTES_MAX.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, if key.dnssec_ok() { 0x80 } else { 0 }, 0]);
            for number in [4 + cookie as u16, COOKIE, cookie as u16] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            bytes.extend_from_slice(&manner.client_cookie);
            bytes.extend_from_slice(&manner.server_cookie);
        }
        Asked { bytes, question_end, manner }
    }

    /// The identifier; another one where several questions share a connection.
    pub(crate) fn set_id(&mut self, id: u16) {
        self.bytes[..2].copy_from_slice(&id.to_be_bytes());
    }

    /// Whether an OPT record went along.
    pub(crate) fn had_edns(&self) -> bool {
        !self.manner.plain
    }

    /// Judges bytes that came back. `strict`: over UDP, where anybody may send.
    pub(crate) fn judge(&self, bytes: &[u8], strict: bool) -> Received {
        let ours = bytes.len() >= HEADER && bytes[..2] == self.bytes[..2] && bytes[2] & QR != 0;
        if !ours {
            return Received::Foreign;
        }
        let question = &self.bytes[HEADER..self.question_end];
        let echoed = bytes.get(HEADER..self.question_end);
        let code = bytes[3] & 0x0F;
        // A server that does not understand the question may leave it out (seen with FORMERR).
        let bare = bytes.len() == HEADER && bytes[4..6] == [0, 0] && matches!(code, 1 | 4 | 5);
        if !bare
            && (bytes[4..6] != [0, 1] || !echoed.is_some_and(|echoed| echoed.eq_ignore_ascii_case(question)))
        {
            return Received::Foreign;
        }
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(error) => return Received::Broken(error.to_string()),
        };
        match cookie_of(&message) {
            // RFC 7873 section 5.3: another client's cookie, or none where there was one, is a forged answer.
            Some(cookie) if cookie.get(..CLIENT_COOKIE) != Some(&self.manner.client_cookie) => {
                return Received::Foreign;
            }
            None if strict && !bare && !self.manner.server_cookie.is_empty() && self.had_edns() => {
                return Received::Foreign;
            }
            _ => {}
        }
        if u16::from(message.metadata.response_code) == BADCOOKIE {
            return Received::BadCookie;
        }
        match bare || echoed == Some(question) {
            true => Received::Answer(Box::new(message)),
            false => Received::CaseLost(Box::new(message)),
        }
    }
}

/// The upstream's cookie in an answer of its.
pub(crate) fn server_cookie(message: &Message) -> Option<Vec<u8>> {
    let cookie = cookie_of(message)?;
    // RFC 7873 section 4: 8 to 32 octets.
    let server = cookie.get(CLIENT_COOKIE..)?;
    (8..=32).contains(&server.len()).then(|| server.to_vec())
}

fn cookie_of(message: &Message) -> Option<Vec<u8>> {
    match message.edns.as_ref()?.option(EdnsCode::Cookie)? {
        EdnsOption::Unknown(_, data) => Some(data.clone()),
        _ => None,
    }
}

/// Whether it says that there is no such name, or nothing of the type.
pub(crate) fn is_negative(message: &Message) -> bool {
    message.metadata.response_code == ResponseCode::NXDomain || message.answers.is_empty()
}

/// Whether the client is served by this answer, or another upstream should be asked.
pub(crate) fn is_usable(message: &Message) -> bool {
    matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// Bits of `random` say which letters are upper-case.
fn shuffle_case(name: &mut [u8], random: &[u8]) {
    for (i, octet) in name.iter_mut().enumerate() {
        let bit = random[i / 8 % random.len()] >> (i % 8) & 1;
        if bit == 1 {
            // Lengths of labels are no letters.
            octet.make_ascii_uppercase();
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Edns;

    use super::*;

    const NAME: &[u8] = b"\x03www\x07example\x03org\0";

    fn manner(server_cookie: &[u8]) -> Manner {
        Manner {
            plain: false,
            folds_case: false,
            client_cookie: *b"client!!",
            server_cookie: server_cookie.to_vec(),
        }
    }

    fn answer(asked: &Asked, cookie: Option<&[u8]>) -> Vec<u8> {
        let mut message = Message::from_vec(&asked.bytes).unwrap().into_response();
        let mut edns = Edns::new();
        if let Some(cookie) = cookie {
            edns.options_mut().insert(EdnsOption::Unknown(COOKIE, cookie.to_vec()));
        }
        message.set_edns(edns);
        message.to_vec().unwrap()
    }

    #[test]
    fn the_case_of_a_name_is_random_and_must_come_back() {
        let key = Key::new(NAME, 1, 0);
        let asked = Asked::new(&key, manner(b""), true);
        let others: Vec<_> = (0..20).map(|_| Asked::new(&key, manner(b""), true)).collect();
        assert!(others.iter().any(|other| other.bytes[HEADER..] != asked.bytes[HEADER..]));
        let mut bytes = answer(&asked, None);
        assert!(matches!(asked.judge(&bytes, true), Received::Answer(_)));
        bytes[HEADER + 1] ^= 0x20;
        assert!(matches!(asked.judge(&bytes, true), Received::CaseLost(_)));
    }

    #[test]
    fn answers_to_others_are_foreign() {
        let asked = Asked::new(&Key::new(NAME, 1, 0), manner(b""), true);
        let good = answer(&asked, None);
        for (at, flip) in [(0, 1), (2, QR), (HEADER + 2, 1), (good.len() - 1 - 12, 0xFF)] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            assert!(!matches!(asked.judge(&bytes, true), Received::Answer(_)), "octet {at}");
        }
        for length in 0..good.len() {
            assert!(!matches!(asked.judge(&good[..length], true), Received::Answer(_)), "{length} octets");
        }
    }

    #[test]
    fn a_cookie_must_be_ours_and_once_known_must_come() {
        let (server, other) = (&b"client!!serverserver"[..], &b"strangerserverserver"[..]);
        let key = Key::new(NAME, 1, 0);
        let first = Asked::new(&key, manner(b""), false);
        assert!(matches!(first.judge(&answer(&first, Some(other)), true), Received::Foreign));
        let bytes = answer(&first, Some(server));
        assert!(matches!(first.judge(&bytes, true), Received::Answer(_)));
        assert_eq!(server_cookie(&Message::from_vec(&bytes).unwrap()).unwrap(), b"serverserver");

        let second = Asked::new(&key, manner(b"serverserver"), false);
        assert!(second.bytes.ends_with(server));
        assert!(matches!(second.judge(&answer(&second, None), true), Received::Foreign));
        assert!(matches!(second.judge(&answer(&second, None), false), Received::Answer(_)));
    }

    #[test]
    fn without_edns_there_is_no_opt_record() {
        let asked = Asked::new(&Key::new(NAME, 1, 0), Manner { plain: true, ..manner(b"") }, true);
        assert_eq!(asked.bytes.len(), HEADER + NAME.len() + 4);
        assert!(Message::from_vec(&asked.bytes).unwrap().edns.is_none());
    }
}
