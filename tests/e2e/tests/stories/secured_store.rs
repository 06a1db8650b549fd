// SPDX-License-Identifier: Apache-2.0
//! A store that asks who is there: user, password, and a role that covers Weft's own keys only.

use crate::{have, lab, service};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, Running, wait_until};

const URL: &str = "http://127.0.0.1:2379";
/// Longer than netd waits for the store before its snapshot stands in (5 s), and than its longest back-off (5 s).
const LONG_ENOUGH: Duration = Duration::from_secs(7);
const START_LIMIT: Duration = Duration::from_secs(20);
const WORD: &str = "correct-horse";

#[test]
fn netd_with_a_secured_store() -> Result<()> {
    if !have("etcdctl", "secured") || !have("curl", "secured") {
        return Ok(());
    }
    let Some(lab) = lab("secured", 1)? else { return Ok(()) };
    let node = Secured::start(&lab)?;

    // A first start with a wrong password: it says why, waits, and does not end.
    node.password_is("battery-staple")?;
    lab.node_spawn("n1")?;
    let mut said = String::new();
    let denied = wait_until(START_LIMIT, || {
        said = node.readyz()?;
        Ok(said.contains("authentication failed"))
    })?;
    assert!(denied, "{said}\n{}", lab.node_log("n1", 20)?);
    assert!(said.ends_with("|503") && said.contains(URL), "{said}");
    thread::sleep(LONG_ENOUGH);
    assert!(lab.state()?.node("n1")?.alive(), "netd gave up: {}", lab.node_log("n1", 20)?);
    assert!(node.readyz()?.ends_with("|503"));
    let refused = lab.pod_add(&PodSpec::new("n1", "early")).unwrap_err().to_string();
    assert!(refused.contains("\"code\": 11") || refused.contains("\"code\":11"), "{refused}");

    // Somebody sets the password that netd has: it comes in by itself.
    node.set_password("battery-staple")?;
    node.wait_ready()?;
    lab.pod_add(&PodSpec::new("n1", "a").label("app", "web"))?;
    let _server = lab.serve("a", "a", &[8080], &[])?;
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();
    let to = format!("{vip}:80");
    assert!(lab.probe("n1", &["--to", &to, "--count", "5"])?.all_ok());
    assert!(node.keys()?.iter().all(|key| key.starts_with("/weft/v1/")), "{:?}", node.keys()?);

    // The password goes while netd is down: it goes on from what it knows and says what is wrong.
    lab.node_stop("n1")?;
    node.set_password(WORD)?;
    lab.node_spawn("n1")?;
    node.wait_ready()?;
    let mut error = None;
    let told = wait_until(START_LIMIT, || {
        let store = lab.status("n1")?.store;
        error = store.last_error;
        Ok(!store.connected && error.as_ref().is_some_and(|error| error.contains("authentication failed")))
    })?;
    assert!(told, "the status does not say what is wrong with the store: {error:?}");
    lab.pod_add(&PodSpec::new("n1", "b"))?;
    let report = lab.probe("b", &["--to", &to, "--count", "5"])?;
    assert!(report.all_ok(), "{}", report.failures());

    // With the right one from its start on.
    lab.node_stop("n1")?;
    node.password_is(WORD)?;
    assert!(lab.node_start("n1")?.ready);
    let known = wait_until(START_LIMIT, || {
        let store = lab.status("n1")?.store;
        Ok(store.connected
            && store.in_sync
            && node.keys()?.iter().filter(|key| key.contains("/pods/")).count() == 2)
    })?;
    assert!(known, "{:?} {:?}", lab.status("n1")?.store, node.keys()?);
    let log = fs::read_to_string(lab.state()?.node("n1")?.log())?;
    for secret in ["battery-staple", WORD] {
        assert!(!log.contains(secret), "netd's log holds the password");
    }
    drop(node);
    lab.down()
}

/// Node n1 with nothing behind it, and an etcd of its own beside it that wants a user and a password.
struct Secured<'a> {
    lab: &'a Lab,
    password: PathBuf,
    _etcd: Running,
}

impl<'a> Secured<'a> {
    fn start(lab: &'a Lab) -> Result<Secured<'a>> {
        lab.node_stop("n1")?;
        let node = lab.state()?.node("n1")?.dir.clone();
        fs::remove_dir_all(lab.pin_dir("n1")?)?;
        fs::remove_dir_all(node.join("state"))?;
        fs::create_dir(node.join("state"))?;
        let (data, password) = (node.join("etcd"), node.join("password"));
        let etcd = lab.spawn(
            "n1",
            &[
                "etcd",
                "--data-dir",
                data.to_str().context("the lab's directory is not UTF-8")?,
                "--listen-client-urls",
                URL,
                "--advertise-client-urls",
                URL,
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
            ],
        )?;
        let secured = Secured { lab, password, _etcd: etcd };
        let up = wait_until(START_LIMIT, || Ok(secured.etcdctl("", "endpoint health").is_ok()))?;
        assert!(up, "etcd does not start");
        for command in [
            "user add root:staff",
            "user grant-role root root",
            "role add weft",
            "role grant-permission weft --prefix=true readwrite /weft/",
            &format!("user add weft:{WORD}"),
            "user grant-role weft weft",
            "auth enable",
        ] {
            secured.etcdctl("", command)?;
        }
        assert!(secured.etcdctl("", "get /weft/x").is_err(), "etcd lets everybody in");
        let file = secured.password.to_str().context("the lab's directory is not UTF-8")?;
        lab.netd_args(&["--store-endpoints", URL, "--store-user", "weft", "--store-password-file", file])?;
        Ok(secured)
    }

    /// What netd reads at its next start.
    fn password_is(&self, password: &str) -> Result<()> {
        fs::write(&self.password, format!("{password}\n")).context("the password file")
    }

    /// What etcd wants from now on.
    fn set_password(&self, password: &str) -> Result<()> {
        let command = "user passwd weft --interactive=false";
        self.etcdctl(&format!("echo {password} |"), &format!("--user root:staff {command}")).map(drop)
    }

    /// Every key in the store.
    fn keys(&self) -> Result<Vec<String>> {
        let text = self.etcdctl("", "--user root:staff get --prefix --keys-only /")?;
        Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    fn etcdctl(&self, before: &str, command: &str) -> Result<String> {
        let line = format!("{before} ETCDCTL_API=3 etcdctl --endpoints {URL} {command}");
        self.lab.exec("n1", &["sh", "-c", &line])?.text(command)
    }

    /// `body|status code`; empty while nobody listens.
    fn readyz(&self) -> Result<String> {
        let curl = ["curl", "-s", "-w", "|%{http_code}", "http://127.0.0.1:9157/readyz"];
        Ok(self.lab.exec("n1", &curl)?.stdout)
    }

    fn wait_ready(&self) -> Result<()> {
        let mut said = String::new();
        let ready = wait_until(START_LIMIT, || {
            said = self.readyz()?;
            Ok(said.ends_with("|200"))
        })?;
        assert!(ready, "{said}\n{}", self.lab.node_log("n1", 20)?);
        Ok(())
    }
}
