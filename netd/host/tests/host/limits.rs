// SPDX-License-Identifier: Apache-2.0

//! Limits of a pod's traffic, measured, and what others put on its veth.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use netd_host::{Host, HostError, Netns, netns, veth::delete_host_link};
use netd_plan::{
    Bandwidth, HostObject, HostObjects, HostOp, PodWiring, host_veth_name, ifb_name, pod_objects,
    shape_objects,
};

use crate::{
    ground::{converge, dual_pod, in_fresh_netns, ip, pod_netns},
    talk::undisturbed,
};

const RATE: u64 = 40_000_000;
/// What is measured in a second may differ from the rate by this much.
const TOLERANCE: f64 = 0.15;
/// Seconds that are measured until one is near the rate: other people's work may have slowed one down.
const TRIES: u32 = 5;

fn tc(arguments: &str) -> String {
    let output = Command::new("tc").args(arguments.split_whitespace()).output().expect("the program tc");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tc {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn limits(to_pod: u64, from_pod: u64) -> Bandwidth {
    Bandwidth::checked((to_pod, 0), (from_pod, 0)).unwrap()
}

/// Everything that is wanted of the pod with that link.
async fn wanted(host: &Host, host_ifname: &str, bandwidth: &Bandwidth) -> HostObjects {
    let neighbours = host.observe().await.unwrap().neighbours;
    let wiring: Vec<PodWiring> = neighbours
        .into_iter()
        .map(|(key, spec)| PodWiring { ip: key.ip, host_ifname: key.device, container_mac: spec.mac })
        .collect();
    let mut objects = pod_objects(&wiring, &[]);
    objects.merge(shape_objects(host_ifname, bandwidth));
    objects
}

/// Bits per second of one TCP stream from `sender` to `receiver`, without headers. Never over the rate by more than the
/// tolerance, and near it in one of the seconds.
fn assert_rate(what: &str, sender: &Netns, receiver: &Netns, address: &str) {
    let listener = netns::run_in(receiver, || TcpListener::bind(address).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let mut stream = netns::run_in(sender, || TcpStream::connect(target).unwrap()).unwrap();
    let (mut sink, _) = listener.accept().unwrap();
    sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Ends with an error when the sink is closed.
    let source = thread::spawn(move || while stream.write_all(&[0; 16 * 1024]).is_ok() {});
    let mut buffer = vec![0; 256 * 1024];
    let mut measure = |window: Duration| {
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < window {
            bytes += undisturbed(|| sink.read(&mut buffer)).unwrap();
        }
        bytes as f64 * 8.0 / start.elapsed().as_secs_f64()
    };
    // The burst, and the start of the stream.
    measure(Duration::from_millis(400));
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let rate = measure(Duration::from_secs(1)) / RATE as f64;
        seen.push(rate);
        assert!(rate < 1.0 + TOLERANCE, "{what}: over the limit: {seen:?} of the rate");
        if rate > 1.0 - TOLERANCE {
            break;
        }
    }
    drop(sink);
    source.join().unwrap();
    assert!(seen.iter().any(|rate| *rate > 1.0 - TOLERANCE), "{what}: {seen:?} of the rate");
}

#[test]
fn a_pod_gets_and_sends_what_it_may_and_cannot_help_it() {
    in_fresh_netns(|| async {
        let pod = pod_netns();
        let spec = dual_pod(&pod, 5).await;
        let (host, node) = (Host::open().unwrap(), Netns::current().unwrap());
        let desired = wanted(&host, &spec.host_ifname, &limits(RATE, RATE)).await;
        converge(&host, &desired).await;
        assert_eq!(host.observe().await.unwrap(), desired);
        ip("address add 172.30.0.1/32 dev lo");
        ip("address add 2001:db8:30::1/128 dev lo");
        assert_rate("to the pod", &node, &pod, "10.244.0.5:5001");
        assert_rate("from the pod", &pod, &node, "172.30.0.1:5002");

        // In its own netns there is nothing of it to take away.
        let seen = netns::run_in(&pod, || tc("qdisc show dev eth0")).unwrap();
        assert!(seen.contains("noqueue") && !seen.contains("tbf"), "{seen}");
        for attempt in ["qdisc add dev eth0 root pfifo limit 10000", "qdisc add dev eth0 clsact"] {
            netns::run_in(&pod, || tc(attempt)).unwrap();
        }
        assert_eq!(host.observe().await.unwrap(), desired);
        assert_rate("from the pod over IPv6, after its attempts", &pod, &node, "[2001:db8:30::1]:5003");

        delete_host_link(&spec.host_ifname).await.unwrap();
        assert!(host.observe().await.unwrap().links.is_empty(), "its IFB device went with it");
    });
}

#[test]
fn limits_come_change_and_go_and_damage_is_noticed_and_repaired() {
    in_fresh_netns(|| async {
        let pod = pod_netns();
        let name = dual_pod(&pod, 5).await.host_ifname;
        let (host, ifb) = (Host::open().unwrap(), ifb_name(&name));
        for bandwidth in [
            limits(RATE, 0),
            limits(RATE, RATE),
            limits(2 * RATE, RATE / 2),
            // Rates that the kernel tells in 64 bits, and a burst whose time is longer than its 32 bits of ticks.
            Bandwidth::checked((50_000_000_000, 8_000_000), (8_000, 2_147_483_647)).unwrap(),
            limits(0, RATE),
            limits(0, 0),
        ] {
            let desired = wanted(&host, &name, &bandwidth).await;
            converge(&host, &desired).await;
            assert_eq!(host.observe().await.unwrap(), desired, "{bandwidth:?}");
            for object in desired.objects() {
                for op in [HostOp::Add(object.clone()), HostOp::Replace(object.clone())] {
                    host.apply(&op).await.unwrap_or_else(|error| panic!("{op} again: {error}"));
                }
            }
            assert_eq!(host.observe().await.unwrap(), desired, "again, {bandwidth:?}");
        }

        let desired = wanted(&host, &name, &limits(RATE, RATE)).await;
        converge(&host, &desired).await;
        let mut events = host.events().await.unwrap();
        let damages = [
            format!("qdisc del dev {name} root"),
            format!("qdisc change dev {ifb} root handle 7765: tbf rate 1gbit burst 1mb latency 25ms"),
            format!("filter del dev {name} ingress pref 158"),
            format!("qdisc del dev {name} clsact"),
        ];
        for damage in damages {
            tc(&damage);
            let noticed = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
            assert_eq!(noticed.ok().flatten(), Some(()), "{damage}");
            assert_ne!(host.observe().await.unwrap(), desired, "{damage}");
            converge(&host, &desired).await;
            assert_eq!(host.observe().await.unwrap(), desired, "{damage}");
        }
        for damage in [format!("link set {ifb} down"), format!("link del {ifb}")] {
            ip(&damage);
            assert_ne!(host.observe().await.unwrap(), desired, "{damage}");
            converge(&host, &desired).await;
            assert_eq!(host.observe().await.unwrap(), desired, "{damage}");
        }

        // A veth that went another way leaves its IFB device, which is observed and removed.
        ip(&format!("link del {name}"));
        let left = host.observe().await.unwrap();
        assert_eq!((left.links.len(), left.queues.len(), left.redirects.len()), (1, 1, 0), "{left:?}");
        converge(&host, &HostObjects::new()).await;
        assert!(!ip("-br link").contains("weft"), "swept");
        let twin = HostObject::Redirect(name.clone(), ifb.clone());
        for object in left.objects().chain([twin]) {
            let op = HostOp::Remove(object);
            host.apply(&op).await.unwrap_or_else(|error| panic!("{op} of what is not there: {error}"));
        }
    });
}

#[test]
fn what_others_put_on_a_veth_is_named_and_left_alone() {
    in_fresh_netns(|| async {
        let (pod, plain) = (pod_netns(), pod_netns());
        let name = dual_pod(&pod, 5).await.host_ifname;
        dual_pod(&plain, 6).await;
        let host = Host::open().unwrap();
        let foreign = async || host.foreign_traffic_control(&name).await.unwrap();
        assert_eq!(foreign().await, None, "noqueue");
        let desired = wanted(&host, &name, &limits(RATE, RATE)).await;
        converge(&host, &desired).await;
        assert_eq!(foreign().await, None, "ours");
        converge(&host, &wanted(&host, &name, &limits(0, 0)).await).await;
        tc(&format!("qdisc del dev {name} clsact"));

        let all = "u32 match u32 0 0 flowid 1:1";
        let cases = [
            ("root tbf rate 1mbit burst 10kb latency 25ms", None, "qdisc tbf 8"),
            ("ingress", None, "qdisc ingress ffff:"),
            ("clsact", Some(format!("ingress pref 7 {all}")), "filter u32 pref 7"),
            ("clsact", Some(format!("egress pref 8 {all}")), "filter u32 pref 8"),
        ];
        for (qdisc, filter, expected) in cases {
            tc(&format!("qdisc add dev {name} {qdisc}"));
            if let Some(filter) = filter {
                tc(&format!("filter add dev {name} {filter}"));
            }
            let found = foreign().await.expect(qdisc);
            assert!(found.starts_with(expected), "{found} for {qdisc}");
            let everywhere = host.foreign_traffic_controls().await.unwrap();
            assert_eq!(everywhere, [(name.clone(), found)].into(), "the other pod has nothing");
            tc(&format!("qdisc del dev {name} {}", qdisc.split(' ').next().unwrap()));
        }
        assert_eq!(foreign().await, None);

        tc(&format!("qdisc add dev {name} root tbf rate 1mbit burst 10kb latency 25ms"));
        tc(&format!("qdisc add dev {name} clsact"));
        tc(&format!("filter add dev {name} ingress pref 157 {all}"));
        let kernel =
            || (tc(&format!("qdisc show dev {name}")), tc(&format!("filter show dev {name} ingress")));
        let before = kernel();
        let queue = shape_objects(&name, &limits(RATE, 0)).objects().next().unwrap();
        let error = host.apply(&HostOp::Add(queue.clone())).await.unwrap_err();
        assert!(matches!(error, HostError::Foreign { .. }), "{error}");
        host.apply(&HostOp::Remove(queue)).await.expect("what is not ours counts as absent");
        let redirect = HostObject::Redirect(name.clone(), ifb_name(&name));
        host.apply(&HostOp::Remove(redirect)).await.expect("what is not ours counts as absent");
        assert_eq!(kernel(), before);
    });
}

#[test]
fn a_missing_device_is_named() {
    in_fresh_netns(|| async {
        let host = Host::open().unwrap();
        let name = host_veth_name("weft", "none", "eth0");
        let error = host.foreign_traffic_control(&name).await.unwrap_err();
        assert!(matches!(error, HostError::NoDevice { .. }), "{error}");
        for object in shape_objects(&name, &limits(RATE, 0)).objects() {
            let error = host.apply(&HostOp::Add(object)).await.unwrap_err();
            assert!(matches!(error, HostError::NoDevice { .. }), "{error}");
        }
    });
}
