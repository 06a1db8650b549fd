// SPDX-License-Identifier: Apache-2.0
//! What is pinned, for a witness beside the one that runs the node: nothing is loaded, made or changed.

use std::{net::IpAddr, path::Path};

use lb::Image;

use crate::{datapath::Maps, error::LoadError};

/// What a node's pinned maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Services, without names.
    pub image: Image,
    /// Addresses of pods, once for each entry.
    pub pods: Vec<IpAddr>,
}

/// Reads the maps pinned in a directory, of this ABI version, whatever their sizes.
///
/// # Errors
/// [`LoadError::Pin`] when one is missing, [`LoadError::Object`] when one has another form.
pub fn look(pin_dir: &Path) -> Result<Pinned, LoadError> {
    let maps = Maps::open(pin_dir)?;
    let pods = maps.pods.entries()?.into_iter().map(|(key, _)| IpAddr::V4(key.address()));
    let pods6 = maps.pods6.entries()?.into_iter().map(|(key, _)| IpAddr::V6(key.address()));
    Ok(Pinned { image: maps.read_image()?, pods: pods.chain(pods6).collect() })
}
