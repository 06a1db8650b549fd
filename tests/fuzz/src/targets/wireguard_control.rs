// SPDX-License-Identifier: Apache-2.0
//! The configuration socket of weft-wireguard, and its text: whatever comes, each request gets one answer, what is refused changes
//! nothing, what is taken is written and read again without a change, and the next client is served.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use netd_wireguard::{
    Configurable, ControlListener, ControlServer, DeviceChange, DeviceConfig, DeviceKind, DeviceState,
    PeerState, PrivateKey, Snapshot, uapi,
};
use tempfile::TempDir;

/// For an answer; only a device that hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn check(input: &[u8]) -> String {
    let label = match str::from_utf8(input) {
        Ok(text) => check_text(text),
        Err(_) => "not UTF-8".to_owned(),
    };
    format!("{} {label}", check_socket(input))
}

/// The text alone, as a request and as an answer.
fn check_text(text: &str) -> String {
    let answer = match uapi::parse_get(text) {
        Ok(snapshot) => {
            let written = uapi::print_get(&snapshot);
            assert_eq!(uapi::parse_get(&written).as_ref(), Ok(&snapshot), "told again");
            format!("tells {} peers", snapshot.state.peers.len())
        }
        Err(uapi::UapiError::Line { why, .. }) => why.to_owned(),
        Err(error) => error.to_string(),
    };
    let _ = uapi::parse_errno(text);
    let request = match uapi::parse_request(text) {
        Ok(uapi::Request::Get) => "get".to_owned(),
        Ok(uapi::Request::Set(change)) => {
            let again = uapi::parse_request(&uapi::print_set(&change));
            assert_eq!(again, Ok(uapi::Request::Set(change.clone())), "asked again");
            let mut config = DeviceConfig::default();
            config.apply(&change);
            check_config(&config);
            check_difference(&config, &change);
            change.to_string()
        }
        Err(uapi::UapiError::Line { why, .. }) => why.to_owned(),
        Err(_) => "not a request".to_owned(),
    };
    format!("{request}; {answer}")
}

/// A prefix has one owner, and a device is not its own peer.
fn check_config(config: &DeviceConfig) {
    let mut owned = BTreeSet::new();
    for prefix in config.peers.values().flat_map(|peer| &peer.allowed_ips) {
        assert!(owned.insert(*prefix), "{prefix} has two owners");
        assert_eq!(*prefix, prefix.trunc());
    }
    if let Some(key) = &config.private_key {
        assert!(!config.peers.contains_key(&key.public()), "its own peer");
    }
}

/// What netd would do to get there, from nothing and from there to nothing.
fn check_difference(config: &DeviceConfig, change: &DeviceChange) {
    for (from, to) in [(&DeviceConfig::default(), config), (config, &DeviceConfig::default())] {
        let Some(difference) = DeviceChange::between(to, None, &state_of(from)) else { continue };
        let mut reached = from.clone();
        reached.apply(&difference);
        assert_eq!(reached.peers, to.peers, "from {from:?} after {change}");
    }
}

/// The bytes over a real socket. The label: how many answers of which kind.
fn check_socket(input: &[u8]) -> String {
    static DEVICE: OnceLock<Served> = OnceLock::new();
    let served = DEVICE.get_or_init(Served::start);
    // The same input leads to the same place.
    *served.config() = DeviceConfig::default();
    let answers = served.send(input);
    let answers = answers.strip_suffix("\n\n").map_or(vec![], |answers| answers.split("\n\n").collect());
    let errnos: Vec<&str> =
        answers.iter().map(|answer| answer.rsplit('\n').next().unwrap_or_default()).collect();
    assert!(errnos.iter().all(|errno| errno.starts_with("errno=")), "{answers:?}");
    let requests =
        input.windows(2).filter(|pair| pair == b"\n\n").count() + usize::from(input.starts_with(b"\n"));
    assert!(answers.len() <= requests + 1, "{} answers to {requests} requests", answers.len());
    let after = served.get();
    if !errnos.contains(&"errno=0") {
        let nothing = Snapshot { private_key: None, state: state_of(&DeviceConfig::default()) };
        assert_eq!(after, nothing, "nothing was taken");
    }
    check_config(&served.config());
    let kinds: BTreeSet<&str> = errnos.into_iter().collect();
    format!("{} {kinds:?}", answers.len().min(3))
}

struct Served {
    device: Arc<Device>,
    path: PathBuf,
    _server: ControlServer,
    _dir: TempDir,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = ControlListener::bind(dir.path(), "weft.wg0").unwrap();
        let path = listener.path().to_owned();
        let device = Arc::new(Device(Mutex::default()));
        let server = ControlServer::start(listener, Arc::clone(&device) as Arc<dyn Configurable>).unwrap();
        Self { device, path, _server: server, _dir: dir }
    }

    fn config(&self) -> MutexGuard<'_, DeviceConfig> {
        self.device.config()
    }

    /// All bytes at once; all that comes back.
    fn send(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A device that hangs up on nonsense may do so before all of it is sent.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("no answer: {error}"),
        }
        String::from_utf8(answer).unwrap()
    }

    fn get(&self) -> Snapshot {
        let answer = self.send(b"get=1\n\n");
        uapi::parse_get(&answer)
            .unwrap_or_else(|error| panic!("the next client is not served: {error}: {answer:?}"))
    }
}

/// Keeps what it is told.
struct Device(Mutex<DeviceConfig>);

impl Device {
    fn config(&self) -> MutexGuard<'_, DeviceConfig> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Configurable for Device {
    fn read(&self) -> Snapshot {
        let config = self.config();
        Snapshot { private_key: config.private_key.clone(), state: state_of(&config) }
    }

    fn set(&self, change: DeviceChange) -> io::Result<()> {
        self.config().apply(&change);
        Ok(())
    }
}

fn state_of(config: &DeviceConfig) -> DeviceState {
    let peers = config
        .peers
        .iter()
        .map(|(key, config)| (*key, PeerState { config: config.clone(), ..PeerState::default() }));
    DeviceState {
        public_key: config.private_key.as_ref().map(PrivateKey::public),
        listen_port: config.listen_port.unwrap_or(0),
        fwmark: config.fwmark,
        peers: peers.collect(),
        ..DeviceState::new(DeviceKind::User)
    }
}
