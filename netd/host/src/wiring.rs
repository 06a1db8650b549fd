// SPDX-License-Identifier: Apache-2.0

//! What makes a veth pair a pod's link: sysctls, addresses, routes and neighbours at both ends.
//!
//! ADD waits for this: each request is one exchange with the kernel, names are looked up once, and both ends are wired at
//! the same time.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netd_plan::{AddressSpec, Mac, NeighbourKey, NeighbourSpec, RouteKey, RouteSpec, pods};
use nix::errno::Errno;
use tokio::time;

use crate::{
    Host, HostError, Link,
    link::{LOOPBACK_INDEX, sysctl_error},
    netns, sysctl,
    sysctl::SysctlError,
    veth::{PodLink, PodLinkSpec},
};

/// Longest wait for packets to pass: the link watch runs at least once a second.
const READINESS_WAIT_MAX: Duration = Duration::from_millis(2_500);
/// Between two looks at it; a look costs some 20 microseconds.
const READINESS_POLL: Duration = Duration::from_millis(2);

pub(crate) async fn wire(host: &Host, pod: &Host, spec: &PodLinkSpec<'_>) -> Result<PodLink, HostError> {
    let (outer, inner) = tokio::join!(host.existing_link(&spec.host_ifname), pod.existing_link(&spec.ifname));
    let (outer, inner) = (outer?, inner?);
    let (Some(host_mac), Some(container_mac)) = (outer.mac, inner.mac) else {
        let reason = "the kernel gave it no Ethernet address".to_owned();
        return Err(HostError::Invalid { what: format!("link {}", spec.host_ifname), reason });
    };
    set_sysctls(spec)?;
    let (outside, inside) =
        tokio::join!(wire_host(host, spec, &outer, container_mac), wire_pod(pod, spec, &inner, host_mac));
    outside?;
    inside?;
    await_readiness(host, pod, spec).await?;
    Ok(PodLink { host_index: outer.index, host_mac, container_mac, container_index: inner.index })
}

/// The gateway's own address on the host end; IPv6 only.
pub(crate) fn host_address(gateway: IpAddr) -> IpNet {
    IpNet::new_assert(gateway, pods::POD_GATEWAY_V6_PREFIX_LEN)
}

/// Everywhere in the gateway's family.
pub(crate) fn default_route(gateway: IpAddr) -> IpNet {
    let unspecified = match gateway {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new_assert(unspecified, 0)
}

/// Waits until packets pass; the pod's first one should not be the one that is lost. A veth drops what is sent before the
/// kernel's link watch has seen both ends up, which it may put off for a second, and what comes to an IPv6 address is
/// dropped until the kernel has the route for it.
async fn await_readiness(host: &Host, pod: &Host, spec: &PodLinkSpec<'_>) -> Result<(), HostError> {
    let start = Instant::now();
    while !is_ready(host, pod, spec).await? {
        if start.elapsed() > READINESS_WAIT_MAX {
            tracing::warn!(link = %spec.host_ifname, "not ready yet; the pod's first packets may be lost");
            return Ok(());
        }
        time::sleep(READINESS_POLL).await;
    }
    Ok(())
}

async fn is_ready(host: &Host, pod: &Host, spec: &PodLinkSpec<'_>) -> Result<bool, HostError> {
    // Asking for one link makes kernels from 6.9 on run the link watch for it at once.
    let (outer, inner) = tokio::join!(host.existing_link(&spec.host_ifname), pod.existing_link(&spec.ifname));
    if !(outer?.is_running && inner?.is_running) {
        return Ok(false);
    }
    for address in spec.addresses.iter().filter(|address| address.addr().is_ipv6()) {
        if !pod.takes_in(address.addr()).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Before the links come up, so that neither has an address of the kernel's for a moment.
fn set_sysctls(spec: &PodLinkSpec<'_>) -> Result<(), HostError> {
    let name = &spec.host_ifname;
    let has_v6 = spec.addresses.iter().any(|address| address.addr().is_ipv6());
    let on_host = || {
        // Replies to a pod may take another way than its packets came.
        sysctl::write_if_present(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        // The gateway is a permanent neighbour; the host must not answer for anything else either.
        sysctl::write_if_present(&format!("net/ipv4/conf/{name}/proxy_arp"), "0")?;
        match has_v6 {
            true => sysctl::open_for_ipv6(name),
            false => sysctl::write_if_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1"),
        }
    };
    on_host().map_err(sysctl_error)?;
    netns::run_in(spec.netns, || set_pod_sysctls(&spec.ifname, has_v6))?.map_err(sysctl_error)
}

/// On a thread in the pod's netns. A link-local address of its own is left to the pod, the one that follows from its MAC:
/// the only one that passes the check of sources at its veth.
fn set_pod_sysctls(ifname: &str, has_v6: bool) -> Result<(), SysctlError> {
    let set = |link: &str, name: &str, value: &str| {
        sysctl::write_if_present(&format!("net/ipv6/conf/{link}/{name}"), value)
    };
    set(ifname, "accept_ra", "0")?;
    if !has_v6 {
        return Ok(());
    }
    set(ifname, "addr_gen_mode", ADDR_GEN_EUI64)?;
    set(ifname, "accept_dad", "0")?;
    // Runtimes make netns with IPv6 off; last, because it may give the link its address.
    set("lo", "disable_ipv6", "0")?;
    set(ifname, "disable_ipv6", "0")
}

/// IN6_ADDR_GEN_MODE_EUI64 of include/uapi/linux/if_link.h.
const ADDR_GEN_EUI64: &str = "0";

async fn wire_host(
    host: &Host,
    spec: &PodLinkSpec<'_>,
    link: &Link,
    container_mac: Mac,
) -> Result<(), HostError> {
    host.set_up(link.index, &link.name).await?;
    for gateway in spec.gateways.iter().filter(|gateway| gateway.is_ipv6()) {
        let address = host_address(*gateway);
        let spec = AddressSpec { device: link.name.clone(), address, scope_host: false };
        match host.add_address(&spec, link.index).await {
            // netd may have put it there already.
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            other => other?,
        }
    }
    for address in &spec.addresses {
        let device = link.name.clone();
        // IPv6 routes have no scope.
        let scope_link = address.addr().is_ipv4();
        let route = RouteSpec { device: Some(device.clone()), scope_link, ..RouteSpec::default() };
        let key = RouteKey::main(*address);
        match host.add_route(&key, &route, Some(link.index)).await {
            Err(error) if error.errno() == Some(Errno::EEXIST) => host.set_route(&key, &route).await?,
            other => other?,
        }
        let key = NeighbourKey { device, ip: address.addr() };
        host.set_neighbour_on(link.index, &key, &NeighbourSpec { mac: container_mac }).await?;
    }
    Ok(())
}

async fn wire_pod(pod: &Host, spec: &PodLinkSpec<'_>, link: &Link, host_mac: Mac) -> Result<(), HostError> {
    pod.set_up(LOOPBACK_INDEX, "lo").await?;
    for address in &spec.addresses {
        let address = AddressSpec { device: link.name.clone(), address: *address, scope_host: false };
        pod.add_address(&address, link.index).await?;
    }
    pod.set_up(link.index, &link.name).await?;
    for gateway in &spec.gateways {
        let metric = set_default_route(pod, link, *gateway).await?;
        if gateway.is_ipv4() {
            let device = Some(link.name.clone());
            let on_link = RouteSpec { device, scope_link: true, ..RouteSpec::default() };
            let key = RouteKey { metric, ..RouteKey::main(IpNet::from(*gateway)) };
            pod.add_route(&key, &on_link, Some(link.index)).await?;
        }
        let key = NeighbourKey { device: link.name.clone(), ip: *gateway };
        pod.set_neighbour_on(link.index, &key, &NeighbourSpec { mac: host_mac }).await?;
    }
    Ok(())
}

/// Returns its metric: the kernel's default for the first of the pod's links, a higher one for those that follow.
async fn set_default_route(pod: &Host, link: &Link, gateway: IpAddr) -> Result<u32, HostError> {
    let first = RouteKey::main(default_route(gateway));
    let route = RouteSpec {
        device: Some(link.name.clone()),
        gateway: Some(gateway),
        // A link-local next hop needs no such mark in IPv6.
        onlink: gateway.is_ipv4(),
        ..RouteSpec::default()
    };
    match pod.add_route(&first, &route, Some(link.index)).await {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            let further = RouteKey { metric: first.metric.saturating_add(link.index), ..first };
            pod.add_route(&further, &route, Some(link.index)).await?;
            Ok(further.metric)
        }
        other => other.map(|()| first.metric),
    }
}
