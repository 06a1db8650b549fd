// SPDX-License-Identifier: Apache-2.0
//! A store that is not there yet.

use crate::lab;
use anyhow::Result;
use std::fs;
use std::time::Duration;
use weft_lab::{PodSpec, wait_until};

#[test]
fn a_first_start_without_store_says_so_and_waits() -> Result<()> {
    let Some(lab) = lab("nostore", 1)? else { return Ok(()) };
    lab.node_stop("n1")?;
    lab.etcd_stop()?;
    // A node that was never in step has no snapshot to stand on.
    let state = lab.state()?.node("n1")?.dir.join("state");
    let pins = lab.pin_dir("n1")?;
    fs::remove_dir_all(&state)?;
    fs::create_dir(&state)?;
    fs::remove_dir_all(pins)?;
    lab.node_spawn("n1")?;
    let mut reasons = String::new();
    let said = wait_until(Duration::from_secs(15), || {
        if let Ok(status) = lab.status("n1") {
            assert!(!status.ready);
            reasons = status.reasons.join("; ");
        }
        Ok(reasons.contains("172.31.77.2") || reasons.contains("store"))
    })?;
    assert!(said, "the reasons do not name the store: {reasons:?}");
    let ready = ["curl", "-s", "-w", "%{http_code}", "http://127.0.0.1:9157/readyz"];
    let answer = lab.exec("n1", &ready)?.text("readyz")?;
    assert!(answer.ends_with("503") && answer.len() > 3, "{answer}");
    let healthy = ["curl", "-sf", "http://127.0.0.1:9157/healthz"];
    assert!(lab.exec("n1", &healthy)?.ok(), "netd that waits is healthy");
    let error = lab.pod_add(&PodSpec::new("n1", "early")).unwrap_err().to_string();
    assert!(error.contains("\"code\": 11") || error.contains("\"code\":11"), "{error}");

    lab.etcd_start()?;
    let mut last = None;
    let ready = wait_until(Duration::from_secs(20), || {
        last = lab.status("n1").ok();
        Ok(last.as_ref().is_some_and(|status| status.ready))
    })?;
    assert!(ready, "{last:?}\n{}", lab.node_log("n1", 20)?);
    lab.pod_add(&PodSpec::new("n1", "late"))?;
    lab.down()
}
