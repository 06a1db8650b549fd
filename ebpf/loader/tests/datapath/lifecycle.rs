// SPDX-License-Identifier: Apache-2.0
//! What stays when the loader goes, and what the next one makes of it.

use std::{fs, sync::mpsc, thread, time::Duration};

use ebpf_loader::{AttachMode, Datapath, LoadError, OpenOptions};

use crate::{
    client::{Seen, answer, tcp},
    lab::{VIP, backend, image, in_lab, serve, write},
};

#[test]
fn connections_work_with_the_loader_gone_and_the_next_one_adopts_everything() {
    in_lab(|lab| {
        serve(backend(1), "one");
        serve(backend(2), "two");
        let first = image(&[(VIP, 80, &[backend(1)])]);
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &first);
        datapath.attach_cgroup().unwrap();
        drop(datapath);
        assert_eq!(tcp(&lab.cgroup, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "one")]);

        let mut datapath = lab.open(AttachMode::Auto);
        assert_eq!(datapath.read_image().unwrap(), first);
        assert_eq!(ebpf_loader::look(&lab.pin_dir("node")).unwrap().image, first);
        assert_eq!(datapath.counters().unwrap()[&1].connections, 1);
        datapath.attach_cgroup().unwrap();
        write(&mut datapath, &image(&[(VIP, 80, &[backend(2)])]));
        assert_eq!(tcp(&lab.cgroup, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "two")]);
    });
}

#[test]
fn no_connection_is_lost_while_programs_are_replaced() {
    in_lab(|lab| {
        serve(backend(1), "one");
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 80, &[backend(1)])]));
        datapath.attach_cgroup().unwrap();

        let (done, finished) = mpsc::channel();
        let seen = thread::scope(|scope| {
            let client = scope.spawn(move || {
                let seen = tcp(&lab.cgroup, "10.96.0.1:80", 500);
                done.send(()).unwrap();
                seen
            });
            while finished.recv_timeout(Duration::from_millis(1)).is_err() {
                let mut next = lab.open(AttachMode::Auto);
                next.attach_cgroup().unwrap();
                if client.is_finished() {
                    break;
                }
            }
            client.join().unwrap()
        });
        assert_eq!(seen.len(), 500);
        assert!(seen.iter().all(|seen| *seen == answer("10.96.0.1:80", "one")), "{seen:?}");
    });
}

#[test]
fn a_bpf_link_to_a_cgroup_that_is_gone_is_made_anew() {
    in_lab(|lab| {
        serve(backend(1), "one");
        let cgroup = lab.cgroup("again");
        let path = cgroup.path.clone();
        let mut datapath = lab.open_at("node", &cgroup, AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 80, &[backend(1)])]));
        datapath.attach_cgroup().unwrap();
        drop(cgroup);

        assert!(!path.exists(), "nothing holds the cgroup");
        let cgroup = lab.cgroup("again");
        let mut datapath = lab.open_at("node", &cgroup, AttachMode::Auto);
        datapath.attach_cgroup().unwrap();
        assert_eq!(tcp(&cgroup, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "one")]);

        // And to another one, while the old one is still there.
        let other = lab.cgroup("other");
        let mut datapath = lab.open_at("node", &other, AttachMode::Auto);
        datapath.attach_cgroup().unwrap();
        assert_eq!(tcp(&other, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "one")]);
        assert_eq!(tcp(&cgroup, "10.96.0.1:80", 1), [Seen::Error(libc::ENETUNREACH)]);
    });
}

#[test]
fn two_pin_directories_share_nothing() {
    in_lab(|lab| {
        serve(backend(1), "one");
        serve(backend(2), "two");
        let other_cgroup = lab.cgroup("other");
        let mut node = lab.open_at("n1", &lab.cgroup, AttachMode::Auto);
        let mut other = lab.open_at("n2", &other_cgroup, AttachMode::Auto);
        write(&mut node, &image(&[(VIP, 80, &[backend(1)])]));
        write(&mut other, &image(&[(VIP, 80, &[backend(2)])]));
        node.attach_cgroup().unwrap();
        other.attach_cgroup().unwrap();

        assert_eq!(tcp(&lab.cgroup, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "one")]);
        assert_eq!(tcp(&other_cgroup, "10.96.0.1:80", 1), [answer("10.96.0.1:80", "two")]);
        assert_eq!(node.counters().unwrap()[&1].connections, 1);
    });
}

#[test]
fn a_pin_of_another_shape_is_refused_by_name() {
    in_lab(|lab| {
        let pin = lab.pin_dir("node").join("PODS");
        fs::create_dir_all(lab.pin_dir("node")).unwrap();
        let foreign = aya::maps::HashMap::<_, u32, u64>::create(8, 0).unwrap();
        foreign.pin(&pin).unwrap();

        let options = lab.options("node", &lab.cgroup, AttachMode::Auto);
        let error = Datapath::open(options.clone()).unwrap_err();
        assert!(matches!(error, LoadError::PinDiffers { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(pin.to_str().unwrap()) && message.contains("netd clean"), "{message}");
        fs::remove_file(pin).unwrap();
        Datapath::open(options).unwrap();
    });
}

#[test]
fn an_ordinary_directory_is_refused_for_pins() {
    in_lab(|lab| {
        let dir = tempfile::tempdir().unwrap();
        let pin_dir = dir.path().join("pins");
        let options = OpenOptions { pin_dir, ..lab.options("node", &lab.cgroup, AttachMode::Auto) };
        let error = Datapath::open(options).unwrap_err();
        assert!(matches!(error, LoadError::NotBpffs { .. }), "{error}");
    });
}

#[test]
fn cleaning_removes_everything_and_may_be_repeated() {
    in_lab(|lab| {
        serve(backend(1), "one");
        let mut datapath = lab.open(AttachMode::Auto);
        write(&mut datapath, &image(&[(VIP, 80, &[backend(1)])]));
        datapath.attach_cgroup().unwrap();
        drop(datapath);

        let removed = ebpf_loader::remove_all(&lab.pin_dir("node")).unwrap();
        assert_eq!((removed.links, removed.maps), (11, ebpf_abi::names::MAPS.len()));
        assert!(!lab.pin_dir("node").exists());
        assert_eq!(tcp(&lab.cgroup, "10.96.0.1:80", 1), [Seen::Error(libc::ENETUNREACH)]);
        assert_eq!(ebpf_loader::remove_all(&lab.pin_dir("node")).unwrap(), ebpf_loader::Removed::default());
    });
}
