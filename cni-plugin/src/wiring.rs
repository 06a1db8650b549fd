// SPDX-License-Identifier: Apache-2.0
//! The kernel's side, with errors as CNI wants them.

use std::path::Path;

use cni_types::{CniError, Code};
use netd_host::veth::{self, ContainerLink, Difference, PodLink, PodLinkSpec};
use netd_host::{Host, HostError, Link, Netns, interface_index, netns};
use netd_plan::Mac;

/// Opens CNI_NETNS. Errors: 3 where it is gone, 8 where it is the plugin's own.
pub(crate) fn open_netns(path: &str) -> Result<Netns, CniError> {
    let netns = Netns::open(Path::new(path)).map_err(cni_error)?;
    if netns.same_as_current().map_err(cni_error)? {
        return Err(cni_error(HostError::SameNetns { path: path.to_owned() }));
    }
    Ok(netns)
}

/// Refuses an ADD whose host link exists, before anything is allocated: it may be of a living attachment of the same
/// name, and the undo of this ADD would take it down. Errors: 101.
pub(crate) fn refuse_host_link(host_ifname: &str) -> Result<(), CniError> {
    // A look by ioctl: what it misses, the kernel refuses when the link is made.
    match interface_index(host_ifname) {
        None => Ok(()),
        Some(_) => {
            let object = format!("host link `{host_ifname}` of the same attachment");
            Err(cni_error(HostError::AlreadyExists { object }))
        }
    }
}

/// The same for the container's end. Errors: 101.
pub(crate) fn refuse_container_link(netns: &Netns, ifname: &str) -> Result<(), CniError> {
    match netns::run_in(netns, || interface_index(ifname)).map_err(cni_error)? {
        None => Ok(()),
        Some(_) => {
            let object = format!("CNI_IFNAME `{ifname}` in netns {}", netns.path().display());
            Err(cni_error(HostError::AlreadyExists { object }))
        }
    }
}

/// The MAC of a link that an earlier plugin made; none for a link without one. Errors: 7 where prevResult's link is not
/// there.
pub(crate) async fn container_mac(netns: &Netns, ifname: &str) -> Result<Option<Mac>, CniError> {
    match container_link(netns, ifname).await? {
        Some(found) => Ok(found.link.mac),
        None => {
            let netns = netns.path().display();
            let msg = format!("prevResult lists {ifname}, and netns {netns} has no such link");
            Err(CniError::new(Code::INVALID_CONFIG, msg))
        }
    }
}

/// The container's end as it is.
pub(crate) async fn container_link(netns: &Netns, ifname: &str) -> Result<Option<ContainerLink>, CniError> {
    veth::container_link(netns, ifname).await.map_err(cni_error)
}

/// The host's end as it is.
pub(crate) async fn host_link(name: &str) -> Result<Option<Link>, CniError> {
    Host::open().map_err(cni_error)?.link(name).await.map_err(cni_error)
}

/// Creates the pod's link.
pub(crate) async fn create(spec: &PodLinkSpec<'_>) -> Result<PodLink, CniError> {
    veth::create_pod_link(spec).await.map_err(cni_error)
}

/// Deletes the host end and with it the pod's; absent is fine.
pub(crate) async fn delete(host_ifname: &str) -> Result<(), CniError> {
    veth::delete_host_link(host_ifname).await.map_err(cni_error)
}

/// Compares the pod's link with what it should be.
pub(crate) async fn differences(spec: &PodLinkSpec<'_>) -> Vec<Difference> {
    veth::check_pod_link(spec).await.err().unwrap_or_default()
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
