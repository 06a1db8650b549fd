// SPDX-License-Identifier: Apache-2.0

//! Every story runs on a thread of its own in a fresh netns, which goes with the thread. Pods' netns are nameless too.

use std::{
    env, fs,
    future::Future,
    os::fd::{AsFd, AsRawFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use netd_host::{
    Netns, netns,
    veth::{PodLinkSpec, create_pod_link},
};
use netd_plan::{HostObjects, host_veth_name, plan, pods};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// Runs `story` in a fresh netns with `lo` up, on a current-thread runtime as weft-cni has.
pub(crate) fn in_fresh_netns<F: Future<Output = ()>>(story: impl FnOnce() -> F + Send) {
    if !Uid::effective().is_root() {
        skip("not root");
        return;
    }
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a fresh netns");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(story());
    };
    if let Err(panic) = thread::scope(|scope| scope.spawn(run).join()) {
        std::panic::resume_unwind(panic);
    }
}

/// A skip is loud, and a failure where all must run.
pub(crate) fn skip(reason: &str) {
    println!("SKIP {reason}");
    assert!(env::var("CI").as_deref() != Ok("true"), "must not be skipped in CI: {reason}");
}

/// A netns for a pod; it goes when the value is dropped.
pub(crate) fn pod_netns() -> Netns {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a netns for the pod");
        Netns::current().unwrap()
    };
    thread::spawn(make).join().unwrap()
}

/// Runs `ip ARGUMENTS` in the netns of the calling thread and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("the program ip");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip_in(netns: &Netns, arguments: &str) -> String {
    netns::run_in(netns, || ip(arguments)).unwrap()
}

/// Whether one echo is answered within a second.
pub(crate) fn ping(address: &str) -> bool {
    Command::new("ping")
        .args(["-n", "-c1", "-W1", address])
        .output()
        .expect("the program ping")
        .status
        .success()
}

/// Two ends of a veth pair in the netns of the calling thread stand for an uplink; its carrier is there on return.
pub(crate) fn uplink(name: &str, address: &str) {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ip(&format!("link set {name}p up"));
    ip(&format!("link set {name} up"));
    ip(&format!("address add {address} dev {name}"));
    let is_up = |name: &str| ip(&format!("-br link show {name}")).contains(" UP ");
    wait("carrier", || is_up(name) && is_up(&format!("{name}p")));
}

/// Makes the kernel as desired, in the order of the plan.
pub(crate) async fn converge(host: &netd_host::Host, desired: &HostObjects) {
    for op in plan(desired, &host.observe().await.unwrap()) {
        host.apply(&op).await.unwrap_or_else(|error| panic!("{op}: {error}"));
    }
}

/// A link between the netns of the calling thread (`up0`) and a netns of its own (`eth0`), both families; carrier and
/// addresses are there on return.
pub(crate) fn outside() -> Netns {
    let outside = pod_netns();
    let path = format!("/proc/{}/fd/{}", std::process::id(), outside.as_fd().as_raw_fd());
    ip(&format!("link add up0 type veth peer name eth0 netns {path}"));
    ip("address add 172.30.0.1/24 dev up0");
    ip("address add 172.30.0.9/24 dev up0");
    ip("address add 2001:db8:30::1/64 dev up0 nodad");
    ip("link set up0 up");
    for command in [
        "link set lo up",
        "address add 172.30.0.2/24 dev eth0",
        "address add 2001:db8:30::2/64 dev eth0 nodad",
        "link set eth0 up",
        "route add default via 172.30.0.1",
        "-6 route add default via 2001:db8:30::1",
    ] {
        ip_in(&outside, command);
    }
    wait("carrier on up0", || ip("-br link show up0").contains(" UP "));
    for family in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/{family}"), "1").unwrap();
    }
    outside
}

/// Looks until it is so.
pub(crate) fn wait(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within 5 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A pod with both families: 10.244.0.`last` and fd00:10:244::`last`.
pub(crate) async fn dual_pod(netns: &Netns, last: u8) -> PodLinkSpec<'_> {
    let spec = PodLinkSpec {
        netns,
        ifname: "eth0".to_owned(),
        host_ifname: host_veth_name("weft", &format!("pod{last}"), "eth0"),
        mac: None,
        mtu: 1400,
        gso_max_segs: None,
        addresses: vec![
            format!("10.244.0.{last}/32").parse().unwrap(),
            format!("fd00:10:244::{last}/128").parse().unwrap(),
        ],
        gateways: vec![pods::POD_GATEWAY_V4.into(), pods::POD_GATEWAY_V6.into()],
    };
    create_pod_link(&spec).await.unwrap();
    spec
}
