// SPDX-License-Identifier: Apache-2.0
//! Flows of the packet path as user space sees them: swept, counted, listed, forgotten.

use aya::maps::{HashMap, Map, MapData};
use ebpf_abi::{
    CtKey, PROTO_TCP, PROTO_UDP,
    address::mapped,
    conntrack::{CT_REPLY, CtState, CtValue, TCP_IDLE_SECS, UDP_FLOW_SECS, UDP_ONCE_SECS},
    names,
};
use ebpf_loader::{AttachMode, Datapath, FlowMap, MapSizes, OpenOptions, Parting, Search};

use crate::lab::{Lab, in_lab};

/// What the clock says in these stories.
const NOW: u32 = 1_000_000;

fn map(lab: &Lab, name: &str) -> HashMap<MapData, CtKey, CtValue> {
    let data = MapData::from_pin(lab.pin_dir("node").join(name)).unwrap();
    HashMap::try_from(Map::LruHashMap(data)).unwrap()
}

/// Entries that a whole search removes.
fn forgotten(datapath: &mut Datapath, parting: &Parting) -> usize {
    let mut search = Search::new(parting.clone());
    while !datapath.search(&mut search).unwrap() {}
    search.forgotten()
}

fn key(number: u32, proto: u8) -> CtKey {
    let [_, high, low, last] = number.to_be_bytes();
    CtKey {
        src: mapped([10, high, low, last]),
        dst: mapped([10, 96, 0, 1]),
        sport: [156, 64],
        dport: [0, 80],
        proto,
        pad: [0; 3],
    }
}

/// Seen `age` seconds ago, by service 7 to backend `backend_id`.
fn value(state: CtState, age: u32, backend_id: u32) -> CtValue {
    CtValue {
        src: mapped([10, 0, 0, 1]),
        dst: mapped([10, 244, 0, 1]),
        sport: [9, 9],
        dport: [31, 144],
        difference: 0,
        service_id: 7,
        backend_id,
        node: 0,
        began_secs: 0,
        seen_secs: NOW - age,
        state: state.number(),
        flags: 0,
        pad: [0; 2],
    }
}

/// Sweeps to the end of a round in steps of this size; entries seen and removed.
fn round(datapath: &mut Datapath, budget: usize) -> (usize, usize) {
    let (mut seen, mut removed) = (0, 0);
    loop {
        let swept = datapath.sweep_conntrack(NOW, budget).unwrap();
        assert!(swept.seen <= budget.saturating_add(4_096), "{swept:?}: a step is bounded");
        assert!(swept.is_round_over || swept.seen > 0, "no end of the round");
        seen += swept.seen;
        removed += swept.removed;
        if swept.is_round_over {
            return (seen, removed);
        }
    }
}

#[test]
fn a_sweep_removes_flows_that_are_over_step_by_step_and_counts_the_others() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let (mut live, mut new) = (map(lab, names::CT_LIVE), map(lab, names::CT_NEW));
        for number in 0..5_000 {
            let (state, age) =
                if number % 5 == 0 { (CtState::Reset, 60) } else { (CtState::Established, TCP_IDLE_SECS) };
            live.insert(key(number, PROTO_TCP), value(state, age, 1), 0).unwrap();
        }
        for number in 0..300 {
            let age = if number < 100 { UDP_ONCE_SECS + 1 } else { UDP_ONCE_SECS };
            new.insert(key(number, PROTO_UDP), value(CtState::New, age, 1), 0).unwrap();
        }
        assert_eq!(round(&mut datapath, 700), (5_300, 1_100));
        let [live_fill, new_fill] = datapath.conntrack_fill();
        assert_eq!((live_fill.entries, new_fill.entries), (4_000, 200));
        assert_eq!(live_fill.max_entries, ebpf_abi::limits::CT_LIVE_DEFAULT);
        assert_eq!((live.keys().count(), new.keys().count()), (4_000, 200));
        assert_eq!(round(&mut datapath, usize::MAX), (4_200, 0));
        // Somebody sent an RST: it may go on, so it stays as long as there is room.
        live.insert(key(8_000, PROTO_TCP), value(CtState::Doubtful, 60, 1), 0).unwrap();
        assert_eq!(round(&mut datapath, usize::MAX), (4_201, 0));
        live.remove(&key(8_000, PROTO_TCP)).unwrap();
        assert_eq!(round(&mut datapath, usize::MAX), (4_200, 0));
        // A round that is not over tells nothing yet.
        live.insert(key(9_000, PROTO_TCP), value(CtState::Established, 0, 1), 0).unwrap();
        datapath.sweep_conntrack(NOW, 1).unwrap();
        assert_eq!(datapath.conntrack_fill()[0].entries, 4_000);
    });
}

#[test]
fn flows_are_listed_and_those_of_a_backend_forgotten() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let (mut live, mut new) = (map(lab, names::CT_LIVE), map(lab, names::CT_NEW));
        live.insert(key(1, PROTO_UDP), value(CtState::Established, 0, 1), 0).unwrap();
        live.insert(key(2, PROTO_UDP), value(CtState::Established, UDP_FLOW_SECS + 1, 1), 0).unwrap();
        live.insert(key(3, PROTO_TCP), value(CtState::Established, 0, 1), 0).unwrap();
        new.insert(key(4, PROTO_UDP), value(CtState::New, 0, 1), 0).unwrap();
        new.insert(key(5, PROTO_UDP), value(CtState::New, 0, 2), 0).unwrap();

        let all = datapath.tracked_flows(NOW, 100, |_, _| true).unwrap();
        assert_eq!(all.len(), 4, "one is over: {all:?}");
        assert_eq!(all.iter().filter(|flow| flow.map == FlowMap::New).count(), 2);
        assert_eq!(datapath.tracked_flows(NOW, 3, |_, _| true).unwrap().len(), 3);
        let of_two = datapath.tracked_flows(NOW, 100, |_, value| value.backend_id == 2).unwrap();
        assert_eq!(of_two.iter().map(|flow| flow.key).collect::<Vec<_>>(), [key(5, PROTO_UDP)]);

        // Answers that are on their way still arrive, if that is wished.
        let reply = CtValue { flags: CT_REPLY, ..value(CtState::New, 0, 3) };
        new.insert(key(6, PROTO_UDP), reply, 0).unwrap();
        let datagrams = Parting { datagrams: [(7, 3)].into(), ..Parting::default() };
        assert_eq!(forgotten(&mut datapath, &datagrams), 0);
        new.insert(key(7, PROTO_UDP), value(CtState::New, 0, 3), 0).unwrap();
        assert_eq!(forgotten(&mut datapath, &datagrams), 1);
        assert!(new.get(&key(6, PROTO_UDP), 0).is_ok() && new.get(&key(7, PROTO_UDP), 0).is_err());
        new.remove(&key(6, PROTO_UDP)).unwrap();

        // The other direction goes with it, wherever it is.
        let back = key(4, PROTO_UDP).peer(&value(CtState::New, 0, 1));
        live.insert(back, CtValue { service_id: 0, ..value(CtState::New, 0, 0) }, 0).unwrap();
        let mut answered = Parting { answered: [(7, 1)].into(), ..Parting::default() };
        assert_eq!(forgotten(&mut datapath, &answered), 4);
        answered.answered.insert((8, 2));
        assert_eq!(forgotten(&mut datapath, &answered), 0);
        assert_eq!((live.keys().count(), new.keys().count()), (1, 1), "TCP and the other backend's stay");
        let connections = Parting { connections: [(7, 1), (7, 2)].into(), ..Parting::default() };
        assert_eq!(forgotten(&mut datapath, &connections), 1);
        assert_eq!((live.keys().count(), new.keys().count()), (0, 1), "datagrams stay");
    });
}

#[test]
fn flows_of_a_backend_that_is_back_during_a_search_live() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let (mut live, mut new) = (map(lab, names::CT_LIVE), map(lab, names::CT_NEW));
        for (number, proto) in [(10, PROTO_TCP), (20, PROTO_UDP)] {
            for id in [1, 2] {
                live.insert(key(number + id, proto), value(CtState::Established, 0, id), 0).unwrap();
                new.insert(key(number + id + 5, proto), value(CtState::New, 0, id), 0).unwrap();
            }
        }
        let pairs = [(7, 1), (7, 2)];
        let mut search =
            Search::new(Parting { connections: pairs.into(), answered: pairs.into(), ..Parting::default() });
        assert!(!datapath.search(&mut search).unwrap());
        // The first one's connections are its own again; its datagrams were to choose anew all the same.
        search.retain(|pair, datagrams| pair != (7, 1) || datagrams);
        while !datapath.search(&mut search).unwrap() {}
        let keys =
            |map: &HashMap<MapData, CtKey, CtValue>| map.keys().map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(keys(&live), [key(11, PROTO_TCP)]);
        assert_eq!(keys(&new), [key(16, PROTO_TCP)]);
        // Nothing is left to look for.
        let mut search = Search::new(Parting { connections: pairs.into(), ..Parting::default() });
        search.retain(|_, _| false);
        assert!(datapath.search(&mut search).unwrap());
        assert_eq!((keys(&live).len(), keys(&new).len()), (1, 1));
    });
}

#[test]
fn the_clock_is_that_of_the_programs() {
    let now = ebpf_loader::monotonic_secs().unwrap();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    // CLOCK_MONOTONIC stands still while the machine is suspended; nothing else differs.
    assert!(f64::from(now) <= uptime + 1.0);
    assert!(ebpf_loader::monotonic_secs().unwrap() - now <= 1);
}

#[test]
fn what_was_reset_goes_first_where_room_gets_short() {
    in_lab(|lab| {
        let sizes = MapSizes { ct_live: ebpf_abi::limits::CT_LIVE_MIN, ..MapSizes::default() };
        let options = OpenOptions { sizes, ..lab.options("node", &lab.cgroup, AttachMode::Auto) };
        let mut datapath = Datapath::open(options).unwrap();
        let mut live = map(lab, names::CT_LIVE);
        for number in 0..2_500 {
            let state = match number {
                0..250 => CtState::Doubtful,
                250..500 => CtState::Closed,
                _ => CtState::Established,
            };
            live.insert(key(number, PROTO_TCP), value(state, 60, 1), 0).unwrap();
        }
        // In the first round already.
        let (seen, removed) = round(&mut datapath, usize::MAX);
        assert_eq!((seen, removed, live.keys().count()), (2_500, 500, 2_000));
    });
}
