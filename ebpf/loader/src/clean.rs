// SPDX-License-Identifier: Apache-2.0
//! Removing everything of one pin directory: `netd clean`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ebpf_abi::{PodLink, names};

use crate::{
    clsact,
    datapath::LINKS_DIR,
    devices,
    error::CleanError,
    link,
    map::BpfMap,
    migrate::{CARRYING, NEW_DIR, OLD_DIR},
    tc::Direction,
};

/// What was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// clsact filters on pod links, the overlay device and the node's other interfaces.
    pub filters: usize,
    /// Pinned bpf_links.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
}

/// Detaches and unpins everything below `pin_dir`, then removes the directory. Absent is fine. Call it in the node's
/// netns, so that clsact filters are found. Only what we pin is removed; anything else there makes it fail at the end.
pub fn remove_all(pin_dir: &Path) -> Result<Removed, CleanError> {
    let mut filters = 0;
    let links_dir = pin_dir.join(LINKS_DIR);
    let marked: Vec<u32> = devices::marked(&links_dir).into_iter().map(|(_, index)| index).collect();
    for index in pod_links(pin_dir).into_iter().chain(overlay(pin_dir)).chain(marked) {
        let Some(interface) = clsact::interface_name(index) else { continue };
        for direction in [Direction::Ingress, Direction::Egress] {
            // A filter that cannot be removed goes with its interface.
            let was_there = clsact::detach(&interface, direction.clsact()).unwrap_or(false);
            filters += usize::from(was_there);
        }
    }
    Ok(Removed { filters, ..remove_pins(pin_dir)? })
}

/// Unpins everything below `pin_dir`, then removes the directory: bpf_links go, clsact filters stay.
fn remove_pins(pin_dir: &Path) -> Result<Removed, CleanError> {
    let links = remove_pins_in(&pin_dir.join(LINKS_DIR))?;
    let mut removed = Removed { links, ..Removed::default() };
    for dir in [OLD_DIR, NEW_DIR, CARRYING] {
        removed.maps += remove_pins_in(&pin_dir.join(dir))?;
    }
    for name in names::MAPS {
        removed.maps += usize::from(unpin(&pin_dir.join(name))?);
    }
    remove_dir(pin_dir)?;
    Ok(removed)
}

/// Unpins everything below the pin directory of another version, whatever that one has there, then removes the directory:
/// bpf_links go, clsact filters stay.
pub(crate) fn remove_other(dir: &Path) -> Result<(), CleanError> {
    for path in files(dir)? {
        let kind = fs::symlink_metadata(&path).map_err(|source| CleanError { path: path.clone(), source })?;
        if kind.is_dir() {
            remove_other(&path)?;
        } else {
            unpin(&path)?;
        }
    }
    remove_dir(dir)
}

/// Unpins what lies in one directory of ours, marks among it, and removes the directory; how many pins there were.
pub(crate) fn remove_pins_in(dir: &Path) -> Result<usize, CleanError> {
    let mut removed = 0;
    for pin in files(dir)? {
        if pin.is_dir() {
            remove_dir(&pin)?;
        } else {
            removed += usize::from(unpin(&pin)?);
        }
    }
    remove_dir(dir)?;
    Ok(removed)
}

/// Interface indexes in the pinned POD_LINKS; none when it cannot be read.
fn pod_links(pin_dir: &Path) -> Vec<u32> {
    let Ok(map) = BpfMap::<u32, PodLink>::open(pin_dir, names::POD_LINKS) else { return Vec::new() };
    map.entries().unwrap_or_default().into_iter().map(|(index, _)| index).collect()
}

/// Interface index in the pinned OVERLAY; none when it cannot be read.
fn overlay(pin_dir: &Path) -> Option<u32> {
    let map = BpfMap::<u32, u32>::open(pin_dir, names::OVERLAY).ok()?;
    map.get(&0).ok().flatten().filter(|index| *index != 0)
}

/// What lies in a directory; nothing when it is not there.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>, CleanError> {
    let failed = |source| CleanError { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)
}

pub(crate) fn unpin(pin: &Path) -> Result<bool, CleanError> {
    link::remove(pin).map_err(|source| CleanError { path: pin.to_owned(), source })
}

fn remove_dir(dir: &Path) -> Result<(), CleanError> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CleanError { path: dir.to_owned(), source }),
    }
}
