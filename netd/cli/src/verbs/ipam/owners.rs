// SPDX-License-Identifier: Apache-2.0
//! Owners of addresses in words that an operator knows: a pod's name instead of a container ID.

use std::collections::BTreeMap;

use netd_api::{AttachmentId, IpamInfo, PodInfo};

/// The link of nearly every pod, which needs no mention.
const USUAL_IFNAME: &str = "eth0";

/// Who is behind the owners' texts.
pub(super) struct Owners {
    pods: BTreeMap<AttachmentId, String>,
    nodes: BTreeMap<String, String>,
}

impl Owners {
    pub(super) fn new(ipam: &IpamInfo, pods: &[PodInfo]) -> Self {
        let local = pods.iter().filter(|pod| pod.local);
        let named =
            ipam.blocks.iter().filter_map(|block| Some((block.owner.to_string(), block.node.clone()?)));
        Self { pods: local.map(|pod| (pod.id(), pod_name(pod))).collect(), nodes: named.collect() }
    }

    /// The pod of an attachment, `NAMESPACE/NAME`; none where it is not known.
    pub(super) fn pod(&self, owner: &str) -> Option<&str> {
        self.pods.get(&attachment(owner)?).map(String::as_str)
    }

    /// What to show for an owner; the text itself where nothing better is known.
    pub(super) fn show(&self, owner: &str) -> String {
        if let Some(pod) = self.pod(owner) {
            return pod.to_owned();
        }
        let node = owner.strip_prefix("node/").and_then(|uuid| self.nodes.get(uuid));
        node.map_or_else(|| owner.to_owned(), |name| format!("node/{name}"))
    }
}

fn pod_name(pod: &PodInfo) -> String {
    let ifname = if pod.ifname == USUAL_IFNAME { String::new() } else { format!(":{}", pod.ifname) };
    format!("{}/{}{ifname}", pod.namespace, pod.name)
}

/// `attachment/NETWORK/CONTAINER/IFNAME`, each part with `%` escapes.
fn attachment(owner: &str) -> Option<AttachmentId> {
    let mut parts = owner.strip_prefix("attachment/")?.split('/').map(unescape);
    let id = AttachmentId { network: parts.next()??, container_id: parts.next()??, ifname: parts.next()?? };
    parts.next().is_none().then_some(id)
}

fn unescape(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut plain = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit = || (bytes.next()? as char).to_digit(16);
        plain.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "6f1c1b4e-0000-4000-8000-000000000001";

    fn owners() -> Owners {
        let ipam = serde_json::json!({"blocks": [
            {"cidr": "10.244.0.0/26", "pool": "default", "owner": NODE, "node": "n1", "used": 3, "free": 59,
             "state": "active"},
        ]});
        let pod = |network: &str, ifname: &str, local: bool| {
            serde_json::json!({
                "namespace": "shop", "name": "web-1", "node": "n1", "network": network, "container_id": "c1",
                "node_uuid": NODE, "ifname": ifname, "ips": ["10.244.0.5"], "host_ifname": "weft0", "local": local,
            })
        };
        let pods = [pod("weft", "eth0", true), pod("a.b", "net1", true), pod("far", "eth0", false)];
        let pods: Vec<PodInfo> = serde_json::from_value(pods.into()).unwrap();
        Owners::new(&serde_json::from_value(ipam).unwrap(), &pods)
    }

    #[test]
    fn an_attachment_is_its_pod_and_a_node_its_name() {
        let owners = owners();
        assert_eq!(owners.show("attachment/weft/c1/eth0"), "shop/web-1");
        assert_eq!(owners.show("attachment/a%2Eb/c1/net1"), "shop/web-1:net1");
        assert_eq!(owners.show(&format!("node/{NODE}")), "node/n1");
    }

    #[test]
    fn what_nobody_knows_is_shown_as_it_is() {
        let owners = owners();
        for text in [
            "attachment/weft/other/eth0",
            "attachment/far/c1/eth0",
            "attachment/x",
            "attachment/%/%zz/a",
            "node/x",
            "reserved/network",
            "sticky/db",
        ] {
            assert_eq!(owners.show(text), text);
        }
    }
}
