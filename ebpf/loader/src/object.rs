// SPDX-License-Identifier: Apache-2.0
//! The built-in object, and whether what is pinned is what it would create.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use aya_obj::{Object, generated::bpf_map_type};
use ebpf_abi::names;

use crate::{error::LoadError, sys};

/// The BPF programs, built by build.rs; empty when that was skipped.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-datapath"));

/// What distinguishes one map from another that cannot stand in for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapShape {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
    flags: u32,
}

/// Every map's pin path, after comparing those that exist with the object's definitions.
pub(crate) fn verified_pins(pin_dir: &Path) -> Result<Vec<(&'static str, PathBuf)>, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    let object = Object::parse(OBJECT).map_err(|error| LoadError::Object(error.to_string()))?;
    let mut pins = Vec::with_capacity(names::MAPS.len());
    for name in names::MAPS {
        let map = object.maps.get(name).ok_or_else(|| LoadError::Object(format!("it has no map {name}")))?;
        let expected = MapShape {
            map_type: map.map_type(),
            key_bytes: map.key_size(),
            value_bytes: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        };
        let path = pin_dir.join(name);
        if let Some(found) = observe(&path)?
            && found != Ok(expected)
        {
            let found = found.map_or_else(|reason| reason, |shape| shape.to_string());
            return Err(LoadError::PinDiffers { path, found, expected: expected.to_string() });
        }
        pins.push((name, path));
    }
    Ok(pins)
}

/// The shape of the map pinned at `path`; the inner error says that it is no map. `None` without a pin.
fn observe(path: &Path) -> Result<Option<Result<MapShape, String>>, LoadError> {
    let fd = match sys::obj_get(path) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Pin { path: path.to_owned(), source }),
    };
    Ok(Some(match sys::map_info(std::os::fd::AsFd::as_fd(&fd)) {
        Ok([map_type, key_bytes, value_bytes, max_entries, flags]) => {
            Ok(MapShape { map_type, key_bytes, value_bytes, max_entries, flags })
        }
        Err(_) => Err("not a map".to_owned()),
    }))
}

impl fmt::Display for MapShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match bpf_map_type::try_from(self.map_type) {
            Ok(map_type) => write!(f, "{map_type:?}")?,
            Err(_) => write!(f, "map type {}", self.map_type)?,
        }
        write!(
            f,
            " with keys of {} and values of {} bytes, {} entries, flags {:#x}",
            self.key_bytes, self.value_bytes, self.max_entries, self.flags
        )
    }
}
