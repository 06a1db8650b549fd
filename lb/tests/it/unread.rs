// SPDX-License-Identifier: Apache-2.0
//! A compiler that starts anew while some object does not read: what the maps were found with stands for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ebpf_abi::{BackendValue, FrontendKey, Protocol, SCOPE_INTERNAL, ServiceValue};
use lb::{Catalogue, Changed, Compiler, Image, Limits, NodeView, ServiceName, ServiceTable, Standing};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{World, history};
use crate::kernel::{Kernel, translations};

/// The store, netd and the kernel.
struct Stage {
    catalogue: Catalogue,
    compiler: Compiler,
    image: Image,
    now_ms: u64,
}

impl Stage {
    fn new() -> Self {
        let compiler = Compiler::new(Limits::default());
        Self { catalogue: Catalogue::new(), compiler, image: Image::default(), now_ms: 0 }
    }

    fn apply(&mut self, name: &str, ip: &str) -> Changed {
        let service = read(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "ClientIP",
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
        }));
        self.catalogue.set_service(Arc::new(service))
    }

    fn slice(&mut self, key: &str, service: &str, addresses: &[&str]) -> Changed {
        let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        let slice = read(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": key, "namespace": "default", "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080, "protocol": "TCP"}],
        }));
        self.catalogue.set_slice(key, Arc::new(slice))
    }

    /// The service `web` with two slices of one backend each, and `api` with one, in the maps.
    fn set() -> Self {
        let mut stage = Self::new();
        stage.apply("web", "10.96.0.1");
        stage.slice("web-a", "web", &["10.244.0.2"]);
        stage.slice("web-b", "web", &["10.244.0.3"]);
        stage.apply("api", "10.96.0.2");
        stage.slice("api-a", "api", &["10.244.0.4"]);
        stage.pass(None);
        stage
    }

    /// What the same netd knows of all that is there now, but not of what was there before.
    fn restart(&mut self) {
        let connections = self.connections();
        self.catalogue = Catalogue::new();
        self.compiler = Compiler::new(Limits::default());
        self.compiler.adopt(&Image { names: Default::default(), ..self.image.clone() });
        self.compiler.spare(&connections);
    }

    /// Each frontend with all of its backends.
    fn connections(&self) -> BTreeSet<(u32, u32)> {
        let services = self.image.services.values();
        let slots = services.flat_map(|value| {
            let slots = value.slot_offset..value.slot_offset + value.slot_count;
            slots.map(|slot| (value.service_id, self.image.slots[&slot]))
        });
        slots.collect()
    }

    /// Returns who left.
    fn pass(&mut self, changed: Option<&Changed>) -> BTreeSet<(u32, u32)> {
        let table = self.catalogue.table(1);
        self.pass_with(&table, changed)
    }

    fn pass_with(&mut self, table: &ServiceTable, changed: Option<&Changed>) -> BTreeSet<(u32, u32)> {
        self.now_ms += 2_000;
        let writes = self.compiler.update(table, &NodeView::default(), changed, self.now_ms);
        self.image.apply(&writes);
        self.image.names = self.compiler.names();
        self.compiler.written(self.now_ms);
        let wished = self.compiler.image();
        assert_eq!((&wished.services, &wished.affinity), (&self.image.services, &self.image.affinity));
        assert!(wished.slots.iter().all(|(slot, id)| self.image.slots.get(slot) == Some(id)));
        writes.left.clone()
    }

    fn backends(&self, ip: &str) -> Option<Vec<String>> {
        let key = FrontendKey::new(ip.parse().unwrap(), 80, Protocol::Tcp, SCOPE_INTERNAL);
        let mut found: Vec<String> =
            self.image.resolve(&key)?.iter().map(|backend| backend.address().to_string()).collect();
        found.sort();
        Some(found)
    }
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}

fn web() -> ServiceName {
    ServiceName::new("default", "web")
}

#[test]
fn backends_of_a_slice_that_does_not_read_stay_after_a_restart() {
    let mut stage = Stage::set();
    let connections = stage.connections();
    let before = stage.image.clone();
    stage.restart();
    stage.apply("web", "10.96.0.1");
    stage.apply("api", "10.96.0.2");
    stage.slice("web-a", "web", &["10.244.0.2"]);
    stage.slice("api-a", "api", &["10.244.0.4"]);
    stage.catalogue.unread_slice("web-b", web());
    assert!(stage.pass(None).is_empty());
    assert_eq!(stage.image, before, "nothing is written");
    for (service, backend) in &connections {
        assert_eq!(stage.compiler.standing(*service, *backend), Standing::Current);
    }
    // The slices that do read are followed.
    let changed = stage.slice("web-a", "web", &["10.244.0.9"]);
    let left = stage.pass(Some(&changed));
    assert_eq!(stage.backends("10.96.0.1").unwrap(), ["10.244.0.3", "10.244.0.9"]);
    assert!(left.iter().all(|(service, id)| stage.compiler.standing(*service, *id) == Standing::Removed));
    assert_eq!(left.len(), 1, "{left:?}");
    // And the other one as soon as it reads.
    let changed = stage.slice("web-b", "web", &["10.244.0.8"]);
    stage.pass(Some(&changed));
    assert_eq!(stage.backends("10.96.0.1").unwrap(), ["10.244.0.8", "10.244.0.9"]);
}

#[test]
fn a_slice_that_is_deleted_in_place_of_being_mended_takes_its_backends_along() {
    let mut stage = Stage::set();
    stage.restart();
    stage.apply("web", "10.96.0.1");
    stage.slice("web-a", "web", &["10.244.0.2"]);
    // It reads, and is refused.
    stage.slice("web-b", "web", &["not an address"]);
    assert_eq!(stage.catalogue.problems().len(), 1);
    stage.pass(None);
    assert_eq!(stage.backends("10.96.0.1").unwrap(), ["10.244.0.2", "10.244.0.3"]);
    let changed = stage.catalogue.remove_slice("web-b");
    stage.pass(Some(&changed));
    assert_eq!(stage.backends("10.96.0.1").unwrap(), ["10.244.0.2"]);
}

#[test]
fn a_backend_that_takes_no_new_connections_keeps_those_that_it_has() {
    let mut stage = Stage::set();
    let (service, gone) = *stage.connections().iter().find(|(_, id)| stage.is(*id, "10.244.0.3")).unwrap();
    // Connections go on to a backend that is in no slot when netd starts anew.
    let connections = stage.connections();
    let changed = stage.slice("web-b", "web", &[]);
    stage.pass(Some(&changed));
    stage.image.backends.insert(gone, stage.compiler.backend(gone).unwrap());
    stage.restart();
    stage.compiler.spare(&connections);
    stage.apply("web", "10.96.0.1");
    stage.slice("web-a", "web", &["10.244.0.2"]);
    stage.catalogue.unread_slice("web-b", web());
    stage.pass(None);
    assert_eq!(stage.backends("10.96.0.1").unwrap(), ["10.244.0.2"]);
    assert_eq!(stage.compiler.standing(service, gone), Standing::Draining);
}

impl Stage {
    fn is(&self, id: u32, address: &str) -> bool {
        self.image.backends[&id].address().to_string() == address
    }
}

#[test]
fn a_service_that_does_not_read_is_answered_after_a_restart() {
    for mended in [true, false] {
        let mut stage = Stage::set();
        let connections = stage.connections();
        let before = stage.image.clone();
        stage.restart();
        // `api` was deleted meanwhile; nothing is claimed for it any more.
        stage.slice("web-a", "web", &["10.244.0.2"]);
        stage.slice("web-b", "web", &["10.244.0.3"]);
        stage.catalogue.unread_service(web());
        let mut table = stage.catalogue.table(1);
        let unread = Arc::make_mut(&mut table.unread);
        assert_eq!(unread.services, [web()].into());
        unread.cluster_ranges = vec!["10.96.0.0/16".parse().unwrap()];
        unread.cluster_ips = ["10.96.0.1".parse().unwrap()].into();
        for _ in 0..3 {
            assert!(stage.pass_with(&table, Some(&Changed::new())).is_empty());
        }
        assert_eq!(stage.backends("10.96.0.1").unwrap(), ["10.244.0.2", "10.244.0.3"]);
        assert_eq!(stage.backends("10.96.0.2"), None, "what is nobody's goes");
        let mut own = 0;
        for (service, id) in &connections {
            let is_own = !stage.is_of_api(&before, *id);
            own += usize::from(is_own);
            let wished = if is_own { Standing::Current } else { Standing::ServiceGone };
            assert_eq!(stage.compiler.standing(*service, *id), wished);
        }
        assert_eq!(own, 2);
        if mended {
            let changed = stage.apply("web", "10.96.0.1");
            assert!(stage.pass(Some(&changed)).is_empty());
            let of_web = |image: &Image| -> Vec<_> {
                let of = image.services.iter().filter(|(key, _)| key.address().to_string() == "10.96.0.1");
                of.map(|(key, value)| (*key, *value)).collect()
            };
            assert_eq!(of_web(&stage.image), of_web(&before), "identifiers and slots are the same");
        } else {
            let changed = stage.catalogue.remove_service(&web());
            let left = stage.pass(Some(&changed));
            assert_eq!(left.len(), 2, "its datagrams choose anew: {left:?}");
            assert!(stage.image.services.is_empty() && stage.image.affinity.is_empty());
        }
    }
}

impl Stage {
    fn is_of_api(&self, image: &Image, id: u32) -> bool {
        image.backends[&id].address().to_string() == "10.244.0.4"
    }
}

#[test]
fn the_good_value_that_is_known_stays_as_ever() {
    let mut stage = Stage::set();
    stage.catalogue.unread_service(web());
    let changed = stage.catalogue.unread_slice("web-b", web());
    assert!(stage.pass(Some(&changed)).is_empty());
    assert_eq!(stage.catalogue.table(1).unread, Arc::default());
    assert_eq!(stage.catalogue.doubted(), [web()].into());
    assert_eq!(stage.backends("10.96.0.1").unwrap(), ["10.244.0.2", "10.244.0.3"]);
}

/// A frontend with what it leads to: its entry, its slots, where they translate to, whom clients may stay with.
type Entry = (ServiceValue, Vec<u32>, Vec<BackendValue>, BTreeSet<u32>);

fn entry(image: &Image, key: &FrontendKey) -> Entry {
    let value = image.services[key];
    let slots = value.slot_offset..value.slot_offset + value.slot_count;
    let members = image.affinity.iter().filter(|member| member.affinity_id == value.affinity_id);
    let members = members.map(|member| member.backend_id).collect();
    let backends = translations(image.resolve(key).expect("a frontend leads nowhere"));
    (value, slots.map(|slot| image.slots[&slot]).collect(), backends, members)
}

/// Frontends that the compiler knows as some Service's, and those that it keeps for nobody that it knows.
fn by_owner(image: &Image, compiler: &Compiler) -> (Vec<FrontendKey>, Vec<FrontendKey>) {
    let is_known = |key: &FrontendKey| compiler.frontend(image.services[key].service_id).is_some();
    image.services.keys().copied().partition(is_known)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    /// What is kept for a Service that does not read shares nothing with those that do, and leads where it led before the restart,
    /// however the others change.
    #[test]
    fn what_is_kept_is_nobody_else_s(worlds in history(8), restart in 0usize..4) {
        let mut compiler = Compiler::new(Limits::default());
        let (mut catalogue, mut kernel, mut now_ms) = (Catalogue::new(), Kernel::default(), 0);
        let restart = restart.min(worlds.len() - 1);
        // Addresses were taken away while nobody looked.
        let mut steps: Vec<World> = worlds[..=restart].to_vec();
        steps.push(worlds[restart].without_extra_addresses());
        steps.extend_from_slice(&worlds[restart + 1..]);
        let mut found: BTreeMap<FrontendKey, Entry> = BTreeMap::new();
        for (number, world) in steps.iter().enumerate() {
            now_ms += 2_000;
            if number == restart + 1 {
                compiler.adopt(&kernel.image);
                found = kernel.image.services.keys().map(|key| (*key, entry(&kernel.image, key))).collect();
            }
            let changed = world.put(&mut catalogue, number.checked_sub(1).map(|last| &steps[last]));
            let mut table = catalogue.table(1);
            if number > restart {
                let unread = Arc::make_mut(&mut table.unread);
                unread.services.insert(web());
                unread.cluster_ranges = ["10.96.0.0/16", "fd00:10:96::/112"].map(|range| range.parse().unwrap()).into();
            }
            let writes = compiler.update(&table, &world.node_view(), Some(&changed), now_ms);
            kernel.write(&writes, usize::MAX, now_ms, now_ms)?;
            compiler.written(now_ms);
            let (known, kept) = by_owner(&kernel.image, &compiler);
            for key in kept {
                let value = kernel.image.services[&key];
                prop_assert_eq!(Some(&entry(&kernel.image, &key)), found.get(&key), "{} leads elsewhere", key);
                for other in known.iter().map(|other| kernel.image.services[other]) {
                    let overlaps = value.slot_offset < other.slot_offset + other.slot_count
                        && other.slot_offset < value.slot_offset + value.slot_count;
                    prop_assert!(!overlaps, "{} has slots of another", key);
                    let same = value.affinity_id != 0 && value.affinity_id == other.affinity_id;
                    prop_assert!(!same, "{} has another's affinity", key);
                }
            }
        }
    }
}
