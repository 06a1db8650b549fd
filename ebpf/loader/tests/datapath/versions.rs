// SPDX-License-Identifier: Apache-2.0
//! Pins of another ABI version beside ours: their content carried over, their bpf_links taken over.

use std::{fs, path::PathBuf};

use aya::maps::{Array, HashMap, Map, MapData};
use ebpf_abi::{
    BackendValue, FlowKey, FlowValue, FrontendKey, PodKey, PodLink, PodValue, Protocol, SCOPE_INTERNAL,
    ServiceValue, address::address, names, v1,
};
use ebpf_loader::{AttachMode, Attached, Datapath, OpenOptions};

use crate::{
    lab::{Lab, VIP, backend, image, in_lab, write},
    pod::{Pod, v4, v6},
    sockets::{
        agent::{Agent, answer},
        world::serve,
    },
};

const AT: &str = "10.96.0.1:80";
/// A version whose layouts we do not know.
const UNKNOWN: &str = "977";

fn dir_of(lab: &Lab, version: &str) -> PathBuf {
    lab.pin_dir("node").with_file_name(version)
}

fn open_as(lab: &Lab, version: &str, mode: AttachMode) -> Datapath {
    let options = lab.options("node", &lab.cgroup, mode);
    Datapath::open(OpenOptions { pin_dir: dir_of(lab, version), ..options }).unwrap()
}

/// The maps of version 1 with one service, one flow of a connected socket and one pod.
fn pin_version_1(lab: &Lab) {
    let dir = dir_of(lab, "1");
    fs::create_dir_all(dir.join("links")).unwrap();
    let vip = v1::ServiceKey::new(VIP, 80, Protocol::Tcp);
    let service = v1::ServiceValue { service_id: 7, slot_offset: 30, slot_count: 1, flags: 0 };
    let wildcard = v1::ServiceValue { service_id: 8, ..v1::ServiceValue::default() };
    let outside = v1::ServiceValue { service_id: u32::MAX, ..wildcard };
    let backend = v1::BackendValue::new(*backend(1).ip(), 8080, Protocol::Tcp);

    let mut services = HashMap::create(v1::SERVICES_MAX, 0).unwrap();
    services.insert(vip, service, 0).unwrap();
    services.insert(v1::ServiceKey::wildcard(VIP), wildcard, 0).unwrap();
    services.insert(v1::ServiceKey::new(VIP, 81, Protocol::Tcp), outside, 0).unwrap();
    services.pin(dir.join(names::SERVICES)).unwrap();
    let mut backends = Array::create(64, 0).unwrap();
    backends.set(5, backend, 0).unwrap();
    backends.pin(dir.join(names::BACKENDS)).unwrap();
    let mut slots = Array::create(64, 0).unwrap();
    slots.set(30, 5_u32, 0).unwrap();
    slots.pin(dir.join(names::SLOTS)).unwrap();
    let mut flows = HashMap::create(64, 0).unwrap();
    let key = v1::FlowKey { cookie: 99, addr: backend.addr, port: backend.port, proto: 6, pad: 0 };
    let flow = v1::FlowValue {
        addr: vip.addr,
        port: vip.port,
        service_id: 7,
        backend_id: 5,
        ..v1::FlowValue::default()
    };
    flows.insert(key, flow, 0).unwrap();
    flows.pin(dir.join(names::FLOWS)).unwrap();
    let mut pods = HashMap::create(64, 0).unwrap();
    let pod = PodValue { ifindex: 12, ..PodValue::default() };
    pods.insert(PodKey { addr: [10, 244, 0, 9] }, pod, 0).unwrap();
    pods.pin(dir.join(names::PODS)).unwrap();
    let mut links = HashMap::create(64, 0).unwrap();
    links.insert(12_u32, PodLink::new(Some([10, 244, 0, 9].into()), [2; 6], 0), 0).unwrap();
    links.pin(dir.join(names::POD_LINKS)).unwrap();
    // Of a form that nobody knows: left out.
    HashMap::<MapData, u64, u64>::create(8, 0).unwrap().pin(dir.join(names::DROPS)).unwrap();
}

#[test]
fn services_flows_and_pods_of_version_1_are_carried_over() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        pin_version_1(lab);
        let mut datapath = lab.open(AttachMode::Auto);
        let image = datapath.read_image().unwrap();
        let key = FrontendKey::new(VIP.into(), 80, Protocol::Tcp, SCOPE_INTERNAL);
        let service =
            ServiceValue { service_id: 7, slot_offset: 30, slot_count: 1, ..ServiceValue::default() };
        assert_eq!(image.services[&key], service);
        assert_eq!(image.services.len(), 2, "what points outside the maps is left out: {image:?}");
        let one = BackendValue::new((*backend(1).ip()).into(), 8080, Protocol::Tcp);
        assert_eq!((image.backends[&5], image.slots[&30]), (one, 5));
        let pod = &datapath.pods().unwrap()[&12];
        assert_eq!(pod.addresses, [v4(9)].into());
        let known = datapath.sockets_where(|service, backend| (service, backend) == (7, 5)).unwrap();
        assert_eq!((known.len(), known[0].cookie, known[0].netns), (1, 99, None));
        assert_eq!(known[0].frontend.to_string(), AT);
        assert_eq!(known[0].backend, Some(backend(1).into()));

        datapath.attach_cgroup().unwrap();
        let mut agent = Agent::start(&lab.cgroup);
        assert_eq!(agent.tcp_once(AT), answer(AT, "one"));
        assert!(datapath.is_migrating());
        // Its programs ran until just now.
        let data = MapData::from_pin(dir_of(lab, "1").join(names::FLOWS)).unwrap();
        let mut old: HashMap<_, v1::FlowKey, v1::FlowValue> = HashMap::try_from(Map::HashMap(data)).unwrap();
        let late = v1::FlowKey { cookie: 100, addr: [10, 244, 0, 1], port: [0, 53], proto: 17, pad: 0 };
        old.insert(late, v1::FlowValue::default(), 0).unwrap();
        drop(old);
        datapath.finish_migration().unwrap();
        assert!(!dir_of(lab, "1").exists() && !datapath.is_migrating());
        let data = MapData::from_pin(lab.pin_dir("node").join(names::FLOWS)).unwrap();
        let flows: HashMap<_, FlowKey, FlowValue> = HashMap::try_from(Map::LruHashMap(data)).unwrap();
        let late =
            FlowKey { cookie: 100, addr: address(v4(1)), port: [0, 53], proto: 17, ..FlowKey::default() };
        assert!(flows.get(&late, 0).is_ok());
    });
}

#[test]
fn what_was_cut_off_is_carried_over_by_the_next_one_and_later_ones_leave_it() {
    in_lab(|lab| {
        pin_version_1(lab);
        drop(lab.open(AttachMode::Auto));
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &lb::Image::default());
        drop(datapath);
        // What was removed since does not come back, though the old pins are still there.
        let mut datapath = lab.open(AttachMode::Auto);
        assert!(datapath.read_image().unwrap().services.is_empty());
        drop(datapath);
        fs::create_dir(lab.pin_dir("node").join("carrying")).unwrap();
        let mut datapath = lab.open(AttachMode::Auto);
        assert_eq!(datapath.read_image().unwrap().services.len(), 2);
        datapath.finish_migration().unwrap();
        drop(datapath);
        assert!(!lab.open(AttachMode::Auto).is_migrating());
    });
}

#[test]
fn programs_of_another_version_give_their_links_to_ours() {
    for mode in [AttachMode::Auto, AttachMode::Clsact] {
        in_lab(move |lab| {
            serve("10.244.0.1:8080", "one");
            let (one, two) = (Pod::dual(1), Pod::dual(2));
            two.serve("two");
            let services = image(&[(VIP, 80, &[backend(1)])]);
            let mut other = open_as(lab, UNKNOWN, mode);
            write(&mut other, &services);
            other.attach_cgroup().unwrap();
            for pod in [&one, &two] {
                other.attach_pod(&pod.attachment).unwrap();
            }
            drop(other);
            let mut agent = Agent::start(&lab.cgroup);
            assert_eq!(agent.tcp("before", AT), answer(AT, "one"));

            let mut datapath = lab.open(mode);
            assert!(datapath.read_image().unwrap().services.is_empty(), "its layouts are not known");
            assert_eq!(agent.tcp_once(AT), answer(AT, "one"), "its programs still run");
            write(&mut datapath, &services);
            datapath.attach_cgroup().unwrap();
            for pod in [&one, &two] {
                assert_eq!(datapath.attach_pod(&pod.attachment).unwrap(), Attached::Updated, "{mode:?}");
            }
            let left: Vec<_> = fs::read_dir(dir_of(lab, UNKNOWN).join("links")).unwrap().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
            datapath.finish_migration().unwrap();
            assert!(!dir_of(lab, UNKNOWN).exists());
            assert_eq!(agent.tcp_once(AT), answer(AT, "one"));
            assert_eq!(datapath.counters().unwrap()[&1].connections, 1, "by our programs");
            for address in [v4(2), v6(2)] {
                assert_eq!(one.asks_at(address).as_deref(), Some("two"), "{mode:?} {address}");
            }
        });
    }
}

#[test]
fn a_pod_that_another_version_had_attached_is_let_go() {
    in_lab(|lab| {
        let pod = Pod::dual(1);
        let mut other = open_as(lab, UNKNOWN, AttachMode::Auto);
        other.attach_pod(&pod.attachment).unwrap();
        let was = other.pods().unwrap()[&pod.attachment.host_index].attached;
        drop(other);
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.finish_migration().unwrap();
        assert!(!dir_of(lab, UNKNOWN).exists());
        assert_eq!(
            datapath.attach_pod(&pod.attachment).unwrap(),
            if was { Attached::Created } else { Attached::Updated }
        );
    });
}

#[test]
fn pins_that_only_a_newer_version_knows_go_with_the_others() {
    in_lab(|lab| {
        drop(open_as(lab, UNKNOWN, AttachMode::Auto));
        let other = dir_of(lab, UNKNOWN);
        let pin = |path: PathBuf| HashMap::<MapData, u32, u32>::create(8, 0).unwrap().pin(path).unwrap();
        pin(other.join("NEWER"));
        fs::create_dir_all(other.join("newer/inner")).unwrap();
        pin(other.join("newer/inner/NEWER"));
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.finish_migration().unwrap();
        assert!(!other.exists() && !datapath.is_migrating());
    });
}
