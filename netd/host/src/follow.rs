// SPDX-License-Identifier: Apache-2.0

//! A pod's link after another plugin of the chain (tuning) gave its container end another Ethernet address. The kernel then
//! forgets every neighbour of that end, the permanent one of the gateway too, and nobody outside the pod hears of it.

use std::net::IpAddr;

use netd_plan::{Mac, NeighbourKey, NeighbourSpec};

use crate::{Host, HostError, Netns};

/// The Ethernet address that the container end has now, where that is not `known`; its gateways' neighbours are put back
/// then. `None`, and nothing touched, where nothing has changed.
///
/// # Errors
/// [`HostError::NoDevice`] where the link is gone, or the kernel's refusal.
pub async fn follow_container_mac(
    netns: &Netns,
    ifname: &str,
    known: Mac,
    gateways: &[IpAddr],
    host_mac: Mac,
) -> Result<Option<Mac>, HostError> {
    let pod = Host::open_in(netns)?;
    let link = pod.existing_link(ifname).await?;
    let Some(mac) = link.mac.filter(|mac| *mac != known) else { return Ok(None) };
    for gateway in gateways {
        let key = NeighbourKey { device: link.name.clone(), ip: *gateway };
        pod.set_neighbour_on(link.index, &key, &NeighbourSpec { mac: host_mac }).await?;
    }
    Ok(Some(mac))
}
