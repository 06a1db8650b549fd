// SPDX-License-Identifier: Apache-2.0
//! A place where a command runs: network namespace, control group, resolv.conf. Entered in place, without a fork.

use crate::{cgroup, mounts, names};
use anyhow::{Context, Error, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

/// What a command sees instead of the caller's own.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Name of the network namespace.
    pub netns: Option<String>,
    /// Control group to run in.
    pub cgroup: Option<PathBuf>,
    /// Laid over /etc/resolv.conf in a private mount namespace.
    pub resolv_conf: Option<PathBuf>,
    /// Laid over /var/run/wireguard in a private mount namespace.
    pub wireguard_dir: Option<PathBuf>,
}

impl Place {
    /// The arguments of `weft-lab enter` for this place.
    pub fn args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        let mut push = |flag: &str, value: Option<OsString>| {
            if let Some(value) = value {
                args.extend([flag.into(), value]);
            }
        };
        push("--netns", self.netns.clone().map(Into::into));
        push("--cgroup", self.cgroup.clone().map(Into::into));
        push("--resolv-conf", self.resolv_conf.clone().map(Into::into));
        push("--wireguard-dir", self.wireguard_dir.clone().map(Into::into));
        args
    }

    /// Enters the place and becomes the command. Returns only on failure.
    ///
    /// The calling process is changed for good: exit after an error.
    pub fn exec(&self, argv: &[OsString]) -> Failure {
        if let Err(error) = self.enter() {
            return Failure { exit_code: 1, error };
        }
        let Some((program, args)) = argv.split_first() else {
            return Failure { exit_code: 2, error: anyhow!("no command given") };
        };
        let error = Command::new(program).args(args).exec();
        // As shells do: 127 for a command that does not exist, 126 for one that cannot run.
        let exit_code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
        Failure { exit_code, error: Error::new(error).context(program.to_string_lossy().into_owned()) }
    }

    fn enter(&self) -> Result<()> {
        if let Some(group) = &self.cgroup {
            cgroup::join(group)?;
        }
        if let Some(netns) = &self.netns {
            switch_netns(netns)?;
        }
        if self.resolv_conf.is_some() || self.wireguard_dir.is_some() {
            mounts::unshare_mounts()?;
        }
        if let Some(folder) = &self.wireguard_dir {
            mounts::cover_wireguard(folder)?;
        }
        if let Some(file) = &self.resolv_conf {
            mounts::cover_resolv_conf(file)?;
        }
        Ok(())
    }
}

/// Why a command did not run.
#[derive(Debug)]
pub struct Failure {
    /// What to exit with.
    pub exit_code: u8,
    /// What to say.
    pub error: Error,
}

/// Runs a closure in a network namespace, on a thread of its own that ends afterwards.
pub fn in_netns<T: Send>(netns: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            switch_netns(netns)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("a thread in namespace {netns} panicked"))?
    })
}

fn switch_netns(netns: &str) -> Result<()> {
    let path = names::netns_path(netns);
    let file = File::open(&path).with_context(|| format!("network namespace {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", path.display()))
}
