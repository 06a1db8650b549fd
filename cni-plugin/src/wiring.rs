// SPDX-License-Identifier: Apache-2.0
//! The kernel's side, with errors as CNI wants them.

use std::path::Path;

use cni_types::{CniError, Code};
use netd_host::veth::{self, PodLink, PodLinkSpec};
use netd_host::{Host, HostError, Netns};

/// Opens CNI_NETNS. Errors: 3 where it is gone, 8 where it is the plugin's own.
pub(crate) fn open_netns(path: &str) -> Result<Netns, CniError> {
    let netns = Netns::open(Path::new(path)).map_err(cni_error)?;
    if netns.same_as_current().map_err(cni_error)? {
        return Err(cni_error(HostError::SameNetns { path: path.to_owned() }));
    }
    Ok(netns)
}

/// Refuses an ADD whose links exist, before anything is allocated: what is there may be a living attachment of the
/// same name, and the undo of this ADD would take it down.
pub(crate) async fn refuse_existing(netns: &Netns, ifname: &str, host_ifname: &str) -> Result<(), CniError> {
    let exists = |object: String| Err(cni_error(HostError::AlreadyExists { object }));
    if veth::container_link(netns, ifname).await.map_err(cni_error)?.is_some() {
        return exists(format!("CNI_IFNAME `{ifname}` in netns {}", netns.path().display()));
    }
    let host = Host::open().map_err(cni_error)?;
    if host.link(host_ifname).await.map_err(cni_error)?.is_some() {
        return exists(format!("host link `{host_ifname}` of the same attachment"));
    }
    Ok(())
}

/// Creates the pod's link.
pub(crate) async fn create(spec: &PodLinkSpec<'_>) -> Result<PodLink, CniError> {
    veth::create_pod_link(spec).await.map_err(cni_error)
}

/// Deletes the host end and with it the pod's; absent is fine.
pub(crate) async fn delete(host_ifname: &str) -> Result<(), CniError> {
    veth::delete_host_link(host_ifname).await.map_err(cni_error)
}

/// Compares the pod's link with what it should be. Errors: 5, with every difference in the details.
pub(crate) async fn compare(spec: &PodLinkSpec<'_>) -> Result<(), CniError> {
    veth::check_pod_link(spec).await.map_err(|differences| {
        let list: Vec<String> = differences.iter().map(ToString::to_string).collect();
        CniError::new(Code::IO, format!("the link of {} is not as ADD made it", spec.ifname))
            .with_details(list.join("; "))
    })
}

fn cni_error(error: HostError) -> CniError {
    let code = match error {
        HostError::NetnsGone { .. } => Code::UNKNOWN_CONTAINER,
        HostError::SameNetns { .. } => Code::INVALID_NETNS,
        HostError::AlreadyExists { .. } | HostError::Foreign { .. } => Code::TAKEN,
        HostError::Interrupted { .. } | HostError::TimedOut { .. } => Code::TRY_AGAIN,
        _ => Code::IO,
    };
    CniError::new(code, error.to_string())
}
