// SPDX-License-Identifier: Apache-2.0

//! Links: look-ups, and the devices of ours: VXLAN (`drivers/net/vxlan`), WireGuard (`drivers/net/wireguard`) and IFB
//! (`drivers/net/ifb.c`), and the TUN devices that `weft-wireguard` makes (`drivers/net/tun.c`).

use std::{collections::BTreeMap, net::IpAddr};

use netd_plan::{LinkSpec, Mac, links::LINK_PREFIX};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State},
};
use nix::errno::Errno;

use crate::{
    Host, HostError,
    error::absent_is_fine,
    socket::request_now,
    sysctl::{self, SysctlError},
};

/// A link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it in its netns.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether it can carry packets now: the kernel's operational state is up (RFC 2863).
    pub is_running: bool,
    /// Whether it is the loopback device.
    pub is_loopback: bool,
    /// Its driver.
    pub kind: LinkKind,
}

/// The driver of a link, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// An intermediate functional block.
    Ifb,
    /// Something else, or a physical device.
    Other(String),
    /// A TUN or TAP device of a program.
    Tun,
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// UDP destination port.
        port: u16,
        /// Source of outer packets, where fixed.
        local: Option<IpAddr>,
        /// Whether it learns or floods: neither is ours.
        is_learning: bool,
    },
    /// A VXLAN device whose packets say each where they go.
    VxlanExternal {
        /// UDP destination port.
        port: u16,
    },
    /// A WireGuard device of the kernel.
    Wireguard,
}

impl Link {
    /// Whether its name has our prefix.
    pub fn is_own(&self) -> bool {
        self.name.starts_with(LINK_PREFIX)
    }

    /// Whether it is of a kind that netd or `weft-wireguard` makes, with our prefix.
    fn is_own_device(&self) -> bool {
        let is_of_kind = match self.kind {
            LinkKind::Ifb
            | LinkKind::Tun
            | LinkKind::Vxlan { .. }
            | LinkKind::VxlanExternal { .. }
            | LinkKind::Wireguard => true,
            LinkKind::Other(_) | LinkKind::Veth => false,
        };
        self.is_own() && is_of_kind
    }

    /// As the plan describes it; `None` where it is of no kind that the plan knows, or not in working order.
    fn spec(&self) -> Option<LinkSpec> {
        let mtu = self.mtu;
        match (&self.kind, self.mac) {
            _ if !self.is_up => None,
            (LinkKind::Ifb, _) => Some(LinkSpec::Ifb),
            (LinkKind::Tun, _) => Some(LinkSpec::Tun { mtu }),
            (&LinkKind::Vxlan { vni, port, local: Some(local), is_learning: false }, Some(mac)) => {
                Some(LinkSpec::Vxlan { vni, port, local, mac, mtu })
            }
            (&LinkKind::VxlanExternal { port }, _) => Some(LinkSpec::VxlanExternal { port, mtu }),
            (LinkKind::Wireguard, _) => Some(LinkSpec::Wireguard { mtu }),
            _ => None,
        }
    }
}

/// Number of `lo` in every netns: LOOPBACK_IFINDEX of include/net/flow.h.
pub(crate) const LOOPBACK_INDEX: u32 = 1;

/// Interface index of the link with this name in the calling thread's netns; `None` where there is none.
pub fn interface_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

impl Host {
    /// All links of the netns.
    pub async fn links(&self) -> Result<Vec<Link>, HostError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let replies = self.socket.dump("list links", message).await?;
        Ok(replies.iter().filter_map(parse_link).collect())
    }

    /// The link of that name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, HostError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.socket.get(&format!("look up link {name}"), RouteNetlinkMessage::GetLink(message)).await {
            Ok(reply) => Ok(reply.as_ref().and_then(parse_link)),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Number of the link of that name.
    ///
    /// # Errors
    /// [`HostError::NoDevice`].
    pub async fn link_index(&self, name: &str) -> Result<u32, HostError> {
        Ok(self.existing_link(name).await?.index)
    }

    /// MTU in bytes of the link of that name.
    ///
    /// # Errors
    /// [`HostError::NoDevice`].
    pub async fn link_mtu(&self, name: &str) -> Result<u32, HostError> {
        Ok(self.existing_link(name).await?.mtu)
    }

    pub(crate) async fn existing_link(&self, name: &str) -> Result<Link, HostError> {
        self.link(name).await?.ok_or_else(|| HostError::NoDevice { device: name.to_owned() })
    }

    /// Brings a link up.
    pub(crate) async fn set_up(&self, index: u32, name: &str) -> Result<(), HostError> {
        self.set_flags(index, LinkFlags::Up, &format!("bring up link {name}")).await
    }

    async fn set_flags(&self, index: u32, up: LinkFlags, what: &str) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = up;
        message.header.change_mask = LinkFlags::Up;
        self.socket.request(what, RouteNetlinkMessage::SetLink(message), 0).await
    }

    /// Deletes a link by number, so that a new one of the same name is never hit; absent is fine.
    pub(crate) async fn delete_link(&self, link: &Link) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let what = format!("delete link {}", link.name);
        absent_is_fine(self.socket.request(&what, RouteNetlinkMessage::DelLink(message), 0).await)
    }

    /// The same by a thread of its own in the process's netns; `during` lives as long as the kernel's work.
    pub(crate) async fn delete_link_during<G>(
        &self,
        link: &Link,
        during: impl FnOnce() -> G + Send + 'static,
    ) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let what = format!("delete link {}", link.name);
        let work = move || absent_is_fine(request_now(&what, RouteNetlinkMessage::DelLink(message), during));
        let setup =
            |error| HostError::Setup { what: "wait for a thread", source: std::io::Error::other(error) };
        tokio::task::spawn_blocking(work).await.map_err(setup)?
    }

    pub(crate) async fn set_link(&self, name: &str, spec: &LinkSpec) -> Result<(), HostError> {
        if !name.starts_with(LINK_PREFIX) {
            let reason = format!("does not begin with `{LINK_PREFIX}`; it would not be known as ours");
            return Err(HostError::Invalid { what: format!("link name {name}"), reason });
        }
        let link = match self.link(name).await? {
            Some(link) if link.kind == kind_of(spec) => link,
            Some(link) => {
                own_device(&link)?;
                self.delete_link(&link).await?;
                self.create_device(name, spec).await?
            }
            None => self.create_device(name, spec).await?,
        };
        // Before it comes up, so that it never has a link-local address of the kernel's.
        match spec {
            LinkSpec::Ifb => sysctl::write_if_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1"),
            LinkSpec::Tun { .. }
            | LinkSpec::Vxlan { .. }
            | LinkSpec::VxlanExternal { .. }
            | LinkSpec::Wireguard { .. } => {
                sysctl::open_for_ipv6(name).and_then(|()| sysctl::take_any_way_in(name))
            }
        }
        .map_err(sysctl_error)?;
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = changes(&link, spec);
        if link.is_up && message.attributes.is_empty() {
            return Ok(());
        }
        self.socket.request(&format!("configure link {name}"), RouteNetlinkMessage::SetLink(message), 0).await
    }

    /// Deletes a device with our prefix, a TUN too, which stays when [`Host::apply`] removes it; absent is fine.
    ///
    /// # Errors
    /// [`HostError::Foreign`] where it is of no kind that is ours, or the kernel's refusal.
    pub async fn delete_device(&self, name: &str) -> Result<(), HostError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        own_device(&link)?;
        self.delete_link(&link).await
    }

    /// Removes a device; absent is fine. A TUN only goes down: it belongs to `weft-wireguard`, which would have to be told
    /// that it is gone.
    pub(crate) async fn remove_device(&self, name: &str) -> Result<(), HostError> {
        match self.link(name).await? {
            None => Ok(()),
            Some(link) => {
                own_device(&link)?;
                match link.kind {
                    LinkKind::Tun => {
                        let what = format!("take down link {name}");
                        absent_is_fine(self.set_flags(link.index, LinkFlags::empty(), &what).await)
                    }
                    _ => self.delete_link(&link).await,
                }
            }
        }
    }

    async fn create_device(&self, name: &str, spec: &LinkSpec) -> Result<Link, HostError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let what = match spec {
            LinkSpec::Ifb => {
                let infos = vec![LinkInfo::Kind(InfoKind::Ifb)];
                message.attributes.push(LinkAttribute::LinkInfo(infos));
                format!("create IFB device {name} (bandwidth needs the kernel's ifb module)")
            }
            LinkSpec::Tun { .. } => return Err(HostError::NotMade { device: name.to_owned() }),
            LinkSpec::Wireguard { mtu } => {
                let infos = vec![LinkInfo::Kind(InfoKind::Wireguard)];
                message.attributes.extend([LinkAttribute::Mtu(*mtu), LinkAttribute::LinkInfo(infos)]);
                format!("create WireGuard device {name} (needs the kernel's wireguard module)")
            }
            LinkSpec::Vxlan { vni, port, local, mac, mtu } => {
                let source = match local {
                    IpAddr::V4(address) => InfoVxlan::Local(*address),
                    IpAddr::V6(address) => InfoVxlan::Local6(*address),
                };
                // UDP checksums and TTL stay at the kernel's defaults, as for a device made by `ip link add`.
                let data =
                    vec![InfoVxlan::Id(*vni), source, InfoVxlan::Port(*port), InfoVxlan::Learning(false)];
                message.attributes.extend([
                    LinkAttribute::Mtu(*mtu),
                    LinkAttribute::Address(mac.0.to_vec()),
                    LinkAttribute::LinkInfo(vec![
                        LinkInfo::Kind(InfoKind::Vxlan),
                        LinkInfo::Data(InfoData::Vxlan(data)),
                    ]),
                ]);
                format!("create VXLAN device {name} (VNI {vni}, port {port}, local {local})")
            }
            LinkSpec::VxlanExternal { port, mtu } => {
                let data = vec![
                    InfoVxlan::CollectMetadata(true),
                    InfoVxlan::Port(*port),
                    InfoVxlan::Learning(false),
                ];
                message.attributes.extend([
                    LinkAttribute::Mtu(*mtu),
                    LinkAttribute::LinkInfo(vec![
                        LinkInfo::Kind(InfoKind::Vxlan),
                        LinkInfo::Data(InfoData::Vxlan(data)),
                    ]),
                ]);
                format!("create VXLAN device {name} (external, port {port})")
            }
        };
        let request = RouteNetlinkMessage::NewLink(message);
        match (self.socket.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await, spec) {
            (Ok(()), _) => self.existing_link(name).await,
            (Err(error), LinkSpec::Vxlan { vni, port, .. }) if error.errno() == Some(Errno::EEXIST) => {
                let found = format!("another VXLAN device here has VNI {vni} and port {port}");
                Err(HostError::Foreign { object: format!("link {name}"), found })
            }
            (Err(error), _) => Err(error),
        }
    }
}

/// What of the link differs and can be changed.
fn changes(link: &Link, spec: &LinkSpec) -> Vec<LinkAttribute> {
    let (mtu, mac) = match spec {
        LinkSpec::Ifb => (None, None),
        LinkSpec::Tun { mtu } | LinkSpec::VxlanExternal { mtu, .. } | LinkSpec::Wireguard { mtu } => {
            (Some(*mtu), None)
        }
        LinkSpec::Vxlan { mac, mtu, .. } => (Some(*mtu), Some(*mac)),
    };
    let mtu = mtu.filter(|mtu| *mtu != link.mtu).map(LinkAttribute::Mtu);
    let mac = mac.filter(|mac| Some(*mac) != link.mac).map(|mac| LinkAttribute::Address(mac.0.to_vec()));
    mtu.into_iter().chain(mac).collect()
}

fn kind_of(spec: &LinkSpec) -> LinkKind {
    match spec {
        LinkSpec::Ifb => LinkKind::Ifb,
        LinkSpec::Tun { .. } => LinkKind::Tun,
        LinkSpec::Vxlan { vni, port, local, .. } => {
            LinkKind::Vxlan { vni: *vni, port: *port, local: Some(*local), is_learning: false }
        }
        LinkSpec::VxlanExternal { port, .. } => LinkKind::VxlanExternal { port: *port },
        LinkSpec::Wireguard { .. } => LinkKind::Wireguard,
    }
}

/// Refuses links of kinds that are not ours.
fn own_device(link: &Link) -> Result<(), HostError> {
    if link.is_own_device() {
        return Ok(());
    }
    Err(HostError::Foreign { object: format!("link {}", link.name), found: format!("{:?}", link.kind) })
}

/// Links by number, for naming the devices of other objects.
pub(crate) struct LinkTable(BTreeMap<u32, Link>);

impl LinkTable {
    pub(crate) fn new(links: Vec<Link>) -> Self {
        Self(links.into_iter().map(|link| (link.index, link)).collect())
    }

    pub(crate) fn link(&self, index: u32) -> Option<&Link> {
        self.0.get(&index)
    }

    /// The link of that number where its name has our prefix.
    pub(crate) fn own(&self, index: u32) -> Option<&Link> {
        self.link(index).filter(|link| link.is_own())
    }

    pub(crate) fn own_vxlans(&self) -> impl Iterator<Item = &Link> {
        self.0.values().filter(|link| link.is_own() && matches!(link.kind, LinkKind::Vxlan { .. }))
    }

    pub(crate) fn own_specs(&self) -> BTreeMap<String, LinkSpec> {
        let own = self.iter().filter(|link| link.is_own_device());
        own.filter_map(|link| Some((link.name.clone(), link.spec()?))).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }
}

/// `None` for other messages, and links without a name.
pub(crate) fn parse_link(message: &RouteNetlinkMessage) -> Option<Link> {
    let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) = message else {
        return None;
    };
    let mut name = None;
    let mut mac = None;
    let mut mtu = 0;
    let mut is_running = false;
    let mut kind = LinkKind::Other(String::new());
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = parse_mac(bytes),
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::LinkInfo(infos) => kind = parse_kind(infos),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::OperState(state) => is_running = *state == State::Up,
            _ => {}
        }
    }
    let flags = message.header.flags;
    Some(Link {
        index: message.header.index,
        name: name?,
        mac,
        mtu,
        is_up: flags.contains(LinkFlags::Up),
        is_running,
        is_loopback: flags.contains(LinkFlags::Loopback),
        kind,
    })
}

pub(crate) fn parse_mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

fn parse_kind(infos: &[LinkInfo]) -> LinkKind {
    let vxlan = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(parse_vxlan(data)),
        _ => None,
    });
    let named = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Ifb) => Some(LinkKind::Ifb),
        LinkInfo::Kind(InfoKind::Tun) => Some(LinkKind::Tun),
        LinkInfo::Kind(InfoKind::Veth) => Some(LinkKind::Veth),
        LinkInfo::Kind(InfoKind::Wireguard) => Some(LinkKind::Wireguard),
        LinkInfo::Kind(other) => Some(LinkKind::Other(other.to_string())),
        _ => None,
    });
    vxlan.or(named).unwrap_or(LinkKind::Other("no virtual device".to_owned()))
}

fn parse_vxlan(data: &[InfoVxlan]) -> LinkKind {
    let (mut id, mut udp_port, mut source, mut learns, mut external) = (0, 0, None, false, false);
    for info in data {
        match info {
            InfoVxlan::CollectMetadata(on) => external = *on,
            InfoVxlan::Learning(on) => learns |= on,
            InfoVxlan::Group(_) | InfoVxlan::Group6(_) => learns = true,
            InfoVxlan::Id(value) => id = *value,
            InfoVxlan::Local(address) => source = Some(IpAddr::V4(*address)),
            InfoVxlan::Local6(address) => source = Some(IpAddr::V6(*address)),
            InfoVxlan::Port(value) => udp_port = *value,
            _ => {}
        }
    }
    if external {
        return LinkKind::VxlanExternal { port: udp_port };
    }
    LinkKind::Vxlan { vni: id, port: udp_port, local: source, is_learning: learns }
}

/// A sysctl that goes with a link.
pub(crate) fn sysctl_error(error: SysctlError) -> HostError {
    match error {
        SysctlError::Io { path, source } => HostError::Io { path, source },
        other => HostError::Invalid { what: "sysctl".to_owned(), reason: other.to_string() },
    }
}
