// SPDX-License-Identifier: Apache-2.0
//! A datapath at a cgroup, with entries written to its maps by hand, and backends that say their names.

use std::{
    cell::Cell,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    thread,
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie},
};
use ebpf_abi::{
    Address, AffinityBackendKey, AffinityKey, AffinityValue, BackendValue, Counter, DatapathConfig,
    FrontendKey, NetnsValue, Protocol, SCOPE_INTERNAL, ServiceCounters, ServiceValue, SocketValue,
    SourceRangeKey, address::address, names,
};
use ebpf_loader::{AttachMode, Datapath};

use crate::{
    lab::{Lab, ip},
    pod::waits_for,
};

/// Node ports of all worlds.
pub(crate) const NODE_PORTS: (u16, u16) = (30_000, 32_767);
/// Seed of the hashes of all worlds.
pub(crate) const SEED: u32 = 7;

/// The datapath and its maps.
pub(crate) struct World<'lab> {
    pub(crate) lab: &'lab Lab,
    datapath: Datapath,
    next_service: Cell<u32>,
    next_backend: Cell<u32>,
    next_slot: Cell<u32>,
}

impl<'lab> World<'lab> {
    /// Opens and attaches it; the calling thread's netns is the host's.
    pub(crate) fn new(lab: &'lab Lab) -> Self {
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_cgroup().unwrap();
        let one = || Cell::new(1);
        let world = Self { lab, datapath, next_service: one(), next_backend: one(), next_slot: one() };
        let config = DatapathConfig {
            host_netns: netns_cookie(),
            node_port_min: NODE_PORTS.0,
            node_port_max: NODE_PORTS.1,
            hash_seed: SEED,
            ..DatapathConfig::default()
        };
        world.array(names::CONFIG).set(0, config, 0).unwrap();
        world
    }

    /// A backend in BACKENDS; its identifier.
    pub(crate) fn backend(&self, to: &str, protocol: Protocol) -> u32 {
        let to: SocketAddr = to.parse().unwrap();
        let id = next(&self.next_backend, 1);
        self.set_backend(id, BackendValue::new(to.ip(), to.port(), protocol).on_node(0, true));
        id
    }

    pub(crate) fn set_backend(&self, id: u32, value: BackendValue) {
        self.array(names::BACKENDS).set(id, value, 0).unwrap();
    }

    /// A frontend whose slots are these backends, in this order.
    pub(crate) fn service(&self, key: FrontendKey, backends: &[u32]) -> ServiceValue {
        let service_id = next(&self.next_service, 1);
        let value = ServiceValue { service_id, ..ServiceValue::default() };
        self.change(key, value, backends)
    }

    /// The same frontend with other slots or flags.
    pub(crate) fn change(&self, key: FrontendKey, value: ServiceValue, backends: &[u32]) -> ServiceValue {
        let slot_count = backends.len() as u32;
        let slot_offset = next(&self.next_slot, slot_count);
        let mut slots = self.array(names::SLOTS);
        for (slot, backend) in (slot_offset..).zip(backends) {
            slots.set(slot, *backend, 0).unwrap();
        }
        let value = ServiceValue { slot_offset, slot_count, ..value };
        self.services().insert(key, value, 0).unwrap();
        value
    }

    /// A frontend at `at` for TCP or UDP, with backends at these addresses.
    pub(crate) fn serves(&self, at: &str, protocol: Protocol, to: &[&str]) -> (ServiceValue, Vec<u32>) {
        let backends: Vec<_> = to.iter().map(|to| self.backend(to, protocol)).collect();
        (self.service(key(at, protocol), &backends), backends)
    }

    pub(crate) fn set_netns(&self, cookie: u64, value: NetnsValue) {
        self.hash::<u64, NetnsValue>(names::NETNS).insert(cookie, value, 0).unwrap();
    }

    /// Flags of an address of a node.
    pub(crate) fn set_node_address(&self, at: &str, flags: u32) {
        let at: Address = address(at.parse().unwrap());
        self.hash::<Address, u32>(names::NODE_ADDRESSES).insert(at, flags, 0).unwrap();
    }

    /// netd has said a moment ago that its own servers answer, and the moment lasts; or it is silent.
    pub(crate) fn set_agent(&self, is_there: bool) {
        let said = if is_there { u64::MAX / 2 } else { 0 };
        self.array(names::AGENT).set(0, said, 0).unwrap();
    }

    /// What netd said last, in its own way.
    pub(crate) fn beat(&self) -> u64 {
        self.datapath.heartbeat().unwrap().beat().unwrap();
        self.array(names::AGENT).get(&0, 0).unwrap()
    }

    /// The same once it said that it ends.
    pub(crate) fn end(&self) -> u64 {
        self.datapath.heartbeat().unwrap().end().unwrap();
        self.array(names::AGENT).get(&0, 0).unwrap()
    }

    /// A prefix whose clients may ask a frontend.
    pub(crate) fn allow_source(&self, service_id: u32, prefix: &str, bits: u8) {
        let SourceRangeKey { prefix_len, service_id: [a, b, c, d], addr } =
            SourceRangeKey::new(service_id, prefix.parse().unwrap(), bits);
        let mut data = [0; 20];
        data[..4].copy_from_slice(&[a, b, c, d]);
        data[4..].copy_from_slice(&addr);
        let mut map: LpmTrie<_, [u8; 20], u32> =
            LpmTrie::try_from(Map::LpmTrie(self.pinned(names::SOURCE_RANGES))).unwrap();
        map.insert(&lpm_trie::Key::new(prefix_len, data), 0, 0).unwrap();
    }

    /// A backend that clients may stay with.
    pub(crate) fn set_affine(&self, affinity_id: u32, backend_id: u32, may_stay: bool) {
        let mut map = self.hash::<AffinityBackendKey, u32>(names::AFFINITY_BACKENDS);
        let key = AffinityBackendKey { affinity_id, backend_id };
        if may_stay { map.insert(key, 0_u32, 0).unwrap() } else { map.remove(&key).unwrap() }
    }

    pub(crate) fn affinity(&self) -> HashMap<MapData, AffinityKey, AffinityValue> {
        HashMap::try_from(Map::LruHashMap(self.pinned(names::AFFINITY))).unwrap()
    }

    pub(crate) fn services(&self) -> HashMap<MapData, FrontendKey, ServiceValue> {
        self.hash(names::SERVICES)
    }

    pub(crate) fn sockets(&self) -> HashMap<MapData, u64, SocketValue> {
        self.hash(names::SOCKETS)
    }

    /// Everything in SOCKETS, without times and cookies.
    pub(crate) fn known_sockets(&self) -> Vec<SocketValue> {
        let entry = |entry: Result<(u64, SocketValue), _>| SocketValue { since_secs: 0, ..entry.unwrap().1 };
        let mut known: Vec<_> = self.sockets().iter().map(entry).collect();
        known.sort();
        known
    }

    /// Open connections of a backend.
    pub(crate) fn load(&self, backend: u32) -> u64 {
        self.array(names::BACKEND_LOAD).get(&backend, 0).unwrap()
    }

    pub(crate) fn set_load(&self, backend: u32, load: u64) {
        self.array(names::BACKEND_LOAD).set(backend, load, 0).unwrap();
    }

    /// Connections and refusals of a frontend.
    pub(crate) fn counters(&self, service: &ServiceValue) -> (u64, u64) {
        let map: PerCpuArray<_, ServiceCounters> =
            PerCpuArray::try_from(Map::PerCpuArray(self.pinned(names::SERVICE_COUNTERS))).unwrap();
        let values = map.get(&service.service_id, 0).unwrap();
        values.iter().fold((0, 0), |(connections, refused), value| {
            (connections + value.connections, refused + value.refused)
        })
    }

    pub(crate) fn count(&self, what: Counter) -> u64 {
        let map: PerCpuArray<_, u64> =
            PerCpuArray::try_from(Map::PerCpuArray(self.pinned(names::COUNTERS))).unwrap();
        map.get(&what.index(), 0).unwrap().iter().sum()
    }

    fn array<V: Pod>(&self, name: &str) -> Array<MapData, V> {
        Array::try_from(Map::Array(self.pinned(name))).unwrap()
    }

    fn hash<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        HashMap::try_from(Map::HashMap(self.pinned(name))).unwrap()
    }

    fn pinned(&self, name: &str) -> MapData {
        MapData::from_pin(self.lab.pin_dir("node").join(name)).unwrap()
    }
}

/// The frontend `at` for pods and the host.
pub(crate) fn key(at: &str, protocol: Protocol) -> FrontendKey {
    let at: SocketAddr = at.parse().unwrap();
    FrontendKey::new(at.ip(), at.port(), protocol, SCOPE_INTERNAL)
}

/// Cookie of the calling thread's netns.
pub(crate) fn netns_cookie() -> u64 {
    ebpf_loader::netns_cookie().unwrap()
}

/// A backend on lo in the calling thread's netns that says its name over TCP and UDP, until the test process ends. It keeps
/// connections open as long as their clients do.
pub(crate) fn serve(at: &str, name: &'static str) {
    let at: SocketAddr = at.parse().unwrap();
    add_address(&at.ip().to_string());
    let tcp = TcpListener::bind(at).unwrap();
    let udp = UdpSocket::bind(at).unwrap();
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                let _ = stream.write_all(name.as_bytes());
                let _ = stream.read(&mut [0; 16]);
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(name.as_bytes(), from);
        }
    });
}

/// An address on lo.
pub(crate) fn add_address(at: &str) {
    let at: IpAddr = at.parse().unwrap();
    match at {
        IpAddr::V4(at) => ip(&format!("address replace {at}/32 dev lo")),
        IpAddr::V6(at) => {
            ip(&format!("address replace {at}/128 dev lo nodad"));
            // The kernel adds the route a moment later; a socket that connects before it stays without one.
            waits_for(|| route_to(at).starts_with("local "), || route_to(at));
        }
    }
}

fn route_to(at: Ipv6Addr) -> String {
    let output = Command::new("ip").args(["-6", "route", "get", &at.to_string()]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn next(counter: &Cell<u32>, by: u32) -> u32 {
    counter.replace(counter.get() + by)
}
