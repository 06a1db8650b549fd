// SPDX-License-Identifier: Apache-2.0
//! `wg` of the distribution (package wireguard-tools), which looks in /var/run/wireguard: each call in a mount namespace of its own,
//! where our folder lies there.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use netd_wireguard::{PresharedKey, PrivateKey};

use crate::fake::Served;

/// `None`, said aloud, where this cannot be tested.
fn served() -> Option<Served> {
    let skip = |why: &str| eprintln!("SKIP: {why}");
    if Command::new("wg").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip("wg is not installed (package wireguard-tools)");
        return None;
    }
    let may_mount = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if !may_mount.is_ok_and(|status| status.success()) {
        skip("no mount namespace may be made: not root");
        return None;
    }
    Some(Served::start())
}

struct Answer {
    is_success: bool,
    stdout: String,
    stderr: String,
}

/// `wg` with our folder at its place; `input` on its standard input.
fn wg(served: &Served, input: &str, args: &[&str]) -> Answer {
    let script = "set -e; mount -t tmpfs tmpfs /run; mkdir /run/wireguard; mount --bind \"$0\" /run/wireguard; exec wg \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(served.socket_dir()).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Answer {
        is_success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn wg_ok(served: &Served, args: &[&str]) -> String {
    let answer = wg(served, "", args);
    assert!(answer.is_success, "wg {args:?}: {}{}", answer.stdout, answer.stderr);
    answer.stdout
}

fn key_file(served: &Served, name: &str, key: &str) -> String {
    let path = served.dir.path().join(name);
    fs::write(&path, key).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn wg_sets_and_shows_a_device() {
    let Some(served) = served() else { return };
    let (own, peer) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap().public());
    let preshared = PresharedKey::generate().unwrap();
    let own_file = key_file(&served, "own", &own.to_base64());
    let preshared_file = key_file(&served, "preshared", &preshared.to_base64());
    assert_eq!(wg_ok(&served, &["show", "interfaces"]), "weft.wg0\n");
    let peer_name = peer.to_base64();
    let set = [
        "set",
        "weft.wg0",
        "listen-port",
        "51820",
        "fwmark",
        "0x2a",
        "private-key",
        &own_file,
        "peer",
        &peer_name,
    ];
    let of_peer = [
        "preshared-key",
        &preshared_file,
        "endpoint",
        "[2001:db8::1]:51821",
        "persistent-keepalive",
        "25",
        "allowed-ips",
        "10.244.1.0/26,fd00:1::/64",
    ];
    wg_ok(&served, &[&set[..], &of_peer].concat());

    let config = served.device.config().clone();
    assert_eq!(config.private_key.as_ref(), Some(&own));
    assert_eq!((config.listen_port, config.fwmark), (Some(51_820), 42));
    let told = &config.peers[&peer];
    assert_eq!(told.preshared_key.as_ref(), Some(&preshared));
    assert_eq!(told.endpoint, Some("[2001:db8::1]:51821".parse().unwrap()));
    assert_eq!(told.persistent_keepalive, 25);
    assert_eq!(told.allowed_ips.len(), 2);

    let shown = wg_ok(&served, &["show", "weft.wg0"]);
    for line in [
        "interface: weft.wg0",
        &format!("  public key: {}", own.public()),
        "  listening port: 51820",
        "  fwmark: 0x2a",
        &format!("peer: {peer}"),
        "  preshared key: (hidden)",
        "  endpoint: [2001:db8::1]:51821",
        "  allowed ips: 10.244.1.0/26, fd00:1::/64",
        "  transfer: 1.21 KiB received, 5.54 KiB sent",
        "  persistent keepalive: every 25 seconds",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in\n{shown}");
    }
    assert!(shown.contains("  latest handshake: "), "{shown}");
    assert_eq!(wg_ok(&served, &["show", "weft.wg0", "private-key"]), format!("{}\n", *own.to_base64()));
    assert_eq!(
        wg_ok(&served, &["show", "weft.wg0", "preshared-keys"]),
        format!("{peer}\t{}\n", *preshared.to_base64())
    );
    assert_eq!(wg_ok(&served, &["show", "weft.wg0", "latest-handshakes"]), format!("{peer}\t1700000000\n"));

    wg_ok(&served, &["set", "weft.wg0", "peer", &peer_name, "remove"]);
    assert_eq!(served.device.config().peers.len(), 0);
    let none = key_file(&served, "none", "");
    wg_ok(&served, &["set", "weft.wg0", "private-key", &none]);
    assert_eq!(served.device.config().private_key, None);
}

#[test]
fn wg_moves_whole_configurations() {
    let Some(served) = served() else { return };
    let own = PrivateKey::generate().unwrap();
    let [first, second] = [1, 2].map(|_| PrivateKey::generate().unwrap().public());
    let text = format!(
        "[Interface]\nListenPort = 51820\nPrivateKey = {}\n\n[Peer]\nPublicKey = {first}\nAllowedIPs = 10.244.1.0/26, 10.244.2.0/26\n\
         Endpoint = 192.0.2.1:51820\n\n[Peer]\nPublicKey = {second}\nAllowedIPs = 10.244.3.0/26\n",
        *own.to_base64()
    );
    let answer = wg(&served, &text, &["setconf", "weft.wg0", "/dev/stdin"]);
    assert!(answer.is_success, "{}", answer.stderr);
    assert_eq!(served.device.config().peers.len(), 2);
    let shown = wg_ok(&served, &["showconf", "weft.wg0"]);
    assert!(shown.contains("AllowedIPs = 10.244.1.0/26, 10.244.2.0/26"), "{shown}");
    // A prefix moves, and a peer goes.
    let other = shown
        .replace("10.244.1.0/26, 10.244.2.0/26", "10.244.1.0/26")
        .replace("10.244.3.0/26", "10.244.2.0/26");
    let answer = wg(&served, &other, &["syncconf", "weft.wg0", "/dev/stdin"]);
    assert!(answer.is_success, "{}", answer.stderr);
    let config = served.device.config().clone();
    assert_eq!(config.peers[&second].allowed_ips, ["10.244.2.0/26".parse().unwrap()].into());
    assert_eq!(config.peers[&first].allowed_ips, ["10.244.1.0/26".parse().unwrap()].into());
}

#[test]
fn wg_understands_a_refusal() {
    let Some(served) = served() else { return };
    *served.device.before_set.lock().unwrap() =
        Box::new(|| Err(std::io::Error::from_raw_os_error(libc::EADDRINUSE)));
    let answer = wg(&served, "", &["set", "weft.wg0", "listen-port", "53"]);
    assert!(!answer.is_success);
    assert!(answer.stderr.contains("Address already in use"), "{}", answer.stderr);
}
