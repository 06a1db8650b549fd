// SPDX-License-Identifier: Apache-2.0
//! WireGuard programs of all makers: started in the same way, configured through the same sockets.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::ground::{self, NODES, UNDERLAY};
use crate::worker;

/// Where the programs that have no option for it put their sockets, and where `wg` looks.
const SOCKETS: &str = "/var/run/wireguard";
/// Device and path together make the port.
const PORT_BASE: u16 = 51900;

/// A program that makes a WireGuard device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Weft,
    /// Weft with the cipher left out: what the I/O alone can do.
    WeftNoCipher,
    Gotatun,
    Boringtun,
    WireguardGo,
}

impl Program {
    /// Where it is; none if it is not installed.
    pub(super) fn file(self) -> Option<PathBuf> {
        let beside = |name: &str| {
            let file = std::env::current_exe().ok()?.with_file_name(name);
            file.is_file().then_some(file)
        };
        match self {
            Self::Weft => beside("weft-wireguard"),
            // `make bench` builds it apart: a program that can leave out the cipher is never in the folder of the others.
            Self::WeftNoCipher => {
                let file = std::env::current_exe().ok()?;
                let file = file.parent()?.parent()?.join("bench-cipher/release/weft-wireguard");
                file.is_file().then_some(file)
            }
            Self::Gotatun => installed("gotatun"),
            Self::Boringtun => installed("boringtun-cli"),
            Self::WireguardGo => installed("wireguard-go"),
        }
    }

    fn command(self, node: &str, device: &str, runs: &Path) -> Result<Command> {
        let file = self.file().context("not installed")?;
        let mut command = ground::inside(node, file);
        match self {
            Self::Weft | Self::WeftNoCipher => {
                command.arg("--no-persist").arg("--run-dir").arg(runs);
                if self == Self::WeftNoCipher {
                    command.arg("--cipher-off");
                }
            }
            Self::Gotatun => {
                command.args(["-f", "--disable-drop-privileges", "--log"]).arg(runs.join("gotatun.log"));
            }
            Self::Boringtun => {
                command.args(["-f", "--disable-drop-privileges"]);
            }
            // It asks before it takes the kernel's place, where the kernel has a place.
            Self::WireguardGo => {
                command.arg("-f").env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
            }
        }
        command.arg(device);
        Ok(command)
    }
}

/// In PATH, or where `cargo install` puts it.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    let sbin = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    let folders = std::env::split_paths(&path).chain(home).chain(sbin);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A path's device on a node: unique over all namespaces, for the sockets lie in one folder.
fn device(path: u8, side: usize) -> String {
    format!("wfb{path}{}", ["a", "b"][side])
}

fn socket(path: u8, side: usize) -> PathBuf {
    Path::new(SOCKETS).join(format!("{}.sock", device(path, side)))
}

/// Both ends of a path with `strangers` peers beside the real one; the processes' ids.
pub(super) fn start(program: Program, path: u8, mtu: u32, strangers: u32, folder: &Path) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    let keys = [key()?, key()?];
    for (side, node) in NODES.iter().enumerate() {
        let (device, runs) = (device(path, side), folder.join(format!("{path}{side}")));
        std::fs::create_dir_all(&runs)?;
        let log = File::create(runs.join("log"))?;
        let mut command = program.command(node, &device, &runs)?;
        command.stdout(log.try_clone()?).stderr(log);
        pids.push(worker::adopt(command.spawn().with_context(|| format!("cannot start {program:?}"))?));
    }
    for side in [0, 1] {
        let name = device(path, side);
        ground::within(&format!("{program:?} makes {name}"), || {
            ground::has_link(side, &name) && UnixStream::connect(socket(path, side)).is_ok()
        })?;
        let mut set = format!(
            "set=1\nprivate_key={}\nlisten_port={}\npublic_key={}\nendpoint={}:{}\nallowed_ip={}\n",
            keys[side].0,
            port(path, side),
            keys[1 - side].1,
            UNDERLAY[1 - side],
            port(path, 1 - side),
            ground::pods(path, 1 - side),
        );
        add_strangers(&mut set, strangers);
        ask(&socket(path, side), &set)?;
        ground::ip(Some(NODES[side]), &["link", "set", &name, "mtu", &mtu.to_string(), "up"])?;
        ground::route(path, side, &["dev", &name])?;
    }
    Ok(pids)
}

fn port(path: u8, side: usize) -> u16 {
    PORT_BASE + u16::from(path) * 2 + u16::from(side == 1)
}

/// Peers that nobody is: a block and an address each, as a node of a cluster has them.
fn add_strangers(set: &mut String, count: u32) {
    for i in 0..count {
        let _ = writeln!(set, "public_key={}", stranger(i));
        let (high, low) = (i / 4, i % 4 * 64);
        let _ = writeln!(set, "endpoint=198.18.{}.{}:51820", i / 250, i % 250 + 1);
        let _ = writeln!(set, "allowed_ip=10.{}.{}.{low}/26", 64 + high / 256, high % 256);
        let _ = writeln!(set, "allowed_ip=10.220.{}.{}/32", i / 256, i % 256);
    }
}

/// Takes the strangers from a device that has them, gives them back, and says how long that took.
pub(super) fn configure_again(path: u8, count: u32) -> Result<Duration> {
    let mut gone = "set=1\n".to_owned();
    for i in 0..count {
        let _ = writeln!(gone, "public_key={}\nremove=true", stranger(i));
    }
    ask(&socket(path, 0), &gone)?;
    let mut set = "set=1\n".to_owned();
    add_strangers(&mut set, count);
    let start = Instant::now();
    ask(&socket(path, 0), &set)?;
    Ok(start.elapsed())
}

/// Any 32 bytes are a public key.
fn stranger(i: u32) -> String {
    format!("{:064x}", u128::from(i) + (1 << 100))
}

/// One request of the configuration protocol.
fn ask(socket: &Path, request: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(answer.trim() == "errno=0", "{} answers {}", socket.display(), answer.trim());
    Ok(())
}

/// A private key and its public one, as the configuration protocol has them.
fn key() -> Result<(String, String)> {
    let private = wg(&["genkey"], "")?;
    let public = wg(&["pubkey"], &private)?;
    Ok((hex(&private)?, hex(&public)?))
}

fn wg(args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("wg")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run wg: `make bench-deps` installs it")?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes())?;
    }
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("wg {args:?} failed");
    }
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// Base64 of 32 bytes to hexadecimal.
fn hex(base64: &str) -> Result<String> {
    let mut bits = 0_u32;
    let mut text = String::new();
    for (i, c) in base64.trim_end_matches('=').bytes().enumerate() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("not base64"),
        };
        bits = bits << 6 | u32::from(value);
        // Six bits each; a byte is whole after the second, third and fourth of four.
        let have = [0, 4, 2, 0][i % 4];
        if i % 4 != 0 {
            let _ = write!(text, "{:02x}", bits >> have & 0xff);
        }
    }
    ensure!(text.len() == 64, "a key of {} bytes", text.len() / 2);
    Ok(text)
}

/// Sockets that ended processes left.
pub(super) fn remove() {
    let names = std::fs::read_dir(SOCKETS).into_iter().flatten().flatten();
    for file in names.map(|entry| entry.path()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("wfb") && UnixStream::connect(&file).is_err() {
            let _ = std::fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_hexadecimal() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHv8=";
        assert_eq!(hex(key).unwrap(), "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff");
        assert!(hex("AAEC").is_err());
    }
}
