// SPDX-License-Identifier: Apache-2.0
//! BIND on the outside host: the primary of a zone that one key may change.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tempfile::TempDir;
use weft_lab::{Lab, OUTSIDE_IP, Running, in_netns, wait_until};

/// The outside host has a name server of its own at 53.
pub(crate) const PORT: u16 = 5_300;
pub(crate) const KEY: &str = "weft";
/// 32 bytes each.
pub(crate) const SECRET: &str = "bm90IGEgc2VjcmV0LCBhIHRlc3QncyBrZXkgIDAwMDE=";
pub(crate) const WRONG_SECRET: &str = "bm90IGEgc2VjcmV0LCBhIHRlc3QncyBrZXkgIDAwMDI=";
const READY_LIMIT: Duration = Duration::from_secs(15);

/// What is in it before anybody changes it, and is not to be touched.
const ZONE: &str = "$TTL 300
@ SOA ns admin 1 3600 600 86400 5
@ NS ns
@ MX 10 mail
ns A 172.31.77.254
mail A 198.51.100.25
www A 198.51.100.80
_dmarc TXT \"v=DMARC1\"
sub NS ns.other.example.
";

/// A running BIND; killed when dropped.
pub(crate) struct Bind {
    folder: TempDir,
    _named: Running,
}

impl Bind {
    pub(crate) fn start(lab: &Lab) -> Result<Bind> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        for zone in ["example.org", "closed.example"] {
            fs::write(path(zone), ZONE)?;
        }
        let key = format!("key \"{KEY}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n");
        fs::write(path("key"), &key)?;
        fs::write(
            path("named.conf"),
            format!(
                "options {{\n  directory \"{}\";\n  listen-on port {PORT} {{ any; }};\n  listen-on-v6 {{ none; }};\n  \
                 recursion no;\n  notify no;\n  dnssec-validation no;\n  pid-file none;\n  session-keyfile none;\n}};\n\
                 controls {{ }};\n{key}\
                 zone \"example.org\" {{ type primary; file \"example.org\"; \
                 update-policy {{ grant {KEY} zonesub A AAAA CNAME TXT; }}; }};\n\
                 zone \"closed.example\" {{ type primary; file \"closed.example\"; }};\n",
                folder.path().display()
            ),
        )?;
        // AppArmor's profile for Debian's own path knows no folders of tests.
        let program = path("named");
        fs::copy(weft_lab::tool("sh", &["-c", "command -v named"])?.trim(), &program)?;
        let argv = [program.as_str(), "-g", "-n", "1", "-c", &path("named.conf")];
        let mut named = lab.spawn("outside", &argv)?;
        let (netns, address) = (lab.state()?.outside.netns, SocketAddr::from((OUTSIDE_IP, PORT)));
        let is_there = wait_until(READY_LIMIT, || {
            if !named.alive() {
                bail!("named ended:\n{}", named.errors().join("\n"));
            }
            in_netns(&netns, || Ok(TcpStream::connect(address).is_ok()))
        })?;
        ensure!(is_there, "named does not listen after {READY_LIMIT:?}:\n{}", named.errors().join("\n"));
        Ok(Bind { folder, _named: named })
    }

    /// All records of the zone but its SOA, sorted.
    pub(crate) fn zone(&self, lab: &Lab) -> Result<Vec<String>> {
        let (server, port) = (format!("@{OUTSIDE_IP}"), PORT.to_string());
        let dig = ["dig", &server, "-p", &port, "example.org", "AXFR", "+noall", "+answer"];
        let text = lab.exec("outside", &dig)?.text("dig AXFR")?;
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut records: Vec<String> =
            text.lines().map(words).filter(|line| !line.contains(" SOA ")).collect();
        records.sort();
        ensure!(!records.is_empty(), "an empty zone: {text}");
        Ok(records)
    }

    /// What somebody else with the key does, as `nsupdate` takes it.
    pub(crate) fn update(&self, lab: &Lab, lines: &str) -> Result<()> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        fs::write(path("update"), format!("server {OUTSIDE_IP} {PORT}\nzone example.org\n{lines}\nsend\n"))?;
        let nsupdate = ["nsupdate", "-k", &path("key"), &path("update")];
        lab.exec("outside", &nsupdate)?.text("nsupdate").map(drop).context("somebody else's update")
    }
}
