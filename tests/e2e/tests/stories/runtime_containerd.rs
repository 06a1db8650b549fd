// SPDX-License-Identifier: Apache-2.0
//! containerd, driven by `ctr run --cni`: it reads the first network config of the folder and nothing else.

use crate::runtime::{ARCHIVE, BACKEND, GREETING, IMAGE, NAME, Stage};
use crate::{have, lab};
use anyhow::Result;
use std::time::Duration;
use weft_lab::wait_until;

/// In /run, because a snapshot is an overlay and there is no overlay on an overlay.
const CONFIG: &str = r#"
    mkdir -p /etc/containerd
    cat > /etc/containerd/config.toml <<'END'
version = 2
root = "/run/containerd-root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd/containerd.sock"
END
"#;
const SOON: Duration = Duration::from_secs(10);

#[test]
fn containerd_with_ctr() -> Result<()> {
    if !["containerd", "ctr", "runc", "busybox", "make"].iter().all(|tool| have(tool, "containerd")) {
        return Ok(());
    }
    let Some(lab) = lab("containerd", 2)? else { return Ok(()) };
    let stage = Stage::set(&lab)?;
    let host = &stage.host;
    host.run(CONFIG)?;
    let _containerd = host.spawn("exec containerd > /run/story/containerd.log 2>&1")?;
    let up = wait_until(SOON, || Ok(host.try_run("ctr version")?.ok()))?;
    assert!(up, "{}", host.run("tail -n 20 /run/story/containerd.log")?);
    host.run(&format!("ctr image import {ARCHIVE}"))?;

    // A container that does its work and goes.
    let work = format!(
        "getent ahostsv4 {NAME} && curl -sS -m 5 http://{NAME}/ && curl -sS -m 5 http://{}/",
        stage.vip
    );
    let said = host.run(&format!("ctr run --rm --cni {IMAGE} once sh -ec '{work}'"))?;
    assert!(said.starts_with(&stage.vip.to_string()), "{said}");
    assert_eq!(said.matches(BACKEND).count(), 2, "{said}");
    stage.nothing_left()?;

    // One that serves: reached by the host, by a pod of another node, and by another container.
    let server = host.spawn(&format!(
        "exec ctr run --rm --cni {IMAGE} server sh -c 'hostname -i; exec httpd -f -p 80 -h /www'"
    ))?;
    let mut address = String::new();
    let attached = wait_until(SOON, || {
        let pods = host.try_run("weft pod ls")?.stdout;
        let line = pods.lines().find(|line| line.contains("default-server"));
        address = line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_default().to_owned();
        Ok(!address.is_empty())
    })?;
    assert!(attached, "{:?} {}", server.errors(), host.log()?);
    let url = format!("http://{address}/");
    stage.reaches("curl -sS -m 2", &url, GREETING)?;
    let page = lab.exec("b", &["curl", "-sS", "-m", "5", &url])?.text("from a pod of another node")?;
    assert_eq!(page.trim(), GREETING);
    let page = host.run(&format!("ctr run --rm --cni {IMAGE} client curl -sS -m 5 {url}"))?;
    assert_eq!(page.trim(), GREETING);

    // netd away: what runs goes on, and the end of a container waits for it.
    host.stop()?;
    let page = lab.exec("b", &["curl", "-sS", "-m", "5", &url])?.text("while netd is down")?;
    assert_eq!(page.trim(), GREETING);
    host.run("ctr task kill -s KILL server")?;
    let ended = wait_until(SOON, || Ok(!host.run("ctr container ls -q")?.contains("server")))?;
    assert!(ended, "{:?}", server.errors());
    host.start()?;
    stage.nothing_left()?;
    drop(server);
    host.make("uninstall", "PURGE=1")?;
    drop(stage);
    lab.down()
}
