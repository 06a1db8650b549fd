// SPDX-License-Identifier: Apache-2.0
//! A device without packets, behind a real socket in a folder of its own.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use netd_wireguard::{
    Configurable, ControlListener, ControlServer, DeviceChange, DeviceConfig, DeviceKind, DeviceState,
    PeerState, PrivateKey, Snapshot,
};
use tempfile::TempDir;

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type BeforeSet = Box<dyn Fn() -> io::Result<()> + Send>;

/// Keeps what it is told.
pub(crate) struct Fake {
    pub(crate) config: Mutex<DeviceConfig>,
    /// Asked before each change.
    pub(crate) before_set: Mutex<BeforeSet>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { config: Mutex::default(), before_set: Mutex::new(Box::new(|| Ok(()))) })
    }

    pub(crate) fn config(&self) -> MutexGuard<'_, DeviceConfig> {
        self.config.lock().unwrap()
    }
}

impl Configurable for Fake {
    fn read(&self) -> Snapshot {
        let config = self.config().clone();
        let peers = config.peers.iter().map(|(key, config)| {
            let state = PeerState {
                config: config.clone(),
                last_handshake: config.endpoint.map(|_| Duration::from_secs(1_700_000_000)),
                rx_bytes: 1_234,
                tx_bytes: 5_678,
            };
            (*key, state)
        });
        let state = DeviceState {
            public_key: config.private_key.as_ref().map(PrivateKey::public),
            listen_port: config.listen_port.unwrap_or(0),
            fwmark: config.fwmark,
            peers: peers.collect(),
            ..DeviceState::new(DeviceKind::User)
        };
        Snapshot { private_key: config.private_key, state }
    }

    fn set(&self, change: DeviceChange) -> io::Result<()> {
        self.before_set.lock().unwrap()()?;
        self.config().apply(&change);
        Ok(())
    }
}

/// A served device `weft.wg0`.
pub(crate) struct Served {
    pub(crate) device: Arc<Fake>,
    pub(crate) server: Option<ControlServer>,
    pub(crate) dir: TempDir,
}

impl Served {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Fake::new();
        let listener = ControlListener::bind(&dir.path().join("wireguard"), "weft.wg0").unwrap();
        let server = ControlServer::start(listener, Arc::clone(&device) as Arc<dyn Configurable>).unwrap();
        Self { device, server: Some(server), dir }
    }

    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("wireguard")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.socket_dir().join("weft.wg0.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path())
    }
}

/// A client that writes what it likes.
pub(crate) struct Client(pub(crate) UnixStream);

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// One answer, up to the empty line; what there is where the device hangs up.
    pub(crate) fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\n\n") && self.0.read(&mut byte).unwrap() == 1 {
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap()
    }

    pub(crate) fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.answer()
    }
}
