// SPDX-License-Identifier: Apache-2.0
//! Maps that are to have another size: made anew, with what lives in them.

use std::fs;

use aya::maps::{Array, HashMap, Map, MapData};
use ebpf_abi::{
    CtKey, CtState, CtValue, DatapathConfig, FlowKey, FlowValue, PROTO_TCP, SocketValue, address::mapped,
    names, node::CONFIG_MIGRATING,
};
use ebpf_loader::{AttachMode, Datapath, LoadLook, MapSizes, OpenOptions};

use crate::{
    lab::{Lab, VIP, backend, image, in_lab, write},
    pod::Pod,
    sockets::{
        agent::{Agent, answer},
        world::serve,
    },
};

const AT: &str = "10.96.0.1:80";

fn sized(lab: &Lab, sizes: MapSizes) -> OpenOptions {
    OpenOptions { sizes, ..lab.options("node", &lab.cgroup, AttachMode::Auto) }
}

fn larger() -> MapSizes {
    let sizes = MapSizes::default();
    MapSizes {
        services: 2 * sizes.services,
        backends: 2 * sizes.backends,
        slots: 2 * sizes.slots,
        sockets: 2 * sizes.sockets,
        flows: 2 * sizes.flows,
        ct_live: 2 * sizes.ct_live,
        ct_new: 2 * sizes.ct_new,
        ..sizes
    }
}

fn entries_of(datapath: &Datapath, map: &str) -> u32 {
    datapath.usage().iter().find(|usage| usage.map == map).unwrap().max_entries
}

fn old(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.pin_dir("node").join("old")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn look(datapath: &Datapath) -> LoadLook {
    let mut look = LoadLook::default();
    while !datapath.look_at_loads(&mut look).unwrap() {}
    look
}

/// How many counts of open connections were wrong, and are right now.
fn corrected(datapath: &mut Datapath) -> usize {
    let looks = [look(datapath), look(datapath)];
    datapath.correct_loads(&looks[0], &looks[1]).unwrap()
}

#[test]
fn maps_of_another_size_keep_what_is_in_them_and_connections_go_on_throughout() {
    in_lab(|lab| {
        serve("10.244.0.1:8080", "one");
        let services = image(&[(VIP, 80, &[backend(1)])]);
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &services);
        datapath.attach_cgroup().unwrap();
        drop(datapath);
        let mut agent = Agent::start(&lab.cgroup);
        assert_eq!(agent.tcp("before", AT), answer(AT, "one"));
        assert_eq!(agent.tcp("unseen", AT), answer(AT, "one"));

        let mut datapath = Datapath::open(sized(lab, larger())).unwrap();
        assert_eq!(entries_of(&datapath, names::SERVICES), larger().services);
        assert_eq!(entries_of(&datapath, names::SERVICE_COUNTERS), larger().services);
        assert_eq!(datapath.read_image().unwrap(), services);
        assert!(datapath.is_migrating() && !old(lab).is_empty());
        // The old programs still run, with the old maps.
        agent.close("unseen");
        assert_eq!(agent.tcp("between", AT), answer(AT, "one"));

        datapath.attach_cgroup().unwrap();
        let known = datapath.sockets_where(|_, _| true).unwrap();
        assert_eq!(known.len(), 2, "before and between: {known:?}");
        assert_eq!(datapath.backend_loads().unwrap().values().sum::<u64>(), 2, "none counted twice or lost");
        assert_eq!(agent.tcp("after", AT), answer(AT, "one"));
        // One ends after that, and so does this process: it is not brought back from the old map.
        assert_eq!(agent.tcp("short", AT), answer(AT, "one"));
        agent.close("short");
        agent.close("between");
        drop(datapath);
        let mut datapath = Datapath::open(sized(lab, larger())).unwrap();
        assert!(datapath.is_migrating());
        datapath.attach_cgroup().unwrap();
        assert_eq!(datapath.socket_count().unwrap(), 2, "before and after");
        datapath.finish_migration().unwrap();
        assert_eq!(datapath.socket_count().unwrap(), 2);
        assert!(!datapath.is_migrating() && old(lab).is_empty());
        // What closed unseen is forgotten, and counts are put right.
        let known = datapath.sockets_where(|_, _| true).unwrap();
        let id = known[0].backend_id;
        let data = MapData::from_pin(lab.pin_dir("node").join(names::BACKEND_LOAD)).unwrap();
        let mut loads: Array<MapData, u64> = Array::try_from(Map::Array(data)).unwrap();
        loads.set(id, 9, 0).unwrap();
        loads.set(id + 1, u64::MAX, 0).unwrap();
        assert_eq!(datapath.forget_sockets(&[(u64::MAX, 0)].into()).unwrap(), 0);
        assert_eq!(corrected(&mut datapath), 2);
        assert_eq!(datapath.backend_loads().unwrap(), [(id, 2)].into());
        let mut sockets: HashMap<MapData, u64, SocketValue> = {
            let data = MapData::from_pin(lab.pin_dir("node").join(names::SOCKETS)).unwrap();
            HashMap::try_from(Map::HashMap(data)).unwrap()
        };
        let gone = sockets.get(&known[0].cookie, 0).unwrap();
        sockets.insert(77, gone, 0).unwrap();
        // One that changes while it is counted is let be.
        loads.set(id, 5, 0).unwrap();
        let (mut first, second) = (LoadLook::default(), look(&datapath));
        assert!(!datapath.look_at_loads(&mut first).unwrap());
        loads.set(id, 6, 0).unwrap();
        while !datapath.look_at_loads(&mut first).unwrap() {}
        assert_eq!(datapath.correct_loads(&first, &second).unwrap(), 0);
        loads.set(id, 3, 0).unwrap();
        // Connected again since it was listed.
        assert_eq!(datapath.forget_sockets(&[(77, gone.since_secs + 1)].into()).unwrap(), 0);
        assert_eq!(datapath.forget_sockets(&[(77, gone.since_secs)].into()).unwrap(), 1);
        assert_eq!(corrected(&mut datapath), 1);
        assert_eq!(corrected(&mut datapath), 0);
        for name in ["before", "after"] {
            agent.close(name);
        }
        assert_eq!(datapath.sockets_where(|_, _| true).unwrap(), []);
        assert!(datapath.backend_loads().unwrap().is_empty());
        assert_eq!(agent.tcp_once(AT), answer(AT, "one"));
    });
}

#[test]
fn a_smaller_map_takes_what_fits_and_the_same_size_changes_nothing() {
    in_lab(|lab| {
        let services = image(&[(VIP, 80, &[backend(1), backend(2)])]);
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &services);
        drop(datapath);
        let smaller = MapSizes { services: 0, backends: 0, slots: 0, ..MapSizes::default() };
        for _ in 0..2 {
            let mut datapath = Datapath::open(sized(lab, smaller)).unwrap();
            assert_eq!(entries_of(&datapath, names::BACKENDS), ebpf_abi::limits::BACKENDS_MIN);
            assert_eq!(datapath.read_image().unwrap(), services);
            let put_aside: Vec<_> = [
                names::BACKENDS,
                names::BACKEND_ENDPOINTS,
                names::BACKEND_LOAD,
                names::SERVICES,
                names::SERVICE_COUNTERS,
                names::SLOTS,
            ]
            .map(|name| format!("{name}-0"))
            .into();
            assert_eq!(old(lab), put_aside, "one size after another, each map once");
        }
        let mut datapath = Datapath::open(sized(lab, smaller)).unwrap();
        datapath.finish_migration().unwrap();
        assert!(old(lab).is_empty());
        let removed = ebpf_loader::remove_all(&lab.pin_dir("node")).unwrap();
        assert_eq!(removed.maps, names::MAPS.len());
    });
}

#[test]
fn a_resize_that_was_cut_off_is_done_again() {
    in_lab(|lab| {
        let services = image(&[(VIP, 80, &[backend(1)])]);
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &services);
        drop(datapath);
        // A map that was being filled, and one that was put aside already.
        let dir = lab.pin_dir("node");
        for name in ["new", "old"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        HashMap::<MapData, u32, u32>::create(8, 0).unwrap().pin(dir.join("new/SERVICES")).unwrap();
        MapData::from_pin(dir.join("SERVICES")).unwrap().pin(dir.join("old/SERVICES-0")).unwrap();

        let mut datapath = Datapath::open(sized(lab, larger())).unwrap();
        assert_eq!(datapath.read_image().unwrap(), services);
        assert!(old(lab).contains(&"SERVICES-1".to_owned()), "{:?}", old(lab));
        datapath.finish_migration().unwrap();
        assert!(!dir.join("new").exists() && !dir.join("old").exists());
    });
}

#[test]
fn flows_that_begin_between_the_copy_and_the_new_programs_are_not_lost() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_cgroup().unwrap();
        drop(datapath);
        let flows = |path: &str| -> HashMap<MapData, FlowKey, FlowValue> {
            let data = MapData::from_pin(lab.pin_dir("node").join(path)).unwrap();
            HashMap::try_from(Map::LruHashMap(data)).unwrap()
        };
        let key = |cookie| FlowKey { cookie, proto: 17, ..FlowKey::default() };
        let value = |service_id| FlowValue { service_id, ..FlowValue::default() };
        flows("FLOWS").insert(key(1), value(1), 0).unwrap();
        let mut datapath = Datapath::open(sized(lab, larger())).unwrap();
        flows("old/FLOWS-0").insert(key(2), value(2), 0).unwrap();
        flows("FLOWS").insert(key(1), value(3), 0).unwrap();
        datapath.finish_migration().unwrap();
        assert_eq!(flows("FLOWS").get(&key(2), 0).unwrap(), value(2));
        assert_eq!(flows("FLOWS").get(&key(1), 0).unwrap(), value(3), "what is newer stays");
    });
}

#[test]
fn connections_of_packets_that_begin_meanwhile_are_there_before_the_first_program_is() {
    in_lab(|lab| {
        let pod = Pod::new(1);
        drop(lab.open(AttachMode::Auto));
        let flows = |path: &str| -> HashMap<MapData, CtKey, CtValue> {
            let data = MapData::from_pin(lab.pin_dir("node").join(path)).unwrap();
            HashMap::try_from(Map::LruHashMap(data)).unwrap()
        };
        let key = |number: u8| CtKey {
            src: mapped([10, 244, 0, number]),
            dst: mapped([10, 96, 0, 1]),
            sport: [1, 2],
            dport: [0, 80],
            proto: PROTO_TCP,
            pad: [0; 3],
        };
        let value = |began_secs, seen_secs| CtValue {
            src: mapped([10, 244, 0, 1]),
            dst: mapped([10, 244, 0, 2]),
            sport: [3, 4],
            dport: [31, 144],
            difference: 0,
            service_id: 1,
            backend_id: 1,
            node: 0,
            began_secs,
            seen_secs,
            state: CtState::Established.number(),
            flags: 0,
            pad: [0; 2],
        };
        let flag = || {
            let data = MapData::from_pin(lab.pin_dir("node").join(names::CONFIG)).unwrap();
            let config: Array<MapData, DatapathConfig> = Array::try_from(Map::Array(data)).unwrap();
            config.get(&0, 0).unwrap().flags & CONFIG_MIGRATING != 0
        };
        assert!(!flag());
        flows("CT_LIVE").insert(key(1), value(10, 10), 0).unwrap();
        flows("CT_LIVE").insert(key(2), value(10, 10), 0).unwrap();

        let mut datapath = Datapath::open(sized(lab, larger())).unwrap();
        assert!(flag(), "what is not known is not refused now");
        // What the old programs do: another connection, one that goes on, and one where another was.
        let mut old = flows("old/CT_LIVE-0");
        old.insert(key(3), value(20, 20), 0).unwrap();
        old.insert(key(1), value(10, 20), 0).unwrap();
        old.insert(key(2), value(20, 20), 0).unwrap();
        datapath.attach_pod(&pod.attachment).unwrap();
        let known = |number| flows("CT_LIVE").get(&key(number), 0).unwrap();
        assert_eq!([1, 2, 3].map(known), [value(10, 20), value(20, 20), value(20, 20)]);

        // The new ones write now, too.
        flows("CT_LIVE").insert(key(1), value(30, 30), 0).unwrap();
        old.insert(key(1), value(10, 40), 0).unwrap();
        flows("old/CT_NEW-0").insert(key(4), value(40, 40), 0).unwrap();
        let config = DatapathConfig { hash_seed: 7, ..DatapathConfig::default() };
        assert!(datapath.write_config(&config).unwrap() && flag(), "it is not the caller's");
        assert!(!datapath.write_config(&config).unwrap() && datapath.config().unwrap() == config);
        datapath.finish_migration().unwrap();
        assert_eq!(known(1), value(30, 30), "what began later stays");
        assert_eq!(flows("CT_NEW").get(&key(4), 0).unwrap(), value(40, 40));
        assert!(!flag());
    });
}
