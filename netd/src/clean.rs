// SPDX-License-Identifier: Apache-2.0
//! `netd clean`: everything that carries this node's marks goes: pins and links, devices, routes, addresses, the nft table,
//! forward rules; sysctls get their old values. State on disk (identity, journal) stays, so that the node can come back.

use anyhow::{Context, Result, bail};
use netd_host::Host;
use netd_plan::{HostObjects, plan};

use crate::attachments::Attachments;
use crate::config::Config;
use crate::node::Node;
use crate::settings::Settings;
use crate::{daemon, identity};

/// Goes on after errors, and reports them at the end.
pub(crate) async fn clean(config: &Config) -> Result<()> {
    if daemon::is_running(&config.socket()).await {
        bail!("netd is running ({} answers): stop it first", config.socket().display());
    }
    let mut failures = Vec::new();
    let mut note = |what: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    note("pod links", pods(config).await);
    note("BPF pins", pins(config));
    note("links and routes", objects().await);
    note("host settings", settings(config).await);
    if failures.is_empty() {
        tracing::info!("clean: nothing of this node is left in the kernel");
        return Ok(());
    }
    bail!("not everything could be removed: {}", failures.join("; "))
}

async fn pods(config: &Config) -> Result<()> {
    let attachments = Attachments::load(&config.state_dir)?;
    for attachment in attachments.iter() {
        netd_host::veth::delete_host_link(&attachment.host_ifname).await?;
        tracing::info!(link = attachment.host_ifname, "removed");
    }
    Ok(())
}

fn pins(config: &Config) -> Result<()> {
    if let Some(uuid) = identity::load(&config.state_dir) {
        let dir = Node::pin_dir(config, uuid);
        let removed = ebpf_loader::remove_all(&dir)?;
        tracing::info!(dir = %dir.display(), ?removed, "removed");
        // The folders above are the node's and the cluster's: removed when they are empty.
        for above in dir.ancestors().skip(1).take(3) {
            if std::fs::remove_dir(above).is_err() {
                break;
            }
        }
    }
    Ok(())
}

async fn objects() -> Result<()> {
    let host = Host::open()?;
    let observed = host.observe().await.context("reading links and routes")?;
    for op in plan(&HostObjects::default(), &observed) {
        host.apply(&op).await.with_context(|| op.to_string())?;
        tracing::info!(object = %op.key(), "removed");
    }
    Ok(())
}

async fn settings(config: &Config) -> Result<()> {
    Settings::open(&config.state_dir)?.remove().await
}
