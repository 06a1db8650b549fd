// SPDX-License-Identifier: Apache-2.0
//! Services through the socket programs.

use std::collections::BTreeSet;

use ebpf_loader::{AttachMode, WriteError};

use crate::{
    client::{REFUSED, Seen, answer, tcp, udp, udp_connected},
    lab::{VIP, backend, difference, image, in_lab, serve, write},
};

#[test]
fn a_connection_to_a_vip_reaches_a_backend_and_names_the_vip_as_its_peer() {
    in_lab(|lab| {
        serve(backend(1), "one");
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 80, &[backend(1)])]));
        datapath.attach_cgroup().unwrap();

        assert_eq!(tcp(&lab.cgroup, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "one")]);
        assert_eq!(tcp(&lab.cgroup, "10.244.0.1:8080", 1), [answer("10.244.0.1:8080", "one")]);
        let counters = datapath.counters().unwrap();
        assert_eq!((counters[&1].connections, counters[&1].refused), (1, 0));
    });
}

#[test]
fn connections_spread_over_the_backends() {
    in_lab(|lab| {
        for (last, name) in [(1, "one"), (2, "two"), (3, "three")] {
            serve(backend(last), name);
        }
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 80, &[backend(1), backend(2), backend(3)])]));
        datapath.attach_cgroup().unwrap();

        // One of three is missed 60 times in a row once in ten billion runs.
        let seen: BTreeSet<_> =
            tcp(&lab.cgroup, "10.96.0.1:80", 60).into_iter().map(|seen| format!("{seen:?}")).collect();
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(datapath.counters().unwrap()[&1].connections, 60);
    });
}

#[test]
fn a_vip_without_backends_and_a_port_it_does_not_have_are_refused() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 80, &[])]));
        datapath.attach_cgroup().unwrap();

        for port in [80, 81] {
            let to = format!("10.96.0.1:{port}");
            assert_eq!(tcp(&lab.cgroup, &to, 1), [REFUSED], "tcp {to}");
            assert_eq!(udp(&lab.cgroup, &to, 1), [REFUSED], "udp {to}");
            assert_eq!(udp_connected(&lab.cgroup, &to), [REFUSED], "connected udp {to}");
        }
        let refused: Vec<_> =
            datapath.counters().unwrap().values().map(|counters| counters.refused).collect();
        assert_eq!(refused, [1, 2, 3], "tcp 80; udp 80; the wildcard");
        // Not a ClusterIP: the network's own answer, here that there is no route.
        assert_eq!(tcp(&lab.cgroup, "10.97.0.1:80", 1), [Seen::Error(libc::ENETUNREACH)]);
    });
}

#[test]
fn datagrams_come_back_from_the_vip() {
    in_lab(|lab| {
        serve(backend(1), "one");
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 53, &[backend(1)])]));
        datapath.attach_cgroup().unwrap();

        let from_vip = answer("10.96.0.1:53", "one");
        assert_eq!(udp(&lab.cgroup, "10.96.0.1:53", 2), [from_vip.clone(), from_vip.clone()]);
        assert_eq!(udp_connected(&lab.cgroup, "10.96.0.1:53"), [from_vip]);
    });
}

#[test]
fn only_processes_of_the_cgroup_are_translated() {
    in_lab(|lab| {
        serve(backend(1), "one");
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 80, &[backend(1)])]));
        datapath.attach_cgroup().unwrap();

        let elsewhere = lab.cgroup("elsewhere");
        assert_eq!(tcp(&elsewhere, "10.96.0.1:80", 1), [Seen::Error(libc::ENETUNREACH)]);
    });
}

#[test]
fn a_write_changes_only_what_differs_and_the_maps_read_back_the_same() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let first = image(&[(VIP, 80, &[backend(1), backend(2)])]);
        let stats = write(&mut datapath, &first);
        assert_eq!((stats.backends, stats.slots, stats.services), (4, 4, 3));
        assert!(write(&mut datapath, &first).is_unchanged());
        assert_eq!(datapath.read_image().unwrap(), first);

        let second = image(&[(VIP, 80, &[backend(1)])]);
        write(&mut datapath, &second);
        assert_eq!(datapath.read_image().unwrap(), second);
        write(&mut datapath, &lb::Image::default());
        assert_eq!(datapath.read_image().unwrap(), lb::Image::default());
    });
}

#[test]
fn an_image_that_points_outside_the_maps_is_refused_before_anything_is_written() {
    in_lab(|lab| {
        let mut datapath = lab.open(AttachMode::Auto);
        let mut wrong = image(&[(VIP, 80, &[backend(1)])]);
        for value in wrong.services.values_mut() {
            value.slot_offset = u32::MAX;
        }
        let writes = difference(&lb::Image::default(), &wrong);
        let error = datapath.write(&writes).unwrap_err();
        assert!(matches!(error, WriteError::OutOfRange { .. }), "{error}");
        assert_eq!(datapath.read_image().unwrap(), lb::Image::default());
    });
}
