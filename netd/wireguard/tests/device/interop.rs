// SPDX-License-Identifier: Apache-2.0
//! Other people's WireGuard at the other end.

use std::process::{Command, Stdio};

use crate::bulk::pass;
use crate::ground::{DEVICE, Node, Process, must_skip, two_nodes};

#[test]
fn the_distributions_wireguard_go_is_a_peer() {
    if must_skip() {
        return;
    }
    if Command::new("wireguard-go").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("SKIP wireguard-go is not installed (package wireguard-go)");
        return;
    }
    let [mut a, mut b] = two_nodes();
    a.process = Some(a.start(&[]));
    b.process = Some(wireguard_go(&b));
    b.wait_for_socket();
    a.configure(&a.facing(&b, Some(b.outer(false))));
    b.configure(&b.facing(&a, Some(a.outer(false))));
    a.plumb();
    b.plumb();
    pass(&a, &b, 1 << 20);
    assert!(a.state().peers[&b.key.public()].last_handshake.is_some());
}

/// Its socket always lies in /var/run/wireguard: in a mount namespace of its own, that is our folder.
fn wireguard_go(node: &Node) -> Process {
    let script = "mount -t tmpfs tmpfs /run && mkdir /run/wireguard && mount --bind \"$0\" /run/wireguard && exec wireguard-go -f \"$1\"";
    let spawn = || {
        Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(node.dir.path())
            .arg(DEVICE)
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare")
    };
    Process::new(node.netns.run(spawn))
}
