// SPDX-License-Identifier: Apache-2.0

//! A question and its answer on a netlink socket of its own, for families that the route crates do not speak (conntrack,
//! SOCK_DIAG): `struct nlmsghdr` of include/uapi/linux/netlink.h.

use std::io;

use netlink_sys::{AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time;

use crate::{HostError, REQUEST_TIMEOUT};

/// NLMSG_ERROR and NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Length of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;

/// Sends one request; the payloads of the messages of this kind that the kernel tells, up to its acknowledgement.
///
/// # Errors
/// [`HostError::Netlink`] with the kernel's refusal, [`HostError::TimedOut`] after [`REQUEST_TIMEOUT`].
pub(crate) async fn exchange(
    socket: &TokioSocket,
    what: &str,
    request: &[u8],
    kind: u16,
) -> Result<Vec<Vec<u8>>, HostError> {
    let answer = async {
        socket.send_to(request, &SocketAddr::new(0, 0)).await?;
        let mut listed = Vec::new();
        loop {
            let (datagram, _) = socket.recv_from_full().await?;
            for (told, payload) in messages(&datagram) {
                match told {
                    DONE | ERROR => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        let error = io::Error::from_raw_os_error(code.saturating_abs());
                        return if code < 0 { Err(error) } else { Ok(listed) };
                    }
                    told if told == kind => listed.push(payload.to_vec()),
                    _ => {}
                }
            }
        }
    };
    let seconds = REQUEST_TIMEOUT.as_secs();
    time::timeout(REQUEST_TIMEOUT, answer)
        .await
        .map_err(|_| HostError::TimedOut { what: what.to_owned(), seconds })?
        .map_err(|source| HostError::Netlink { what: what.to_owned(), source, detail: None })
}

/// Type and payload of each message of a datagram; ends at the first that is cut off.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?);
        let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        let payload = datagram.get(HEADER_LEN..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}
