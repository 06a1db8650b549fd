// SPDX-License-Identifier: Apache-2.0
//! Promises of a node whose store is a file: it needs no other host.

use super::stage::Stage;
use super::survival;
use anyhow::{Context, Result, ensure};
use netd_api::ServiceDetail;
use std::fs;
use std::net::{IpAddr, SocketAddr};

const LATE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: late, namespace: default}
spec:
  selector: {app: web}
  ports:
  - {name: http, protocol: TCP, port: 80, targetPort: 8080}
";

pub(super) fn cut_off(stage: &mut Stage<'_>) -> Result<String> {
    let (lab, node) = (stage.lab, stage.nodes[0]);
    ensure!(lab.state()?.etcd.is_empty(), "this lab has an etcd");
    let folder = lab.state()?.node(node)?.dir.join("state/store");
    let files = fs::read_dir(&folder).with_context(|| folder.display().to_string())?.count();
    ensure!(files > 0, "{} is empty", folder.display());
    lab.partition(node, "all")?;
    let result = survival::go_on(stage);
    // Whatever happened: the promises after this one need the outside host.
    lab.heal(node)?;
    Ok(format!("{files} files, no etcd; {}", result?))
}

pub(super) fn killed_after_apply(stage: &mut Stage<'_>) -> Result<String> {
    let (lab, node) = (stage.lab, stage.nodes[0]);
    let reply = lab.apply(LATE)?;
    lab.node_kill(node)?;
    let given = reply.results.iter().find_map(|result| result.cluster_ip).context("late got no ClusterIP")?;
    let status = lab.node_start(node)?;
    ensure!(
        status.programmed_revision >= reply.revision,
        "after the start the store is at revision {}, not {}",
        status.programmed_revision,
        reply.revision
    );
    for (name, ip) in [("late", given), ("web", stage.vip)] {
        let detail = lab.ask(node, async |client| client.service("default", name).await)?;
        ensure!(addresses(&detail) == [ip], "{name} had {ip} and has {:?}", addresses(&detail));
    }
    let report = stage.connect("c1", &SocketAddr::new(given, 80).to_string(), 20)?;
    Ok(format!(
        "revision {} is there; late is {given} and web {} as before; {} connections: {}",
        reply.revision,
        stage.vip,
        report.ok,
        report.spread()
    ))
}

fn addresses(detail: &ServiceDetail) -> &[IpAddr] {
    &detail.info.cluster_ips
}
