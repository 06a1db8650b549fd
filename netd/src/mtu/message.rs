// SPDX-License-Identifier: Apache-2.0
//! What nodes ask each other to learn what fits through the way between them: a datagram as long as the packet in question,
//! and a short one for an answer.
//!
//! ```text
//!   0        8       9                16                24
//!   | magic  | kind  | zero           | id, big endian  | zeroes, in a question
//! ```

/// First bytes of each, with the version of the format.
const MAGIC: [u8; 8] = *b"weftmtu1";
const ASK: u8 = 1;
const ANSWER: u8 = 2;
/// Asked and answered without a UDP checksum.
const ASK_PLAIN: u8 = 3;
const ANSWER_PLAIN: u8 = 4;
/// Length of an answer, and the least of a question, in bytes.
pub(super) const HEADER_LEN: usize = 24;

/// A datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Message {
    Ask(u64),
    Answer(u64),
    AskPlain,
    AnswerPlain,
}

impl Message {
    /// The datagram, of `len` bytes or as many as it needs.
    pub(super) fn bytes(self, len: usize) -> Vec<u8> {
        let (kind, id) = match self {
            Message::Ask(id) => (ASK, id),
            Message::Answer(id) => (ANSWER, id),
            Message::AskPlain => (ASK_PLAIN, 0),
            Message::AnswerPlain => (ANSWER_PLAIN, 0),
        };
        let mut bytes = vec![0; len.max(HEADER_LEN)];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = kind;
        bytes[16..HEADER_LEN].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// What arrived; `None` where it is nothing of ours.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_LEN).filter(|header| header.starts_with(&MAGIC))?;
        let id = u64::from_be_bytes(header[16..].try_into().ok()?);
        match header[8] {
            ASK => Some(Message::Ask(id)),
            ANSWER => Some(Message::Answer(id)),
            ASK_PLAIN => Some(Message::AskPlain),
            ANSWER_PLAIN => Some(Message::AnswerPlain),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        for message in [Message::Ask(7), Message::Answer(u64::MAX), Message::AskPlain, Message::AnswerPlain] {
            for len in [0, HEADER_LEN, 1412] {
                let bytes = message.bytes(len);
                assert_eq!(bytes.len(), len.max(HEADER_LEN));
                assert_eq!(Message::parse(&bytes), Some(message));
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_passed_over() {
        let mut strange = Message::Ask(1).bytes(0);
        strange[8] = 9;
        let mut other = Message::Ask(1).bytes(0);
        other[0] = b'x';
        for bytes in [&[][..], &Message::Ask(1).bytes(0)[..HEADER_LEN - 1], &strange, &other] {
            assert_eq!(Message::parse(bytes), None);
        }
    }
}
