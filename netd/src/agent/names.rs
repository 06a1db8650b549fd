// SPDX-License-Identifier: Apache-2.0
//! What the DNS server answers from, and to whom. In the pass, after the maps, for a name and a VIP never disagree; a change costs
//! what changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use netd_store::MirrorState;

use super::Agent;
use crate::desired;
use crate::dns;
use crate::view::View;

impl Agent {
    /// The zone, and who may ask: the cluster's pods and this node.
    pub(super) fn keep_dns(&mut self, view: &Arc<View>, state: &MirrorState, errors: &mut Vec<String>) {
        let skydns = self.node.skydns.as_ref().map(|skydns| skydns.borrow().clone());
        let prefix = self.node.config.dns.zone.skydns_prefix.as_deref();
        let unread = skydns.as_deref().filter(|skydns| !skydns.in_sync);
        if unread.is_some_and(|skydns| skydns.last_error.is_none()) && view.in_sync && self.zoned.is_none() {
            // Names that are not known yet must not be denied: there is no zone before, and SERVFAIL is answered.
            return;
        }
        let unread = unread.filter(|_| view.in_sync).and_then(|skydns| skydns.last_error.clone());
        let skydns = prefix.zip(skydns.as_deref().map(|skydns| &skydns.mirror));
        let changed = self.zone.follow(&self.node.keys, &state.mirror, skydns, unread);
        if !changed && self.zoned.as_ref().is_some_and(|zoned| Arc::ptr_eq(zoned, view)) {
            self.offer_dns();
            return;
        }
        // First: who is answered at all must know who may ask.
        let clients = desired::dns_clients(&self.node, view.pod_cidrs());
        if **self.node.dns_clients.load() != clients {
            self.node.dns_clients.store(Arc::new(clients));
        }
        // The first one of thousands of services takes a while.
        let servers = &self.node.config.dns_addresses;
        match tokio::task::block_in_place(|| self.zone.update(view, servers)) {
            Ok(zone) => {
                self.node.zone.store(Some(zone));
                self.node.named_revision.store(view.revision, Ordering::Release);
                self.zoned = Some(view.clone());
                self.node.zoned.send_if_modified(|zoned| !std::mem::replace(zoned, true));
            }
            Err(error) => {
                errors.push(format!("the DNS zone {:?} of the cluster: {error}", view.config.dns_zone))
            }
        }
        self.offer_dns();
    }

    /// Who knows the names may be asked by other nodes' pods.
    fn offer_dns(&self) {
        let further = dns::addresses(&self.node.facts().overlays);
        if self.zoned.is_some() && *self.node.dns_wanted.borrow() != further {
            self.node.dns_wanted.send_replace(further);
        }
    }
}
