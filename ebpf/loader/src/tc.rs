// SPDX-License-Identifier: Apache-2.0
//! One TC program at one end of an interface: by a pinned TCX bpf_link, or by a clsact filter.

use aya::programs::tc::TcAttachType;
use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};

use crate::{
    clsact,
    datapath::Datapath,
    error::AttachError,
    expedite::Expedited,
    link::{self, Attached, Pins, Target},
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
    /// Name of the bpf_link's pin.
    pub(crate) pin: &'a str,
}

impl Datapath {
    /// Attaches `program` there, or replaces what of ours is there.
    pub(crate) fn attach_tc(
        &mut self,
        program: &'static str,
        place: Place<'_>,
    ) -> Result<Attached, AttachError> {
        let pins = self.pins(place.pin);
        if self.tcx {
            let target = Target::Interface(place.index);
            let fd = self.program_fd(program)?;
            let outcome = link::ensure(program, fd, target, place.direction.tcx(), &pins, self.expedite)?;
            // From the time of another attach mode. One that stays does everything a second time, nothing worse.
            if let Err(error) = clsact::detach(place.interface, place.direction.clsact()) {
                tracing::warn!(%error, "an old filter stays");
            }
            return Ok(outcome);
        }
        let outcome = {
            let _soon = Expedited::begin(self.expedite);
            clsact::attach(&mut self.ebpf, program, place.interface, place.direction.clsact())?
        };
        for pin in std::iter::once(&pins.own).chain(&pins.earlier) {
            unpin(pin)?;
        }
        Ok(outcome)
    }

    pub(crate) fn pins(&self, name: &str) -> Pins {
        Pins { own: self.links_dir().join(name), earlier: self.migration.earlier_pins(name) }
    }
}

pub(crate) fn unpin(pin: &std::path::Path) -> Result<(), AttachError> {
    link::remove(pin).map(drop).map_err(|source| AttachError::Kernel {
        action: "unpin",
        program: "a TC program",
        target: pin.display().to_string(),
        source,
    })
}
