// SPDX-License-Identifier: Apache-2.0

//! Permanent neighbours, and forwarding entries (FDB) of VXLAN devices, which are neighbours of family AF_BRIDGE.

use std::{collections::BTreeMap, net::IpAddr};

use netd_plan::{FdbKey, FdbSpec, NeighbourKey, NeighbourSpec};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use crate::{
    Host, HostError, Link,
    address::family_of,
    error::absent_is_fine,
    link::{LinkTable, parse_mac},
};

/// NUD_PERMANENT of include/uapi/linux/neighbour.h; states are a bit set.
const PERMANENT: u16 = 0x80;

/// A permanent neighbour as the kernel has it.
#[derive(Clone, Debug)]
pub(crate) struct Neighbour {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) spec: NeighbourSpec,
}

impl Host {
    /// All permanent neighbours.
    pub(crate) async fn neighbours(&self) -> Result<Vec<Neighbour>, HostError> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let replies =
                self.socket.dump("list neighbours", RouteNetlinkMessage::GetNeighbour(message)).await?;
            neighbours.extend(replies.iter().filter_map(|reply| {
                let message = permanent(reply, family)?;
                let spec = NeighbourSpec { mac: mac_of(message)? };
                Some(Neighbour { index: message.header.ifindex, ip: destination(message)?, spec })
            }));
        }
        Ok(neighbours)
    }

    pub(crate) async fn own_neighbours(
        &self,
        links: &LinkTable,
    ) -> Result<BTreeMap<NeighbourKey, NeighbourSpec>, HostError> {
        let own = |neighbour: Neighbour| {
            let device = links.own(neighbour.index)?.name.clone();
            Some((NeighbourKey { device, ip: neighbour.ip }, neighbour.spec))
        };
        Ok(self.neighbours().await?.into_iter().filter_map(own).collect())
    }

    pub(crate) async fn set_neighbour(
        &self,
        key: &NeighbourKey,
        spec: &NeighbourSpec,
    ) -> Result<(), HostError> {
        let index = self.link_index(&key.device).await?;
        self.set_neighbour_on(index, key, spec).await
    }

    /// The same where the link's number is known.
    pub(crate) async fn set_neighbour_on(
        &self,
        index: u32,
        key: &NeighbourKey,
        spec: &NeighbourSpec,
    ) -> Result<(), HostError> {
        let mut message = neighbour_message(key, index);
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(spec.mac.0.to_vec()));
        let what = format!("set neighbour {} at {} on {}", key.ip, spec.mac, key.device);
        self.socket
            .request(&what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }

    pub(crate) async fn remove_neighbour(&self, key: &NeighbourKey) -> Result<(), HostError> {
        let Some(link) = self.link(&key.device).await? else { return Ok(()) };
        let message = RouteNetlinkMessage::DelNeighbour(neighbour_message(key, link.index));
        let what = format!("remove neighbour {} from {}", key.ip, key.device);
        absent_is_fine(self.socket.request(&what, message, 0).await)
    }

    /// Permanent forwarding entries of one VXLAN device. Of several destinations for one address the last counts.
    pub(crate) async fn fdb_entries(&self, link: &Link) -> Result<BTreeMap<FdbKey, FdbSpec>, HostError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = link.index;
        let what = format!("list FDB entries of {}", link.name);
        let replies = self.socket.dump(&what, RouteNetlinkMessage::GetNeighbour(message)).await?;
        let entry = |reply: &RouteNetlinkMessage| {
            let message = permanent(reply, AddressFamily::Bridge)?;
            let key = FdbKey { device: link.name.clone(), mac: mac_of(message)? };
            (message.header.ifindex == link.index).then_some((key, FdbSpec { dst: destination(message)? }))
        };
        Ok(replies.iter().filter_map(entry).collect())
    }

    pub(crate) async fn set_fdb(&self, key: &FdbKey, spec: &FdbSpec) -> Result<(), HostError> {
        let index = self.link_index(&key.device).await?;
        let mut message = fdb_message(key, index);
        message.attributes.push(NeighbourAttribute::Destination(spec.dst.into()));
        let what = format!("set FDB entry {} to {} on {}", key.mac, spec.dst, key.device);
        self.socket
            .request(&what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }

    pub(crate) async fn remove_fdb(&self, key: &FdbKey) -> Result<(), HostError> {
        let Some(link) = self.link(&key.device).await? else { return Ok(()) };
        // Without a destination the kernel removes the entry with all of them.
        let message = RouteNetlinkMessage::DelNeighbour(fdb_message(key, link.index));
        let what = format!("remove FDB entry {} from {}", key.mac, key.device);
        absent_is_fine(self.socket.request(&what, message, 0).await)
    }
}

fn neighbour_message(key: &NeighbourKey, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(key.ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(key.ip.into()));
    message
}

fn fdb_message(key: &FdbKey, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    // NTF_SELF: the device's own table, not that of a bridge above it.
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(key.mac.0.to_vec()));
    message
}

fn permanent(reply: &RouteNetlinkMessage, family: AddressFamily) -> Option<&NeighbourMessage> {
    let RouteNetlinkMessage::NewNeighbour(message) = reply else { return None };
    let is_permanent = u16::from(message.header.state) & PERMANENT != 0;
    (is_permanent && message.header.family == family).then_some(message)
}

fn mac_of(message: &NeighbourMessage) -> Option<netd_plan::Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => parse_mac(bytes),
        _ => None,
    })
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        // In AF_BRIDGE messages the family says nothing about the address; its length does.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => ip_from(bytes),
        _ => None,
    })
}

fn ip_from(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}
