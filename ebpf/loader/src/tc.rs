// SPDX-License-Identifier: Apache-2.0
//! One TC program at one end of an interface: by a pinned TCX bpf_link, or by a clsact filter.

use std::{fs, io, path::Path};

use aya::programs::tc::TcAttachType;
use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};

use crate::{
    clsact,
    datapath::Datapath,
    error::AttachError,
    expedite::Expedited,
    link::{self, Attached, Pins, Target},
    qdisc,
};

/// Which packets of an interface a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Those that come in by it.
    Ingress,
    /// Those that go out by it.
    Egress,
}

impl Direction {
    pub(crate) fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    fn tcx(self) -> u32 {
        match self {
            Self::Ingress => BPF_TCX_INGRESS as u32,
            Self::Egress => BPF_TCX_EGRESS as u32,
        }
    }
}

/// A place for a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) interface: &'a str,
    pub(crate) index: u32,
    pub(crate) direction: Direction,
    /// Name of the bpf_link's pin, or of the mark.
    pub(crate) pin: &'a str,
    /// Whether a clsact filter there leaves a mark (a directory) where the pin would be: then it is known after a restart.
    pub(crate) leaves_mark: bool,
}

impl Datapath {
    /// Attaches `program` there, or replaces what of ours is there.
    pub(crate) fn attach_tc(
        &mut self,
        program: &'static str,
        place: Place<'_>,
    ) -> Result<Attached, AttachError> {
        self.copy_before_packets()?;
        let pins = self.pins(place.pin);
        if self.tcx {
            // A mark of another attach mode is in the pin's way.
            for pin in std::iter::once(&pins.own).chain(&pins.earlier) {
                remove_mark(pin)?;
            }
            let target = Target::Interface(place.index);
            let fd = self.program_fd(program)?;
            let outcome = link::ensure(program, fd, target, place.direction.tcx(), &pins, self.expedite)?;
            // From the time of another attach mode. One that stays does everything a second time, nothing worse.
            if let Err(error) = clsact::detach(place.interface, place.direction.clsact()) {
                tracing::warn!(%error, "an old filter stays");
            }
            return Ok(outcome);
        }
        if place.direction == Direction::Egress && qdisc::is_ingress_only(place.index)? {
            return Err(AttachError::Clsact {
                action: "add",
                interface: place.interface.to_owned(),
                reason: "it has an ingress qdisc, which excludes filters at egress".to_owned(),
            });
        }
        let outcome = {
            let _soon = Expedited::begin(self.expedite);
            clsact::attach(&mut self.ebpf, program, place.interface, place.direction.clsact())?
        };
        for pin in &pins.earlier {
            remove_mark(pin)?;
            unpin(pin)?;
        }
        if !pins.own.is_dir() {
            unpin(&pins.own)?;
        }
        if place.leaves_mark {
            make_mark(&pins.own)?;
        }
        Ok(outcome)
    }

    /// Detaches what was attached under this name, by bpf_link or by filter; absent is fine.
    pub(crate) fn detach_tc(
        &mut self,
        pin: &str,
        index: u32,
        direction: Direction,
    ) -> Result<(), AttachError> {
        let path = self.links_dir().join(pin);
        let is_marked = path.is_dir();
        if !is_marked {
            unpin(&path)?;
        }
        if let Some(interface) = clsact::interface_name(index) {
            clsact::detach(&interface, direction.clsact())?;
        }
        remove_mark(&path)
    }

    pub(crate) fn pins(&self, name: &str) -> Pins {
        Pins { own: self.links_dir().join(name), earlier: self.migration.earlier_pins(name) }
    }
}

fn unpin(pin: &Path) -> Result<(), AttachError> {
    link::remove(pin).map(drop).map_err(|source| AttachError::Kernel {
        action: "unpin",
        program: "a TC program",
        target: pin.display().to_string(),
        source,
    })
}

fn make_mark(path: &Path) -> Result<(), AttachError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(AttachError::Pin { path: path.to_owned(), reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

fn remove_mark(path: &Path) -> Result<(), AttachError> {
    if !path.is_dir() {
        return Ok(());
    }
    fs::remove_dir(path)
        .map_err(|error| AttachError::Pin { path: path.to_owned(), reason: error.to_string() })
}
