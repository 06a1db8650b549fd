// SPDX-License-Identifier: Apache-2.0
//! Conntrack under pressure.

use std::net::{SocketAddr, UdpSocket};

use ebpf_abi::Counter;
use ebpf_loader::{AttachMode, Datapath, MapSizes, OpenOptions, monotonic_secs};

use super::{
    client::{Line, ask, datagrams, serve_line},
    service::{Frontend, config, serve},
};
use crate::{
    lab::in_lab,
    pod::{Pod, forward, v4, v6},
};

/// Well above what CT_NEW holds.
const FLOOD: u16 = 8_000;

#[test]
fn a_flood_of_half_open_flows_evicts_only_its_like() {
    in_lab(|lab| {
        let (one, two) = (Pod::new(1), Pod::new(2));
        let sizes = MapSizes { ct_new: ebpf_abi::limits::CT_NEW_MIN, ..MapSizes::default() };
        let options = OpenOptions { sizes, ..lab.options("node", &lab.cgroup, AttachMode::Auto) };
        let mut datapath = Datapath::open(options).unwrap();
        for pod in [&one, &two] {
            datapath.attach_pod(&pod.attachment).unwrap();
        }
        forward(&[&one, &two]);
        datapath.write_config(&config(v4(250), v6(250))).unwrap();
        let [live, dead]: [SocketAddr; 2] = ["10.96.0.1:80", "10.96.0.2:80"].map(|at| at.parse().unwrap());
        let backend = SocketAddr::new(v4(2), 8_080);
        two.netns.run(move || serve_line(backend, "two"));
        // Nobody has that address: no answer ever comes.
        let nobody = SocketAddr::new(v4(99), 8_080);
        serve(&mut datapath, &[Frontend::new(live, &[backend]), Frontend::new(dead, &[nobody])]);

        let (mut line, socket) = one.netns.run(|| {
            let mut line = Line::open(0, live).unwrap();
            assert!(line.says("before"));
            let socket = datagrams(0, live);
            // The second question shows that the client has heard the answer to the first.
            assert!(ask(&socket, 1).is_ok() && ask(&socket, 1).is_ok());
            (line, socket)
        });
        one.netns.run(|| {
            for port in 30_000..30_000 + FLOOD {
                // One of them is taken.
                let Ok(socket) = UdpSocket::bind(SocketAddr::new(v4(1), port)) else { continue };
                let _ = socket.send_to(b"!", dead);
            }
        });
        let counters = datapath.packet_counters().unwrap();
        assert!(counters[&Counter::FlowBegun] >= u64::from(FLOOD), "{counters:?}");
        let now = monotonic_secs().unwrap();
        let all = datapath.tracked_flows(now, usize::from(FLOOD), |_, _| true).unwrap();
        assert!(all.len() <= ebpf_abi::limits::CT_NEW_MIN as usize, "{} of {FLOOD} stay", all.len());
        assert!(line.says("after"));
        assert_eq!(ask(&socket, 1).unwrap().0, "two");
    });
}
