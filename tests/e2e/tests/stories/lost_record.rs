// SPDX-License-Identifier: Apache-2.0
//! netd loses what it wrote down about a pod that runs: nobody else gets the pod's address, whoever repairs.

use crate::ipam::{agree, refused, soon};
use crate::lab;
use crate::left::addresses;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use weft_lab::{Lab, PodSpec};

#[test]
fn a_repair_frees_no_address_of_a_pod_whose_record_alone_is_lost() -> Result<()> {
    let Some(lab) = lab("lostrecord", 2)? else { return Ok(()) };
    let own = lab.pod_add(&PodSpec::new("n1", "own"))?;
    let lent_ip = crate::ipam::address(&lab, "n2", 41)?;
    let lent = lab.pod_add(&PodSpec::new("n1", "lent").ip(lent_ip))?;
    let named = lab.pod_add(&PodSpec::new("n1", "named").sticky("db"))?;
    lab.node_stop("n1")?;
    let records = lab.state()?.node("n1")?.dir.join("state/attachments");
    for entry in fs::read_dir(&records)? {
        fs::remove_file(entry?.path())?;
    }
    lab.node_start("n1")?;

    let found = |lab: &Lab| -> Result<Vec<Value>> {
        let reply: Value = serde_json::from_str(&lab.weft("n1", &["ipam", "check", "--json"])?.stdout)?;
        Ok(reply["findings"].as_array().context("no findings")?.clone())
    };
    let about = |findings: &[Value], id: &str| findings.iter().any(|it| it.to_string().contains(id));
    let findings = soon(
        "the check tells of all three",
        || found(&lab),
        |findings| [&own, &lent, &named].iter().all(|pod| about(findings, &pod.container_id)),
    )?;
    let repairable: Vec<_> = findings.iter().filter(|finding| finding["repairable"] == true).collect();
    ensure!(repairable.is_empty(), "an address of a running pod would be freed: {repairable:#?}");
    ensure!(findings.iter().any(|it| it.to_string().contains("its link is there")), "{findings:#?}");
    // Whoever repairs anyway frees nothing, and nobody else gets them.
    lab.weft("n1", &["ipam", "repair", "--yes"])?;
    for ip in [own.ips[0], lent_ip, named.ips[0]] {
        for node in ["n1", "n2"] {
            let refusal = refused(lab.pod_add(&PodSpec::new(node, "thief").ip(ip)))?;
            ensure!(refusal.code == 101 || refusal.code == 11, "{ip} on {node}: {refusal:?}");
        }
    }

    // The runtime's DEL frees them, as ever.
    for pod in ["own", "lent", "named"] {
        lab.pod_rm("n1", pod)?;
    }
    let left = || addresses(&lab, "n1");
    let freed =
        |left: &std::collections::BTreeMap<String, String>| left.values().all(|owner| owner == "sticky/db");
    soon("the addresses are free", left, freed)?;
    agree(&lab, &["n1", "n2"])?;
    lab.down()
}
