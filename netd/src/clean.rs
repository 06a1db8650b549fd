// SPDX-License-Identifier: Apache-2.0
//! `netd clean`: everything that carries this node's marks goes: pins and links, devices, routes, addresses, the nft table,
//! forward rules, sockets that somebody holds for it; sysctls get their old values. State on disk (identity, journal) stays, so that
//! the node can come back.

use anyhow::{Context, Result, bail};
use ipam::{AttachmentKey, Owner, Timestamp};
use netd_host::{Host, LinkKind};
use netd_plan::{HostObjects, plan};

use crate::addressing::Addresses;
use crate::attachments::Attachments;
use crate::config::Config;
use crate::dns;
use crate::dropin::DropIn;
use crate::files::lock_state;
use crate::identity;
use crate::node::now_ms;
use crate::pins;
use crate::settings::Settings;
use crate::tunnel;

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
    note("DNS sockets", dns::release_sockets(config));
    note("attachments", attachments(config));
    note("BPF pins", own_pins(config));
    let expedited = ebpf_loader::settle_expedited().map(drop).map_err(anyhow::Error::from);
    note("/sys/kernel/rcu_expedited", expedited);
    note("links and routes", objects().await);
    let mut kept = Vec::new();
    note("WireGuard devices", tunnel::clean(config, &mut kept).await);
    note("nft table and iptables rules", Settings::remove_rules().await);
    note("sysctls", Settings::restore_sysctls(&config.state_dir));
    if failures.is_empty() && kept.is_empty() {
        tracing::info!("clean: nothing of this node is left in the kernel");
        return Ok(());
    }
    if failures.is_empty() {
        tracing::info!(
            devices = kept.join(", "),
            "clean: of this node only the devices of weft-wireguard, which runs, are left in the kernel, without keys and \
             peers; to remove those, too: stop it, then `netd clean` again"
        );
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

/// The pins of this node, also of identities that it had before its state directory was emptied.
fn own_pins(config: &Config) -> Result<()> {
    let uuid = identity::load(&config.state_dir);
    pins::remove(&config.bpf_dir, &config.cluster, uuid, pins::own_netns()?)
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
