// SPDX-License-Identifier: Apache-2.0

//! Is a pod's link still as it was made? For CNI CHECK.

use std::fmt::{self, Display};

use ipnet::IpNet;
use netd_plan::{Mac, RouteKey};

use crate::{
    Host, HostError,
    link::LinkTable,
    veth::PodLinkSpec,
    wiring::{default_route, host_address},
};

/// One way in which a pod's link differs from what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The object, with the side it is on.
    pub object: String,
    /// How it should be.
    pub wanted: String,
    /// How it is.
    pub found: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} instead of {}", self.object, self.found, self.wanted)
    }
}

/// Compares a pod's link with its spec: both ends, MAC (where the spec has one), MTU, addresses, routes, neighbours.
/// Changes nothing. What cannot be read is a difference too.
pub async fn check_pod_link(spec: &PodLinkSpec<'_>) -> Result<(), Vec<Difference>> {
    let mut differences = Vec::new();
    if let Err(error) = compare(spec, &mut differences).await {
        let object = format!("netns {}", spec.netns.path().display());
        differences.push(Difference { object, wanted: "readable".to_owned(), found: error.to_string() });
    }
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}

async fn compare(spec: &PodLinkSpec<'_>, differences: &mut Vec<Difference>) -> Result<(), HostError> {
    let host = Side::read("host", Host::open()?, &spec.host_ifname).await?;
    let pod = Side::read("pod", Host::open_in(spec.netns)?, &spec.ifname).await?;
    let mut list = List(differences);
    let host_mac = list.link(&host, spec.mtu, None);
    let container_mac = list.link(&pod, spec.mtu, spec.mac);
    for address in &spec.addresses {
        list.present(&pod, &format!("address {address}"), pod.has_address(address));
        list.route(&host, address);
        list.neighbour(&host, address, container_mac);
    }
    for gateway in &spec.gateways {
        if gateway.is_ipv4() {
            list.route(&pod, &IpNet::from(*gateway));
        } else {
            let address = host_address(*gateway);
            list.present(&host, &format!("address {address}"), host.has_address(&address));
        }
        list.route(&pod, &default_route(*gateway));
        list.neighbour(&pod, &IpNet::from(*gateway), host_mac);
    }
    Ok(())
}

/// Everything of one netns that concerns one link.
struct Side {
    name: &'static str,
    ifname: String,
    index: Option<u32>,
    links: LinkTable,
    addresses: Vec<IpNet>,
    routes: Vec<RouteKey>,
    neighbours: Vec<(IpNet, Mac)>,
}

impl Side {
    async fn read(name: &'static str, host: Host, ifname: &str) -> Result<Self, HostError> {
        let links = LinkTable::new(host.links().await?);
        let index = links.iter().find(|link| link.name == ifname).map(|link| link.index);
        let addresses = host.addresses().await?.into_iter().filter(|address| Some(address.index) == index);
        let over = |device: Option<&str>| device == Some(ifname);
        let routes = host.routes(&links, None).await?.into_iter();
        let routes = routes.filter(|route| over(route.spec.as_ref().and_then(|spec| spec.device.as_deref())));
        let neighbours = host.neighbours().await?.into_iter().filter(|entry| Some(entry.index) == index);
        Ok(Self {
            name,
            ifname: ifname.to_owned(),
            index,
            addresses: addresses.map(|address| address.net).collect(),
            routes: routes.map(|route| route.key).collect(),
            neighbours: neighbours.map(|entry| (IpNet::from(entry.ip), entry.spec.mac)).collect(),
            links,
        })
    }

    fn has_address(&self, address: &IpNet) -> bool {
        self.addresses.contains(address)
    }
}

struct List<'a>(&'a mut Vec<Difference>);

impl List<'_> {
    fn add(&mut self, side: &Side, object: &str, wanted: impl Display, found: impl Display) {
        let object = format!("{object} of {} ({} side)", side.ifname, side.name);
        self.0.push(Difference { object, wanted: wanted.to_string(), found: found.to_string() });
    }

    fn present(&mut self, side: &Side, object: &str, is_present: bool) {
        if side.index.is_some() && !is_present {
            self.add(side, object, "present", "absent");
        }
    }

    /// Compares the link itself; its MAC is returned for the other side's neighbour.
    fn link(&mut self, side: &Side, mtu: u32, mac: Option<Mac>) -> Option<Mac> {
        let Some(link) = side.index.and_then(|index| side.links.link(index)) else {
            self.add(side, "link", "present", "absent");
            return None;
        };
        if !link.is_up {
            self.add(side, "state", "up", "down");
        }
        if link.mtu != mtu {
            self.add(side, "MTU", mtu, link.mtu);
        }
        if let (Some(wanted), Some(found)) = (mac, link.mac)
            && wanted != found
        {
            self.add(side, "MAC", wanted, found);
        }
        link.mac
    }

    fn route(&mut self, side: &Side, dst: &IpNet) {
        let is_present = side.routes.iter().any(|key| key.dst == *dst);
        self.present(side, &format!("route {dst}"), is_present);
    }

    fn neighbour(&mut self, side: &Side, ip: &IpNet, mac: Option<Mac>) {
        let (Some(_), Some(mac)) = (side.index, mac) else { return };
        let found = side.neighbours.iter().find(|(known, _)| known == ip).map(|(_, mac)| *mac);
        if found != Some(mac) {
            let found = found.map_or_else(|| "absent".to_owned(), |mac| mac.to_string());
            self.add(side, &format!("permanent neighbour {}", ip.addr()), mac, found);
        }
    }
}
