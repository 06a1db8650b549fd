// SPDX-License-Identifier: Apache-2.0
//! `make install` and `make uninstall` on a host without Kubernetes and without etcd: what one brings, the other takes.

use crate::host::{CONFLIST, Host};
use crate::{have, lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;
use weft_lab::{Running, sibling, wait_until};

const NOTHING: [String; 0] = [];
const SOON: Duration = Duration::from_secs(10);

#[test]
fn what_install_brings_uninstall_takes() -> Result<()> {
    if !have("make", "install") {
        return Ok(());
    }
    let Some(lab) = lab("install", 1)? else { return Ok(()) };
    let host = Host::of(&lab, "n1")?;
    // As a host that never forwarded, with things of its own.
    host.run("sysctl -qw net.ipv4.ip_forward=0; ip route add 198.51.100.0/24 via 172.31.77.254; nft add table inet other")?;
    let before = host.traces()?;

    let said = host.make("install", &Host::from()?)?;
    assert!(said.contains("no systemd runs here"), "{said}");
    let mut came = host.traces()?.since(&before);
    came.retain(|change| !change.starts_with("+ file: "));
    assert_eq!(came, NOTHING, "only files, and nothing runs");
    assert!(!host.has(CONFLIST)?, "a conflist before there is a datapath");
    if have("systemd-analyze", "install") {
        let complaints = host.run(
            "unshare --mount bash -ec \
             'mount -t tmpfs none /run; systemd-analyze verify /etc/systemd/system/netd.service /etc/systemd/system/weft-wireguard.service 2>&1'",
        )?;
        assert_eq!(complaints, "");
    }

    host.start()?;
    let node = identity(&host)?;
    add(&host, "a")?;
    let b = add(&host, "b")?;
    host.run(&format!("rm {CONFLIST}"))?;
    let healed = wait_until(SOON, || host.has(CONFLIST))?;
    assert!(healed, "the conflist did not come back: {}", host.log()?);

    upgrade(&host, &b)?;

    // Pods are still there: uninstall takes their network, not more.
    let said = host.make("uninstall", "")?;
    assert!(said.contains("ending netd") && said.contains("kept: /var/lib/weft"), "{said}");
    let mut left = host.traces()?.since(&before);
    left.retain(|change| !change.starts_with("+ file: var/lib/weft"));
    assert_eq!(left, NOTHING, "{said}");

    // Weft comes back as the node it was, and then goes without a trace.
    host.make("install", &Host::from()?)?;
    host.start()?;
    assert_eq!(identity(&host)?, node, "the state that was kept was not used");
    add(&host, "c")?;
    let said = host.make("uninstall", "PURGE=1")?;
    assert_eq!(host.traces()?.since(&before), NOTHING, "{said}");
    let again = host.make("uninstall", "PURGE=1")?;
    assert!(again.contains("0 files removed"), "{again}");
    assert_eq!(host.traces()?.since(&before), NOTHING);
    drop(host);
    lab.down()
}

#[test]
fn with_systemd_nothing_starts_unasked() -> Result<()> {
    if !have("make", "systemd") {
        return Ok(());
    }
    let Some(lab) = lab("systemd", 1)? else { return Ok(()) };
    let host = Host::of(&lab, "n1")?;
    let before = host.traces()?;
    // A systemctl that tells what it was asked, and what it was told to answer.
    host.run(
        r#"mkdir -p /run/systemd/system /run/story/bin; echo 3 > /run/story/active
           printf '#!/bin/sh\necho "$*" >> /run/story/calls\n[ "$1" != is-active ] || exit $(cat /run/story/active)\n' \
               > /run/story/systemctl
           chmod +x /run/story/systemctl; mount --bind /run/story/systemctl $(command -v systemctl)"#,
    )?;
    let calls = || host.run("cat /run/story/calls; rm /run/story/calls");
    let from = Host::from()?;
    let said = host.make("install", &from)?;
    assert!(said.contains("nothing was enabled or started"), "{said}");
    assert_eq!(calls()?, "daemon-reload\nis-active --quiet netd.service");
    let said = host.make("install", &format!("{from} START=1"))?;
    assert!(said.contains("enabling and starting the services weft-wireguard and netd"), "{said}");
    assert!(calls()?.ends_with("enable --now weft-wireguard.service netd.service"));

    host.run("echo 0 > /run/story/active; echo '# mine' >> /etc/weft/netd.toml")?;
    let said = host.make("install", &from)?;
    assert!(said.contains("nothing changed") && said.contains("stays as it is"), "{said}");
    assert_eq!(calls()?, "daemon-reload\nis-active --quiet netd.service");
    newer(&host)?;
    let said = host.make("install", "FROM=/run/story/newer")?;
    assert!(said.contains("restarting the service netd"), "{said}");
    assert!(calls()?.ends_with("restart netd.service"));

    let said = host.make("uninstall", "")?;
    assert!(
        said.contains("stopping and disabling") && said.contains("kept, because it was edited"),
        "{said}"
    );
    assert_eq!(calls()?, "disable --now netd.service\ndisable --now weft-wireguard.service\ndaemon-reload");
    assert_eq!(host.run("tail -n 1 /etc/weft/netd.toml")?, "# mine");
    host.make("uninstall", "PURGE=1")?;
    host.run("umount $(command -v systemctl); rmdir /run/systemd/system /run/systemd")?;
    assert_eq!(host.traces()?.since(&before), NOTHING);

    // Laid out for another system: nothing of this one is asked, told or changed.
    let said = host.make("install", &format!("{from} DESTDIR=/run/story/image PREFIX=/usr"))?;
    assert!(said.contains("laid out below"), "{said}");
    assert_eq!(host.traces()?.since(&before), NOTHING);
    let unit = host.run("grep ^ExecStart= /run/story/image/etc/systemd/system/netd.service")?;
    assert_eq!(unit, "ExecStart=/usr/bin/netd");
    host.make("uninstall", "DESTDIR=/run/story/image PREFIX=/usr")?;
    assert_eq!(host.run("find /run/story/image -mindepth 1")?, "");
    drop(host);
    lab.down()
}

/// A second install while packets flow: no packet is lost, no connection ends, and pods can be made at each moment.
fn upgrade(host: &Host, b: &str) -> Result<()> {
    let lab_program = sibling("weft-lab")?.display().to_string();
    let server =
        host.spawn(&format!("exec nsenter --net=/run/netns/b {lab_program} serve --as b --tcp 8080"))?;
    server.wait_line(SOON)?;
    let stream = format!("exec nsenter --net=/run/netns/a {lab_program} stream --to {b}:8080 --for 120000ms");
    let mut transfer = host.spawn(&stream)?;
    transfer.wait_line(SOON)?;
    let mut ping = host.spawn(&format!("echo $$; exec nsenter --net=/run/netns/a ping -q -i 0.02 {b}"))?;
    let ping_pid = ping.wait_line(SOON)?;

    newer(host)?;
    let running = host.netd_pids()?;
    let said = host.make("install", "FROM=/run/story/newer")?;
    assert!(said.contains("netd.toml is there and stays as it is"), "{said}");
    assert!(said.contains(&format!("netd runs (process {}) as before", running.join(" "))), "{said}");
    assert_eq!(host.netd_pids()?, running, "the install ended netd");
    assert_eq!(host.run("cmp /opt/cni/bin/weft-cni /run/story/newer/weft-cni")?, "");
    // The new weft-cni and the old netd.
    add(host, "between")?;
    let flows = |transfer: &mut Running, when: &str| -> Result<()> {
        transfer.lines();
        transfer.wait_line(SOON).with_context(|| format!("the transfer {when}"))?;
        ensure!(transfer.alive(), "the transfer ended {when}: {:?}", transfer.errors());
        Ok(())
    };
    flows(&mut transfer, "with new files and the old netd")?;
    host.stop()?;
    flows(&mut transfer, "without a netd")?;
    host.start()?;
    let exe = host.run(&format!("readlink /proc/{}/exe", host.netd_pids()?.join(" ")))?;
    assert_eq!(exe, "/usr/local/bin/netd");
    flows(&mut transfer, "with the new netd")?;
    add(host, "afterwards")?;

    host.run(&format!("kill -INT {ping_pid}"))?;
    ping.wait(SOON)?;
    // What it said last may still be on its way to us.
    let mut report = String::new();
    let counted = wait_until(SOON, || {
        report.extend(ping.lines());
        Ok(report.contains("packet loss"))
    })?;
    assert!(counted, "ping says nothing: {report}");
    assert!(report.contains(" 0% packet loss"), "{report}");
    Ok(())
}

/// Programs that differ from the installed ones: a byte behind an ELF file's end changes nothing.
fn newer(host: &Host) -> Result<()> {
    let from = Host::from()?;
    let from = from.trim_start_matches("FROM=");
    host.run(&format!(
        "mkdir -p /run/story/newer; for program in netd weft weft-cni weft-wireguard; do
             cp {from}/$program /run/story/newer/; printf x >> /run/story/newer/$program; done"
    ))
    .map(drop)
}

/// A pod as a runtime makes it: by what stands in its folder and nothing else. The pod's address.
fn add(host: &Host, name: &str) -> Result<String> {
    let list: Value = serde_json::from_str(&host.run(&format!("cat {CONFLIST}"))?)?;
    let mut config = list["plugins"][0].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    config["name"] = list["name"].clone();
    host.run(&format!("ip netns add {name}; cat > /run/story/{name}.json <<'END'\n{config}\nEND"))?;
    let result = host.run(&format!(
        "CNI_COMMAND=ADD CNI_CONTAINERID={name} CNI_IFNAME=eth0 CNI_NETNS=/run/netns/{name} CNI_PATH=/opt/cni/bin \
         /opt/cni/bin/{} < /run/story/{name}.json",
        config["type"].as_str().context("a plugin without a type")?
    ))?;
    let result: Value = serde_json::from_str(&result)?;
    let address = result["ips"][0]["address"].as_str().context("no address")?;
    Ok(address.split('/').next().unwrap_or_default().to_owned())
}

fn identity(host: &Host) -> Result<String> {
    host.run("cat /var/lib/weft/node-id")
}
