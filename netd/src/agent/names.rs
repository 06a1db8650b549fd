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
        if let Some(skydns) = skydns.as_deref() {
            // Names that are not known yet must not be denied: there is no zone before, and SERVFAIL is answered.
            let waits = self.zoned.is_none() && !may_stand(skydns, view.in_sync);
            // Not this pass' errors: nothing here mends them, and all else is as it should be.
            let is_wanted = self.node.config.dns.zone.skydns_wanted;
            let is_held = self.node.skydns_held.load().is_some();
            self.zone.tell_unread(unread(skydns, is_held, waits, view.in_sync, is_wanted));
            if waits {
                return;
            }
        }
        let skydns = prefix.zip(skydns.as_deref().map(|skydns| &skydns.mirror));
        let changed = self.zone.follow(&self.node.keys, &state.mirror, skydns);
        if !changed && self.zoned.as_ref().is_some_and(|zoned| Arc::ptr_eq(zoned, view)) {
            self.offer_dns();
            return;
        }
        // First: who is answered at all must know who may ask.
        let clients = desired::dns_clients(&self.node, view.cidrs_of_pods());
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

/// Whether names may be answered with what is known of SkyDNS' records. The snapshot's stand in where the store is away; a store that
/// is there and does not tell them is asked again, unless it never will.
fn may_stand(skydns: &MirrorState, store_is_there: bool) -> bool {
    let stands_in = skydns.revision > 0 && skydns.last_error.is_some();
    skydns.in_sync || skydns.is_denied || stands_in || !store_is_there
}

/// Why SkyDNS' records are not answered as they are, where that is to be told. Where nobody asked for them and none are known, a
/// store user who may not read them is nothing to speak of.
fn unread(
    skydns: &MirrorState,
    is_held: bool,
    waits: bool,
    store_is_there: bool,
    is_wanted: bool,
) -> Option<String> {
    let error = skydns.last_error.as_ref()?;
    if waits {
        return Some(format!("no name is answered before SkyDNS records were read: {error}"));
    }
    // Once read they stand while the store is away; what is not believed is told all the same.
    if skydns.in_sync {
        return is_held.then(|| format!("SkyDNS records: {error}"));
    }
    let known = if skydns.items.is_empty() { "" } else { "; those of the last snapshot are answered" };
    (store_is_there && (is_wanted || !known.is_empty()))
        .then(|| format!("SkyDNS records cannot be read: {error}{known}; see --dns-skydns-prefix"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use netd_store::KeyValue;

    use super::*;
    use crate::config::ZoneOptions;
    use crate::zone::ZoneKeeper;

    /// Errors of a pass make the node not ready and the pass run again; problems do neither.
    #[test]
    fn skydns_records_that_are_not_read_or_not_believed_are_a_problem_of_names() {
        let failed = || MirrorState { last_error: Some("no leader".into()), ..MirrorState::default() };
        let mut keeper =
            ZoneKeeper::new(&ZoneOptions { skydns_prefix: Some("/skydns".into()), ..ZoneOptions::default() });
        let mut told = |skydns: &MirrorState, is_held: bool, waits: bool, is_wanted: bool| {
            keeper.tell_unread(unread(skydns, is_held, waits, true, is_wanted));
            let problems = keeper.problems();
            assert!(problems.iter().all(|problem| problem.key == "/skydns"));
            problems.into_iter().map(|problem| problem.reason).collect::<Vec<_>>()
        };
        assert!(told(&failed(), false, true, false)[0].starts_with("no name is answered"));
        let mut held = failed();
        held.mirror.in_sync = true;
        assert_eq!(told(&held, true, false, false), ["SkyDNS records: no leader"]);
        assert!(told(&held, false, false, true).is_empty(), "what was read stands");
        assert!(told(&failed(), false, false, false).is_empty(), "nobody asked for them");
        assert_eq!(told(&failed(), false, false, true).len(), 1);
        let mut known = failed();
        let key = "/skydns/a".to_owned();
        let item = KeyValue { key: key.clone(), value: Bytes::new(), create_revision: 1, mod_revision: 1 };
        known.mirror.items = std::iter::once((key, Arc::new(item))).collect();
        assert!(told(&known, false, false, false)[0].contains("those of the last snapshot are answered"));
    }

    #[test]
    fn names_that_skydns_may_have_are_not_denied_before_it_was_read() {
        let failed = || MirrorState { last_error: Some("no leader".into()), ..MirrorState::default() };
        assert!(!may_stand(&MirrorState::default(), true));
        assert!(!may_stand(&failed(), true), "one error is not the last word");
        assert!(may_stand(&MirrorState { is_denied: true, ..failed() }, true));
        let mut known = MirrorState::default();
        known.mirror.revision = 3;
        assert!(!may_stand(&known, true), "the store is about to say what there is now");
        known.last_error = Some("no leader".into());
        assert!(may_stand(&known, true));
        known.last_error = None;
        assert!(may_stand(&known, false));
        let mut read = MirrorState::default();
        read.mirror.in_sync = true;
        assert!(may_stand(&read, true));
    }
}
