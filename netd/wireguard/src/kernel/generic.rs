// SPDX-License-Identifier: Apache-2.0
//! A generic netlink socket: one request at a time, answered up to the kernel's last word.

use std::{io, time::Duration};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_REQUEST, NlasIterator};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time;

use super::wire::Attributes;
use crate::device::DeviceError;

/// Who answers, in errors.
pub(super) const KERNEL: &str = "the kernel";
/// Longest wait for one answer: the lock of a netns that is being torn down is held for a second or two.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// NETLINK_GENERIC of include/uapi/linux/netlink.h.
const NETLINK_GENERIC: isize = 16;
/// NLMSG_ERROR and NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Lengths of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADER_LEN: usize = 16;
const GENERIC_HEADER_LEN: usize = 4;
/// GENL_ID_CTRL, CTRL_CMD_GETFAMILY with its version, CTRL_ATTR_FAMILY_ID and CTRL_ATTR_FAMILY_NAME of genetlink.h.
const CONTROLLER: u16 = 16;
const GET_FAMILY: [u8; GENERIC_HEADER_LEN] = [3, 1, 0, 0];
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

pub(super) struct Generic(TokioSocket);

/// What came in answer to one request.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The attributes of each message.
    pub(super) messages: Vec<zeroize::Zeroizing<Vec<u8>>>,
    /// The object changed while it was dumped.
    pub(super) is_interrupted: bool,
}

impl Generic {
    /// A socket in the netns of the calling thread; within a tokio runtime.
    pub(super) fn open() -> Result<Self, DeviceError> {
        let error = |source| DeviceError::Io {
            what: "open a generic netlink socket to",
            who: KERNEL.to_owned(),
            source,
        };
        tokio::runtime::Handle::try_current().map_err(|why| error(io::Error::other(why)))?;
        let mut socket = TokioSocket::new(NETLINK_GENERIC).map_err(error)?;
        socket.socket_mut().bind_auto().map_err(error)?;
        Ok(Self(socket))
    }

    /// The number of a family; `None` where the kernel has none of this name, after it tried to load a module for it.
    pub(super) async fn family(&self, name: &str) -> Result<Option<u16>, DeviceError> {
        let mut attributes = Attributes::default();
        attributes.add_name(FAMILY_NAME, name);
        let request = [&GET_FAMILY[..], attributes.as_bytes()].concat();
        let what = format!("look up the generic netlink family {name}");
        match self.exchange(&what, CONTROLLER, NLM_F_ACK, &request).await {
            Ok(answer) => {
                let id = answer.messages.iter().find_map(|message| family_id(message));
                let why = || format!("the family {name} has no number");
                id.map(Some).ok_or_else(|| DeviceError::Answer { who: KERNEL.to_owned(), why: why() })
            }
            Err(DeviceError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// One request of a family; `payload` begins with the generic header. `what` completes "refuses to …".
    pub(super) async fn exchange(
        &self,
        what: &str,
        family: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<Answer, DeviceError> {
        let io = |what, source| DeviceError::Io { what, who: KERNEL.to_owned(), source };
        let request = zeroize::Zeroizing::new(request(family, NLM_F_REQUEST | flags, payload));
        let exchange = async {
            let kernel = SocketAddr::new(0, 0);
            self.0.send_to(&request, &kernel).await.map_err(|source| io("send to", source))?;
            let mut answer = Answer::default();
            loop {
                let received = self.0.recv_from_full().await.map_err(|source| io("read from", source))?;
                let datagram = zeroize::Zeroizing::new(received.0);
                if let Some(end) = take(&mut answer, family, &datagram) {
                    let refused = |source| DeviceError::Refused {
                        who: KERNEL.to_owned(),
                        what: what.to_owned(),
                        source,
                    };
                    return end.map(|()| answer).map_err(refused);
                }
            }
        };
        let seconds = ANSWER_TIMEOUT.as_secs();
        let timed_out = |_| DeviceError::TimedOut { who: KERNEL.to_owned(), seconds };
        time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(timed_out)?
    }
}

/// Takes a datagram's messages; `Some` with the kernel's last word.
fn take(answer: &mut Answer, family: u16, datagram: &[u8]) -> Option<io::Result<()>> {
    for (kind, flags, payload) in messages(datagram) {
        answer.is_interrupted |= flags & NLM_F_DUMP_INTR != 0;
        match kind {
            DONE | ERROR => {
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                let error = io::Error::from_raw_os_error(code.saturating_abs());
                return Some(if code < 0 { Err(error) } else { Ok(()) });
            }
            kind if kind == family => {
                let attributes = payload.get(GENERIC_HEADER_LEN..).unwrap_or_default();
                answer.messages.push(zeroize::Zeroizing::new(attributes.to_vec()));
            }
            _ => {}
        }
    }
    None
}

fn request(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_LEN + payload.len()).unwrap_or(u32::MAX);
    // Sequence number and port stay 0: one question at a time on a socket of its own.
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], payload].concat()
}

/// Type, flags and payload of each message of a datagram; ends at the first that is cut off.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?);
        let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*datagram.get(6..)?.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        let payload = datagram.get(HEADER_LEN..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, payload))
    })
}

fn family_id(attributes: &[u8]) -> Option<u16> {
    let mut attributes = NlasIterator::new(attributes).flatten();
    let id = attributes.find(|attribute| attribute.kind() == FAMILY_ID)?;
    id.value().try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_knows_its_controller_and_nothing_made_up() {
        let generic = Generic::open().unwrap();
        assert_eq!(generic.family("nlctrl").await.unwrap(), Some(CONTROLLER));
        assert_eq!(generic.family("weft-none").await.unwrap(), None);
    }

    #[test]
    fn messages_of_a_datagram_are_told_apart() {
        let one = request(30, 0, &[1, 1, 0, 0, 5, 6, 7, 8]);
        let other = request(31, 0, &[0; 4]);
        let interrupted = request(30, NLM_F_DUMP_INTR, &[1, 1, 0, 0]);
        let refused = request(ERROR, 0, &(-libc::ENODEV).to_ne_bytes());
        let done = request(DONE, 0, &0_i32.to_ne_bytes());
        let mut answer = Answer::default();
        assert!(take(&mut answer, 30, &[one.clone(), other].concat()).is_none());
        assert_eq!(answer.messages.len(), 1);
        assert_eq!(**answer.messages.first().unwrap(), [5, 6, 7, 8]);
        assert!(!answer.is_interrupted);
        assert!(take(&mut answer, 30, &[interrupted, done].concat()).unwrap().is_ok());
        assert!(answer.is_interrupted);
        let error = take(&mut answer, 30, &[refused, one].concat()).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn a_datagram_that_is_cut_off_ends_the_reading() {
        let whole = request(30, 0, &[1, 2, 3, 4]);
        let two = [whole.clone(), whole.clone()].concat();
        for length in 0..two.len() {
            let read = messages(&two[..length]).count();
            assert_eq!(read, length / whole.len(), "of {length} bytes");
        }
        // A length smaller than the header.
        assert_eq!(messages(&[4, 0, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
    }
}
