// SPDX-License-Identifier: Apache-2.0
//! Network namespaces by their names in /run/netns.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Where iproute2 keeps them.
const NAMES: &str = "/run/netns";

/// A namespace's file.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

/// On a thread of its own in a namespace; programs that it starts are there from their first instruction, sockets that it
/// opens stay there.
pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(netns).with_context(|| netns.display().to_string())?;
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", netns.display()))?;
            work()
        });
        thread.join().map_err(|_| anyhow!("a measuring thread panicked"))?
    })
}

/// A program in a namespace; arguments are to be added. It keeps the process's id: nothing forks on the way.
pub(crate) fn command(netns: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(netns).display())).arg("--").arg(program).stdin(Stdio::null());
    command
}

/// Removes every namespace whose name begins so; none is fine.
pub(crate) fn remove_all(prefix: &str) {
    let names = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    for name in names.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(prefix))
    {
        let _ = Command::new("ip").args(["netns", "del"]).arg(&name).stderr(Stdio::null()).status();
    }
}
