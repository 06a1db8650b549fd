// SPDX-License-Identifier: Apache-2.0
//! What scripts rely on: the JSON, exit codes, signals, `down`.

use crate::lab;
use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use weft_lab::{Lab, Output, PodSpec, TOOL_LIMIT, output, sibling};

#[test]
fn show_json_has_the_promised_shape() -> Result<()> {
    let Some(lab) = lab("shape", 2)? else { return Ok(()) };
    let pod = lab.pod_add(&PodSpec::new("n2", "a").label("app", "x"))?;
    let show: Value = weft_lab(&["show", "--json", "--name", lab.name()], b"")?.json("show")?;
    keys(&show, &["name", "dir", "etcd", "outside", "nodes", "pods"]);
    keys(&show["outside"], &["netns", "ip"]);
    assert_eq!(show["name"], lab.name());
    assert!(show["etcd"][0].as_str().unwrap().starts_with("http://"));
    for (node, name) in show["nodes"].as_array().unwrap().iter().zip(["n1", "n2"]) {
        keys(
            node,
            &[
                "name",
                "netns",
                "socket",
                "dns",
                "dns6",
                "underlay_ip",
                "underlay_if",
                "metrics",
                "cni_config",
            ],
        );
        assert_eq!(node["name"], name);
        assert_eq!(node["netns"], format!("weft-{}-{name}", lab.name()));
        assert!(std::path::Path::new(node["socket"].as_str().unwrap()).exists());
        assert_eq!(node["cni_config"]["type"], "weft-cni");
        assert_eq!(node["cni_config"]["socket"], node["socket"]);
        let url = node["metrics"].as_str().unwrap();
        let metrics = lab.exec(name, &["curl", "-sf", url])?.text("metrics")?;
        assert!(metrics.contains("weft_ready 1"), "{metrics}");
        let device = node["underlay_if"].as_str().unwrap();
        let addresses = lab.exec(name, &["ip", "-o", "address", "show", "dev", device])?.text("ip")?;
        assert!(addresses.contains(node["underlay_ip"].as_str().unwrap()), "{addresses}");
    }
    keys(&show["pods"][0], &["name", "node", "netns", "ips"]);
    let ip: IpAddr = show["pods"][0]["ips"][0].as_str().unwrap().parse()?;
    assert_eq!([ip], pod.ips[..]);
    lab.pod_rm("n2", "a")?;
    let show: Value = weft_lab(&["--name", lab.name(), "show", "--json"], b"")?.json("show")?;
    assert_eq!(show["pods"], Value::Array(Vec::new()));
    lab.down()
}

#[test]
fn exec_is_the_command_in_the_target_s_place() -> Result<()> {
    let Some(lab) = lab("exec", 1)? else { return Ok(()) };
    let pod = lab.pod_add(&PodSpec::new("n1", "a"))?;
    let exec = |target: &str, argv: &[&str], stdin: &[u8]| {
        weft_lab(&[&["--name", lab.name(), "exec", target, "--"], argv].concat(), stdin)
    };
    assert_eq!(exec("n1", &["sh", "-c", "exit 42"], b"")?.code, Some(42));
    assert_eq!(exec("n1", &["no-such-command"], b"")?.code, Some(127));
    assert_eq!(exec("n1", &["/etc"], b"")?.code, Some(126));
    assert_eq!(exec("a", &["sh", "-c", "kill -TERM $$"], b"")?.signal, Some(15));
    let passed = exec("outside", &["sh", "-c", "cat; echo err >&2"], b"through")?;
    assert_eq!((passed.stdout.as_str(), passed.stderr.as_str()), ("through", "err\n"));
    // `--name` after the dashes belongs to the command.
    assert_eq!(exec("a", &["echo", "--name", "x"], b"")?.stdout, "--name x\n");

    let links = exec("a", &["ip", "-o", "-4", "address", "show", "dev", "eth0"], b"")?.text("ip")?;
    assert!(links.contains(&pod.ips[0].to_string()), "{links}");
    let group = exec("a", &["grep", "^0::", "/proc/self/cgroup"], b"")?.text("cgroup")?;
    assert!(group.ends_with(&format!("/weft/{}/n1/a", lab.name())), "{group}");
    let servers = exec("a", &["cat", "/etc/resolv.conf"], b"")?.text("resolv.conf")?;
    assert!(servers.starts_with("nameserver 169.254.53.53\n"), "{servers}");
    assert!(exec("a", &["ls", "/sys/fs/bpf/weft"], b"")?.ok(), "bpffs is not visible");
    let seen = exec("a", &["grep", "-c", "cgroup2", "/proc/mounts"], b"")?;
    assert!(seen.ok(), "cgroup2 is not visible");

    // In place: a signal to weft-lab is a signal to the command.
    let args = ["--name", lab.name(), "exec", "a", "--", "sleep", "60"];
    let mut child = Command::new(sibling("weft-lab")?).args(args).stdin(Stdio::null()).spawn()?;
    thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    assert_eq!(child.wait()?.signal(), Some(15));
    lab.down()
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() -> Result<()> {
    let Some(lab) = lab("usage", 1)? else { return Ok(()) };
    let name = lab.name().to_owned();
    let run =
        |args: &[&str]| Ok::<_, anyhow::Error>(weft_lab(&[&["--name", &name], args].concat(), b"")?.code);
    for wrong in [
        &["pod", "add", "n1", "n1"][..],
        &["pod", "add", "n9", "a"],
        &["pod", "add", "n1", "A_b"],
        &["pod", "add", "n1", "a", "--label", "x"],
        &["pod", "rm", "n1", "nobody"],
        &["node", "kill", "n9"],
        &["node", "partition", "n1", "--from", "n1"],
        &["node", "mtu", "n1", "1"],
        &["exec", "nobody", "--", "true"],
        &["up", "--overlay", "carrier-pigeon"],
        &["up", "--underlay-mtu", "1"],
        &["up", "--nat", "n9"],
        &["up", "--nat", "n1", "--underlay-families", "v6"],
        &["node", "roam", "n9"],
        &["up", "--families", "v5"],
        &["up", "--store", "file", "--nodes", "2"],
        &["up", "--etcd-members", "2"],
        &["up", "--nodes", "0"],
        &["bogus"],
        &["show", "--bogus"],
    ] {
        assert_eq!(run(wrong)?, Some(2), "{wrong:?}");
    }
    assert_eq!(run(&["up"])?, Some(1), "a second `up` of the same lab");
    assert_eq!(run(&["apply", "-f", "/no/such/file.yaml"])?, Some(1));
    assert_eq!(run(&["pod", "add", "n1", "a"])?, Some(0));
    assert_eq!(run(&["pod", "add", "n1", "a"])?, Some(1), "a second pod of the same name");
    assert_eq!(run(&["down"])?, Some(0));
    assert_eq!(run(&["down"])?, Some(0), "down twice");
    assert_eq!(run(&["show"])?, Some(1), "show after down");
    let unknown = Lab::unique_name("never-was");
    assert_eq!(weft_lab(&["down", "--name", &unknown], b"")?.code, Some(0), "down of an unknown lab");
    Ok(())
}

#[test]
fn up_leaves_the_lab_running_and_prints_only_json() -> Result<()> {
    let Some(guard) = lab("guard", 1)? else { return Ok(()) };
    // Beside another lab: nothing is shared.
    let name = Lab::unique_name("left");
    let up = weft_lab(&["up", "--name", &name, "--nodes", "1", "--json"], b"")?;
    let shown = up.json::<Value>("up");
    let open = Lab::open(&name).and_then(|lab| lab.status("n1"));
    let down = weft_lab(&["--name", &name, "down"], b"")?;
    assert_eq!(shown?["name"], name);
    assert!(open?.ready);
    assert!(down.ok(), "{}", down.stderr);
    assert!(guard.status("n1")?.ready, "the other lab suffered");
    guard.down()
}

fn weft_lab(args: &[&str], stdin: &[u8]) -> Result<Output> {
    output(Command::new(sibling("weft-lab")?).args(args), stdin, TOOL_LIMIT * 2)
}

fn keys(object: &Value, wanted: &[&str]) {
    let found: BTreeSet<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, wanted.iter().copied().collect());
}
