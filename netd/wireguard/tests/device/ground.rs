// SPDX-License-Identifier: Apache-2.0
//! Two nodes: namespaces that go with the test, a link between them, a process and its configuration in each.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netd_wireguard::{Device, DeviceChange, DeviceState, PeerChange, PrivateKey, PublicKey, UserDevice};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

pub(crate) const DEVICE: &str = "wg0";
pub(crate) const PORT: u16 = 51_820;
const BINARY: &str = env!("CARGO_BIN_EXE_weft-wireguard");

/// True, and said aloud, where these tests cannot run.
pub(crate) fn must_skip() -> bool {
    let reason = match (Uid::effective().is_root(), Path::new("/dev/net/tun").exists()) {
        (true, true) => return false,
        (false, _) => "not root",
        (_, false) => "the kernel has no TUN devices",
    };
    println!("SKIP {reason}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "must not be skipped in CI: {reason}");
    true
}

/// A network namespace; it goes with the last user.
pub(crate) struct Netns(File);

impl Netns {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a fresh netns");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let netns = Self(thread::spawn(make).join().unwrap());
        netns.ip("link set lo up");
        netns
    }

    /// Runs `work` on a thread in this namespace; children of that thread are in it too.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("into the netns");
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        let output = self.run(|| Command::new("ip").args(arguments.split_whitespace()).output().expect("ip"));
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Until the link carries.
    fn wait_for_carrier(&self, link: &str) {
        wait(&format!("carrier on {link}"), || self.ip(&format!("-br link show {link}")).contains(" UP "));
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A namespace with a process in it.
pub(crate) struct Node {
    pub netns: Netns,
    pub key: PrivateKey,
    pub dir: TempDir,
    pub process: Option<Process>,
    number: u8,
}

/// A running weft-wireguard (or another of its kind); ended with the value.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    /// All its threads on one core.
    pub(crate) fn pin(&self) {
        let mut core = CpuSet::new();
        core.set(0).unwrap();
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap() {
            let id = thread.unwrap().file_name().to_string_lossy().parse().unwrap();
            // One that has just ended needs no core.
            let _ = sched_setaffinity(Pid::from_raw(id), &core);
        }
    }

    pub(crate) fn terminate(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        wait("its end", || self.exited().is_some());
        self.exited().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two nodes with a link between them: 10.77.0.1 and .2, fd77::1 and ::2; inside the tunnel 10.99.0.N and fd99::N.
pub(crate) fn two_nodes() -> [Node; 2] {
    let nodes = [1, 2].map(|number| Node {
        netns: Netns::new(),
        key: PrivateKey::generate().unwrap(),
        dir: tempfile::tempdir().unwrap(),
        process: None,
        number,
    });
    nodes[0].netns.ip(&format!("link add u0 type veth peer name u0 netns {}", nodes[1].netns.path()));
    for node in &nodes {
        node.netns.ip(&format!("address add 10.77.0.{}/24 dev u0", node.number));
        node.netns.ip(&format!("address add fd77::{}/64 dev u0 nodad", node.number));
        node.netns.ip("link set u0 up");
    }
    nodes.iter().for_each(|node| node.netns.wait_for_carrier("u0"));
    nodes
}

/// Both nodes run and know each other, over IPv4 outside or IPv6.
pub(crate) fn tunnel(flags: [&[&str]; 2], outer_v6: bool) -> [Node; 2] {
    let mut nodes = two_nodes();
    for (node, flags) in nodes.iter_mut().zip(flags) {
        node.process = Some(node.start(flags));
    }
    let [a, b] = &nodes;
    a.configure(&a.facing(b, Some(b.outer(outer_v6))));
    b.configure(&b.facing(a, Some(a.outer(outer_v6))));
    nodes.iter().for_each(Node::plumb);
    nodes
}

impl Node {
    /// Starts the program here, and waits until it can be configured.
    pub(crate) fn start(&self, flags: &[&str]) -> Process {
        let process = self.spawn(flags);
        self.wait_for_socket();
        process
    }

    /// Starts it, no more.
    pub(crate) fn spawn(&self, flags: &[&str]) -> Process {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let spawn = || {
            Command::new(BINARY)
                .args(["--no-persist", "--run-dir"])
                .arg(self.dir.path())
                .arg("--socket-dir")
                .arg(self.dir.path())
                .args(flags)
                .arg(DEVICE)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect("weft-wireguard")
        };
        Process::new(self.netns.run(spawn))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Address and link of the device: to be called once it is there.
    pub(crate) fn plumb(&self) {
        let n = self.number;
        self.netns.ip(&format!("link set {DEVICE} mtu 1420 up"));
        self.netns.ip(&format!("address add 10.99.0.{n}/24 dev {DEVICE}"));
        self.netns.ip(&format!("address add fd99::{n}/64 dev {DEVICE} nodad"));
    }

    pub(crate) fn wait_for_socket(&self) {
        let path = self.dir.path().join(format!("{DEVICE}.sock"));
        let answers = || std::os::unix::net::UnixStream::connect(&path).is_ok();
        wait(&format!("{}; log:\n{}", path.display(), self.log()), answers);
    }

    pub(crate) fn configure(&self, change: &DeviceChange) {
        let device = UserDevice::new(self.dir.path(), DEVICE);
        block_on(device.apply(change)).unwrap_or_else(|error| panic!("{error}; log:\n{}", self.log()));
    }

    pub(crate) fn state(&self) -> DeviceState {
        block_on(UserDevice::new(self.dir.path(), DEVICE).read()).unwrap()
    }

    /// What makes this node a tunnel to `other`.
    pub(crate) fn facing(&self, other: &Node, endpoint: Option<SocketAddr>) -> DeviceChange {
        DeviceChange {
            private_key: Some(Some(self.key.clone())),
            listen_port: Some(PORT),
            fwmark: None,
            replace_peers: true,
            peers: vec![peer(other.key.public(), endpoint, &other.inner_nets())],
        }
    }

    pub(crate) fn outer(&self, v6: bool) -> SocketAddr {
        let ip = if v6 { format!("fd77::{}", self.number) } else { format!("10.77.0.{}", self.number) };
        SocketAddr::new(ip.parse().unwrap(), PORT)
    }

    /// Its addresses inside the tunnel.
    pub(crate) fn inner(&self) -> [IpAddr; 2] {
        [format!("10.99.0.{}", self.number), format!("fd99::{}", self.number)].map(|ip| ip.parse().unwrap())
    }

    fn inner_nets(&self) -> [String; 2] {
        [format!("10.99.0.{}/32", self.number), format!("fd99::{}/128", self.number)]
    }

    pub(crate) fn ping(&self, to: IpAddr) -> bool {
        let ping =
            || Command::new("ping").args(["-n", "-c1", "-W1", &to.to_string()]).output().expect("ping");
        self.netns.run(ping).status.success()
    }
}

/// A peer as a change; `nets` are its addresses inside the tunnel.
pub(crate) fn peer(key: PublicKey, endpoint: Option<SocketAddr>, nets: &[String]) -> PeerChange {
    PeerChange {
        public_key: key,
        remove: false,
        update_only: false,
        preshared_key: None,
        endpoint,
        persistent_keepalive: None,
        replace_allowed_ips: true,
        add_allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
        remove_allowed_ips: Vec::new(),
    }
}

/// Until `condition` holds; fails after 15 s.
pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
