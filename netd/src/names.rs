// SPDX-License-Identifier: Apache-2.0
//! Owners of addresses in words that an operator knows: messages of the pure crates name attachments by container ID, and
//! nodes by UUID.

use std::str::FromStr as _;

use ipam::{AttachmentKey, Owner};
use uuid::Uuid;

use crate::node::{Node, lock};

/// What may stand around a name in a sentence.
const PUNCTUATION: [char; 6] = [',', ';', ':', '(', ')', '"'];

/// The same text with `pod NAMESPACE/NAME` before each attachment that is known, and nodes by name.
pub(crate) fn with_names(node: &Node, text: &str) -> String {
    let name = |uuid: Uuid| node.view.load().nodes.get(&uuid).map(|record| record.name.clone());
    rewrite(text, |key| pod_of(node, key), name)
}

/// The pod of an attachment, `NAMESPACE/NAME`, as this node has it on record, or else as the store tells.
pub(crate) fn pod_of(node: &Node, key: &AttachmentKey) -> Option<String> {
    if let Some(attachment) = lock(&node.attachments).get(key) {
        return Some(format!("{}/{}", attachment.namespace, attachment.name));
    }
    let view = node.view.load();
    let known = view.pods.iter().find(|(_, pod)| pod.attachment == *key);
    known.map(|(_, pod)| format!("{}/{}", pod.namespace, pod.name))
}

/// The attachment that a text names: an owner, or a key.
pub(crate) fn attachment(text: &str) -> Option<AttachmentKey> {
    match Owner::from_str(text) {
        Ok(Owner::Attachment(key)) => Some(key),
        Ok(_) => None,
        Err(_) => AttachmentKey::from_str(text).ok(),
    }
}

fn rewrite(
    text: &str,
    pod: impl Fn(&AttachmentKey) -> Option<String>,
    node: impl Fn(Uuid) -> Option<String>,
) -> String {
    let word = |word: &str| {
        let core = word.trim_matches(PUNCTUATION);
        let named = match Owner::from_str(core) {
            Ok(Owner::Node(uuid)) => node(uuid).map(|name| format!("node {name}")),
            _ => attachment(core).and_then(|key| pod(&key)).map(|pod| format!("pod {pod} ({core})")),
        };
        named.map_or_else(|| word.to_owned(), |named| word.replacen(core, &named, 1))
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_get_their_pods_and_nodes_their_names() {
        let pod = |key: &AttachmentKey| (key.container_id == "c1").then(|| "shop/web".to_owned());
        let node = |uuid: Uuid| (uuid == Uuid::from_u128(1)).then(|| "n1".to_owned());
        let told = |text: &str| rewrite(text, pod, node);
        assert_eq!(
            told("10.244.0.9 belongs to attachment/weft/c1/eth0: try another"),
            "10.244.0.9 belongs to pod shop/web (attachment/weft/c1/eth0): try another"
        );
        assert_eq!(told("weft.c1.eth0, weft.c2.eth0"), "pod shop/web (weft.c1.eth0), weft.c2.eth0");
        let own = format!("10.244.0.0 belongs to node/{}", Uuid::from_u128(1));
        assert_eq!(told(&own), "10.244.0.0 belongs to node n1");
        for same in
            ["10.244.0.1 belongs to sticky/db", "`weft ipam show` lists 10.244.0.0/26", "fd00::1 rests", ""]
        {
            assert_eq!(told(same), same);
        }
    }
}
