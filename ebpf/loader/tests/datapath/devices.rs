// SPDX-License-Identifier: Apache-2.0
//! Programs on the node's own interfaces, and what the programs know of nodes and netns.

use std::{collections::BTreeMap, fs, process::Command};

use ebpf_abi::{
    DatapathConfig, NetnsValue, NodeValue,
    node::{ADDRESS_NODE_PORT, ADDRESS_OWN},
};
use ebpf_loader::{AttachError, AttachMode, Attached, Hook};

use crate::lab::{Lab, Netns, in_lab, ip};

fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap()
}

fn veth(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ip(&format!("link set {name} up"));
}

/// Our filters on a device, by direction.
fn filters(device: &str) -> [usize; 2] {
    ["ingress", "egress"].map(|direction| {
        let output = Command::new("tc").args(["filter", "show", "dev", device, direction]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).matches("handle 0x1 ").count()
    })
}

fn pins(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.pin_dir("node").join("links")).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn exactly_the_listed_interfaces_have_the_program_by_tcx() {
    in_lab(|lab| {
        if !lab.features.tcx {
            eprintln!("SKIP: this kernel has no TCX");
            return;
        }
        for name in ["up0", "up1", "up2"] {
            veth(name);
        }
        let [zero, one, two] = ["up0", "up1", "up2"].map(index);
        let mut datapath = lab.open(AttachMode::Tcx);
        let outcomes = datapath.attach_devices(Hook::Uplink, &["up0", "up1"]).unwrap();
        assert_eq!(outcomes, [(zero, Attached::Created), (one, Attached::Created)].into());
        assert_eq!(pins(lab).len(), 4, "ingress and egress of each: {:?}", pins(lab));
        drop(datapath);
        let mut datapath = lab.open(AttachMode::Tcx);
        assert_eq!(datapath.devices(Hook::Uplink), [zero, one]);
        let outcomes = datapath.attach_devices(Hook::Uplink, &["up1", "up2"]).unwrap();
        assert_eq!(outcomes, [(one, Attached::Updated), (two, Attached::Created)].into());
        assert_eq!(datapath.devices(Hook::Uplink), [one, two]);
        let mut expected = [one, two].map(|index| format!("uplink-{index}")).to_vec();
        expected.extend([one, two].map(|index| format!("uplink-out-{index}")));
        assert_eq!(pins(lab), expected);
        // One that is gone leaves nothing.
        ip("link del up1");
        drop(datapath);
        let mut datapath = lab.open(AttachMode::Tcx);
        assert_eq!(datapath.devices(Hook::Uplink), [two]);
        datapath.attach_devices(Hook::Uplink, &[]).unwrap();
        assert!(pins(lab).is_empty(), "{:?}", pins(lab));
    });
}

#[test]
fn exactly_the_listed_interfaces_have_the_program_by_clsact_and_cleaning_finds_them() {
    in_lab(|lab| {
        for name in ["up0", "up1"] {
            veth(name);
        }
        let mut datapath = lab.open(AttachMode::Clsact);
        datapath.attach_devices(Hook::Uplink, &["up0", "up1"]).unwrap();
        assert_eq!((filters("up0"), filters("up1")), ([1, 1], [1, 1]));
        drop(datapath);
        let mut datapath = lab.open(AttachMode::Clsact);
        assert_eq!(
            datapath.attach_devices(Hook::Uplink, &["up1"]).unwrap(),
            [(index("up1"), Attached::Updated)].into()
        );
        assert_eq!((filters("up0"), filters("up1")), ([0, 0], [1, 1]));
        drop(datapath);
        let removed = ebpf_loader::remove_all(&lab.pin_dir("node")).unwrap();
        assert_eq!((removed.filters, filters("up1")), (2, [0, 0]));
        assert!(!lab.pin_dir("node").exists());
    });
}

#[test]
fn an_attach_mode_of_an_uplink_can_change_between_runs() {
    in_lab(|lab| {
        if !lab.features.tcx {
            eprintln!("SKIP: this kernel has no TCX");
            return;
        }
        veth("up0");
        for mode in [AttachMode::Clsact, AttachMode::Tcx, AttachMode::Clsact] {
            let mut datapath = lab.open(mode);
            datapath.attach_devices(Hook::Uplink, &["up0"]).unwrap();
            let count = usize::from(mode == AttachMode::Clsact);
            assert_eq!(filters("up0"), [count, count], "{mode:?}");
            assert_eq!(datapath.devices(Hook::Uplink), [index("up0")]);
        }
    });
}

#[test]
fn a_tunnel_gets_the_program_for_its_kind_of_packets() {
    in_lab(|lab| {
        ip("tuntap add dev tun0 mode tun");
        ip("link set tun0 up");
        veth("eth9");
        let mut datapath = lab.open(AttachMode::Clsact);
        datapath.attach_devices(Hook::Tunnel, &["tun0", "eth9"]).unwrap();
        for (device, program) in [("tun0", "weft_tunnel_ing"), ("eth9", "weft_overlay_in")] {
            let output =
                Command::new("tc").args(["filter", "show", "dev", device, "ingress"]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(program), "{device}: {text}");
        }
    });
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let error = datapath.attach_devices(Hook::Uplink, &["nope"]).unwrap_err();
        assert!(matches!(error, AttachError::InterfaceChanged { .. }) && error.to_string().contains("nope"));
    });
}

#[test]
fn what_the_programs_know_of_nodes_is_written_as_differences() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let addr = |text: &str| text.parse().unwrap();
        let mut addresses = BTreeMap::from([
            (addr("192.0.2.1"), ADDRESS_OWN | ADDRESS_NODE_PORT),
            (addr("2001:db8::1"), ADDRESS_OWN),
        ]);
        assert_eq!(datapath.write_node_addresses(&addresses).unwrap(), 2);
        assert_eq!(datapath.write_node_addresses(&addresses).unwrap(), 0);
        addresses.remove(&addr("192.0.2.1"));
        addresses.insert(addr("192.0.2.2"), ADDRESS_NODE_PORT);
        assert_eq!(datapath.write_node_addresses(&addresses).unwrap(), 2);
        assert_eq!(datapath.node_addresses().unwrap(), addresses);

        let mut nodes: BTreeMap<u32, NodeValue> = (1..=3)
            .map(|index| (index, NodeValue::new(Some(addr(&format!("10.0.0.{index}"))), None)))
            .collect();
        assert_eq!(datapath.write_nodes(&nodes).unwrap(), 3);
        nodes.remove(&2);
        assert_eq!((datapath.write_nodes(&nodes).unwrap(), datapath.write_nodes(&nodes).unwrap()), (1, 0));
        assert_eq!(datapath.nodes().unwrap(), nodes);

        let config = DatapathConfig { host_netns: 7, hash_seed: 9, ..DatapathConfig::default() };
        assert!(datapath.write_config(&config).unwrap() && !datapath.write_config(&config).unwrap());
        assert_eq!(datapath.config().unwrap(), config);
    });
}

#[test]
fn each_netns_has_a_cookie_of_its_own() {
    in_lab(|lab| {
        let here = ebpf_loader::netns_cookie().unwrap();
        let there = Netns::new().run(|| ebpf_loader::netns_cookie().unwrap());
        assert_ne!(here, there);
        assert_eq!(here, ebpf_loader::netns_cookie().unwrap());
        let mut datapath = lab.open(AttachMode::Auto);
        let pod = NetnsValue::pod(Some("10.244.0.7".parse().unwrap()), None, 3, true);
        datapath.set_netns(there, &pod).unwrap();
        datapath.set_netns(here, &NetnsValue::host(None, None)).unwrap();
        assert_eq!(datapath.netns().unwrap()[&there], pod);
        assert!(datapath.remove_netns(there).unwrap() && !datapath.remove_netns(there).unwrap());
        assert_eq!(datapath.netns().unwrap().len(), 1);
    });
}
