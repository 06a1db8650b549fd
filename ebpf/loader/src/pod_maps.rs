// SPDX-License-Identifier: Apache-2.0
//! A pod link's map entries: what it may send (POD_LINKS, POD_ADDRESSES), and where its addresses are reached (PODS, PODS6).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ebpf_abi::{POD_IPV6, POD_REDIRECT, Pod6Key, PodAddressKey, PodKey, PodLink, PodValue};

use crate::{
    datapath::Datapath,
    error::MapAccessError,
    map::BpfMap,
    pod::{ObservedPod, PodAttachment},
};

/// The value of each entry of POD_ADDRESSES.
const MAY_SEND: u32 = 0;

impl Datapath {
    /// Every pod link in the maps, by interface index; also what an interrupted attachment or removal left.
    pub fn pods(&self) -> Result<BTreeMap<u32, ObservedPod>, MapAccessError> {
        let links: BTreeMap<u32, PodLink> = self.maps.pod_links.entries()?.into_iter().collect();
        let mut reached = BTreeMap::new();
        for (key, value) in self.maps.pods.entries()? {
            reached.insert(IpAddr::V4(key.address()), value);
        }
        for (key, value) in self.maps.pods6.entries()? {
            reached.insert(IpAddr::V6(key.address()), value);
        }
        let mut allowed = BTreeMap::<u32, BTreeSet<IpAddr>>::new();
        for (key, _) in self.maps.pod_addresses.entries()? {
            allowed.entry(key.ifindex).or_default().insert(key.address());
        }
        for (index, link) in &links {
            allowed.entry(*index).or_default().extend(link.address().map(IpAddr::V4));
        }
        let mut addresses = allowed.clone();
        for (address, value) in &reached {
            addresses.entry(value.ifindex).or_default().insert(*address);
        }
        let observed = addresses.into_iter().map(|(host_index, addresses)| {
            let link = links.get(&host_index);
            let may_send = |address: &IpAddr| {
                let has_family = match address {
                    IpAddr::V4(_) => link.is_some_and(|link| link.address().is_some()),
                    IpAddr::V6(_) => link.is_some_and(|link| link.flags & POD_IPV6 != 0),
                };
                has_family && allowed.get(&host_index).is_some_and(|allowed| allowed.contains(address))
            };
            let values: Option<Vec<&PodValue>> = addresses
                .iter()
                .map(|address| {
                    let here = reached.get(address).filter(|pod| pod.ifindex == host_index);
                    here.filter(|_| may_send(address))
                })
                .collect();
            let flags = values.iter().flatten().fold(POD_REDIRECT, |flags, pod| flags & pod.flags);
            let pod = ObservedPod {
                host_index,
                mac: link.map_or([0; 6], |link| link.mac),
                host_mac: values.as_ref().and_then(|pods| one_host_mac(pods)),
                redirect: link.map_or(0, |link| link.flags) & flags & POD_REDIRECT != 0 && values.is_some(),
                attached: self.is_attached(host_index),
                addresses,
            };
            (host_index, pod)
        });
        Ok(observed.collect())
    }

    /// What the link may send first, then where it is reached.
    pub(crate) fn write_pod(
        &mut self,
        pod: &PodAttachment,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), MapAccessError> {
        let ifindex = pod.host_index;
        self.known_addresses.entry(ifindex).or_default().extend(addresses);
        for address in addresses {
            self.maps.pod_addresses.set(&PodAddressKey::new(ifindex, *address), &MAY_SEND)?;
        }
        let redirect = if pod.redirect { POD_REDIRECT } else { 0 };
        let ipv6 = if addresses.iter().any(IpAddr::is_ipv6) { POD_IPV6 } else { 0 };
        let first = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        self.maps.pod_links.set(&ifindex, &PodLink::new(first, pod.mac, redirect | ipv6))?;
        let value = PodValue { ifindex, flags: redirect, mac: pod.mac, host_mac: pod.host_mac };
        for address in addresses {
            match address {
                IpAddr::V4(address) => self.maps.pods.set(&PodKey::new(*address), &value)?,
                IpAddr::V6(address) => self.maps.pods6.set(&Pod6Key::new(*address), &value)?,
            }
        }
        Ok(())
    }

    /// Removes what the link's other addresses have.
    pub(crate) fn remove_addresses_except(
        &mut self,
        host_index: u32,
        keep: &BTreeSet<IpAddr>,
    ) -> Result<(), MapAccessError> {
        let known = self.known_addresses.get(&host_index).cloned().unwrap_or_default();
        for address in known.difference(keep) {
            self.remove_reached(host_index, *address)?;
            let key = PodAddressKey::new(host_index, *address);
            self.maps.pod_addresses.remove(&key)?;
        }
        self.known_addresses.insert(host_index, keep.clone());
        Ok(())
    }

    /// Nothing is delivered to the link any more; it may still send.
    pub(crate) fn make_unreachable(&mut self, host_index: u32) -> Result<(), MapAccessError> {
        for address in self.known_addresses.get(&host_index).cloned().unwrap_or_default() {
            self.remove_reached(host_index, address)?;
        }
        Ok(())
    }

    /// Removes all that the maps have of the link.
    pub(crate) fn remove_pod(&mut self, host_index: u32) -> Result<(), MapAccessError> {
        self.maps.pod_links.remove(&host_index)?;
        self.remove_addresses_except(host_index, &BTreeSet::new())?;
        self.known_addresses.remove(&host_index);
        Ok(())
    }

    /// Removes the entry of an address, unless another link has it by now.
    fn remove_reached(&mut self, host_index: u32, address: IpAddr) -> Result<(), MapAccessError> {
        match address {
            IpAddr::V4(address) => remove_owned(&self.maps.pods, &PodKey::new(address), host_index),
            IpAddr::V6(address) => remove_owned(&self.maps.pods6, &Pod6Key::new(address), host_index),
        }
    }
}

/// The host MAC of these entries; `None` when there are none or they differ.
fn one_host_mac(pods: &[&PodValue]) -> Option<[u8; 6]> {
    let first = pods.first()?.host_mac;
    pods.iter().all(|pod| pod.host_mac == first).then_some(first)
}

fn remove_owned<K: aya::Pod>(
    map: &BpfMap<K, PodValue>,
    key: &K,
    host_index: u32,
) -> Result<(), MapAccessError> {
    if map.get(key)?.is_some_and(|value| value.ifindex == host_index) {
        map.remove(key)?;
    }
    Ok(())
}
