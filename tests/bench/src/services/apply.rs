// SPDX-License-Identifier: Apache-2.0
//! Many services into the maps from nothing, and single changes among them: the compiler and the loader of netd, on maps of
//! their own with nothing attached. And how long a change takes from the store's event, with a whole netd.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebpf_loader::{AttachMode, Datapath, MapSizes, OpenOptions, mounts};
use lb::{Catalogue, Compiler, NodeInfo, NodeView};
use serde::Serialize;

use super::cluster::{Cluster, service, slice};
use super::other;

/// Where the maps are pinned; the process's id makes it the bench's own.
const PINS: &str = "/sys/fs/bpf/weft-bench";
/// Single changes of one round.
const CHANGES: usize = 100;
/// Changes from the store's event: enough for a p99, where they are slow a few less.
const EVENTS: usize = 200;
const EVENTS_MIN: usize = 100;
const EVENTS_TIME: Duration = Duration::from_secs(60);
/// Between two of them, so that each is one change and not part of a burst.
const PAUSE: Duration = Duration::from_millis(100);
/// A change that is not there by then is lost.
const EVENT_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_micros(300);
/// The service whose endpoints come and go.
const FLIP: &str = "flip";
const FLIP_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 101);
/// Maps that hold services; others hold flows and pods.
const SERVICE_MAPS: [&str; 6] =
    ["SERVICES", "SERVICE_COUNTERS", "BACKENDS", "BACKEND_LOAD", "BACKEND_ENDPOINTS", "SLOTS"];

/// What one round or all of them gave.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Figures {
    pub services: usize,
    /// From the table to the last entry written, seconds, one for each round; and the compiler's part.
    pub load_secs: Vec<f64>,
    pub compile_secs: Vec<f64>,
    /// A change of one service among them, from the object to the maps, milliseconds.
    pub change_ms: Vec<f64>,
    /// Memory of the maps that hold services, as the kernel counts it, and that divided by services.
    pub map_bytes: u64,
    pub bytes_per_service: f64,
    /// From before a write to the store until connections are answered by it, milliseconds.
    pub event_ms: Vec<f64>,
}

/// Loads so many services into fresh maps, again and again.
pub(super) fn load(services: usize, rounds: usize) -> Result<Figures> {
    let mut catalogue = catalogue(services)?;
    let mut figures = Figures { services, ..Figures::default() };
    for nth in 0..rounds {
        let outcome = round(&mut catalogue, nth, &mut figures);
        remove();
        outcome?;
    }
    Ok(figures)
}

/// Removes the pins; none is fine.
pub(super) fn remove() {
    // Nothing is attached: with the pins the maps go.
    let _ = std::fs::remove_dir_all(pins());
}

fn pins() -> PathBuf {
    PathBuf::from(format!("{PINS}-{}", std::process::id()))
}

fn catalogue(services: usize) -> Result<Catalogue> {
    let mut catalogue = Catalogue::new();
    for wish in (0..services).map(other) {
        catalogue.set_service(Arc::new(service(&wish.name, wish.vip, &wish.ports)?));
        let endpoints = slice(&wish.name, &wish.ports, &wish.backends.map(IpAddr::V4))?;
        catalogue.set_slice(&wish.name, Arc::new(endpoints));
    }
    Ok(catalogue)
}

fn round(catalogue: &mut Catalogue, nth: usize, figures: &mut Figures) -> Result<()> {
    let services = figures.services;
    let table = catalogue.table(1);
    let pin_dir = pins().join("maps");
    mounts::ensure_bpffs(&pin_dir).context("a BPF file system for the maps")?;
    // Maps of flows are as small as they may be: they are not what this is about.
    let sizes = MapSizes { ct_live: 0, ct_new: 0, sockets: 0, flows: 0, affinity: 0, ..MapSizes::default() };
    let cgroup_root = mounts::cgroup2_mount()?;
    let options = OpenOptions { pin_dir, cgroup_root, attach: AttachMode::Auto, sizes };
    let mut datapath = Datapath::open(options)?;
    let node = ("n1".to_owned(), NodeInfo { index: 1 });
    let view = NodeView { name: "n1".to_owned(), nodes: [node].into(), ..NodeView::default() };
    let mut compiler = Compiler::new(sizes.limits());

    let start = Instant::now();
    let writes = compiler.update(&table, &view, None, 0);
    figures.compile_secs.push(start.elapsed().as_secs_f64());
    datapath.write(&writes)?;
    figures.load_secs.push(start.elapsed().as_secs_f64());
    compiler.written(0);
    ensure!(
        compiler.capacity().is_empty(),
        "{services} services do not fit: {:?}",
        compiler.capacity().first()
    );

    let usage = datapath.usage();
    figures.map_bytes =
        usage.iter().filter(|usage| SERVICE_MAPS.contains(&usage.map)).map(|usage| usage.bytes).sum();
    figures.bytes_per_service = figures.map_bytes as f64 / services as f64;

    for change in 0..CHANGES {
        let wish = other(change * 7_919 % services);
        // Each time that it is a service's turn, another one of its backends alone.
        let turn = (nth + change / services) % 2;
        let endpoints = Arc::new(slice(&wish.name, &wish.ports, &[IpAddr::V4(wish.backends[turn])])?);
        let start = Instant::now();
        let changed = catalogue.set_slice(&wish.name, endpoints);
        let now_ms = change as u64 * 10;
        datapath.write(&compiler.update(&catalogue.table(1), &view, Some(&changed), now_ms))?;
        compiler.written(now_ms);
        figures.change_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// A service's only backend comes and goes; how long each takes until a client of the packet path is answered by it,
/// milliseconds. The time begins before the write to the store is sent, so that the store's own part is in it.
pub(super) fn events(cluster: &Cluster) -> Result<Vec<f64>> {
    let ports = [(80, super::path::PORT)];
    let backend = [cluster.backend()];
    let flip = |up: bool| slice(FLIP, &ports, if up { &backend } else { &[] });
    cluster.install(vec![(service(FLIP, FLIP_VIP, &ports)?, flip(false)?)])?;
    let target = SocketAddr::new(FLIP_VIP.into(), 80);
    let client = cluster.client_netns();
    crate::netns::inside(&client, || {
        let mut times = Vec::with_capacity(EVENTS);
        let begin = Instant::now();
        for event in 0..EVENTS {
            if event >= EVENTS_MIN && begin.elapsed() > EVENTS_TIME {
                break;
            }
            let up = event % 2 == 0;
            let endpoints = flip(up)?;
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            cluster.put(&endpoints)?;
            while answers(target)? != up {
                if start.elapsed() > EVENT_LIMIT {
                    bail!("change {event} is not there after {EVENT_LIMIT:?}");
                }
                std::thread::sleep(LOOK_EVERY);
            }
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    })
}

/// Whether a connection is answered; refused is no.
fn answers(target: SocketAddr) -> Result<bool> {
    match TcpStream::connect_timeout(&target, EVENT_LIMIT) {
        Ok(stream) => {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error).with_context(|| format!("connecting to {target}")),
    }
}
