// SPDX-License-Identifier: Apache-2.0
//! Removing everything of one pin directory: `netd clean`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData};
use ebpf_abi::{PodLink, names};

use crate::{clsact, datapath::LINKS_DIR, error::CleanError, link};

/// What was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// clsact filters on pod links and the overlay device.
    pub filters: usize,
    /// Pinned bpf_links.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
}

/// Detaches and unpins everything below `pin_dir`, then removes the directory. Absent is fine. Call it in the node's
/// netns, so that clsact filters are found. Only what we pin is removed; anything else there makes it fail at the end.
pub fn remove_all(pin_dir: &Path) -> Result<Removed, CleanError> {
    let mut removed = Removed::default();
    for index in pod_links(pin_dir) {
        // A filter that cannot be removed goes with its interface.
        if let Some(interface) = clsact::interface_name(index)
            && clsact::detach(&interface).is_ok_and(|was_there| was_there)
        {
            removed.filters += 1;
        }
    }
    if let Some(interface) = overlay(pin_dir).and_then(clsact::interface_name)
        && clsact::detach(&interface).is_ok_and(|was_there| was_there)
    {
        removed.filters += 1;
    }
    let links_dir = pin_dir.join(LINKS_DIR);
    for pin in files(&links_dir)? {
        removed.links += usize::from(unpin(&pin)?);
    }
    remove_dir(&links_dir)?;
    for name in names::MAPS {
        removed.maps += usize::from(unpin(&pin_dir.join(name))?);
    }
    remove_dir(pin_dir)?;
    Ok(removed)
}

/// Interface indexes in the pinned POD_LINKS; none when it cannot be read.
fn pod_links(pin_dir: &Path) -> Vec<u32> {
    let Ok(data) = MapData::from_pin(pin_dir.join(names::POD_LINKS)) else { return Vec::new() };
    let Ok(map) = HashMap::<_, u32, PodLink>::try_from(Map::HashMap(data)) else { return Vec::new() };
    map.keys().flatten().collect()
}

/// Interface index in the pinned OVERLAY; none when it cannot be read.
fn overlay(pin_dir: &Path) -> Option<u32> {
    let data = MapData::from_pin(pin_dir.join(names::OVERLAY)).ok()?;
    let map = Array::<_, u32>::try_from(Map::Array(data)).ok()?;
    map.get(&0, 0).ok().filter(|index| *index != 0)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, CleanError> {
    let failed = |source| CleanError { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)
}

fn unpin(pin: &Path) -> Result<bool, CleanError> {
    link::remove(pin).map_err(|source| CleanError { path: pin.to_owned(), source })
}

fn remove_dir(dir: &Path) -> Result<(), CleanError> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CleanError { path: dir.to_owned(), source }),
    }
}
