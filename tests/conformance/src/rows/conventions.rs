// SPDX-License-Identifier: Apache-2.0
//! CONVENTIONS.md beside the capabilities: CNI_ARGS, args, parallel calls.

use super::{Group, Row};
use crate::attachment::Attachment;
use crate::runtime::{IFNAME, Runtime};
use crate::verdict::{Checked, Stop, expect, fail};
use ipnet::IpNet;
use serde_json::json;
use std::collections::BTreeSet;
use std::thread;

/// Containers that come and go at once.
const PARALLEL: usize = 8;

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Conventions, name, title, check)
}

pub(super) const ROWS: &[Row] = &[
    row(
        "conv.parallel",
        "Plugins must handle being executed concurrently across different containers",
        parallel,
    ),
    row(
        "conv.cni-args",
        "CNI_ARGS with IgnoreUnknown, as Kubernetes' runtimes send it, is accepted",
        cni_args,
    ),
    row("conv.labels", "args.cni.labels are accepted", labels),
    row("conv.undeclared", "With no capability asked for, runtimeConfig may be absent or empty", undeclared),
];

fn parallel(runtime: &Runtime) -> Checked {
    let containers = (0..PARALLEL).map(|_| runtime.container()).collect::<Checked<Vec<_>>>()?;
    let added: Vec<Checked<Attachment<'_>>> = thread::scope(|scope| {
        let threads: Vec<_> =
            containers.iter().map(|container| scope.spawn(|| runtime.attach(container))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    let added = added.into_iter().collect::<Checked<Vec<_>>>()?;
    let addresses: Vec<IpNet> = added.iter().flat_map(|attachment| attachment.result.addresses()).collect();
    let distinct: BTreeSet<_> = addresses.iter().map(IpNet::addr).collect();
    expect(distinct.len() == addresses.len(), || format!("an address was given twice: {addresses:?}"))?;
    for (container, attachment) in containers.iter().zip(&added) {
        let there = container.place().addresses(IFNAME)?;
        expect(attachment.result.addresses().iter().all(|address| there.contains(address)), || {
            format!("the result says {:?}, the container has {there:?}", attachment.result.addresses())
        })?;
    }
    let deleted: Vec<Checked> = thread::scope(|scope| {
        let threads: Vec<_> =
            added.iter().map(|attachment| scope.spawn(|| attachment.del("in parallel"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    deleted.into_iter().collect()
}

fn panicked<T>() -> Checked<T> {
    Err(Stop::Runner(anyhow::anyhow!("a thread of the runner panicked")))
}

fn cni_args(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=conformance;K8S_POD_INFRA_CONTAINER_ID={};\
         K8S_POD_UID=6d2a6a5c-6c1f-4a53-9b5b-1f2f3a4b5c6d;CONFORMANCE=1",
        container.id
    );
    Attachment::make(runtime.add(&container).env("CNI_ARGS", &args), "with CNI_ARGS")?.del("with CNI_ARGS")
}

fn labels(runtime: &Runtime) -> Checked {
    let container = runtime.container()?;
    let args = json!({ "cni": { "labels": [{ "key": "app", "value": "conformance" }] } });
    Attachment::make(runtime.add(&container).key("args", args), "with labels")?.del("with labels")
}

fn undeclared(runtime: &Runtime) -> Checked {
    for (about, value) in
        [("with an empty runtimeConfig", json!({})), ("with a null runtimeConfig", json!(null))]
    {
        let container = runtime.container()?;
        let attachment = Attachment::make(runtime.add(&container).key("runtimeConfig", value), about)?;
        if attachment.result.own(IFNAME, &container.path()).is_none() {
            return fail(format!("{about}: the result lists no {IFNAME}"));
        }
        attachment.del(about)?;
    }
    Ok(())
}
