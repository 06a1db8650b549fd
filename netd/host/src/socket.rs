// SPDX-License-Identifier: Apache-2.0

//! One rtnetlink connection: requests that are acknowledged, and dumps that are consistent.
//!
//! The library's own calls take a closed connection for success and drop the text of the kernel's extended
//! acknowledgement; here every request ends with the kernel's answer or an error.
//!
//! The connection is one task on the caller's runtime (with I/O and time enabled), ended when the last clone of the
//! socket is dropped. Requests are cancel safe in that the connection stays usable; the kernel may have acted.

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;
use tokio::{runtime, task::JoinHandle, time};

use crate::{
    HostError,
    netns::{self, Netns},
};

/// How often an interrupted dump is read again; each needs a change in the middle of a read of microseconds.
pub const DUMP_TRIES_MAX: u32 = 10;
/// Longest wait for one answer; a netns that is being torn down holds the kernel's lock for up to a second or two.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Attribute of an extended acknowledgement with its text (include/uapi/linux/netlink.h, NLMSGERR_ATTR_MSG).
const EXT_ACK_MESSAGE: u16 = 1;
/// Length of the request's header that an error echoes before the extended acknowledgement.
const NETLINK_HEADER_LEN: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Socket {
    handle: rtnetlink::Handle,
    _task: Arc<Task>,
}

impl Socket {
    /// A connection in the netns of the calling thread.
    pub(crate) fn open() -> Result<Self, HostError> {
        Self::connect(&current_runtime()?)
    }

    /// A connection in `netns`; only its opening happens on a thread there.
    pub(crate) fn open_in(netns: &Netns) -> Result<Self, HostError> {
        let runtime = current_runtime()?;
        netns::run_in(netns, || Self::connect(&runtime))?
    }

    fn connect(runtime: &runtime::Handle) -> Result<Self, HostError> {
        let setup = |source| HostError::Setup { what: "open a netlink socket", source };
        let _guard = runtime.enter();
        let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check().map_err(setup)?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true).map_err(setup)?;
        socket.set_cap_ack(true).map_err(setup)?;
        Ok(Self { handle, _task: Arc::new(Task(runtime.spawn(connection))) })
    }

    /// Sends a request and waits for its acknowledgement. `what` completes "cannot …". `flags` beside request and ack.
    pub(crate) async fn request(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), HostError> {
        self.exchange(what, message, NLM_F_REQUEST | NLM_F_ACK | flags).await.map(drop)
    }

    /// Asks for one object.
    pub(crate) async fn get(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, HostError> {
        let (replies, _) = self.exchange(what, message, NLM_F_REQUEST | NLM_F_ACK).await?;
        Ok(replies.into_iter().next())
    }

    /// Reads a whole table, again where it changed meanwhile.
    pub(crate) async fn dump(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        for _ in 0..DUMP_TRIES_MAX {
            let (replies, interrupted) =
                self.exchange(what, message.clone(), NLM_F_REQUEST | NLM_F_DUMP).await?;
            if !interrupted {
                return Ok(replies);
            }
        }
        Err(HostError::Interrupted { what: what.to_owned(), tries: DUMP_TRIES_MAX })
    }

    async fn exchange(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), HostError> {
        let closed = || HostError::Closed { what: what.to_owned() };
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut replies = self.handle.clone().request(request).map_err(|_| closed())?;
        let collect = async {
            let mut objects = Vec::new();
            let mut interrupted = false;
            while let Some(reply) = replies.next().await {
                interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
                match reply.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok((objects, interrupted)),
                        Some(code) => return Err(refused(what, code.get(), &error.header)),
                    },
                    NetlinkPayload::Done(done) if done.code < 0 => return Err(refused(what, done.code, &[])),
                    NetlinkPayload::Done(_) => return Ok((objects, interrupted)),
                    // Lost answers: read again, like an interrupted dump.
                    NetlinkPayload::Overrun(_) => return Ok((objects, true)),
                    _ => {}
                }
            }
            Err(closed())
        };
        time::timeout(REQUEST_TIMEOUT, collect)
            .await
            .map_err(|_| HostError::TimedOut { what: what.to_owned(), seconds: REQUEST_TIMEOUT.as_secs() })?
    }
}

/// Sends one request from this thread, in its netns, and returns once the kernel has carried it out: rtnetlink works in the
/// sender's own system call, `during` lives exactly as long as that.
pub(crate) fn request_now<G>(
    what: &str,
    message: RouteNetlinkMessage,
    during: impl FnOnce() -> G,
) -> Result<(), HostError> {
    let setup = |source| HostError::Setup { what: "open a netlink socket", source };
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).map_err(setup)?;
    socket.bind_auto().map_err(setup)?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0)).map_err(setup)?;
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let failed = |source| HostError::Netlink { what: what.to_owned(), source, detail: None };
    {
        let _during = during();
        socket.send(&bytes, 0).map_err(failed)?;
    }
    let (answer, _) = socket.recv_from_full().map_err(failed)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| failed(io::Error::other(error.to_string())))?;
    match answer.payload {
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(()),
            Some(code) => Err(refused(what, code.get(), &[])),
        },
        _ => Err(failed(io::Error::other("the kernel answered something else"))),
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) fn current_runtime() -> Result<runtime::Handle, HostError> {
    runtime::Handle::try_current()
        .map_err(|error| HostError::Setup { what: "use the async runtime", source: io::Error::other(error) })
}

pub(crate) fn setup_error(what: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Setup { what, source }
}

fn refused(what: &str, code: i32, echo: &[u8]) -> HostError {
    HostError::Netlink {
        what: what.to_owned(),
        source: io::Error::from_raw_os_error(code.saturating_abs()),
        detail: extended_ack(echo),
    }
}

/// The text of the extended acknowledgement that follows the echoed request header.
fn extended_ack(echo: &[u8]) -> Option<String> {
    let attributes = echo.get(NETLINK_HEADER_LEN..)?;
    let message =
        NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == EXT_ACK_MESSAGE)?;
    let text = String::from_utf8_lossy(message.value()).trim_end_matches('\0').to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_found_behind_the_echoed_header() {
        let mut echo = vec![0; NETLINK_HEADER_LEN];
        echo.extend_from_slice(&12_u16.to_ne_bytes());
        echo.extend_from_slice(&EXT_ACK_MESSAGE.to_ne_bytes());
        echo.extend_from_slice(b"bad mtu\0");
        assert_eq!(extended_ack(&echo).as_deref(), Some("bad mtu"));
        assert_eq!(extended_ack(&echo[..3]), None);
        assert_eq!(extended_ack(&[]), None);
        assert_eq!(extended_ack(&echo[..20]), None, "cut off in the middle of an attribute");
    }

    #[test]
    fn without_a_runtime_the_socket_says_so() {
        let error = Socket::open().unwrap_err();
        assert!(matches!(error, HostError::Setup { .. }), "{error}");
    }
}
