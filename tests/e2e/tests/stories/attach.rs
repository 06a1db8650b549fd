// SPDX-License-Identifier: Apache-2.0
//! Per-packet programs attach by TCX, or by clsact where the kernel is older, and one takes over from the other.

use crate::{have, lab_with};
use anyhow::Result;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, UpOptions};

#[test]
fn clsact_works_and_switching_to_tcx_and_back_cuts_nothing() -> Result<()> {
    if !have("tc", "attach") {
        return Ok(());
    }
    let mut options = UpOptions { nodes: 1, ..UpOptions::new(&Lab::unique_name("attach")) };
    options.netd_args = vec!["--datapath-attach".into(), "clsact".into()];
    let Some(lab) = lab_with(options)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "a"))?;
    let b = lab.pod_add(&PodSpec::new("n1", "b"))?;
    let _server = lab.serve("b", "b", &[8080], &[])?;
    let to = format!("{}:8080", b.ips[0]);
    assert!(lab.probe("a", &["--to", &to, "--count", "10"])?.all_ok());
    assert_eq!((filters(&lab)?, tcx_pins(&lab)?), (4, 0), "clsact");

    let mut transfer = lab.stream("a", &to, Duration::from_secs(30))?;
    transfer.wait_line(Duration::from_secs(5))?;
    for (mode, wanted) in [("tcx", (0, 4)), ("clsact", (4, 0))] {
        lab.node_stop("n1")?;
        lab.netd_args(&["--datapath-attach", mode])?;
        if let Err(error) = lab.node_start("n1") {
            // Linux 6.6 has TCX; netd on an older one says so.
            assert!(format!("{error:#}").contains("TCX"), "{error:#}");
            println!("SKIP attach: this kernel has no TCX");
            return lab.down();
        }
        assert!(lab.probe("a", &["--to", &to, "--count", "10"])?.all_ok(), "after the switch to {mode}");
        assert_eq!((filters(&lab)?, tcx_pins(&lab)?), wanted, "{mode}");
        transfer.lines();
        transfer.wait_line(Duration::from_secs(5))?;
    }
    assert!(transfer.alive(), "{:?}", transfer.errors());
    // A pod that cheats is caught by either: this one is clsact.
    let dropped = lab.exec("a", &["ping", "-c1", "-W1", "-I", "lo", &b.ips[0].to_string()])?;
    assert!(!dropped.ok(), "a packet from 127.0.0.1 got through");
    drop(transfer);
    lab.down()
}

/// BPF filters on the host ends of n1, in both directions.
fn filters(lab: &Lab) -> Result<usize> {
    let mut count = 0;
    let links = lab.exec("n1", &["ip", "-o", "link", "show", "type", "veth"])?.text("ip link")?;
    let names = links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    for name in names.filter(|name| name.starts_with("weft")) {
        for side in ["ingress", "egress"] {
            let text = lab.exec("n1", &["tc", "filter", "show", "dev", name, side])?.text("tc filter")?;
            count += usize::from(text.contains("bpf"));
        }
    }
    Ok(count)
}

/// Pinned links of pods; what marks a filter as ours is a folder there.
fn tcx_pins(lab: &Lab) -> Result<usize> {
    let mut count = 0;
    for version in std::fs::read_dir(lab.pin_dir("n1")?)? {
        let pins = std::fs::read_dir(version?.path().join("links"))?;
        let of_pods = pins.flatten().filter(|pin| pin.file_name().to_string_lossy().starts_with("pod-"));
        count += of_pods.filter(|pin| !pin.path().is_dir()).count();
    }
    Ok(count)
}
