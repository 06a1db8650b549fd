// SPDX-License-Identifier: Apache-2.0

//! The MTU of a running pod's link, when what its packets travel through has changed.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};

use crate::{Host, HostError, Netns};

/// Gives both ends of a pod's link the MTU `to`, in bytes. The container end keeps its own where somebody gave it another
/// than `from`, and that one fits. Returns whether anything was changed.
///
/// The end that sends larger packets never has a peer that refuses them: when the MTU grows the host end comes first, when it
/// shrinks the container end does.
///
/// # Errors
/// [`HostError::NoDevice`] where an end is gone, or the kernel's refusal.
pub async fn change_pod_mtu(
    netns: &Netns,
    ifname: &str,
    host_ifname: &str,
    from: u32,
    to: u32,
) -> Result<bool, HostError> {
    let (host, pod) = (Host::open()?, Host::open_in(netns)?);
    let (outer, inner) = (host.existing_link(host_ifname).await?, pod.existing_link(ifname).await?);
    let wanted = if inner.mtu == from || inner.mtu > to { to } else { inner.mtu };
    if (outer.mtu, inner.mtu) == (to, wanted) {
        return Ok(false);
    }
    let host_end = host.set_mtu(outer.index, host_ifname, to);
    let pod_end = pod.set_mtu(inner.index, ifname, wanted);
    if to > from {
        host_end.await?;
        pod_end.await?;
    } else {
        pod_end.await?;
        host_end.await?;
    }
    Ok(true)
}

impl Host {
    /// Idempotent.
    async fn set_mtu(&self, index: u32, name: &str, mtu: u32) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Mtu(mtu)];
        let what = format!("set the MTU of {name} to {mtu}");
        self.socket.request(&what, RouteNetlinkMessage::SetLink(message), 0).await
    }
}
