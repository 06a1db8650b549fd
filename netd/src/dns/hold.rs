// SPDX-License-Identifier: Apache-2.0
//! Who holds the DNS server's sockets while netd is away: `netd hold-sockets` where one runs, which somebody started on purpose;
//! else systemd where it starts netd. Without either, questions that come during a restart are lost, and clients ask again.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use dns_server::DnsServer;
use dns_server::hold::{Holder, HolderClient, systemd};

use crate::config::Config;

/// The holder's socket in the run directory.
const SOCKET_FILE: &str = "dns-holder.sock";

/// Runs until it is killed, and holds what netd gives it.
pub(crate) fn hold_sockets(config: &Config) -> Result<()> {
    let path = path(config);
    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot create {}", config.run_dir.display()))?;
    let holder = Holder::bind(&path)
        .with_context(|| format!("cannot listen at {}: does another holder run?", path.display()))?;
    tracing::info!(path = %path.display(), "holding the DNS server's sockets for netd");
    holder.run().context("the holder's socket failed")
}

/// What was held while netd was away.
pub(crate) fn take(config: &Config) -> Vec<OwnedFd> {
    // Most hosts have no holder, which is nothing to speak of.
    let mut held = HolderClient::new(&path(config)).take().unwrap_or_default();
    // Taken in any case: sockets that nobody reads would get questions, too.
    let inherited = systemd::inherited();
    if held.is_empty() {
        held = inherited;
    }
    if !held.is_empty() {
        tracing::info!(sockets = held.len(), "the DNS server's sockets were held while netd was away");
    }
    held
}

/// Has the server's sockets held from now on.
pub(crate) fn keep(config: &Config, server: &DnsServer) {
    let sockets = server.sockets();
    if path(config).exists() {
        match HolderClient::new(&path(config)).hold(&sockets) {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, "`netd hold-sockets` does not answer: unless systemd holds them, DNS questions are lost \
                    while netd restarts");
            }
        }
    }
    // That it was sent says nothing of whether it is kept: a unit without FileDescriptorStoreMax= drops it without a word.
    if let Err(error) = systemd::store(&sockets) {
        tracing::warn!(%error, "systemd does not take the DNS server's sockets: see FileDescriptorStoreMax=");
    }
}

/// Has the holder let go of what it holds for this node: nobody answers there any more.
pub(crate) fn release(config: &Config) -> Result<()> {
    match HolderClient::new(&path(config)).hold(&[]) {
        // No holder, or one that has died with what it held.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        outcome => outcome.context("`netd hold-sockets` does not let go of the DNS server's sockets"),
    }
}

fn path(config: &Config) -> PathBuf {
    config.run_dir.join(SOCKET_FILE)
}
