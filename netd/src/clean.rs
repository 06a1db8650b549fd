// SPDX-License-Identifier: Apache-2.0
//! `netd clean`: everything that carries this node's marks goes: pins and links, devices, routes, addresses, the nft table,
//! forward rules; sysctls get their old values. State on disk (identity, journal) stays, so that the node can come back.

use anyhow::{Context, Result, bail};
use ipam::{AttachmentKey, Owner, Timestamp};
use netd_host::{Host, LinkKind};
use netd_plan::{HostObjects, plan};

use crate::addressing::Addresses;
use crate::attachments::Attachments;
use crate::config::Config;
use crate::dropin::DropIn;
use crate::files::lock_state;
use crate::identity;
use crate::node::{Node, now_ms};
use crate::settings::Settings;

/// Goes on after errors, and reports them at the end.
pub(crate) async fn clean(config: &Config) -> Result<()> {
    let _state = if config.state_dir.is_dir() { Some(lock_state(&config.state_dir)?) } else { None };
    let mut failures = Vec::new();
    let mut note = |what: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    if let Some(drop_in) = &config.drop_in {
        // First: from now on the runtime gives this node no pods.
        note("network config", DropIn::remove(&drop_in.dir).map(drop).map_err(anyhow::Error::from));
    }
    for link in pod_links().await.unwrap_or_default() {
        let outcome = netd_host::veth::delete_host_link(&link).await.map_err(anyhow::Error::from);
        note(&link, outcome);
        tracing::info!(link, "removed");
    }
    note("attachments", attachments(config));
    note("BPF pins", pins(config));
    note("links and routes", objects().await);
    note("nft table and iptables rules", Settings::remove_rules().await);
    note("sysctls", Settings::restore_sysctls(&config.state_dir));
    if failures.is_empty() {
        tracing::info!("clean: nothing of this node is left in the kernel");
        return Ok(());
    }
    bail!("not everything could be removed: {}", failures.join("; "))
}

/// Host ends of pods, by the mark in their names.
async fn pod_links() -> Result<Vec<String>> {
    let links = Host::open()?.links().await?;
    Ok(links
        .into_iter()
        .filter(|link| link.is_own() && matches!(link.kind, LinkKind::Veth | LinkKind::Ifb))
        .map(|link| link.name)
        .collect())
}

/// The pods have lost their links: their addresses are free.
fn attachments(config: &Config) -> Result<()> {
    let Some(uuid) = identity::load(&config.state_dir) else { return Ok(()) };
    let mut addresses = Addresses::open(&config.state_dir, uuid, config.cool_down)?;
    let mut attachments = Attachments::load(&config.state_dir)?;
    let keys: Vec<AttachmentKey> = attachments.iter().map(|a| a.key.clone()).collect();
    for key in keys {
        addresses.release(&Owner::Attachment(key.clone()), Timestamp(now_ms()))?;
        attachments.remove(&key)?;
    }
    Ok(())
}

/// The pins of every ABI version that this node had.
fn pins(config: &Config) -> Result<()> {
    let Some(uuid) = identity::load(&config.state_dir) else { return Ok(()) };
    let current = Node::pin_dir(config, uuid);
    let Some(of_node) = current.parent() else { return Ok(()) };
    let versions = match std::fs::read_dir(of_node) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e).with_context(|| of_node.display().to_string()),
    };
    for dir in versions {
        let removed = ebpf_loader::remove_all(&dir)?;
        tracing::info!(dir = %dir.display(), ?removed, "removed");
    }
    // The folders above are the node's and the cluster's: removed when they are empty.
    for above in current.ancestors().skip(1).take(3) {
        if std::fs::remove_dir(above).is_err() {
            break;
        }
    }
    Ok(())
}

async fn objects() -> Result<()> {
    let host = Host::open()?;
    let observed = host.observe().await.context("reading links and routes")?;
    let mut failures = Vec::new();
    for op in plan(&HostObjects::default(), &observed) {
        match host.apply(&op).await {
            Ok(()) => tracing::info!(object = %op.key(), "removed"),
            Err(error) => failures.push(format!("{op}: {error}")),
        }
    }
    anyhow::ensure!(failures.is_empty(), failures.join("; "));
    Ok(())
}
