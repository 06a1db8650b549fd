// SPDX-License-Identifier: Apache-2.0
//! What does not go through: told once, shown as long as it lasts, and tried again after a while.

use std::collections::{BTreeMap, BTreeSet};

use dns_zone::external::{Domain, HostName};
use netd_api::PendingItem;
use netd_plan::Backoff;

/// After a failure of the server, or of one name.
const AGAIN_MS_MIN: u64 = 1_000;
/// An operator who repairs something should see it heal within half a minute.
const AGAIN_MS_MAX: u64 = 30_000;

/// By name; `None` is what concerns all of them.
#[derive(Debug)]
pub(super) struct Troubles {
    again: Backoff<Option<HostName>>,
    /// What was said about them, once.
    said: BTreeMap<Option<HostName>, String>,
    /// What the log has about all of them, until it is over.
    logged: Option<String>,
    seed: u64,
}

impl Troubles {
    /// Nodes differ in `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let again = Backoff::new(AGAIN_MS_MIN, AGAIN_MS_MAX);
        Self { again, said: BTreeMap::new(), logged: None, seed }
    }

    /// Another node goes on: what the log has it has.
    pub(super) fn renewed(&mut self) -> Self {
        Self { logged: self.logged.take(), ..Self::new(self.seed) }
    }

    /// It may be tried now.
    pub(super) fn ready(&self, key: &Option<HostName>, now_ms: u64) -> bool {
        self.again.ready(key, now_ms)
    }

    /// Says it once, and has the next try wait.
    pub(super) fn say(&mut self, domain: &Domain, key: Option<HostName>, text: String, now_ms: u64) {
        let logged = if key.is_none() { self.logged.replace(text.clone()) } else { None };
        if logged.as_ref().or(self.said.get(&key)) != Some(&text) {
            tracing::warn!("names in {domain} are not published: {text}");
        }
        self.again.failed(key.clone(), text.clone(), now_ms, self.seed);
        self.said.insert(key, text);
    }

    /// It went through; true where something else was said before.
    pub(super) fn over(&mut self, key: &Option<HostName>) -> bool {
        self.again.succeeded(key);
        let was_logged = key.is_none() && self.logged.take().is_some();
        self.said.remove(key).is_some() || was_logged
    }

    /// What nobody wishes any more is no longer to be told.
    pub(super) fn keep(&mut self, concerned: &BTreeSet<&HostName>) {
        let is_concerned = |key: &Option<HostName>| key.as_ref().is_none_or(|host| concerned.contains(host));
        self.again.retain(is_concerned);
        self.said.retain(|key, _| is_concerned(key));
    }

    /// One of them is everybody's.
    pub(super) fn concern_all(&self) -> bool {
        self.said.contains_key(&None)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// For status.
    pub(super) fn pending(&self, domain: &Domain) -> Vec<PendingItem> {
        let items = self.again.waiting().map(|(key, waiting)| PendingItem {
            object: match key {
                Some(host) => format!("name {host}"),
                None => format!("names in {domain}"),
            },
            error: waiting.error.clone(),
            retries: waiting.failures,
        });
        items.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_log_has_outlives_another_nodes_turn() {
        let domain = dns_zone::Name::parse("example.org").unwrap();
        let domain = Domain::new(domain.clone(), domain, "prod", 60).unwrap();
        let mut troubles = Troubles::new(1);
        troubles.say(&domain, None, "away".into(), 0);
        let mut renewed = troubles.renewed();
        assert!(renewed.is_empty() && renewed.ready(&None, 0) && renewed.logged.is_some());
        assert!(renewed.over(&None), "that it is over is told");
        assert!(!renewed.over(&None));
    }
}
