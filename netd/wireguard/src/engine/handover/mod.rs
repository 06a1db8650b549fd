// SPDX-License-Identifier: Apache-2.0
//! A new version of the program takes the devices over from the running one, without a restart of theirs.
//!
//! Over `<run-dir>/weft-wireguard.sock`, in this order: the new one says hello; the running one stops answering on its
//! configuration sockets and passes each device's descriptors and configuration, while packets still flow; the new one
//! builds its state and says ready; the running one stops (packets wait in the kernel's queues) and says stopped; the new
//! one starts, agrees on new sessions with all peers that had one (keys are never passed on), and says running; the old one
//! says gone, opens what still comes for its sessions (`late`) and ends. Whatever goes wrong before that last word leaves
//! the running one in charge, and the new one, which waits for the word, ends: two never run one TUN for longer than that.
//! Only then the new one listens for a successor of its own, in the old one's place.

mod frames;
mod give;
mod late;
mod take;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use thiserror::Error;

pub(crate) use give::{GivenAway, HandoverListener, give};
pub(crate) use late::pass;
pub(crate) use take::{Predecessor, find};

/// The socket in the run directory.
const SOCKET_FILE: &str = "weft-wireguard.sock";
/// For each word of the other side: it builds state for a thousand peers in a fraction of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const HELLO: &str = "hello weft-wireguard 1";
const READY: &str = "ready";
const STOPPED: &str = "stopped";
const RUNNING: &str = "running";
const GONE: &str = "gone";

/// Why a handover did not come about.
#[derive(Debug, Error)]
pub(crate) enum HandoverError {
    /// The other side is gone or slow.
    #[error("the other weft-wireguard does not answer: {0}")]
    Io(#[from] io::Error),
    /// It is not root's.
    #[error("the process at the other end runs as user {0}, not as root")]
    Foreign(u32),
    /// It speaks another language.
    #[error("the other weft-wireguard said {got:?} instead of {expected:?}: stop it, then start this one")]
    Unexpected { got: String, expected: &'static str },
    /// A device that cannot be used.
    #[error("device {device}: {reason}")]
    Device { device: String, reason: String },
    /// The socket cannot be made.
    #[error("{path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
}

/// Deadlines, and root at the other end.
fn prepare(stream: &UnixStream) -> Result<(), HandoverError> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(io::Error::from)?;
    if peer.uid() != 0 {
        return Err(HandoverError::Foreign(peer.uid()));
    }
    Ok(())
}

/// Waits for one given word.
fn expect(stream: &UnixStream, expected: &'static str) -> Result<(), HandoverError> {
    let frame = frames::receive(stream)?;
    if *frame.text == expected {
        return Ok(());
    }
    let got: String = frame.text.chars().take(80).collect();
    Err(HandoverError::Unexpected { got, expected })
}
