// SPDX-License-Identifier: Apache-2.0
//! Tunnels that are not WireGuard: the kernel's VXLAN, tinc, nebula. Their own ciphers and defaults, the outer packets no
//! longer than the underlay's MTU.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::ground::{self, NODES, UNDERLAY, ip, must};
use super::wireguard::installed;
use crate::worker;

const TINC_PORT: u16 = 51790;
const NEBULA_PORT: u16 = 51792;

/// The kernel's, with fixed forwarding and neighbours, as an overlay has them.
pub(super) fn vxlan(path: u8, mtu: u32) -> Result<()> {
    let mac = |side: usize| format!("02:00:00:00:02:0{}", side + 1);
    let own = |side: usize| format!("10.211.0.{}", side + 1);
    for (side, node) in NODES.iter().enumerate() {
        let other = 1 - side;
        ip(
            Some(node),
            &[
                "link",
                "add",
                "vx0",
                "address",
                &mac(side),
                "mtu",
                &mtu.to_string(),
                "type",
                "vxlan",
                "id",
                "4244",
                "dstport",
                "4789",
                "local",
                UNDERLAY[side],
                "nolearning",
            ],
        )?;
        ip(Some(node), &["addr", "add", &format!("{}/32", own(side)), "dev", "vx0"])?;
        ip(Some(node), &["link", "set", "vx0", "up"])?;
        ip(
            Some(node),
            &["neigh", "add", &own(other), "lladdr", &mac(other), "dev", "vx0", "nud", "permanent"],
        )?;
        let mut bridge = Command::new("bridge");
        must(bridge.args(["-n", node, "fdb", "append", &mac(other), "dev", "vx0", "dst", UNDERLAY[other]]))?;
        ground::route(path, side, &["via", &own(other), "dev", "vx0", "onlink"])?;
    }
    Ok(())
}

/// No tunnel at all.
pub(super) fn plain(path: u8) -> Result<()> {
    (0..2).try_for_each(|side| ground::route(path, side, &["via", UNDERLAY[1 - side]]))
}

/// tinc 1.0 in router mode, its default cipher.
pub(super) fn tinc(path: u8, mtu: u32, folder: &Path) -> Result<Vec<u32>> {
    let tincd = installed("tincd").context("tincd is not installed")?;
    let homes = [folder.join("tinc-a"), folder.join("tinc-b")];
    for (side, home) in homes.iter().enumerate() {
        fs::create_dir_all(home.join("hosts"))?;
        let device = device("tinc", side);
        let connect = if side == 0 { "ConnectTo = b\n" } else { "" };
        let config = format!("Name = {}\nDeviceType = tun\nInterface = {device}\n{connect}", NAMES[side]);
        fs::write(home.join("tinc.conf"), config)?;
        let host = format!(
            "Address = {}\nPort = {TINC_PORT}\nSubnet = {}\n",
            UNDERLAY[side],
            ground::pods(path, side)
        );
        fs::write(home.join("hosts").join(NAMES[side]), host)?;
        must(Command::new(&tincd).arg("-c").arg(home).arg("-K2048"))?;
    }
    for (from, name) in [(0, "a"), (1, "b")] {
        fs::copy(homes[from].join("hosts").join(name), homes[1 - from].join("hosts").join(name))?;
    }
    let mut pids = Vec::new();
    for (side, home) in homes.iter().enumerate() {
        let mut command = ground::inside(NODES[side], &tincd);
        command.arg("-c").arg(home).arg("-D").arg(format!("--pidfile={}", home.join("pid").display()));
        pids.push(worker::adopt(spawn(&mut command, home)?));
        up("tinc", path, side, mtu)?;
    }
    Ok(pids)
}

/// nebula with the other side's pods as unsafe routes.
pub(super) fn nebula(path: u8, mtu: u32, folder: &Path) -> Result<Vec<u32>> {
    let nebula = installed("nebula").context("nebula is not installed")?;
    let folder = folder.join("nebula");
    fs::create_dir_all(&folder)?;
    let cert = |args: &[&str]| must(Command::new("nebula-cert").current_dir(&folder).args(args));
    cert(&["ca", "-name", "bench"])?;
    let own = |side: usize| format!("10.212.0.{}", side + 1);
    let mut pids = Vec::new();
    for side in [0, 1] {
        let (name, other) = (NAMES[side], 1 - side);
        cert(&[
            "sign",
            "-name",
            name,
            "-ip",
            &format!("{}/24", own(side)),
            "-subnets",
            &ground::pods(path, side),
        ])?;
        let at = |file: &str| folder.join(file).display().to_string();
        let config = serde_json::json!({
            "pki": { "ca": at("ca.crt"), "cert": at(&format!("{name}.crt")), "key": at(&format!("{name}.key")) },
            "static_host_map": { own(other): [format!("{}:{NEBULA_PORT}", UNDERLAY[other])] },
            "lighthouse": { "am_lighthouse": false },
            "listen": { "host": "0.0.0.0", "port": NEBULA_PORT },
            "tun": {
                "dev": device("nebula", side),
                "mtu": mtu,
                "unsafe_routes": [{ "route": ground::pods(path, other), "via": own(other) }],
            },
            "firewall": {
                "outbound": [{ "port": "any", "proto": "any", "host": "any" }],
                "inbound": [{ "port": "any", "proto": "any", "host": "any" }],
            },
        });
        // JSON is YAML.
        let file = folder.join(format!("{name}.yml"));
        fs::write(&file, serde_json::to_vec(&config)?)?;
        let mut command = ground::inside(NODES[side], &nebula);
        pids.push(worker::adopt(spawn(command.arg("-config").arg(&file), &folder)?));
        up("nebula", path, side, mtu)?;
    }
    Ok(pids)
}

const NAMES: [&str; 2] = ["a", "b"];

fn device(maker: &str, side: usize) -> String {
    format!("wfb{maker}{}", NAMES[side])
}

fn up(maker: &str, path: u8, side: usize, mtu: u32) -> Result<()> {
    let name = device(maker, side);
    ground::within(&format!("{maker} makes {name}"), || ground::has_link(side, &name))?;
    ip(Some(NODES[side]), &["link", "set", &name, "mtu", &mtu.to_string(), "up"])?;
    ground::route(path, side, &["dev", &name])
}

fn spawn(command: &mut Command, folder: &Path) -> Result<Child> {
    let log: PathBuf = folder.join("log");
    let log = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot run {command:?}"))
}
