// SPDX-License-Identifier: Apache-2.0
//! Host settings around the datapath: forwarding sysctls, our nft table, and acceptance where the host's FORWARD policy is
//! DROP. Old values are remembered; `netd clean` puts them back.

use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;
use netd_host::{Forward, Forwarding, Nft, Sysctls, router};
use netd_plan::{NftConfig, render_nft};

/// Keeps the settings as they should be.
#[derive(Debug)]
pub(crate) struct Settings {
    nft: Nft,
    /// iptables' FORWARD chains, where the host has them: IPv4's and IPv6's.
    forward: Vec<Forward>,
    sysctls: Sysctls,
    /// Script that was applied, and how the kernel listed the table right after.
    applied: Option<(String, Option<String>)>,
    /// The last pass came to its end.
    complete: bool,
}

impl Settings {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        Ok(Self {
            nft: Nft::find().context("netd keeps its masquerade and fail-closed rules with nft")?,
            forward: Forward::find().into_iter().chain(Forward::find_v6()).collect(),
            sysctls: Sysctls::open(state_dir).context("cannot open the record of old sysctl values")?,
            applied: None,
            complete: false,
        })
    }

    /// Brings everything to what it should be. Without doubt only a change of what is wanted is acted upon.
    pub(crate) async fn pass(
        &mut self,
        rules: &NftConfig,
        pod_cidrs: &[IpNet],
        uplink: &str,
        doubt: bool,
    ) -> Result<()> {
        let wanted = render_nft(rules);
        if !doubt && self.complete && self.applied.as_ref().is_some_and(|(applied, _)| *applied == wanted) {
            return Ok(());
        }
        self.complete = false;
        self.keep_sysctls(uplink, pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()))?;
        self.keep_table(wanted).await?;
        for forward in &self.forward {
            if forward.ensure(pod_cidrs).await? == Forwarding::Inserted {
                tracing::info!("the host's FORWARD policy is DROP: pod traffic is accepted there now");
            }
        }
        self.complete = true;
        Ok(())
    }

    fn keep_sysctls(&mut self, uplink: &str, forward_v6: bool) -> Result<()> {
        router::forward_ipv4(&mut self.sysctls)?;
        if forward_v6 {
            router::forward_ipv6(&mut self.sysctls, uplink)?;
        }
        Ok(())
    }

    async fn keep_table(&mut self, script: String) -> Result<()> {
        let listed = self.nft.observe().await?;
        if let Some((applied, listing)) = &self.applied
            && *applied == script
            && listing.is_some()
            && *listing == listed
        {
            return Ok(());
        }
        self.nft.apply(&script).await?;
        tracing::info!(table = netd_plan::NFT_TABLE, drift = self.applied.is_some(), "nft table written");
        self.applied = Some((script, self.nft.observe().await?));
        Ok(())
    }

    /// `netd clean`: our nft table and iptables rules go. Without the programs there is nothing of ours they could remove.
    pub(crate) async fn remove_rules() -> Result<()> {
        if let Ok(nft) = Nft::find() {
            nft.remove().await?;
        }
        for forward in Forward::find().into_iter().chain(Forward::find_v6()) {
            forward.remove().await?;
        }
        Ok(())
    }

    /// `netd clean`: the sysctls that we changed get their old values.
    pub(crate) fn restore_sysctls(state_dir: &Path) -> Result<()> {
        if !state_dir.is_dir() {
            return Ok(());
        }
        for restored in Sysctls::open(state_dir)?.restore_all()? {
            tracing::info!(?restored, "sysctl restored");
        }
        Ok(())
    }
}
