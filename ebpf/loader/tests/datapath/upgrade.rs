// SPDX-License-Identifier: Apache-2.0
//! Pins of a version that did not know IPv6: no PODS6, no POD_ADDRESSES.

use std::fs;

use aya::maps::{HashMap, Map, MapData};
use ebpf_abi::{PodKey, PodLink, PodValue, names};
use ebpf_loader::{AttachMode, Attached};

use crate::{
    lab::{Lab, in_lab},
    pod::{Pod, v4, v6},
};

/// A pinned hash map, as another program opens it.
fn pinned<K: aya::Pod, V: aya::Pod>(lab: &Lab, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(lab.pin_dir("node").join(name)).unwrap();
    HashMap::try_from(Map::HashMap(data)).unwrap()
}

#[test]
fn pods_of_an_older_version_are_adopted_and_get_ipv6() {
    in_lab(|lab| {
        let (one, two) = (Pod::dual(1), Pod::dual(2));
        two.serve("two");
        let mut datapath = lab.open(AttachMode::Auto);
        for pod in [&one, &two] {
            let mut old = pod.attachment.clone();
            old.addresses.truncate(1);
            datapath.attach_pod(&old).unwrap();
        }
        drop(datapath);
        for name in [names::PODS6, names::POD_ADDRESSES] {
            fs::remove_file(lab.pin_dir("node").join(name)).unwrap();
        }
        assert_eq!(one.asks_at(v4(2)).as_deref(), Some("two"));

        let mut datapath = lab.open(AttachMode::Auto);
        let observed = datapath.pods().unwrap()[&one.attachment.host_index].clone();
        assert_eq!(observed.addresses, [v4(1)].into());
        assert_eq!((observed.host_mac, observed.redirect), (Some(one.attachment.host_mac), true));
        assert_eq!(one.asks_at(v4(2)).as_deref(), Some("two"), "opening changed nothing");
        for pod in [&one, &two] {
            assert_eq!(datapath.attach_pod(&pod.attachment).unwrap(), Attached::Updated);
        }
        for address in [v4(2), v6(2)] {
            assert_eq!(one.asks_at(address).as_deref(), Some("two"), "{address}");
        }
    });
}

#[test]
fn what_an_older_version_left_of_a_pod_is_seen_and_removed() {
    in_lab(|lab| {
        let pod = Pod::dual(1);
        let index = pod.attachment.host_index;
        let mut datapath = lab.open(AttachMode::Auto);
        datapath.attach_pod(&pod.attachment).unwrap();
        drop(datapath);
        // It removes what it knows of.
        let key = PodKey { addr: [10, 244, 0, 1] };
        pinned::<PodKey, PodValue>(lab, names::PODS).remove(&key).unwrap();
        pinned::<u32, PodLink>(lab, names::POD_LINKS).remove(&index).unwrap();

        let mut datapath = lab.open(AttachMode::Auto);
        let observed = datapath.pods().unwrap()[&index].clone();
        assert_eq!(observed.addresses, [v4(1), v6(1)].into());
        assert_eq!((observed.mac, observed.host_mac, observed.redirect), ([0; 6], None, false));
        let addresses: Vec<_> = observed.addresses.into_iter().collect();
        datapath.detach_pod(index, &addresses).unwrap();
        assert!(datapath.pods().unwrap().is_empty());
    });
}

#[test]
fn an_entry_that_is_lost_shows_and_comes_back() {
    in_lab(|lab| {
        let pod = Pod::dual(1);
        let index = pod.attachment.host_index;
        let mut datapath = lab.open(AttachMode::Auto);
        let attachment = &pod.attachment;
        for name in [names::PODS6, names::POD_ADDRESSES, names::PODS, names::POD_LINKS] {
            datapath.attach_pod(attachment).unwrap();
            assert_eq!(datapath.pods().unwrap()[&index].host_mac, Some(attachment.host_mac), "before {name}");
            empty(lab, name);
            assert_ne!(
                whole(&datapath.pods().unwrap()[&index]),
                Some(attachment.addresses.clone()),
                "{name}"
            );
        }
        datapath.attach_pod(attachment).unwrap();
        assert_eq!(whole(&datapath.pods().unwrap()[&index]), Some(attachment.addresses.clone()));
    });
}

/// The addresses, when nothing is missing of them.
fn whole(pod: &ebpf_loader::ObservedPod) -> Option<Vec<std::net::IpAddr>> {
    pod.host_mac.map(|_| pod.addresses.iter().copied().collect())
}

fn empty(lab: &Lab, name: &str) {
    match name {
        names::PODS6 => empty_map::<ebpf_abi::Pod6Key, PodValue>(lab, name),
        names::POD_ADDRESSES => empty_map::<ebpf_abi::PodAddressKey, u32>(lab, name),
        names::PODS => empty_map::<PodKey, PodValue>(lab, name),
        _ => empty_map::<u32, PodLink>(lab, name),
    }
}

fn empty_map<K: aya::Pod, V: aya::Pod>(lab: &Lab, name: &str) {
    let mut map = pinned::<K, V>(lab, name);
    let keys: Vec<K> = map.keys().flatten().collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}
