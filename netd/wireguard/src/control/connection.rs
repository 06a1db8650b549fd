// SPDX-License-Identifier: Apache-2.0
//! One client: requests in, answers out, each within a size and a time.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::Configurable;
use crate::uapi::{LINE_BYTES_MAX, Request, UapiError, parse_request, print_errno, print_get};

/// Bytes of one request: some 20,000 peers with ten prefixes each.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;
/// From the first byte of a request to its last, and of an answer likewise; `wg` takes milliseconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests; nothing is lost by connecting anew.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes read at a time.
const CHUNK_BYTES: usize = 16 << 10;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    request: Duration,
    idle: Duration,
}

/// That of every client.
pub(super) const PATIENCE: Patience = Patience { request: REQUEST_TIMEOUT, idle: IDLE_TIMEOUT };

/// Serves a client until it leaves, is silent too long or breaks the rules.
pub(super) fn serve(stream: UnixStream, patience: Patience, device: &dyn Configurable, ifname: &str) {
    let mut client = Client { stream, patience, received: Zeroizing::new(Vec::new()) };
    let end = loop {
        let answer = match client.request() {
            Ok(Some(text)) => answer(&text, device, ifname),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        if let Err(error) = client.send(answer.as_bytes()) {
            break Err(error);
        }
    };
    if let Err(error) = end {
        tracing::debug!(device = ifname, %error, "a client of the control socket was dropped");
        let _ = client.send(print_errno(error.raw_os_error().unwrap_or(libc::EPROTO)).as_bytes());
    }
}

fn answer(text: &[u8], device: &dyn Configurable, ifname: &str) -> Zeroizing<String> {
    let refuse = |errno| Zeroizing::new(print_errno(errno));
    let Ok(text) = str::from_utf8(text) else {
        tracing::warn!(device = ifname, "refused a request on the control socket: not UTF-8");
        return refuse(libc::EINVAL);
    };
    let change = match parse_request(text) {
        Ok(Request::Get) => return print_get(&device.read()),
        Ok(Request::Set(change)) => change,
        Err(error) => {
            tracing::warn!(device = ifname, %error, "refused a request on the control socket");
            let is_other_protocol = matches!(error, UapiError::Operation(_));
            return refuse(if is_other_protocol { libc::EPROTO } else { libc::EINVAL });
        }
    };
    let what = change.to_string();
    match device.set(change) {
        Ok(()) => {
            tracing::info!(device = ifname, change = what, "configured");
            refuse(0)
        }
        Err(error) => {
            tracing::warn!(device = ifname, change = what, %error, "cannot be configured");
            refuse(error.raw_os_error().filter(|errno| *errno != 0).unwrap_or(libc::EIO))
        }
    }
}

struct Client {
    stream: UnixStream,
    patience: Patience,
    /// What was read and is not part of a request that was answered.
    received: Zeroizing<Vec<u8>>,
}

impl Client {
    /// The lines of the next request, without the empty one. `None`: the client has left, maybe in the middle of one.
    fn request(&mut self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let mut deadline = Instant::now() + self.patience.idle;
        let mut is_begun = false;
        let (mut line_start, mut scanned) = (0, 0);
        loop {
            while let Some(at) = self.received[scanned..].iter().position(|byte| *byte == b'\n') {
                let newline = scanned + at;
                if newline == line_start {
                    let rest = self.received.split_off(newline + 1);
                    let mut request = std::mem::replace(&mut self.received, Zeroizing::new(rest));
                    request.truncate(newline);
                    return Ok(Some(request));
                }
                check_line(newline - line_start)?;
                (line_start, scanned) = (newline + 1, newline + 1);
            }
            scanned = self.received.len();
            check_line(scanned - line_start)?;
            if scanned > REQUEST_BYTES_MAX {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            if !is_begun && scanned > 0 {
                is_begun = true;
                deadline = Instant::now() + self.patience.request;
            }
            if self.receive(deadline)? == 0 {
                return Ok(None);
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<usize> {
        let mut chunk = Zeroizing::new([0; CHUNK_BYTES]);
        loop {
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            match self.stream.read(chunk.as_mut_slice()) {
                Ok(length) => {
                    self.received.extend_from_slice(&chunk[..length]);
                    return Ok(length);
                }
                Err(error) if is_to_be_tried_again(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + self.patience.request;
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left(deadline)?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => bytes = &bytes[length..],
                Err(error) if is_to_be_tried_again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn check_line(length: usize) -> io::Result<()> {
    if length > LINE_BYTES_MAX { Err(io::Error::from_raw_os_error(libc::EMSGSIZE)) } else { Ok(()) }
}

/// The deadline tells when it is enough.
fn is_to_be_tried_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::{DeviceChange, DeviceKind, DeviceState, Snapshot};

    struct Blank;

    impl Configurable for Blank {
        fn read(&self) -> Snapshot {
            Snapshot { private_key: None, state: DeviceState::new(DeviceKind::User) }
        }

        fn set(&self, _: DeviceChange) -> io::Result<()> {
            Ok(())
        }
    }

    const BRIEF: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    /// The client's end, and the word that the server has let it go.
    fn served(request: Duration, idle: Duration) -> (UnixStream, mpsc::Receiver<()>) {
        let (client, stream) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            serve(stream, Patience { request, idle }, &Blank, "weft.wg0");
            done.send(()).unwrap();
        });
        (client, is_done)
    }

    fn rest_of(mut client: UnixStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_client_that_stops_in_the_middle_is_told_and_dropped() {
        let (mut client, is_done) = served(BRIEF, LONG);
        client.write_all(b"set=1\nlisten_port=51820\n").unwrap();
        is_done.recv_timeout(LONG).unwrap();
        assert_eq!(rest_of(client), format!("errno=-{}\n\n", libc::ETIMEDOUT));
    }

    #[test]
    fn a_client_that_drips_gains_no_time() {
        let (mut client, is_done) = served(BRIEF * 4, LONG);
        // A byte each time well within the limit; the server goes in the middle.
        let dripped = (0..1_000).take_while(|_| {
            thread::sleep(BRIEF / 10);
            client.write_all(b"x").is_ok() && is_done.try_recv().is_err()
        });
        assert!(dripped.count() < LINE_BYTES_MAX, "the time ends it, not the line");
    }

    #[test]
    fn a_client_that_says_nothing_is_dropped() {
        let (client, is_done) = served(LONG, BRIEF);
        is_done.recv_timeout(LONG).unwrap();
        assert_eq!(rest_of(client), format!("errno=-{}\n\n", libc::ETIMEDOUT));
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped() {
        let (mut client, is_done) = served(BRIEF, LONG);
        client.set_nonblocking(true).unwrap();
        // Requests for as long as they are taken: neither side has room in the end.
        let deadline = Instant::now() + LONG;
        let mut requests = 0;
        while is_done.recv_timeout(BRIEF / 50).is_err() {
            while requests < 1_000_000 && client.write_all(b"get=1\n\n").is_ok() {
                requests += 1;
            }
            assert!(Instant::now() < deadline, "still served after {requests} requests without a reader");
        }
    }
}
