// SPDX-License-Identifier: Apache-2.0
//! What the last plugin of the chain answered to ADD, as far as it concerns this attachment.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_types::{AddResult, CniError, Code};
use ipnet::IpNet;
use netd_host::veth::{ContainerLink, Difference, PodLinkSpec};
use netd_plan::Mac;
use serde_json::Value;

use crate::request::everything;

/// prevResult of CHECK.
pub(crate) struct Promise {
    ifname: String,
    addresses: BTreeSet<IpNet>,
    mac: Option<String>,
    mtu: Option<u32>,
    routes: BTreeSet<IpNet>,
    host_macs: Vec<(String, String)>,
}

impl Promise {
    /// Errors: code 7 where it is damaged, or knows no link of that name.
    pub(crate) fn new(prev_result: &Value, ifname: &str) -> Result<Self, CniError> {
        let result = AddResult::from_prev_result(prev_result)?;
        let Some((own, link)) = result.sandbox_link(ifname) else {
            let msg =
                format!("prevResult lists no interface {ifname} in a sandbox; is it from another plugin?");
            return Err(CniError::new(Code::INVALID_CONFIG, msg));
        };
        let on_it = |interface: Option<usize>| interface.is_none_or(|index| index == own);
        let host_links = result.interfaces.iter().filter(|link| link.sandbox.is_none());
        Ok(Self {
            ifname: ifname.to_owned(),
            addresses: result.ips.iter().filter(|ip| on_it(ip.interface)).map(|ip| ip.address).collect(),
            mac: link.mac.clone(),
            mtu: link.mtu,
            routes: result.routes.iter().map(|route| route.dst).collect(),
            host_macs: host_links.filter_map(|link| Some((link.name.clone(), link.mac.clone()?))).collect(),
        })
    }

    /// The MAC that the container end must have: a plugin behind us (tuning) may have changed it, then its result counts.
    pub(crate) fn mac(&self, recorded: Option<&str>) -> Result<Option<Mac>, CniError> {
        let mac = self.mac.as_deref().or(recorded).map(str::parse::<Mac>).transpose();
        mac.map_err(|error| CniError::new(Code::INVALID_CONFIG, format!("prevResult: {error}")))
    }

    /// netd's record against what ADD answered. A further address is another plugin's, if the link has it.
    pub(crate) fn compare_addresses(
        &self,
        recorded: &[IpNet],
        link: Option<&ContainerLink>,
        differences: &mut Vec<String>,
    ) {
        for address in recorded.iter().filter(|address| !self.addresses.contains(address)) {
            differences.push(format!("netd's record has {address}, prevResult does not"));
        }
        let is_there = |address: &IpNet| link.is_some_and(|link| link.addresses.contains(address));
        for address in self.addresses.iter().filter(|a| !recorded.contains(a) && !is_there(a)) {
            differences
                .push(format!("prevResult has {address}, neither netd's record nor {} has it", self.ifname));
        }
    }

    /// The same for an adopted link, whose prefix lengths netd does not keep: every address is in all three places.
    pub(crate) fn compare_published(
        &self,
        recorded: &[IpNet],
        link: &ContainerLink,
        differences: &mut Vec<String>,
    ) {
        let bare =
            |nets: &mut dyn Iterator<Item = &IpNet>| nets.map(IpNet::addr).collect::<BTreeSet<IpAddr>>();
        let promised = bare(&mut self.addresses.iter());
        let recorded = bare(&mut recorded.iter());
        let present = bare(&mut link.addresses.iter());
        for ip in recorded.difference(&promised) {
            differences.push(format!("netd publishes the pod with {ip}, which prevResult does not have"));
        }
        for ip in recorded.difference(&present) {
            differences
                .push(format!("netd publishes the pod with {ip}, which {} does not have", self.ifname));
        }
    }

    /// The host end's MAC, where the result has it.
    pub(crate) fn compare_host_mac(&self, name: &str, mac: Option<Mac>, differences: &mut Vec<String>) {
        let wanted =
            self.host_macs.iter().find(|(known, _)| known == name).map(|(_, mac)| mac.parse::<Mac>());
        if let (Some(Ok(wanted)), Some(mac)) = (wanted, mac)
            && wanted != mac
        {
            differences.push(format!("MAC of {name} (host side): {mac} instead of {wanted}"));
        }
    }

    /// Whether a difference on the container's end is a later plugin's right.
    pub(crate) fn allows(&self, difference: &Difference, spec: &PodLinkSpec<'_>) -> bool {
        let on_pod = |what: &str| difference.object == format!("{what} of {} (pod side)", self.ifname);
        if on_pod("MTU") {
            return match self.mtu {
                Some(mtu) => difference.found == mtu.to_string(),
                // Before 1.1.0 a result has no MTU: a smaller one does no harm, and may be tuning's.
                None => difference.found.parse::<u32>().is_ok_and(|found| found < spec.mtu),
            };
        }
        // A plugin that takes routes away takes them out of the result, too; the way to the gateway goes with the default.
        spec.gateways.iter().any(|gateway| {
            let default = everything(*gateway);
            let is_on_it =
                on_pod(&format!("route {default}")) || on_pod(&format!("route {}", IpNet::from(*gateway)));
            is_on_it && !self.routes.contains(&default)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn promise(prev: Value) -> Promise {
        Promise::new(&prev, "eth0").unwrap()
    }

    fn prev(link: Value, routes: Value) -> Value {
        let mut eth0 = json!({"name": "eth0", "sandbox": "/run/netns/x"});
        eth0.as_object_mut().unwrap().extend(link.as_object().unwrap().clone());
        json!({
            "interfaces": [{"name": "weft0", "mac": "02:00:00:00:00:01"}, eth0, {"name": "eth0"}],
            "ips": [{"address": "10.0.0.1/32", "interface": 1}, {"address": "10.9.0.1/24", "interface": 2}],
            "routes": routes,
        })
    }

    #[test]
    fn a_later_plugins_mtu_counts_where_the_result_has_it_and_a_smaller_one_where_it_cannot() {
        let netns = netd_host::Netns::current().unwrap();
        let spec = PodLinkSpec {
            netns: &netns,
            ifname: "eth0".into(),
            host_ifname: "weft0".into(),
            mac: None,
            mtu: 1450,
            gso_max_segs: None,
            addresses: Vec::new(),
            gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()],
        };
        let mtu = |side: &str, found: &str| Difference {
            object: format!("MTU of eth0 ({side} side)"),
            wanted: "1450".into(),
            found: found.into(),
        };
        let old = promise(prev(json!({}), json!([])));
        assert!(old.allows(&mtu("pod", "1400"), &spec));
        assert!(!old.allows(&mtu("pod", "9000"), &spec));
        assert!(!old.allows(&mtu("host", "1400"), &spec));
        let new = promise(prev(json!({"mtu": 1400}), json!([])));
        assert!(new.allows(&mtu("pod", "1400"), &spec));
        assert!(!new.allows(&mtu("pod", "1300"), &spec));

        let route = |dst: &str| Difference {
            object: format!("route {dst} of eth0 (pod side)"),
            wanted: "present".into(),
            found: "absent".into(),
        };
        let only_v6 = promise(prev(json!({}), json!([{"dst": "::/0"}])));
        assert!(only_v6.allows(&route("0.0.0.0/0"), &spec));
        assert!(only_v6.allows(&route("169.254.1.1/32"), &spec));
        assert!(!only_v6.allows(&route("::/0"), &spec));
        assert!(!only_v6.allows(&route("10.0.0.1/32"), &spec));
    }

    #[test]
    fn a_further_address_is_fine_where_the_link_has_it_and_ours_must_be_there() {
        let promised = promise(prev(json!({}), json!([])));
        let ours: IpNet = "10.0.0.1/32".parse().unwrap();
        let mut differences = Vec::new();
        promised.compare_addresses(&[ours], None, &mut differences);
        assert!(differences.is_empty(), "{differences:?}");
        promised.compare_addresses(&["10.0.0.2/32".parse().unwrap()], None, &mut differences);
        assert_eq!(differences.len(), 2, "{differences:?}");
    }

    #[test]
    fn the_host_ends_mac_is_compared_where_the_result_has_it() {
        let promised = promise(prev(json!({}), json!([])));
        let mut differences = Vec::new();
        promised.compare_host_mac("weft0", Some(Mac([2, 0, 0, 0, 0, 1])), &mut differences);
        promised.compare_host_mac("other", Some(Mac([2, 0, 0, 0, 0, 2])), &mut differences);
        assert!(differences.is_empty());
        promised.compare_host_mac("weft0", Some(Mac([2, 0, 0, 0, 0, 2])), &mut differences);
        assert_eq!(differences.len(), 1);
    }
}
