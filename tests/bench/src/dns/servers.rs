// SPDX-License-Identifier: Apache-2.0
//! The servers: Weft's netd and others, each with the same records, one thread, no query log, on the node's DNS address.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{NODE_DNS, UPSTREAM, ZONE};
use crate::lab::DNS as LAB;
use crate::tunnel::installed;
use crate::worker;

/// The names of one zone and their addresses.
pub(super) type Names = [(String, Ipv4Addr)];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Weft,
    Hickory,
    Dnsmasq,
    Unbound,
    Knot,
    Bind,
    CoreDns,
}

impl Kind {
    pub(super) const ALL: [Kind; 7] =
        [Kind::Weft, Kind::Hickory, Kind::Dnsmasq, Kind::Unbound, Kind::Knot, Kind::Bind, Kind::CoreDns];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Weft => "weft",
            Kind::Hickory => "hickory-dns",
            Kind::Dnsmasq => "dnsmasq",
            Kind::Unbound => "unbound",
            Kind::Knot => "knot",
            Kind::Bind => "BIND",
            Kind::CoreDns => "CoreDNS",
        }
    }

    /// Weft has the real one; each of the others one of its own.
    pub(super) fn port(self) -> u16 {
        match self {
            Kind::Weft => 53,
            other => 5300 + other as u16,
        }
    }

    /// Whether it forwards and keeps answers of others as it is set up here.
    pub(super) fn forwards(self) -> bool {
        matches!(self, Kind::Weft | Kind::Dnsmasq | Kind::Unbound)
    }

    /// Its program; what to do where there is none.
    pub(super) fn program(self) -> Result<PathBuf, String> {
        let found = |name: &str| installed(name).ok_or(format!("{name} is not installed: `make bench-deps`"));
        match self {
            Kind::Weft => Ok(PathBuf::new()),
            Kind::Hickory => found("hickory-dns"),
            Kind::Dnsmasq => found("dnsmasq"),
            Kind::Unbound => found("unbound"),
            Kind::Knot => found("knotd"),
            Kind::Bind => found("named"),
            Kind::CoreDns => match std::env::var_os("COREDNS").map(PathBuf::from) {
                Some(path) if path.is_file() => Ok(path),
                Some(path) => Err(format!("COREDNS={}: no such file", path.display())),
                None => Err("COREDNS=path of its program is not given".to_owned()),
            },
        }
    }

    /// Starts it in the node's namespace and control group; its process. Weft's runs already.
    pub(super) fn start(self, folder: &Path, names: &Names) -> Result<u32> {
        if self == Kind::Weft {
            return netd();
        }
        let program = self.program().map_err(anyhow::Error::msg)?;
        let folder = folder.join(self.name());
        std::fs::create_dir_all(&folder)?;
        let path = |name: &str| folder.join(name).display().to_string();
        let write = |name: &str, text: String| {
            std::fs::write(folder.join(name), text).with_context(|| path(name)).map(|()| path(name))
        };
        write("zone", zone(names))?;
        let (port, dir) = (self.port(), folder.display().to_string());
        let args: Vec<String> = match self {
            Kind::Weft => Vec::new(),
            Kind::Dnsmasq => {
                let hosts: String = names.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect();
                let hosts = write("hosts", hosts)?;
                [
                    "-k",
                    "-C",
                    "/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--bind-interfaces",
                    "--user=root",
                    "--pid-file=",
                    "--local-ttl=5",
                    "--cache-size=10000",
                    "--local=/cluster.local/",
                ]
                .into_iter()
                .map(str::to_owned)
                .chain([
                    format!("--addn-hosts={hosts}"),
                    format!("--port={port}"),
                    format!("--listen-address={NODE_DNS}"),
                    format!("--server=/example.test/{UPSTREAM}"),
                ])
                .collect()
            }
            Kind::Unbound => {
                vec!["-d".into(), "-c".into(), write("unbound.conf", unbound(port, &dir, names))?]
            }
            Kind::Knot => {
                let text = format!(
                    "server:\n  listen: {NODE_DNS}@{port}\n  rundir: {dir}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\nlog:\n- target: stderr\n  any: error\ndatabase:\n  storage: {dir}\nzone:\n- domain: {ZONE}\n  storage: {dir}\n  file: zone\n  zonefile-load: whole\n"
                );
                vec!["-c".into(), write("knot.conf", text)?]
            }
            Kind::Bind => {
                let text = format!(
                    "options {{ directory \"{dir}\"; listen-on port {port} {{ {NODE_DNS}; }}; listen-on-v6 {{ none; }}; recursion no; pid-file none; allow-query {{ any; }}; dnssec-validation no; }};\ncontrols {{ }};\nzone \"{ZONE}\" {{ type primary; file \"zone\"; }};\n"
                );
                ["-f", "-n", "1", "-c"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([write("named.conf", text)?])
                    .collect()
            }
            Kind::CoreDns => {
                let text = format!("{ZONE}:{port} {{\n  bind {NODE_DNS}\n  file {}\n}}\n", path("zone"));
                vec!["-conf".into(), write("Corefile", text)?]
            }
            Kind::Hickory => {
                let text = format!(
                    "listen_addrs_ipv4 = [\"{NODE_DNS}\"]\nlisten_addrs_ipv6 = []\nlisten_port = {port}\nuser = \"root\"\ngroup = \"root\"\ndirectory = \"{dir}\"\n[[zones]]\nzone = \"{ZONE}\"\nzone_type = \"Primary\"\n[zones.stores]\ntype = \"file\"\nzone_path = \"zone\"\n"
                );
                vec!["-q".into(), "--workers".into(), "1".into(), "-c".into(), write("named.toml", text)?]
            }
        };
        let log = std::fs::File::create(folder.join("log"))?;
        let mut command: Command = LAB.exec("n1")?;
        // One thread each, also of those whose number is the runtime's business.
        command.arg("env").args(["GOMAXPROCS=1", "TOKIO_WORKER_THREADS=1"]).arg(program).args(args);
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| self.name())?;
        Ok(worker::adopt(child))
    }
}

/// The lab's netd: the process with the DNS address in its node's namespace.
fn netd() -> Result<u32> {
    let dir = LAB.show()?["dir"].as_str().context("weft-lab show: no folder")?.to_owned();
    let state = std::fs::read_to_string(Path::new(&dir).join("lab.json")).context("lab.json")?;
    let state: serde_json::Value = serde_json::from_str(&state)?;
    let pid = state["nodes"][0]["process"]["pid"].as_u64().context("lab.json: the node has no netd")?;
    Ok(u32::try_from(pid)?)
}

fn zone(names: &Names) -> String {
    let mut text = format!(
        "$ORIGIN {ZONE}.\n$TTL 5\n@ IN SOA ns.dns.{ZONE}. hostmaster.{ZONE}. 1 7200 1800 86400 5\n@ IN NS ns.dns.{ZONE}.\nns.dns IN A {NODE_DNS}\n"
    );
    for (name, ip) in names {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}. IN A {ip}");
    }
    text
}

fn unbound(port: u16, dir: &str, names: &Names) -> String {
    let mut text = format!(
        "server:\n  interface: {NODE_DNS}@{port}\n  num-threads: 1\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  verbosity: 0\n  access-control: 0.0.0.0/0 allow\n  module-config: \"iterator\"\n  do-not-query-localhost: no\n  local-zone: \"{ZONE}.\" static\n  local-zone: \"test.\" transparent\n  domain-insecure: \"example.test\"\n"
    );
    for (name, ip) in names {
        let _ = writeln!(text, "  local-data: \"{name}. 5 IN A {ip}\"");
    }
    let _ = write!(
        text,
        "remote-control:\n  control-enable: no\nforward-zone:\n  name: \"example.test\"\n  forward-addr: {UPSTREAM}\n"
    );
    text
}
