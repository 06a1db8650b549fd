// SPDX-License-Identifier: Apache-2.0
//! Whether a pod's packets may pass by the host's stack. Not where something works there that would miss them: ports of the
//! host that lead to the pod (their replies have to be translated back), limits, another plugin of the chain, a qdisc or
//! filter that somebody put on the veth.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::attachments::Attachment;
use crate::node::{Node, lock};

/// Plugins of the reference set that work on packets in the host's stack.
const STACK_PLUGINS: [&str; 3] = ["bandwidth", "firewall", "portmap"];
/// The plugin of the reference set that changes Ethernet addresses.
const MAC_PLUGIN: &str = "tuning";
/// The runtime's folder of network configs is read again after this.
const CHAINS_AGE_MAX: Duration = Duration::from_secs(5);

/// Plugins that follow weft-cni, by network, as the runtime's folder has them.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    read: Mutex<BTreeMap<String, (Instant, Vec<String>)>>,
}

impl Chains {
    /// Types of the plugins that follow weft-cni in `network`.
    fn following(&self, dir: &Path, network: &str) -> Vec<String> {
        let mut read = lock(&self.read);
        if let Some((at, plugins)) = read.get(network)
            && at.elapsed() < CHAINS_AGE_MAX
        {
            return plugins.clone();
        }
        let plugins = crate::dropin::chained_plugins(dir, network);
        read.insert(network.to_owned(), (Instant::now(), plugins.clone()));
        plugins
    }
}

/// Whether another plugin of the attachment's network may change its link's Ethernet address after us.
pub(super) fn may_change_mac(node: &Node, attachment: &Attachment) -> bool {
    following(node, attachment).iter().any(|plugin| plugin == MAC_PLUGIN)
}

fn following(node: &Node, attachment: &Attachment) -> Vec<String> {
    let dir =
        node.config.drop_in.as_ref().map_or(Path::new(DEFAULT_CONF_DIR), |drop_in| drop_in.dir.as_path());
    node.chains.following(dir, &attachment.key.network)
}

/// `Err` with the reason where the pod's packets have to take the host's stack.
pub(crate) fn fast_path(node: &Node, attachment: &Attachment) -> Result<(), String> {
    if attachment.slow_path {
        return Err("the network config says fastPath: false".into());
    }
    if !attachment.port_mappings.is_empty() {
        return Err("ports of the host lead to the pod".into());
    }
    if attachment.bandwidth.is_some() {
        return Err("the pod's bandwidth is limited".into());
    }
    if let Some(peer) = &node.overlay.load().narrow {
        return Err(format!(
            "less fits through to {peer} than to other nodes, which only the host's stack heeds"
        ));
    }
    let chained = following(node, attachment);
    if let Some(plugin) = chained.iter().find(|plugin| STACK_PLUGINS.contains(&plugin.as_str())) {
        return Err(format!("the plugin {plugin} follows weft-cni in network {}", attachment.key.network));
    }
    match lock(&node.foreign_tc).get(&attachment.host_ifname) {
        Some(what) => Err(format!("{} has {what}, which is not ours", attachment.host_ifname)),
        None => Ok(()),
    }
}

/// Where runtimes look when nobody says otherwise.
const DEFAULT_CONF_DIR: &str = "/etc/cni/net.d";
