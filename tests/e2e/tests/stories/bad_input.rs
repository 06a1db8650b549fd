// SPDX-License-Identifier: Apache-2.0
//! Bad input: a CNI error on stdout, a message that says where and what, never a panic, never a half-made pod.

use crate::{have, lab, service};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::time::Duration;
use weft_lab::{CniCall, Lab, Output, PodSpec, sibling, wait_until};

#[test]
fn weft_cni_answers_bad_input_with_cni_errors() -> Result<()> {
    let Some(lab) = lab("badcni", 1)? else { return Ok(()) };
    let before = traces(&lab)?;
    let add = || -> Result<CniCall> {
        Ok(lab
            .cni("n1")?
            .set("CNI_COMMAND", "ADD")
            .set("CNI_CONTAINERID", "c0ffee")
            .set("CNI_IFNAME", "net9")
            .set("CNI_NETNS", &spare(&lab)))
    };
    let mut version = add()?;
    version.config["cniVersion"] = "9.9.9".into();
    let mut unknown_key = add()?;
    unknown_key.config["sokcet"] = "/x".into();
    let mut mtu = add()?;
    mtu.config["mtu"] = "big".into();
    let mut ports = add()?;
    ports.config["runtimeConfig"] = serde_json::json!({ "portMappings": [{ "hostPort": 80 }] });
    let mut device = add()?;
    device.config["runtimeConfig"] = serde_json::json!({ "deviceID": "0000:00:1f.6" });
    let mut socket = add()?;
    socket.config["socket"] = "/run/no-such/netd.sock".into();
    for (what, call, code) in [
        ("broken JSON", add()?.stdin(b"{ \"cniVersion\": "), 6),
        ("no JSON at all", add()?.stdin(b"\xff\xfe"), 6),
        ("nothing on stdin", add()?.stdin(b""), 6),
        ("a list instead of an object", add()?.stdin(b"[]"), 6),
        ("no CNI_COMMAND", add()?.unset("CNI_COMMAND"), 4),
        ("an unknown CNI_COMMAND", add()?.set("CNI_COMMAND", "FROB"), 4),
        ("no CNI_CONTAINERID", add()?.unset("CNI_CONTAINERID"), 4),
        ("a container ID with a slash", add()?.set("CNI_CONTAINERID", "../x"), 4),
        ("no CNI_NETNS", add()?.unset("CNI_NETNS"), 4),
        ("no CNI_IFNAME", add()?.unset("CNI_IFNAME"), 4),
        ("an ifname that is too long", add()?.set("CNI_IFNAME", "an-interface-name"), 4),
        ("an unknown version", version, 1),
        ("an unknown key", unknown_key, 2),
        ("an MTU that is no number", mtu, 7),
        ("a published port that leads nowhere", ports, 7),
        ("a capability that we do not serve", device, 2),
        ("netd's socket that is not there", socket, 11),
    ] {
        let answer = call.run()?;
        assert_eq!(error_code(&answer), Some(code), "{what}: {} {}", answer.stdout, answer.stderr);
        assert_eq!(traces(&lab)?, before, "{what} left something");
    }
    let gone = add()?.set("CNI_NETNS", "/run/netns/weft-never-was").run()?;
    assert!(error_code(&gone).is_some(), "a netns that is gone: {} {}", gone.stdout, gone.stderr);
    assert_eq!(traces(&lab)?, before, "a netns that is gone left something");
    lab.down()
}

#[test]
fn an_interface_that_exists_is_not_touched() -> Result<()> {
    let Some(lab) = lab("badif", 1)? else { return Ok(()) };
    let pod = lab.pod_add(&PodSpec::new("n1", "a"))?;
    let before = traces(&lab)?;
    let again = lab
        .cni("n1")?
        .set("CNI_COMMAND", "ADD")
        .set("CNI_CONTAINERID", "another")
        .set("CNI_NETNS", &format!("/run/netns/{}", pod.netns))
        .run()?;
    assert!(error_code(&again).is_some(), "{}", again.stdout);
    assert_eq!(traces(&lab)?, before);
    let check = weft_lab::cni(lab.name(), &lab.pod("a")?, "CHECK")?;
    assert!(check.ok(), "the pod that was there suffered: {}", check.stdout);
    lab.down()
}

#[test]
fn without_netd_add_says_try_again_and_del_is_refused_politely() -> Result<()> {
    let Some(lab) = lab("nonetd", 1)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "a"))?;
    lab.node_kill("n1")?;
    let error = lab.pod_add(&PodSpec::new("n1", "b")).unwrap_err().to_string();
    // weft-cni's log, with braces of its own, may follow.
    let json = &error[error.find('{').context("no JSON")?..];
    let answer: Value = serde_json::Deserializer::from_str(json).into_iter().next().context("no JSON")??;
    assert_eq!(answer["code"], 11, "{error}");
    assert!(!lab.state()?.pods.contains_key("b"), "half a pod was kept");
    // What runs goes on, and DEL works once netd is back.
    let status = lab.node_start("n1")?;
    assert_eq!(status.pods, 1);
    lab.pod_rm("n1", "a")?;
    assert_eq!(lab.status("n1")?.pods, 0);
    lab.down()
}

#[test]
fn a_bad_value_in_the_store_is_reported_with_its_key_and_stops_nothing() -> Result<()> {
    if !have("etcdctl", "badvalue") {
        return Ok(());
    }
    let Some(lab) = lab("badvalue", 1)? else { return Ok(()) };
    let key = format!("/weft/v1/{}/services/default/broken", lab.name());
    let url = lab.show()?.etcd.remove(0);
    let put = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", &url, "put", &key, "{ not json"];
    lab.exec("n1", &put)?.text("etcdctl put")?;
    let reported = wait_until(Duration::from_secs(5), || {
        Ok(lab.status("n1")?.bad_values.iter().any(|bad| bad.key.contains("services/default/broken")))
    })?;
    assert!(reported, "{:?}", lab.status("n1")?.bad_values);
    lab.pod_add(&PodSpec::new("n1", "a").label("app", "web"))?;
    let _server = lab.serve("a", "a", &[8080], &[])?;
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();
    let report = lab.probe("n1", &["--to", &format!("{vip}:80"), "--count", "5"])?;
    assert!(report.all_ok(), "{}", report.failures());
    // A restart meets the value in its first snapshot.
    lab.node_stop("n1")?;
    assert!(lab.node_start("n1")?.ready);
    lab.exec("n1", &["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", &url, "del", &key])?.text("del")?;
    let healed = wait_until(Duration::from_secs(5), || {
        Ok(!lab.status("n1")?.bad_values.iter().any(|bad| bad.key.contains("services/default/broken")))
    })?;
    assert!(healed, "{:?}", lab.status("n1")?.bad_values);
    lab.down()
}

#[test]
fn a_service_file_with_an_error_names_file_line_and_field() -> Result<()> {
    let Some(lab) = lab("badfile", 1)? else { return Ok(()) };
    let folder = lab.show()?.dir;
    let file = folder.join("bad.yaml");
    let path = file.display().to_string();
    let cases = [
        ("a: b\n c: d\n  - e\n", vec!["bad.yaml", "line"]),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: w}\nspec: {ports: [{port: 99999}]}\n",
            vec!["bad.yaml", "port"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {ports: [{port: 80}]}\n",
            vec!["bad.yaml", "name"],
        ),
        ("apiVersion: v1\nkind: Gadget\nmetadata: {name: w}\n", vec!["bad.yaml", "Gadget"]),
    ];
    for (text, wanted) in cases {
        fs::write(&file, text)?;
        let answer = lab.weft("n1", &["apply", "-f", &path])?;
        assert_eq!(answer.code, Some(1), "{text}: {}", answer.stderr);
        for word in wanted {
            assert!(answer.stderr.contains(word), "{text}\n{word:?} is missing in: {}", answer.stderr);
        }
    }
    // One bad object of two: nothing is written.
    fs::write(
        &file,
        format!(
            "{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: w}}\nspec: {{ports: [{{port: 0}}]}}\n",
            service("good", "x")
        ),
    )?;
    assert_eq!(lab.weft("n1", &["apply", "-f", &path])?.code, Some(1));
    let services = lab.ask("n1", async |client| client.services().await)?;
    assert!(!services.iter().any(|service| service.name == "good"), "half a file was applied");
    lab.down()
}

#[test]
fn programs_refuse_what_they_do_not_know() -> Result<()> {
    let run = |program: &str, args: &[&str]| {
        weft_lab::output(std::process::Command::new(sibling(program)?).args(args), b"", weft_lab::TOOL_LIMIT)
    };
    for program in ["netd", "weft", "weft-lab"] {
        let answer = run(program, &["--bogus"])?;
        assert_eq!(answer.code, Some(2), "{program}: {}", answer.stderr);
        assert!(answer.stderr.contains("--bogus"), "{program}: {}", answer.stderr);
    }
    let folder = std::env::temp_dir().join(Lab::unique_name("config"));
    fs::create_dir_all(&folder)?;
    let file = folder.join("netd.toml");
    fs::write(&file, "cluster = \"x\"\noverley = \"vxlan\"\n")?;
    let answer = run("netd", &["--config", &file.display().to_string()]);
    fs::remove_dir_all(&folder)?;
    let answer = answer?;
    assert!(!answer.ok());
    let said = answer.stderr + &answer.stdout;
    for word in ["netd.toml", "2", "overley"] {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    Ok(())
}

/// The `code` of a CNI error; none when the answer is no such thing, or the exit code says success.
fn error_code(answer: &Output) -> Option<u64> {
    let error: Value = serde_json::from_str(&answer.stdout).ok()?;
    let said = error["msg"].as_str().is_some_and(|msg| !msg.is_empty());
    assert!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
    if answer.ok() || !said { None } else { error["code"].as_u64() }
}

/// What an ADD leaves on a node: links, netd's record, used addresses.
fn traces(lab: &Lab) -> Result<(Vec<String>, usize, Vec<String>)> {
    let links = lab.exec("n1", &["ip", "-o", "link"])?.text("ip link")?;
    let links = links.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned).collect();
    let ipam = lab.ask("n1", async |client| client.ipam().await)?;
    let used = ipam.addresses.iter().map(|address| address.address.to_string()).collect();
    Ok((links, lab.status("n1")?.pods, used))
}

/// A namespace of the lab in which an interface could be made.
fn spare(lab: &Lab) -> String {
    format!("/run/netns/{}", weft_lab::netns(lab.name(), "outside"))
}
