// SPDX-License-Identifier: Apache-2.0
//! Filters on clsact qdiscs: what kernels before TCX have. They live on the interface and outlive this process.

use crate::{error::AttachError, link::Attached};
use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::Link as _,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};

/// Our filter's place: the same number that marks our routes. What has a lower one sees packets before they are checked.
const PRIORITY: u16 = 157;
/// With the priority it names our filter, so that a later run replaces it.
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Adds our filter at the interface, or replaces the program of the one that is there.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    interface: &str,
    direction: TcAttachType,
) -> Result<Attached, AttachError> {
    let failed =
        |reason: String| AttachError::Clsact { action: "add", interface: interface.to_owned(), reason };
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(AttachError::NotLoaded(name))?;
    let existing = SchedClassifierLink::attached(interface, direction, PRIORITY, HANDLE, None)
        .map_err(|error| failed(error.to_string()))?;
    let (link, outcome) = match program.attach_to_link(existing) {
        Ok(link) => (link, Attached::Updated),
        // No filter or no qdisc: kernels name either in several ways.
        Err(_) => {
            // Fails where the qdisc exists; a real reason comes again from the next call.
            let qdisc = tc::qdisc_add_clsact(interface);
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            let link = program
                .attach_with_options(interface, direction, TcAttachOptions::Netlink(options))
                .map_err(|error| match qdisc {
                Ok(()) => failed(error.to_string()),
                Err(qdisc) => failed(format!("{error} (and adding the clsact qdisc: {qdisc})")),
            })?;
            (link, Attached::Created)
        }
    };
    // Dropped, the link would remove the filter; it owns nothing else.
    let link = program.take_link(link).map_err(|error| failed(error.to_string()))?;
    std::mem::forget(link);
    Ok(outcome)
}

/// Removes our filter, by its place: filters of others on the same qdisc stay, whatever they are. `false` when there was none,
/// or no qdisc or interface (any more).
pub(crate) fn detach(interface: &str, direction: TcAttachType) -> Result<bool, AttachError> {
    let failed =
        |reason: String| AttachError::Clsact { action: "remove", interface: interface.to_owned(), reason };
    let link = match SchedClassifierLink::attached(interface, direction, PRIORITY, HANDLE, None) {
        Ok(link) => link,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        Err(error) => return Err(failed(error.to_string())),
    };
    match link.detach() {
        Ok(()) => Ok(true),
        Err(ProgramError::NetlinkError(error))
            if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(false)
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The name of the interface with this index, while there is one in this netns.
pub(crate) fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}
