// SPDX-License-Identifier: Apache-2.0
//! A throw-away thread in its own netns and mount namespace; both go when it ends, and with them links, pins and
//! attachments. Only the empty cgroup directory needs removing.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use ebpf_abi::{BackendValue, FrontendKey, Protocol, SCOPE_INTERNAL, ServiceValue};
use ebpf_loader::{AttachMode, Datapath, Features, MapSizes, OpenOptions};
use lb::{Image, Writes};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where one test runs.
pub(crate) struct Lab {
    pub(crate) features: Features,
    pub(crate) pins: PathBuf,
    pub(crate) cgroup: Cgroup,
    mark: String,
}

/// Runs a test in a lab, or says why not.
pub(crate) fn in_lab(test: impl FnOnce(&Lab) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: needs root");
        return;
    }
    let features = match ebpf_loader::probe() {
        Ok(features) => features,
        Err(missing) => {
            eprintln!("SKIP: {missing}");
            return;
        }
    };
    let mark = format!("weft-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = tempfile::tempdir().unwrap();
    let pins = dir.path().join("pins");
    let outcome = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        fs::create_dir(&pins).unwrap();
        ebpf_loader::ensure_bpffs(&pins).unwrap();
        ip("link set lo up");
        test(&Lab { features, pins, cgroup: Cgroup::new(&mark), mark });
    })
    .join();
    if let Err(reason) = outcome {
        panic::resume_unwind(reason);
    }
}

impl Lab {
    pub(crate) fn open(&self, attach: AttachMode) -> Datapath {
        self.open_at("node", &self.cgroup, attach)
    }

    pub(crate) fn open_at(&self, node: &str, cgroup: &Cgroup, attach: AttachMode) -> Datapath {
        Datapath::open(self.options(node, cgroup, attach)).unwrap()
    }

    pub(crate) fn options(&self, node: &str, cgroup: &Cgroup, attach: AttachMode) -> OpenOptions {
        OpenOptions {
            pin_dir: self.pin_dir(node),
            cgroup_root: cgroup.path.clone(),
            attach,
            sizes: MapSizes::default(),
        }
    }

    pub(crate) fn pin_dir(&self, node: &str) -> PathBuf {
        self.pins.join(node).join(ebpf_abi::ABI_VERSION.to_string())
    }

    pub(crate) fn cgroup(&self, name: &str) -> Cgroup {
        Cgroup::new(&format!("{}-{name}", self.mark))
    }
}

/// A cgroup below the v2 mount, removed with its (by then empty) directory.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
}

impl Cgroup {
    fn new(name: &str) -> Self {
        let path = ebpf_loader::cgroup2_mount().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Self { path }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// A netns that lives as long as this.
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        Self { file }
    }

    /// Runs in a thread of its own inside.
    pub(crate) fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                    inside()
                })
                .join()
                .unwrap()
        })
    }

    /// A path that other processes can open.
    pub(crate) fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        Path::new("/proc")
            .join(std::process::id().to_string())
            .join("fd")
            .join(self.file.as_raw_fd().to_string())
    }
}

/// One `ip` command in the calling thread's netns.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A backend on lo in the calling thread's netns that says its name, over TCP and UDP, until the test process ends.
pub(crate) fn serve(address: SocketAddrV4, name: &'static str) {
    ip(&format!("address replace {}/32 dev lo", address.ip()));
    serve_at(address.into(), name);
}

/// The same on an address that is there.
pub(crate) fn serve_at(address: SocketAddr, name: &'static str) {
    let tcp = TcpListener::bind(address).unwrap();
    let udp = UdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.write_all(name.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 16]);
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(name.as_bytes(), from);
        }
    });
}

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

pub(crate) fn backend(last: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, last), 8080)
}

/// An image with one wildcard per ClusterIP, and for each frontend one slot per backend, TCP and UDP alike.
pub(crate) fn image(frontends: &[(Ipv4Addr, u16, &[SocketAddrV4])]) -> Image {
    let mut image = Image::default();
    let mut service_id = 0;
    let mut slot_offset = 1;
    for (address, port, backends) in frontends {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            service_id += 1;
            let slot_count = backends.len() as u32;
            let value = ServiceValue { service_id, slot_offset, slot_count, ..ServiceValue::default() };
            let key = FrontendKey::new((*address).into(), *port, protocol, SCOPE_INTERNAL);
            image.services.insert(key, value);
            for backend in *backends {
                let value = BackendValue::new((*backend.ip()).into(), backend.port(), protocol);
                let id = image.backends.iter().find(|(_, known)| **known == value).map(|(id, _)| *id);
                let id = id.unwrap_or(image.backends.len() as u32 + 1);
                image.backends.insert(id, value);
                image.endpoints.insert(value.endpoint(), 1);
                image.slots.insert(slot_offset, id);
                slot_offset += 1;
            }
        }
        service_id += 1;
        let wildcard = ServiceValue { service_id, ..ServiceValue::default() };
        let key = FrontendKey::wildcard((*address).into(), SCOPE_INTERNAL);
        image.services.entry(key).or_insert(wildcard);
    }
    image
}

/// What leads from one image to another. Slots that are not used any more are zeroed, unlike the compiler does.
pub(crate) fn difference(from: &Image, to: &Image) -> Writes {
    let mut writes = Writes::default();
    for (id, value) in &to.backends {
        if from.backends.get(id) != Some(value) {
            writes.backends_put.insert(*id, *value);
        }
    }
    writes.backends_del = from.backends.keys().filter(|id| !to.backends.contains_key(id)).copied().collect();
    writes.loads_reset = writes.backends_put.keys().copied().collect();
    for (key, count) in &to.endpoints {
        if from.endpoints.get(key) != Some(count) {
            writes.endpoints_put.insert(*key, *count);
        }
    }
    writes.endpoints_del =
        from.endpoints.keys().filter(|key| !to.endpoints.contains_key(key)).copied().collect();
    for slot in from.slots.keys().chain(to.slots.keys()) {
        let id = to.slots.get(slot).copied().unwrap_or(0);
        if from.slots.get(slot).copied().unwrap_or(0) != id {
            writes.slots_put.insert(*slot, vec![id]);
        }
    }
    for (key, value) in &to.services {
        if from.services.get(key) != Some(value) {
            writes.services_put.insert(*key, *value);
        }
        if !from.services.values().any(|known| known.service_id == value.service_id) {
            writes.counters_reset.insert(value.service_id);
        }
    }
    writes.services_del =
        from.services.keys().filter(|key| !to.services.contains_key(key)).copied().collect();
    writes.affinity_put = to.affinity.difference(&from.affinity).copied().collect();
    writes.affinity_del = from.affinity.difference(&to.affinity).copied().collect();
    writes.ranges_put = to.ranges.difference(&from.ranges).copied().collect();
    writes.ranges_del = from.ranges.difference(&to.ranges).copied().collect();
    writes
}

/// Makes the maps hold this image and nothing else.
pub(crate) fn write(datapath: &mut Datapath, image: &Image) -> ebpf_loader::WriteStats {
    let writes = difference(&datapath.read_image().unwrap(), image);
    datapath.write(&writes).unwrap()
}
