// SPDX-License-Identifier: Apache-2.0
//! Short grace periods for what waits for one: attaching a program to a link ends with the kernel's `synchronize_rcu`
//! under the lock of all links, some 15 ms in which nothing else of the network is configured either.
//!
//! `/sys/kernel/rcu_expedited` (Documentation/ABI/testing/sysfs-kernel-rcu, an integer) makes the kernel ask every CPU at
//! once instead of waiting until each has passed by. That costs each CPU an interrupt, so it is asked for only while such
//! a call is under way. Any non-zero number means yes: [`OURS`] says that it was us. What a killed process left is
//! recognised by it, and 0 again after the next use, or by [`settle`]. Another number is the administrator's and stays.
//!
//! Nothing excludes two netds of one kernel: a lock on the file would not (each network namespace has its own sysfs, with
//! its own inode), and every user of the host could hold it. Nothing needs to: who finds [`OURS`] goes along, who ends
//! writes 0, and one that is still at work then waits for an ordinary grace period.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

/// The kernel's switch, in the sysfs of the calling mount namespace.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// What the switch says while one of us is at work: the number that marks our routes, too.
const OURS: i64 = 157;
/// What it says while nobody wants anything.
const OFF: i64 = 0;

static KERNEL: LazyLock<Switch> = LazyLock::new(|| Switch::new(Path::new(SWITCH)));

/// Grace periods are short while one of these lives; of the whole process the last one ends it. Keep it for one system
/// call, on one thread.
#[derive(Debug)]
#[must_use = "grace periods are short only while it lives"]
pub struct Expedited {
    switch: Option<&'static Switch>,
}

impl Expedited {
    /// From here on, when `wanted` and the kernel lets us; otherwise nothing changes, and things take as long as they do.
    pub fn begin(wanted: bool) -> Self {
        let switch = wanted.then_some(&*KERNEL);
        if let Some(switch) = switch {
            switch.begin();
        }
        Self { switch }
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Some(switch) = self.switch {
            switch.end();
        }
    }
}

/// Puts back what a killed process of ours left, unless one of this process is at work; for a start and for `netd clean`.
/// Says whether there was something.
pub fn settle() -> io::Result<bool> {
    KERNEL.settle()
}

#[derive(Debug)]
struct Switch {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Calls under way.
    users: usize,
    /// It was us who switched it on for them.
    ours: bool,
    /// That it cannot be switched was said.
    said: bool,
}

impl Switch {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), state: Mutex::default() }
    }

    fn begin(&self) {
        let mut state = self.lock();
        state.users += 1;
        if state.users > 1 {
            return;
        }
        let switched = self.read().and_then(|value| match value {
            OFF => self.write(OURS).map(|()| true),
            // Of one that was killed, or another netd's at this moment.
            OURS => Ok(true),
            _ => Ok(false),
        });
        state.ours = match switched {
            Ok(ours) => ours,
            Err(error) => {
                if !state.said {
                    tracing::info!(switch = %self.path.display(), %error, "grace periods cannot be shortened: attaching takes longer");
                }
                state.said = true;
                false
            }
        };
    }

    fn end(&self) {
        let mut state = self.lock();
        state.users = state.users.saturating_sub(1);
        if state.users > 0 || !std::mem::take(&mut state.ours) {
            return;
        }
        if let Err(error) = self.put_back() {
            tracing::warn!(switch = %self.path.display(), %error, "it stays on until the next use");
        }
    }

    fn settle(&self) -> io::Result<bool> {
        let state = self.lock();
        if state.users > 0 {
            return Ok(false);
        }
        match self.put_back() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            outcome => outcome,
        }
    }

    /// 0 where our mark stands; anything else was written meanwhile by somebody who means it.
    fn put_back(&self) -> io::Result<bool> {
        let ours = self.read()? == OURS;
        if ours {
            self.write(OFF)?;
        }
        Ok(ours)
    }

    fn read(&self) -> io::Result<i64> {
        let text = fs::read_to_string(&self.path)?;
        text.trim().parse().map_err(|_| io::Error::other(format!("{:?} is no number", text.trim())))
    }

    fn write(&self, value: i64) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).truncate(true).open(&self.path)?;
        file.write_all(format!("{value}\n").as_bytes())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(value: &str) -> (tempfile::TempDir, Switch) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rcu_expedited");
        fs::write(&path, value).unwrap();
        (dir, Switch::new(&path))
    }

    #[test]
    fn on_for_as_long_as_anyone_is_at_work() {
        let (_dir, switch) = switch("0\n");
        switch.begin();
        switch.begin();
        assert_eq!(switch.read().unwrap(), OURS);
        assert!(!switch.settle().unwrap(), "it is in use");
        switch.end();
        assert_eq!(switch.read().unwrap(), OURS);
        switch.end();
        assert_eq!(switch.read().unwrap(), OFF);
        assert!(!switch.settle().unwrap());
    }

    #[test]
    fn what_a_killed_process_left_goes() {
        let (_dir, left) = switch("157\n");
        left.begin();
        left.end();
        assert_eq!(left.read().unwrap(), OFF, "by the next use");
        let (_dir, left) = switch("157\n");
        assert!(left.settle().unwrap());
        assert_eq!(left.read().unwrap(), OFF, "by a start or clean");
    }

    #[test]
    fn what_an_administrator_wrote_stays() {
        let (_dir, switch) = switch("1\n");
        switch.begin();
        assert_eq!(switch.read().unwrap(), 1);
        switch.end();
        assert!(!switch.settle().unwrap());
        assert_eq!(switch.read().unwrap(), 1);
        switch.write(OFF).unwrap();
        switch.begin();
        switch.write(1).unwrap();
        switch.end();
        assert_eq!(switch.read().unwrap(), 1, "written while we were at work");
    }

    #[test]
    fn a_kernel_without_the_switch_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::new(&dir.path().join("absent"));
        switch.begin();
        switch.end();
        assert!(!switch.settle().unwrap() && !switch.path.exists());
    }
}
