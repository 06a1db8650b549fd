// SPDX-License-Identifier: Apache-2.0

//! Sysctls under /proc/sys, with a durable record of what they were.
//!
//! The record is written before the first change of a value and never overwritten by later ones, so that a restart or a
//! second setting does not take our own value for the host's. `/proc/sys/net` shows the netns of the calling thread.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The record's name in the state directory.
pub const RECORD_FILE: &str = "sysctls.json";
/// Version of the record's layout.
const SCHEMA: u32 = 1;
pub(crate) const ROOT: &str = "/proc/sys";

/// The sysctls that we set, and their record.
#[derive(Debug)]
pub struct Sysctls {
    record_path: PathBuf,
    record: Record,
}

/// What [`Sysctls::restore_all`] did to one sysctl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// Not there any more, for example because its link is gone.
    Absent(String),
    /// Somebody set another value after us; it was left alone.
    Changed(String),
    /// It has its old value again.
    Restored(String),
}

/// A failed sysctl operation.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Not a relative path of plain names below /proc/sys, with slashes or dots.
    #[error("`{key}` is no sysctl path such as `net/ipv4/ip_forward`")]
    BadPath {
        /// The path given.
        key: String,
    },
    /// The record is not ours or damaged.
    #[error("{}: {reason}; move it away to start a new record (old values are then not restored)", path.display())]
    BadRecord {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Record {
    schema: u32,
    values: BTreeMap<String, Values>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Values {
    old: String,
    ours: String,
}

impl Sysctls {
    /// Opens the record in `state_dir`, which must exist.
    pub fn open(state_dir: impl AsRef<Path>) -> Result<Self, SysctlError> {
        let record_path = state_dir.as_ref().join(RECORD_FILE);
        let record = match fs::read(&record_path) {
            Ok(bytes) => parse_record(&record_path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Record { schema: SCHEMA, ..Record::default() }
            }
            Err(source) => return Err(SysctlError::Io { path: record_path, source }),
        };
        Ok(Self { record_path, record })
    }

    /// Sets `key` (`net/ipv4/ip_forward`, or with dots as for sysctl(8)) to `value`, remembering the old value the first time. Returns whether the
    /// kernel's value changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        let old = read(key)?;
        let key = &canonical(key);
        if old == value {
            return Ok(false);
        }
        let known = self.record.values.get(key).cloned();
        let values = Values { old: known.map_or(old, |values| values.old), ours: value.to_owned() };
        if self.record.values.get(key) != Some(&values) {
            self.record.values.insert(key.to_owned(), values);
            self.save()?;
        }
        write(key, value)?;
        Ok(true)
    }

    /// As [`Self::set`], where the sysctl exists; a kernel without IPv6 has no `net/ipv6`.
    pub fn set_if_present(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        if file_of(key)?.exists() { self.set(key, value) } else { Ok(false) }
    }

    /// Gives every sysctl its old value back where it still has ours, and empties the record. An error stops before the
    /// record is changed; calling it again is safe.
    pub fn restore_all(&mut self) -> Result<Vec<Restored>, SysctlError> {
        let mut outcome = Vec::with_capacity(self.record.values.len());
        for (key, values) in &self.record.values {
            let key = key.clone();
            outcome.push(match read(&key) {
                Ok(now) if now == values.ours => {
                    write(&key, &values.old)?;
                    Restored::Restored(key)
                }
                Ok(now) if now == values.old => Restored::Restored(key),
                Ok(_) => Restored::Changed(key),
                Err(SysctlError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Restored::Absent(key)
                }
                Err(error) => return Err(error),
            });
        }
        self.record.values.clear();
        self.save()?;
        Ok(outcome)
    }

    /// Durable before it returns: written beside, synced, renamed, and the folder synced.
    fn save(&self) -> Result<(), SysctlError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SysctlError::Io { path, source }
        };
        let folder = self.record_path.parent().unwrap_or(Path::new("/"));
        let beside = self.record_path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(&self.record)
            .map_err(|error| failed(&beside)(io::Error::other(error)))?;
        let mut file = File::create(&beside).map_err(failed(&beside))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed(&beside))?;
        fs::rename(&beside, &self.record_path).map_err(failed(&self.record_path))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
    }
}

/// Reads a sysctl, without the newline.
pub fn read(key: &str) -> Result<String, SysctlError> {
    let path = file_of(key)?;
    fs::read_to_string(&path)
        .map(|value| value.trim_end().to_owned())
        .map_err(|source| SysctlError::Io { path, source })
}

/// Writes a sysctl without a record: for links that we own and that take it with them when they go.
pub(crate) fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    let path = file_of(key)?;
    fs::write(&path, value).map_err(|source| SysctlError::Io { path, source })
}

/// As [`write()`], where the sysctl exists. What has the value already is not written: many of IPv6's take the kernel's one
/// lock over all links.
pub(crate) fn write_if_present(key: &str, value: &str) -> Result<(), SysctlError> {
    match read(key) {
        Ok(known) if known == value => Ok(()),
        Err(SysctlError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => write(key, value),
    }
}

/// Makes a link of ours ready for IPv6 addresses of ours and no others: none of the kernel's, none that a router
/// advertises, and no search for duplicates.
pub(crate) fn open_for_ipv6(link: &str) -> Result<(), SysctlError> {
    // The order matters: once IPv6 is on, the kernel gives a link that is up its own address.
    for (name, value) in
        [("addr_gen_mode", ADDR_GEN_NONE), ("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")]
    {
        write_if_present(&format!("net/ipv6/conf/{link}/{name}"), value)?;
    }
    Ok(())
}

/// Lets a link of ours take packets whose answers go by another one, as while a change of the overlay goes pair by pair:
/// each end moves for itself. The stricter check of `conf/all` loses to this (fib_validate_source of
/// net/ipv4/fib_frontend.c takes the larger number).
pub(crate) fn take_any_way_in(link: &str) -> Result<(), SysctlError> {
    write_if_present(&format!("net/ipv4/conf/{link}/rp_filter"), RP_FILTER_LOOSE)
}

/// Of Documentation/networking/ip-sysctl.rst: the source must be reachable, by any link.
const RP_FILTER_LOOSE: &str = "2";

/// IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const ADDR_GEN_NONE: &str = "1";

fn file_of(key: &str) -> Result<PathBuf, SysctlError> {
    let path = canonical(key);
    let plain = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
    if key.is_empty() || !plain {
        return Err(SysctlError::BadPath { key: key.to_owned() });
    }
    Ok(Path::new(ROOT).join(path))
}

/// With slashes. As for sysctl(8), the first separator decides: after a dot, slashes stand for dots in link names.
fn canonical(key: &str) -> String {
    if key.find(['.', '/']).is_none_or(|place| key.as_bytes()[place] == b'/') {
        return key.to_owned();
    }
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    key.chars().map(swap).collect()
}

fn parse_record(path: &Path, bytes: &[u8]) -> Result<Record, SysctlError> {
    let bad = |reason: String| SysctlError::BadRecord { path: path.to_owned(), reason };
    let record: Record = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if record.schema != SCHEMA {
        return Err(bad(format!("schema {} instead of {SCHEMA}", record.schema)));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_out_of_proc_sys_are_refused() {
        for bad in ["", "/etc/passwd", "../etc/passwd", "net/../../etc/passwd", ".etc.passwd", "net.//.x"] {
            assert!(matches!(read(bad), Err(SysctlError::BadPath { .. })), "{bad:?}");
        }
        assert!(read("kernel/ostype").is_ok_and(|value| value == "Linux"));
        assert!(read("kernel.ostype").is_ok_and(|value| value == "Linux"));
        assert_eq!(canonical("net.ipv4.conf.eth0/100.rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(canonical("net/ipv4/conf/eth0.100/rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
    }

    #[test]
    fn a_damaged_record_is_named_and_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(RECORD_FILE);
        for text in ["{", r#"{"schema":2,"values":{}}"#] {
            fs::write(&path, text).unwrap();
            let error = Sysctls::open(folder.path()).unwrap_err();
            assert!(error.to_string().contains(RECORD_FILE), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
