// SPDX-License-Identifier: Apache-2.0
//! Two clusters of the same name on one machine do not know of each other.

use crate::{lab_with, service};
use anyhow::Result;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use weft_lab::{Lab, PodSpec, UpOptions};

#[test]
fn two_labs_with_one_cluster_name_share_no_map_program_or_route() -> Result<()> {
    let cluster = Lab::unique_name("twin");
    let up = |name: &str| {
        lab_with(UpOptions {
            nodes: 2,
            cluster: Some(cluster.clone()),
            overlay: "vxlan".into(),
            ..UpOptions::new(&Lab::unique_name(name))
        })
    };
    let (Some(one), Some(two)) = (up("one")?, up("two")?) else { return Ok(()) };
    let mut servers = Vec::new();
    let mut vips = Vec::new();
    for (lab, word) in [(&one, "first"), (&two, "second")] {
        lab.pod_add(&PodSpec::new("n1", "client"))?;
        lab.pod_add(&PodSpec::new("n2", "server").label("app", "web"))?;
        servers.push(lab.serve("server", word, &[8080], &[])?);
        vips.push(lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap());
    }
    // The same name gives the same ClusterIP: only the maps keep them apart.
    assert_eq!(vips[0], vips[1]);
    let to = format!("{}:80", vips[0]);
    for (lab, word) in [(&one, "first"), (&two, "second")] {
        for from in ["client", "n1", "n2"] {
            let report = lab.probe(from, &["--to", &to, "--count", "20"])?;
            assert_eq!(
                report.servers.get(word),
                Some(&20),
                "{from}: {} {}",
                report.spread(),
                report.failures()
            );
        }
    }

    let (first, second) = (pins(&one)?, pins(&two)?);
    assert!(first.is_disjoint(&second));
    assert!(first.iter().chain(&second).all(|pin| pin.starts_with(format!("/sys/fs/bpf/weft/{cluster}"))));
    let (first, second) = (underlay_macs(&one)?, underlay_macs(&two)?);
    assert!(first.is_disjoint(&second));

    one.down()?;
    let report = two.probe("client", &["--to", &to, "--count", "20"])?;
    assert!(report.all_ok(), "the other lab's end was felt: {}", report.failures());
    assert_eq!(two.maps("n1")?.pods.len(), 1);
    let second: BTreeSet<_> = pins(&two)?;
    assert!(!second.is_empty());
    two.down()?;
    assert!(!PathBuf::from("/sys/fs/bpf/weft").join(&cluster).exists());
    Ok(())
}

fn pins(lab: &Lab) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for node in ["n1", "n2"] {
        let mut folders = vec![lab.pin_dir(node)?];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    found.insert(entry.path());
                }
            }
        }
    }
    Ok(found)
}

/// VTEPs come from node identities, so equal ones would mean that nodes were mixed up.
fn underlay_macs(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut macs = BTreeSet::new();
    for node in ["n1", "n2"] {
        let text = lab.exec(node, &["bridge", "fdb", "show", "dev", "weft.vxlan"])?.text("bridge")?;
        macs.extend(text.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)));
    }
    assert_eq!(macs.len(), 2, "each node knows exactly the other: {macs:?}");
    Ok(macs)
}
