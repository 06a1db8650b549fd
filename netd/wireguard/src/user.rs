// SPDX-License-Identifier: Apache-2.0
//! A device that a process runs, reached over its control socket.
//!
//! One connection for each call, closed after it.

use std::{io, path::PathBuf, time::Duration};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time,
};
use zeroize::Zeroizing;

use crate::{
    DeviceChange, DeviceKind, DeviceState,
    control::socket_path,
    device::{Device, DeviceError},
    uapi::{parse_errno, parse_get, print_set},
};

/// For connecting, asking and reading the answer together; a thousand peers take milliseconds.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of one answer: some 50,000 peers with ten prefixes each.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// A device that weft-wireguard runs, or another program with the standard configuration protocol.
#[derive(Clone, Debug)]
pub struct UserDevice {
    socket_dir: PathBuf,
    ifname: String,
}

impl UserDevice {
    /// The device behind `<socket_dir>/<ifname>.sock`, which need not be there yet.
    #[must_use]
    pub fn new(socket_dir: impl Into<PathBuf>, ifname: impl Into<String>) -> Self {
        Self { socket_dir: socket_dir.into(), ifname: ifname.into() }
    }

    fn path(&self) -> Result<PathBuf, DeviceError> {
        socket_path(&self.socket_dir, &self.ifname)
            .map_err(|_| DeviceError::Name { ifname: self.ifname.clone() })
    }

    async fn exchange(&self, request: &str) -> Result<Zeroizing<String>, DeviceError> {
        let path = self.path()?;
        let who = path.display().to_string();
        let exchange = async {
            let stream = UnixStream::connect(&path).await;
            let mut stream = stream.map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    DeviceError::NotRunning { path: path.clone() }
                }
                _ => DeviceError::Io { what: "connect to", who: who.clone(), source },
            })?;
            let sent = stream.write_all(request.as_bytes()).await;
            // A device that breaks off while it is asked may have said why.
            match (answer_of(&mut stream).await, sent) {
                (Ok(answer), Err(source)) if answer.is_empty() => Err((source, "send to")),
                (Ok(answer), _) => Ok(answer),
                (Err(_), Err(source)) => Err((source, "send to")),
                (Err(source), Ok(())) => Err((source, "read from")),
            }
            .map_err(|(source, what)| DeviceError::Io { what, who: who.clone(), source })
        };
        let bytes = time::timeout(ANSWER_TIMEOUT, exchange)
            .await
            .map_err(|_| DeviceError::TimedOut { who: who.clone(), seconds: ANSWER_TIMEOUT.as_secs() })??;
        match str::from_utf8(&bytes) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(DeviceError::Answer { who: who.clone(), why: "it is not UTF-8".to_owned() }),
        }
    }

    fn who(&self) -> String {
        format!("the device at {}", self.socket_dir.join(format!("{}.sock", self.ifname)).display())
    }
}

/// Up to the empty line, or the end.
async fn answer_of(stream: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut answer = Zeroizing::new(Vec::with_capacity(CHUNK_BYTES));
    while !answer.ends_with(b"\n\n") {
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other(format!("more than {ANSWER_BYTES_MAX} bytes without an end")));
        }
        answer.reserve(CHUNK_BYTES);
        if stream.read_buf(&mut *answer).await? == 0 {
            break;
        }
    }
    Ok(answer)
}

#[async_trait]
impl Device for UserDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::User
    }

    fn ifname(&self) -> &str {
        &self.ifname
    }

    async fn read(&self) -> Result<DeviceState, DeviceError> {
        let answer = self.exchange("get=1\n\n").await?;
        let snapshot =
            parse_get(&answer).map_err(|error| DeviceError::answer(&self.who(), error, "tell its state"))?;
        Ok(snapshot.state)
    }

    async fn apply(&self, change: &DeviceChange) -> Result<(), DeviceError> {
        let answer = self.exchange(&print_set(change)).await?;
        parse_errno(&answer)
            .map_err(|error| DeviceError::answer(&self.who(), error, &format!("be configured ({change})")))
    }
}
