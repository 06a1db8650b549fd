// SPDX-License-Identifier: Apache-2.0

//! A pod's link: a veth pair from the pod's netns to the netns of the calling thread, routed, no bridge.
//!
//! The container end is made inside the pod's netns by the one request that makes the pair, so a half-made `eth0` is
//! never seen elsewhere. The pod's only neighbour is its gateway, a link-local address that no link has: a permanent
//! entry points it at the host end, and the host has a permanent entry for the pod. No ARP is needed either way.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netd_plan::{
    AddressSpec, Mac, NeighbourKey, NeighbourSpec, RouteKey, RouteSpec,
    links::{LINK_NAME_BYTES_MAX, LINK_PREFIX},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::errno::Errno;
use tokio::time;

pub use crate::podcheck::{Difference, check_pod_link};
use crate::{
    Host, HostError, Link, LinkKind, Netns,
    link::{LinkTable, sysctl_error},
    netns, sysctl,
};

/// Longest wait for the carrier: the link watch runs at least once a second.
const CARRIER_WAIT_MAX: Duration = Duration::from_millis(2_500);
/// Between two looks at it; a look costs some 20 microseconds.
const CARRIER_POLL: Duration = Duration::from_millis(2);

/// How a pod's link should be.
#[derive(Clone, Debug)]
pub struct PodLinkSpec<'a> {
    /// The pod's netns; never the one of the calling thread.
    pub netns: &'a Netns,
    /// Name of the container end, `eth0`.
    pub ifname: String,
    /// Name of the host end, see [`netd_plan::host_veth_name`].
    pub host_ifname: String,
    /// Ethernet address of the container end; the kernel chooses one where `None`.
    pub mac: Option<Mac>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// The pod's addresses, each a full-length prefix. IPv4 only so far.
    pub addresses: Vec<IpNet>,
    /// The pod's gateway, a link-local address.
    pub gateway: IpAddr,
}

/// A pod's link as made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Number of the host end in the netns of the calling thread.
    pub host_index: u32,
    /// Ethernet address of the host end.
    pub host_mac: Mac,
    /// Ethernet address of the container end.
    pub container_mac: Mac,
    /// Number of the container end in the pod's netns.
    pub container_index: u32,
}

/// The container end of a pod's link, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLink {
    /// The link itself.
    pub link: Link,
    /// Its addresses, without link-local ones of the kernel's.
    pub addresses: Vec<IpNet>,
}

/// Creates and wires a pod's link. On failure everything it made is gone again.
///
/// The first attachment of a pod gets its default route; for further ones gateway and default route have a higher
/// metric. Not cancel safe: if it is dropped half-way, [`delete_host_link`] removes what is there.
///
/// # Errors
/// [`HostError::SameNetns`], [`HostError::AlreadyExists`] for either name, [`HostError::Invalid`] for a value,
/// [`HostError::Foreign`] where somebody else's route to the pod's address stands, or the kernel's refusal.
pub async fn create_pod_link(spec: &PodLinkSpec<'_>) -> Result<PodLink, HostError> {
    validate(spec)?;
    if spec.netns.same_as_current()? {
        return Err(HostError::SameNetns { path: spec.netns.path().display().to_string() });
    }
    let host = Host::open()?;
    let pod = Host::open_in(spec.netns)?;
    if pod.link(&spec.ifname).await?.is_some() {
        let object = format!("link `{}` in netns {}", spec.ifname, spec.netns.path().display());
        return Err(HostError::AlreadyExists { object });
    }
    if host.link(&spec.host_ifname).await?.is_some() {
        return Err(HostError::AlreadyExists { object: format!("host link `{}`", spec.host_ifname) });
    }
    create_pair(&host, spec).await?;
    let wired = wire(&host, &pod, spec).await;
    if wired.is_err()
        && let Err(error) = delete_host_link(&spec.host_ifname).await
    {
        tracing::warn!(link = %spec.host_ifname, %error, "a half-made pod link could not be removed");
    }
    wired
}

/// Deletes the host end of a pod's link, and with it the container end and the routes; absent is fine.
///
/// # Errors
/// [`HostError::Foreign`] where the link of that name is no veth with our prefix.
pub async fn delete_host_link(name: &str) -> Result<(), HostError> {
    let host = Host::open()?;
    match host.link(name).await? {
        None => Ok(()),
        Some(link) if link.is_own() && link.kind == LinkKind::Veth => host.delete_link(&link).await,
        Some(link) => {
            Err(HostError::Foreign { object: format!("link {name}"), found: format!("{:?}", link.kind) })
        }
    }
}

/// The link of that name in the pod's netns; `None` where there is none.
pub async fn container_link(netns: &Netns, ifname: &str) -> Result<Option<ContainerLink>, HostError> {
    let pod = Host::open_in(netns)?;
    let Some(link) = pod.link(ifname).await? else { return Ok(None) };
    let is_link_local = |net: &IpNet| matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    let addresses = pod.addresses().await?.into_iter().filter(|address| address.index == link.index);
    let addresses = addresses.map(|address| address.net).filter(|net| !is_link_local(net)).collect();
    Ok(Some(ContainerLink { link, addresses }))
}

fn validate(spec: &PodLinkSpec<'_>) -> Result<(), HostError> {
    let invalid = |what: String, reason: &str| Err(HostError::Invalid { what, reason: reason.to_owned() });
    for name in [&spec.ifname, &spec.host_ifname] {
        let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        // What the kernel takes for a name: dev_valid_name() in net/core/dev.c.
        if name.is_empty()
            || name.len() > LINK_NAME_BYTES_MAX
            || name == "."
            || name == ".."
            || name.contains(is_bad)
        {
            return invalid(
                format!("link name {name:?}"),
                "1 to 15 bytes without `/`, `:` or blanks, not `.` or `..`",
            );
        }
    }
    if !spec.host_ifname.starts_with(LINK_PREFIX) {
        return invalid(
            format!("host link name {:?}", spec.host_ifname),
            "does not begin with our prefix `weft`",
        );
    }
    if spec.addresses.is_empty() {
        return invalid("addresses".to_owned(), "a pod link needs at least one");
    }
    for address in &spec.addresses {
        if address.prefix_len() != address.max_prefix_len() {
            return invalid(
                format!("address {address}"),
                "pods are routed: give it with its full length (/32)",
            );
        }
        if !address.addr().is_ipv4() || !spec.gateway.is_ipv4() {
            return invalid(format!("address {address}"), "only IPv4 is wired so far");
        }
    }
    if spec.mac.is_some_and(|mac| !mac.is_station()) {
        return invalid("mac".to_owned(), "a group or zero address cannot be a link's own");
    }
    Ok(())
}

async fn create_pair(host: &Host, spec: &PodLinkSpec<'_>) -> Result<(), HostError> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(spec.ifname.clone()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::NetNsFd(spec.netns.as_fd().as_raw_fd()),
    ];
    peer.attributes.extend(spec.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(spec.host_ifname.clone()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let what = format!("create the veth pair {} and {}", spec.host_ifname, spec.ifname);
    let request = RouteNetlinkMessage::NewLink(message);
    match host.socket.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await {
        // Somebody else was faster than our look-ups.
        Err(error) if error.errno() == Some(Errno::EEXIST) => Err(HostError::AlreadyExists {
            object: format!("link `{}` or `{}`", spec.host_ifname, spec.ifname),
        }),
        other => other,
    }
}

async fn wire(host: &Host, pod: &Host, spec: &PodLinkSpec<'_>) -> Result<PodLink, HostError> {
    let outer = host.existing_link(&spec.host_ifname).await?;
    let inner = pod.existing_link(&spec.ifname).await?;
    let (Some(host_mac), Some(container_mac)) = (outer.mac, inner.mac) else {
        let reason = "the kernel gave it no Ethernet address".to_owned();
        return Err(HostError::Invalid { what: format!("link {}", spec.host_ifname), reason });
    };
    set_sysctls(spec)?;
    wire_pod(pod, spec, &inner, host_mac).await?;
    host.set_up(&outer).await?;
    for address in &spec.addresses {
        let device = spec.host_ifname.clone();
        let route = RouteSpec { device: Some(device.clone()), scope_link: true, ..RouteSpec::default() };
        host.set_route(&RouteKey::main(*address), &route).await?;
        let key = NeighbourKey { device, ip: address.addr() };
        host.set_neighbour(&key, &NeighbourSpec { mac: container_mac }).await?;
    }
    await_carrier(host, pod, spec).await?;
    Ok(PodLink { host_index: outer.index, host_mac, container_mac, container_index: inner.index })
}

/// Waits until packets pass. A veth drops what is sent before the kernel's link watch has seen both ends up, which it
/// may put off for a second; the pod's first packet should not be the one that is lost.
async fn await_carrier(host: &Host, pod: &Host, spec: &PodLinkSpec<'_>) -> Result<(), HostError> {
    let start = Instant::now();
    loop {
        // Asking for one link makes kernels from 6.9 on run the link watch for it at once.
        let outer = host.existing_link(&spec.host_ifname).await?;
        let inner = pod.existing_link(&spec.ifname).await?;
        if outer.is_running && inner.is_running {
            return Ok(());
        }
        if start.elapsed() > CARRIER_WAIT_MAX {
            tracing::warn!(link = %spec.host_ifname, "no carrier yet; the pod's first packets may be lost");
            return Ok(());
        }
        time::sleep(CARRIER_POLL).await;
    }
}

/// Before the links come up, so that neither has an address of the kernel's for a moment.
fn set_sysctls(spec: &PodLinkSpec<'_>) -> Result<(), HostError> {
    let name = &spec.host_ifname;
    // Replies to a pod may take another way than its packets came.
    sysctl::write(&format!("net/ipv4/conf/{name}/rp_filter"), "0").map_err(sysctl_error)?;
    // The gateway is a permanent neighbour; the host must not answer for anything else either.
    sysctl::write(&format!("net/ipv4/conf/{name}/proxy_arp"), "0").map_err(sysctl_error)?;
    sysctl::write_if_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1").map_err(sysctl_error)?;
    let accept_ra = format!("net/ipv6/conf/{}/accept_ra", spec.ifname);
    netns::run_in(spec.netns, || sysctl::write_if_present(&accept_ra, "0"))?.map_err(sysctl_error)
}

async fn wire_pod(pod: &Host, spec: &PodLinkSpec<'_>, link: &Link, host_mac: Mac) -> Result<(), HostError> {
    let loopback = pod.existing_link("lo").await?;
    pod.set_up(&loopback).await?;
    for address in &spec.addresses {
        let address = AddressSpec { device: link.name.clone(), address: *address, scope_host: false };
        pod.set_address(&address).await?;
    }
    pod.set_up(link).await?;
    let default = IpNet::new_assert(IpAddr::from([0, 0, 0, 0]), 0);
    let links = LinkTable::new(pod.links().await?);
    let taken = pod.routes(&links, None).await?;
    let metric = match taken.iter().any(|route| route.key == RouteKey::main(default)) {
        true => link.index,
        false => 0,
    };
    let device = Some(link.name.clone());
    let to_gateway = RouteSpec { device: device.clone(), scope_link: true, ..RouteSpec::default() };
    let key = RouteKey { metric, ..RouteKey::main(IpNet::from(spec.gateway)) };
    pod.set_route(&key, &to_gateway).await?;
    let through = RouteSpec { device, gateway: Some(spec.gateway), onlink: true, ..RouteSpec::default() };
    pod.set_route(&RouteKey { metric, ..RouteKey::main(default) }, &through).await?;
    let key = NeighbourKey { device: link.name.clone(), ip: spec.gateway };
    pod.set_neighbour(&key, &NeighbourSpec { mac: host_mac }).await
}
