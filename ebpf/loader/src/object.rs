// SPDX-License-Identifier: Apache-2.0
//! The built-in object: its maps as they are to be, and its programs loaded.

use std::fmt;

use aya::{
    Ebpf,
    programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, SchedClassifier},
};
use aya_obj::{Object, generated::bpf_map_type};
use ebpf_abi::names;

use crate::{error::LoadError, sizes::MapSizes, sys::MapShape};

/// The BPF programs, built by build.rs; empty when that was skipped.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-datapath"));

/// Every map of the object, in the order of [`names::MAPS`], with the size that it is to have.
pub(crate) fn shapes(sizes: &MapSizes) -> Result<Vec<(&'static str, MapShape)>, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    let object = Object::parse(OBJECT).map_err(|error| LoadError::Object(error.to_string()))?;
    let shape = |name: &'static str| {
        let map = object.maps.get(name).ok_or_else(|| LoadError::Object(format!("it has no map {name}")))?;
        let shape = MapShape {
            map_type: map.map_type(),
            key_bytes: map.key_size(),
            value_bytes: map.value_size(),
            max_entries: sizes.of(name).unwrap_or_else(|| map.max_entries()),
            flags: map.map_flags(),
        };
        Ok((name, shape))
    };
    names::MAPS.into_iter().map(shape).collect()
}

/// Gives every program of the object to the kernel.
pub(crate) fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, program) in ebpf.programs_mut() {
        load(program)
            .map_err(|source| LoadError::Program { program: name.to_owned(), source: Box::new(source) })?;
    }
    Ok(())
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::SchedClassifier(program) => SchedClassifier::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
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
