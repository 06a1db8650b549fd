// SPDX-License-Identifier: Apache-2.0
//! weft-cni behind the reference plugins `bridge` and `ptp`: their link stays theirs, and the pod is one of the cluster's.

use crate::conflist::{Conflist, have_plugins};
use crate::{lab_with, service};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use weft_lab::{Families, Lab, PodSpec, UpOptions, wait_until};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn weft_cni_behind_bridge_and_ptp_publishes_their_pods() -> Result<()> {
    if !have_plugins("adopted") {
        return Ok(());
    }
    let options =
        UpOptions { nodes: 1, families: Families::Dual, ..UpOptions::new(&Lab::unique_name("adopted")) };
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "near"))?;
    let dir = lab.state()?.node("n1")?.dir.join("host-local");
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();
    let before = objects(&lab)?;
    let weft =
        json!({ "type": "weft-cni", "args": { "cni": { "labels": [{ "key": "app", "value": "web" }] } } });
    for (kind, subnets) in
        [("bridge", ["10.22.1.0/24", "fd00:22:1::/64"]), ("ptp", ["10.22.2.0/24", "fd00:22:2::/64"])]
    {
        let ranges = subnets.map(|subnet| json!([{ "subnet": subnet }]));
        let first = json!({
            "type": kind, "bridge": "cni0", "isGateway": true,
            "ipam": {
                "type": "host-local", "ranges": ranges, "dataDir": dir,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        });
        let list = Conflist::write(&lab, "n1", kind, &[first, weft.clone()])?;
        let pod = list.add(kind, "eth0", json!({}))?;

        // What the first plugin answered stands as it was; only DNS came to it.
        let [of_first, of_weft] = &pod.results[..] else { panic!("{} results", pod.results.len()) };
        for part in ["interfaces", "ips", "routes"] {
            assert_eq!(of_weft[part], of_first[part], "{part}");
        }
        assert_eq!(of_weft["dns"]["nameservers"][0], "169.254.53.53", "{of_weft}");
        pod.check()?;

        // The service selects it by its label.
        let _server = lab.serve(kind, kind, &[8080], &[])?;
        for from in ["near", "n1"] {
            let mut last = Default::default();
            let answered = wait_until(SOON, || {
                last = lab.probe(from, &["--to", &format!("{vip}:80"), "--count", "5"])?;
                Ok(last.servers.get(kind) == Some(&5))
            })?;
            assert!(answered, "{kind} from {from}: {} {}", last.spread(), last.failures());
        }
        let known = lab.ask("n1", async |client| client.pods().await)?;
        let known = known
            .iter()
            .find(|known| known.container_id == pod.pod.container_id)
            .map(|known| known.ips.clone());
        let mut known = known.unwrap_or_default();
        known.sort();
        assert_eq!(known, pod.ips()?);

        pod.del()?;
        pod.del()?;
        let withdrawn = wait_until(SOON, || {
            let services = lab.ask("n1", async |client| client.services().await)?;
            Ok(services.iter().all(|service| service.total_backends == 0 || service.name != "web"))
        })?;
        assert!(withdrawn, "{kind}: the service keeps its backend");
        ensure!(
            !lab.weft("n1", &["pod", "ls"])?.text("weft pod ls")?.contains(kind),
            "weft pod ls shows {kind}"
        );
        assert_eq!(files(&dir.join(kind))?, 0, "host-local keeps addresses of {kind}");
        let _ = lab.exec("n1", &["ip", "link", "del", "cni0"])?;
        assert_eq!(objects(&lab)?, before, "{kind} left something");
    }
    assert_eq!(lab.status("n1")?.pods, 1);
    lab.down()
}

/// Links, routes and pods of n1.
fn objects(lab: &Lab) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for argv in [&["ip", "-j", "link"][..], &["ip", "-j", "route"], &["ip", "-j", "-6", "route"]] {
        let listed: Vec<Value> = lab.exec("n1", argv)?.json("ip")?;
        found.extend(listed.iter().map(|item| format!("{} {} {}", item["ifname"], item["dst"], item["dev"])));
    }
    found.extend(lab.maps("n1")?.pods.iter().map(|ip| format!("pod {ip}")));
    found.sort();
    Ok(found)
}

/// Addresses that host-local has given.
fn files(dir: &std::path::Path) -> Result<usize> {
    let names = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("10.") || name.starts_with("fd")).count())
}
