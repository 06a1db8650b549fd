// SPDX-License-Identifier: Apache-2.0
//! What a runtime may ask for an attachment, and that an attachment is (network, container ID, ifname): several interfaces
//! for a container, several networks on a node.

use crate::{lab, lab_with};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use std::{fs, io};
use weft_lab::{CniCall, Families, Lab, Pod, PodSpec, UpOptions, netns_path, wait_until};

const SOON: Duration = Duration::from_secs(5);
const MAC: &str = "02:00:5e:00:53:02";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[test]
fn a_container_has_several_interfaces_and_a_node_several_networks() -> Result<()> {
    let Some(lab) = dual("several", 2)? else { return Ok(()) };
    let spec = PodSpec::new("n1", "a");
    let far = lab.pod_add(&PodSpec::new("n2", "far"))?;
    lab.pod_add(&spec)?;
    for (network, ifname) in [("blue", "net1"), ("green", "net2"), ("blue", "net3")] {
        lab.pod_add(&spec.clone().interface(network, ifname))?;
    }
    // The same container and ifname cannot be in another network: the link is there.
    let mut red = call(&lab, &lab.pod("a")?, "ADD")?.set("CNI_IFNAME", "net1");
    red.config["name"] = "red".into();
    let taken = red.run()?;
    let code = serde_json::from_str::<Value>(&taken.stdout)?["code"].clone();
    assert_eq!(code, 101, "{}", taken.stdout);
    let everywhere = ["eth0", "net1", "net2", "net3"];
    works(&lab, &far, &everywhere)?;
    let ips: BTreeSet<IpAddr> = lab.pod("a")?.interfaces().iter().flat_map(|seen| seen.ips.clone()).collect();
    assert_eq!(ips.len(), 2 * everywhere.len(), "an address twice: {ips:?}");
    lab.pod_check("n1", "a")?;

    // Of network blue nothing is valid but net3: the other networks do not even know that somebody collects.
    let mut gc = lab.cni("n1")?.set("CNI_COMMAND", "GC");
    gc.config["name"] = "blue".into();
    let id = &lab.pod("a")?.container_id;
    gc.config["cni.dev/valid-attachments"] = json!([{ "containerID": id, "ifname": "net3" }]);
    gc.run()?.text("GC")?;
    works(&lab, &far, &["eth0", "net2", "net3"])?;
    let links = lab.exec("a", &["ip", "-br", "link"])?.text("ip link")?;
    ensure!(!links.contains("net1"), "GC left net1: {links}");
    assert_eq!(lab.status("n1")?.pods, 3);
    lab.pod_rm_interface("n1", "a", "net1")?;
    lab.pod_rm_interface("n1", "a", "net2")?;
    works(&lab, &far, &["eth0", "net3"])?;
    lab.pod_check("n1", "a")?;
    lab.pod_rm("n1", "a")?;
    assert_eq!(lab.status("n1")?.pods, 0);
    lab.down()
}

#[test]
fn a_pod_gets_what_its_runtime_asks_for() -> Result<()> {
    let Some(lab) = dual("wishes", 2)? else { return Ok(()) };
    let near = lab.pod_add(&PodSpec::new("n1", "near"))?;
    let far = lab.pod_add(&PodSpec::new("n2", "far"))?;
    let wanted: Vec<IpAddr> = near.ips.iter().map(|ip| beside(*ip, 1)).collect();
    let dns = json!({ "servers": ["192.0.2.1"], "searches": ["shop.example"], "options": ["ndots:2"] });
    let mut spec = PodSpec::new("n1", "exact").label("app", "x").label("tier", "y").extra(json!({
        "runtimeConfig": { "dns": dns, "cgroupPath": "/kubepods/pod7" },
    }));
    (spec.ips, spec.mac) = (wanted.clone(), Some(MAC.into()));
    let pod = lab.pod_add(&spec)?;
    assert_eq!(pod.ips, wanted);
    let link = lab.exec("exact", &["ip", "link", "show", "eth0"])?.text("ip link")?;
    assert!(link.contains(MAC), "{link}");
    let result = pod.result.clone().context("no result")?;
    let eth0 = result["interfaces"].as_array().into_iter().flatten().find(|link| link["name"] == "eth0");
    assert_eq!(eth0.context("no eth0")?["mac"], MAC);
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["192.0.2.1"], "search": ["shop.example"], "options": ["ndots:2"] })
    );
    let resolver = lab.exec("exact", &["cat", "/etc/resolv.conf"])?.text("resolv.conf")?;
    assert_eq!(resolver, "nameserver 192.0.2.1\nsearch shop.example\noptions ndots:2");
    let mut pods = Vec::new();
    let seen = wait_until(SOON, || {
        pods = lab.ask("n2", async |client| client.pods().await)?;
        let known = pods.iter().find(|known| known.name == "exact");
        Ok(known
            .is_some_and(|known| spec.labels.iter().all(|(key, value)| known.labels.get(key) == Some(value))))
    })?;
    assert!(seen, "n2 does not know the labels: {pods:?}");
    let records = lab.state()?.node("n1")?.dir.join("state/attachments");
    let records = fs::read_dir(records)?
        .map(|entry| fs::read_to_string(entry?.path()))
        .collect::<io::Result<String>>()?;
    assert!(records.contains("/kubepods/pod7"), "no control group in {records}");
    lab.pod_check("n1", "exact")?;

    // One range for each family.
    let range = |ip: IpAddr| json!([{ "subnet": subnet(ip), "rangeStart": beside(ip, 2), "rangeEnd": beside(ip, 2) }]);
    let ranges: Vec<_> = near.ips.iter().map(|ip| range(*ip)).collect();
    let ranged =
        lab.pod_add(&PodSpec::new("n1", "ranged").extra(json!({ "runtimeConfig": { "ipRanges": ranges } })))?;
    assert_eq!(ranged.ips, near.ips.iter().map(|ip| beside(*ip, 2)).collect::<Vec<_>>());

    for ip in pod.ips.iter().chain(&ranged.ips) {
        for from in ["near", "far", "n1", "n2"] {
            ensure!(ping(&lab, from, *ip)?, "{from} does not reach {ip}");
        }
    }
    ensure!(ping(&lab, "exact", far.ips[0])? && ping(&lab, "exact", far.ips[1])?, "{far:?}");
    lab.down()
}

#[test]
fn an_alias_is_a_name_for_all_pods_that_have_it() -> Result<()> {
    let Some(lab) = dual("alias", 2)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n2", "client"))?;
    lab.pod_add(&PodSpec::new("n2", "elsewhere").namespace("other"))?;
    let pods = ["one", "two"].map(|name| lab.pod_add(&PodSpec::new("n1", name).alias("db").alias("store")));
    let [one, two] = pods;
    let (one, two) = (one?, two?);
    let _servers = [lab.serve("one", "one", &[8080], &[])?, lab.serve("two", "two", &[8080], &[])?];
    named(&lab, "client", "db", &[&one, &two])?;
    named(&lab, "client", "store", &[&one, &two])?;
    // As an application: by the search path of its namespace, and from another namespace by the longer name.
    for (from, name) in [("client", "db"), ("elsewhere", "db.default")] {
        let report = lab.probe(from, &["--to", &format!("{name}:8080"), "--count", "2"])?;
        assert!(report.all_ok(), "{from}: {}", report.failures());
    }
    let unknown = lab.probe("elsewhere", &["--to", "db:8080", "--count", "1"])?;
    assert_eq!(unknown.ok, 0, "an alias is a name in its namespace");
    lab.pod_rm("n1", "one")?;
    named(&lab, "client", "db", &[&two])?;
    lab.pod_rm("n1", "two")?;
    named(&lab, "client", "db", &[])?;
    lab.down()
}

#[test]
fn of_several_sources_of_an_address_the_first_counts() -> Result<()> {
    let Some(lab) = lab("sources", 1)? else { return Ok(()) };
    let near = lab.pod_add(&PodSpec::new("n1", "near"))?;
    let [asked, args, variable] = [1, 2, 3].map(|step| beside(near.ips[0], step));
    // runtimeConfig.ips, then args.cni.ips, then IP in CNI_ARGS.
    for (name, sources, wanted) in [
        ("all", (Some(asked), Some(args), Some(variable)), asked),
        ("two", (None, Some(args), Some(variable)), args),
        ("one", (None, None, Some(variable)), variable),
    ] {
        let pod = lab.pod_bare("n1", name)?;
        let mut call = call(&lab, &pod, "ADD")?;
        if let Some(ip) = sources.0 {
            call.config["runtimeConfig"]["ips"] = json!([ip]);
        }
        if let Some(ip) = sources.1 {
            call.config["args"]["cni"]["ips"] = json!([ip]);
        }
        if let Some(ip) = sources.2 {
            call = call.set("CNI_ARGS", &format!("IgnoreUnknown=1;IP={ip}"));
        }
        let result: Value = call.run()?.json("ADD")?;
        assert_eq!(result["ips"][0]["address"], format!("{wanted}/32"), "{name}");
        ensure!(ping(&lab, "near", wanted)?, "{name}: {wanted} is silent");
        self::call(&lab, &pod, "DEL")?.run()?.text("DEL")?;
    }
    lab.down()
}

#[test]
fn a_trace_of_the_runtime_goes_on_in_netd() -> Result<()> {
    let Some(lab) = lab("trace", 1)? else { return Ok(()) };
    let pod = lab.pod_bare("n1", "a")?;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let add = call(&lab, &pod, "ADD")?.set("TRACEPARENT", &parent).set("WEFT_CNI_LOG", "info").run()?;
    let said = add.stderr.clone();
    add.text("ADD")?;
    let of_plugin = line(&said, &pod.container_id)?;
    let of_netd = lab.node_log("n1", 200)?;
    let of_netd = line(&of_netd, &pod.container_id)?;
    // The runtime's span, weft-cni's below it, and netd's below that.
    let fields = |line: &str| ["trace_id", "parent_span_id", "span_id"].map(|name| field(line, name));
    let [trace, above, own] = fields(of_plugin);
    assert_eq!((trace.as_deref(), above.as_deref()), (Some(TRACE), Some(PARENT)), "{of_plugin}");
    let [trace, above, lowest] = fields(of_netd);
    assert_eq!((trace.as_deref(), above), (Some(TRACE), own.clone()), "{of_netd}");
    assert!(own.is_some() && lowest.is_some() && lowest != own, "{of_netd}");
    // What is no trace does no harm.
    call(&lab, &pod, "DEL")?.set("TRACEPARENT", "00-xyz").run()?.text("DEL")?;
    call(&lab, &pod, "ADD")?.set("TRACEPARENT", "").run()?.text("ADD")?;
    call(&lab, &pod, "DEL")?.run()?.text("DEL")?;
    lab.down()
}

/// The line that tells of the ADD.
fn line<'a>(log: &'a str, container: &str) -> Result<&'a str> {
    let line = log.lines().find(|line| line.contains("attached") && line.contains(container));
    line.with_context(|| format!("no line about the ADD: {log}"))
}

/// The value of `name=value` or `name="value"` in a log line.
fn field(line: &str, name: &str) -> Option<String> {
    let (_, rest) =
        line.split_once(&format!(" {name}=")).or_else(|| line.split_once(&format!("{{{name}=")))?;
    let value = rest.trim_start_matches('"').split(['"', ' ', '}']).next()?;
    Some(value.to_owned())
}

fn dual(story: &str, nodes: u16) -> Result<Option<Lab>> {
    lab_with(UpOptions { nodes, families: Families::Dual, ..UpOptions::new(&Lab::unique_name(story)) })
}

/// A call for eth0 of a pod.
fn call(lab: &Lab, pod: &Pod, command: &str) -> Result<CniCall> {
    let netns = netns_path(&pod.netns).display().to_string();
    let call = lab.cni(&pod.node)?.set("CNI_COMMAND", command).set("CNI_CONTAINERID", &pod.container_id);
    Ok(call.set("CNI_NETNS", &netns))
}

fn ping(lab: &Lab, from: &str, to: IpAddr) -> Result<bool> {
    Ok(lab.exec(from, &["ping", "-c1", "-W2", &to.to_string()])?.ok())
}

/// Pod `a` reaches the other one by each of these interfaces, in both families.
fn works(lab: &Lab, other: &Pod, interfaces: &[&str]) -> Result<()> {
    for ifname in interfaces {
        for ip in &other.ips {
            // Its node may have claimed a block for it just now, which the other node has not heard of yet.
            let mut said = String::new();
            let reached = wait_until(SOON, || {
                let out = lab.exec("a", &["ping", "-c1", "-W1", "-I", ifname, &ip.to_string()])?;
                said = format!("{} {}", out.stdout, out.stderr);
                Ok(out.ok())
            })?;
            ensure!(reached, "by {ifname} to {ip}: {said}");
        }
    }
    Ok(())
}

/// The name has exactly the addresses of these pods.
fn named(lab: &Lab, from: &str, alias: &str, pods: &[&Pod]) -> Result<()> {
    let name = format!("{alias}.default.svc.cluster.local");
    let wanted: BTreeSet<String> = pods.iter().flat_map(|pod| &pod.ips).map(IpAddr::to_string).collect();
    let mut found = BTreeSet::new();
    let right = wait_until(SOON, || {
        found = ["A", "AAAA"]
            .iter()
            .map(|kind| Ok(lab.query(from, &[&name, kind])?.data))
            .collect::<Result<Vec<_>>>()?
            .concat()
            .into_iter()
            .collect();
        Ok(found == wanted)
    })?;
    ensure!(right, "{name}: {found:?} instead of {wanted:?}");
    Ok(())
}

/// The prefix of the address's block: 64 addresses.
fn subnet(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{}/26", Ipv4Addr::from(u32::from(ip) & !63)),
        IpAddr::V6(ip) => format!("{}/122", Ipv6Addr::from(u128::from(ip) & !63)),
    }
}

/// Another address of its block, far from those that are given next.
fn beside(ip: IpAddr, step: u8) -> IpAddr {
    let last = 63 - 2 * step;
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) & !63 | u32::from(last)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !63 | u128::from(last)).into(),
    }
}
