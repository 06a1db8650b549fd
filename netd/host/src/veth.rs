// SPDX-License-Identifier: Apache-2.0

//! A pod's link: a veth pair from the pod's netns to the netns of the calling thread, routed, no bridge.
//!
//! The container end is made inside the pod's netns by the one request that makes the pair, so a half-made `eth0` is
//! never seen elsewhere. The pod's only neighbour is its gateway, link-local addresses that no link has (IPv4) or the host
//! end (IPv6): permanent entries point them at the host end, and the host has permanent entries for the pod. Neither ARP
//! nor ND is needed either way.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use ipnet::IpNet;
use netd_plan::{
    Mac, ifb_name,
    links::{LINK_NAME_BYTES_MAX, LINK_PREFIX},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::errno::Errno;

pub use crate::podcheck::{Difference, check_pod_link};
use crate::{
    Host, HostError, Link, LinkKind, Netns, interface_index, link::sysctl_error, sysctl, wiring::wire,
};

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
    /// Most segments of one large packet from the container end (`IFLA_GSO_MAX_SEGS`); the kernel's default where `None`.
    pub gso_max_segs: Option<u32>,
    /// The pod's addresses, each a full-length prefix; at most one per family.
    pub addresses: Vec<IpNet>,
    /// The pod's gateways, link-local addresses: one for each family that it has an address of
    /// ([`netd_plan::pods::POD_GATEWAY_V4`] and its like). That of IPv6 is put on the host end.
    pub gateways: Vec<IpAddr>,
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
    create_pair(&host, &pod, spec).await?;
    let wired = wire(&host, &pod, spec).await;
    if wired.is_err()
        && let Err(error) = delete_host_link(&spec.host_ifname).await
    {
        tracing::warn!(link = %spec.host_ifname, %error, "a half-made pod link could not be removed");
    }
    wired
}

/// Deletes the host end of a pod's link, and with it the container end, the routes, its limits and their IFB device; absent
/// is fine. An IFB device of ours goes too where `name` is one's.
///
/// # Errors
/// [`HostError::Foreign`] where the link of that name is no veth with our prefix.
pub async fn delete_host_link(name: &str) -> Result<(), HostError> {
    delete(name, None::<fn()>).await
}

/// The same where the calling thread is in the process's own netns; what `during` makes lives while the kernel takes the
/// pair apart, on a thread of its own.
///
/// # Errors
/// As [`delete_host_link`].
pub async fn delete_host_link_during<G>(
    name: &str,
    during: impl FnOnce() -> G + Send + 'static,
) -> Result<(), HostError> {
    delete(name, Some(during)).await
}

async fn delete<G>(name: &str, during: Option<impl FnOnce() -> G + Send + 'static>) -> Result<(), HostError> {
    // A look by ioctl, which does not wait for the lock of all links as a request would: the kernel holds that while it takes
    // another one apart, or this very one.
    if interface_index(name).is_none() && interface_index(&ifb_name(name)).is_none() {
        return Ok(());
    }
    let host = Host::open()?;
    match host.link(name).await? {
        None => {}
        Some(link) if link.is_own() && matches!(link.kind, LinkKind::Ifb | LinkKind::Veth) => match during {
            Some(during) => host.delete_link_during(&link, during).await?,
            None => host.delete_link(&link).await?,
        },
        Some(link) => {
            let found = format!("{:?}", link.kind);
            return Err(HostError::Foreign { object: format!("link {name}"), found });
        }
    }
    let ifb = ifb_name(name);
    // Most pods have none: no reason for another request.
    if name.starts_with(LINK_PREFIX) && interface_index(&ifb).is_some() {
        host.remove_device(&ifb).await?;
    }
    Ok(())
}

/// Lets packets to and from 127.0.0.0/8 pass a pod's veth, so that mapped ports work on the node's loopback addresses too.
/// The nft table keeps pods from reaching what listens there: load it first. Idempotent, and gone with the link.
///
/// # Errors
/// [`HostError::Io`] where there is no such link.
pub fn open_for_loopback(host_ifname: &str) -> Result<(), HostError> {
    sysctl::write(&format!("net/ipv4/conf/{host_ifname}/route_localnet"), "1").map_err(sysctl_error)
}

/// The link of that name in the pod's netns; `None` where there is none.
pub async fn container_link(netns: &Netns, ifname: &str) -> Result<Option<ContainerLink>, HostError> {
    let pod = Host::open_in(netns)?;
    let Some(link) = pod.link(ifname).await? else { return Ok(None) };
    let is_of_kernel = |net: &IpNet| net.addr().is_ipv6() && is_link_local(&net.addr());
    let addresses = pod.addresses().await?.into_iter().filter(|address| address.index == link.index);
    let addresses = addresses.map(|address| address.net).filter(|net| !is_of_kernel(net)).collect();
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
                "pods are routed: give it with its full length (/32 or /128)",
            );
        }
    }
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let addresses = spec.addresses.iter().filter(|address| address.addr().is_ipv4() == is_v4).count();
        let gateways = spec.gateways.iter().filter(|gateway| gateway.is_ipv4() == is_v4).count();
        if addresses.min(1) != gateways {
            return invalid(
                format!("{gateways} {family} gateways for {addresses} addresses"),
                "a pod has one gateway for each family that it has addresses of",
            );
        }
    }
    if let Some(gateway) = spec.gateways.iter().find(|gateway| !is_link_local(gateway)) {
        return invalid(format!("gateway {gateway}"), "not link-local (169.254.0.0/16, fe80::/10)");
    }
    if spec.mac.is_some_and(|mac| !mac.is_station()) {
        return invalid("mac".to_owned(), "a group or zero address cannot be a link's own");
    }
    Ok(())
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

async fn create_pair(host: &Host, pod: &Host, spec: &PodLinkSpec<'_>) -> Result<(), HostError> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(spec.ifname.clone()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::NetNsFd(spec.netns.as_fd().as_raw_fd()),
    ];
    peer.attributes.extend(spec.gso_max_segs.map(LinkAttribute::GsoMaxSegs));
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
        // The kernel does not say which.
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            let object = match pod.link(&spec.ifname).await? {
                Some(_) => format!("link `{}` in netns {}", spec.ifname, spec.netns.path().display()),
                None => format!("host link `{}`", spec.host_ifname),
            };
            Err(HostError::AlreadyExists { object })
        }
        other => other,
    }
}
