// SPDX-License-Identifier: Apache-2.0
//! From maps of another size, and from pins of another ABI version, without losing what lives in them.
//!
//! ```text
//!  <node uuid>/1/SERVICES links/…       of the version before: its programs run on until ours take their bpf_links over
//!  <node uuid>/2/SERVICES …             ours
//!  <node uuid>/2/old/CT_LIVE-0          had another size: programs that are still attached use it
//!  <node uuid>/2/new/CT_LIVE            being filled; put in its place (one rename) when it is full
//!  <node uuid>/2/carrying               while the first content is copied from the version before
//! ```
//!
//! [`prepare`] comes before the programs are loaded, so that they find maps of the right size. Flows that begin between the
//! copy and the moment when the new programs are attached are in the old maps: they are copied again directly before the first
//! program for packets is attached, and once more by [`Datapath::finish_migration`], which then takes the old pins away. What
//! still falls between is dropped meanwhile and not refused (`CONFIG_MIGRATING`): TCP sends it again. Whatever is cut off anywhere is done again by the next [`Datapath::open`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use ebpf_abi::{ABI_VERSION, CtKey, CtValue, SocketValue, names};

use crate::{
    clean,
    datapath::{Datapath, LINKS_DIR, Maps},
    error::{AttachError, CleanError, LoadError, MapAccessError},
    link,
    map::{BpfMap, copy_entries, copy_later, copy_missing},
    sys::{self, MapFd, MapShape},
    v1,
};

/// Where maps wait that had another size.
pub(crate) const OLD_DIR: &str = "old";
/// Where maps are filled that will have another size.
pub(crate) const NEW_DIR: &str = "new";
/// Marks that the content of the version before is not all there yet. A directory: bpffs has no files.
pub(crate) const CARRYING: &str = "carrying";

/// Maps that programs write and in which the least recently used go first; what was written into the old one after the copy
/// is copied again at the end.
const WRITTEN_BY_PROGRAMS: [&str; 2] = [names::FLOWS, names::AFFINITY];

/// What is left to do of a migration.
#[derive(Debug, Default)]
pub(crate) struct Migration {
    /// Pin directories of other versions.
    siblings: Vec<PathBuf>,
    /// The one among them whose layouts we know.
    known: Option<PathBuf>,
    /// Its content is still to be copied.
    carry: bool,
    /// Sockets that were in SOCKETS when it was made anew.
    sockets: BTreeSet<u64>,
    /// What BACKEND_LOAD held when it was made anew.
    loads: BTreeMap<u32, u64>,
    /// Programs for packets are being attached: what the old ones knew was copied.
    has_begun: bool,
}

/// Looks for pins of other versions, and gives each pinned map of ours the size it is to have.
pub(crate) fn prepare(pin_dir: &Path, shapes: &[(&'static str, MapShape)]) -> Result<Migration, LoadError> {
    let siblings = siblings(pin_dir);
    let known = siblings.iter().find(|dir| version(dir) == Some(v1::VERSION)).cloned();
    let carrying = pin_dir.join(CARRYING);
    let is_new = !pin_dir.join(names::SERVICES).exists();
    if known.is_some() && is_new {
        fs::create_dir_all(&carrying)
            .map_err(|source| LoadError::PinDir { path: carrying.clone(), source })?;
    }
    let carry = known.is_some() && carrying.is_dir();
    let mut migration = Migration { siblings, known, carry, ..Migration::default() };
    for (name, expected) in shapes {
        let path = pin_dir.join(name);
        let fd = match sys::obj_get(&path) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(LoadError::Pin { path, source }),
        };
        let differs = |found: String| LoadError::PinDiffers {
            path: path.clone(),
            found,
            expected: expected.to_string(),
        };
        if sys::map_info(fd.as_fd()).is_err() {
            return Err(differs("not a map".to_owned()));
        }
        let old = MapFd::of(fd).map_err(|source| LoadError::Pin { path: path.clone(), source })?;
        let found = old.shape();
        if found == *expected {
            continue;
        }
        if (MapShape { max_entries: expected.max_entries, ..found }) != *expected {
            return Err(differs(found.to_string()));
        }
        resize(pin_dir, name, &old, *expected)?;
        migration.remember(pin_dir, name)?;
    }
    Ok(migration)
}

/// A map like `old` but of another size, with its content, in its place.
fn resize(pin_dir: &Path, name: &'static str, old: &MapFd, shape: MapShape) -> Result<(), LoadError> {
    let (new_dir, old_dir) = (pin_dir.join(NEW_DIR), pin_dir.join(OLD_DIR));
    for dir in [&new_dir, &old_dir] {
        fs::create_dir_all(dir).map_err(|source| LoadError::PinDir { path: dir.clone(), source })?;
    }
    let failed = |source| LoadError::Resize { map: name, entries: shape.max_entries, source };
    let path = new_dir.join(name);
    // Of one that was cut off.
    link::remove(&path).map_err(failed)?;
    let new = MapFd::create(shape, name).map_err(failed)?;
    let carried = copy_entries(name, old, &new)?;
    sys::obj_pin(new.as_fd(), &path).map_err(failed)?;
    let kept = (0..u32::MAX).map(|number| old_dir.join(format!("{name}-{number}")));
    let Some(kept) = kept.into_iter().find(|path| !path.exists()) else { return Ok(()) };
    sys::obj_pin(old.as_fd(), &kept).map_err(failed)?;
    fs::rename(&path, pin_dir.join(name)).map_err(failed)?;
    tracing::info!(
        map = name,
        from = old.shape().max_entries,
        to = shape.max_entries,
        entries = carried.copied,
        left_out = carried.left_out,
        "a map was made anew in another size"
    );
    Ok(())
}

impl Migration {
    /// Fills new maps with what the version before has.
    pub(crate) fn fill(&mut self, pin_dir: &Path, maps: &Maps) -> Result<(), LoadError> {
        let Some(from) = self.known.clone().filter(|_| self.carry) else { return Ok(()) };
        let carried = v1::carry_over(&from, maps)?;
        tracing::info!(from = %from.display(), ?carried, "content of the version before taken over");
        let carrying = pin_dir.join(CARRYING);
        remove_dir(&carrying).map_err(|source| LoadError::PinDir { path: carrying, source })?;
        self.carry = false;
        Ok(())
    }

    /// What was copied into a map of which entries also go.
    fn remember(&mut self, pin_dir: &Path, name: &'static str) -> Result<(), LoadError> {
        match name {
            names::SOCKETS => {
                let copied = BpfMap::<u64, SocketValue>::open(pin_dir, name)?.entries()?;
                self.sockets = copied.into_iter().map(|(cookie, _)| cookie).collect();
            }
            names::BACKEND_LOAD => {
                let copied = BpfMap::<u32, u64>::open(pin_dir, name)?.entries()?;
                self.loads = copied.into_iter().collect();
            }
            _ => {}
        }
        Ok(())
    }

    /// Where other versions may have pinned the bpf_link `name`.
    pub(crate) fn earlier_pins(&self, name: &str) -> Vec<PathBuf> {
        self.siblings.iter().map(|dir| dir.join(LINKS_DIR).join(name)).collect()
    }
}

impl Datapath {
    /// Whether pins of another ABI version, or maps of another size, are still there.
    pub fn is_migrating(&self) -> bool {
        !self.migration.siblings.is_empty() || self.options.pin_dir.join(OLD_DIR).is_dir()
    }

    /// To be called when everything is attached again: copies flows that began meanwhile, then takes away pins of other
    /// versions and maps of other sizes. What is still attached by another version's pins is detached with them. Without a
    /// migration nothing happens.
    pub fn finish_migration(&mut self) -> Result<(), AttachError> {
        if !self.is_migrating() {
            // Of one that was cut off at its end.
            self.say_migrating(false)?;
            return Ok(());
        }
        self.copy_flows_again()?;
        let pin_dir = &self.options.pin_dir;
        for dir in [OLD_DIR, NEW_DIR] {
            clean::remove_pins_in(&pin_dir.join(dir)).map_err(gone)?;
        }
        self.migration.known = None;
        // What follows waits for nothing that is on its way.
        self.say_migrating(false)?;
        while let Some(sibling) = self.migration.siblings.last() {
            // Filters stay: ours have replaced them in their place. Where one fails it is tried again at the next call.
            clean::remove_other(sibling).map_err(gone)?;
            tracing::info!(dir = %sibling.display(), "pins of another version removed");
            self.migration.siblings.pop();
        }
        Ok(())
    }

    /// Before the first program for packets is attached: connections that began since the maps were made anew.
    pub(crate) fn copy_before_packets(&mut self) -> Result<(), MapAccessError> {
        if std::mem::replace(&mut self.migration.has_begun, true) || !self.is_migrating() {
            return Ok(());
        }
        self.copy_flows_again()
    }

    /// What programs did to maps that are not ours any more, done to ours. What is in ours stays as it is.
    pub(crate) fn copy_flows_again(&mut self) -> Result<(), MapAccessError> {
        let pin_dir = self.options.pin_dir.clone();
        for path in clean::files(&pin_dir.join(OLD_DIR)).unwrap_or_default() {
            let (Some(name), Ok(old)) = (name_of_old(&path), MapFd::open(&path)) else { continue };
            if name == names::SOCKETS {
                self.follow_sockets(old)?;
            } else if name == names::BACKEND_LOAD {
                self.follow_loads(old)?;
            } else if let Some(ours) = self.tracked(name) {
                if let Some(old) = BpfMap::of(name, old) {
                    copy_later(&old, ours, is_later)?;
                }
            } else if WRITTEN_BY_PROGRAMS.contains(&name)
                && let Ok(new) = MapFd::open(&pin_dir.join(name))
            {
                copy_missing(name, &old, &new)?;
            }
        }
        if let Some(from) = &self.migration.known {
            v1::carry_flows(from, &self.maps)?;
        }
        Ok(())
    }

    /// No program writes the old SOCKETS and BACKEND_LOAD any more, and what is in them is in ours: they go, so that nothing of
    /// them comes back after a restart, when sockets have been closed.
    pub(crate) fn leave_old_sockets(&self) -> Result<(), CleanError> {
        for path in clean::files(&self.options.pin_dir.join(OLD_DIR))? {
            if name_of_old(&path).is_some_and(|name| [names::SOCKETS, names::BACKEND_LOAD].contains(&name)) {
                clean::unpin(&path)?;
            }
        }
        Ok(())
    }

    fn tracked(&self, name: &str) -> Option<&BpfMap<CtKey, CtValue>> {
        match name {
            names::CT_LIVE => Some(&self.maps.ct_live),
            names::CT_NEW => Some(&self.maps.ct_new),
            _ => None,
        }
    }

    /// Sockets that were connected or closed after the copy, while the old programs ran.
    fn follow_sockets(&mut self, old: MapFd) -> Result<(), MapAccessError> {
        let Some(old) = BpfMap::<u64, SocketValue>::of(names::SOCKETS, old) else { return Ok(()) };
        let now: BTreeMap<u64, SocketValue> = old.entries()?.into_iter().collect();
        let closed = self.migration.sockets.iter().filter(|cookie| !now.contains_key(cookie));
        self.maps.sockets.remove_all(closed)?;
        for (cookie, socket) in &now {
            if !self.migration.sockets.contains(cookie) {
                self.maps.sockets.insert_new(cookie, socket)?;
            }
        }
        self.migration.sockets = now.into_keys().collect();
        Ok(())
    }

    /// What the old programs counted after the copy.
    fn follow_loads(&mut self, old: MapFd) -> Result<(), MapAccessError> {
        let Some(old) = BpfMap::<u32, u64>::of(names::BACKEND_LOAD, old) else { return Ok(()) };
        for (id, load) in old.entries()? {
            let before = self.migration.loads.insert(id, load).unwrap_or(load);
            if before != load
                && let Some(ours) = self.maps.backend_load.get(&id)?
            {
                let ours = ours.wrapping_add(load.wrapping_sub(before));
                self.maps.backend_load.set(&id, &ours)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn gone(error: CleanError) -> AttachError {
    AttachError::Migration { path: error.path, source: error.source }
}

/// Of two entries for one direction: that of the flow that began later, or whose packets were seen later.
fn is_later(old: &CtValue, ours: &CtValue) -> bool {
    (old.began_secs, old.seen_secs) > (ours.began_secs, ours.seen_secs)
}

/// The map that an old one was replaced by.
fn name_of_old(old: &Path) -> Option<&'static str> {
    let (name, _) = old.file_name()?.to_str()?.rsplit_once('-')?;
    names::MAPS.into_iter().find(|known| *known == name)
}

/// Directories of other versions beside ours: those whose names are numbers, when ours is one.
fn siblings(pin_dir: &Path) -> Vec<PathBuf> {
    let (Some(own), Some(parent)) = (version(pin_dir), pin_dir.parent()) else { return Vec::new() };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut dirs: Vec<_> =
        entries.filter(|path| version(path).is_some_and(|found| found != own) && path.is_dir()).collect();
    dirs.sort();
    dirs
}

fn version(dir: &Path) -> Option<u32> {
    dir.file_name()?.to_str()?.parse().ok()
}

pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const _: () = assert!(ABI_VERSION > v1::VERSION, "what is carried over is of an older version");
