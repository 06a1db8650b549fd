// SPDX-License-Identifier: Apache-2.0
//! What services want to be found by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Domain, Found, HostName};
use crate::{Name, RecordData};

/// What a name is to have: addresses, or one alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    service: String,
    records: BTreeSet<RecordData>,
}

/// A name that more than one Service wants: one has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    /// The name.
    pub host: HostName,
    /// `NAMESPACE/NAME` of a Service that does not get it.
    pub refused: String,
    /// That of the one that has it.
    pub holder: String,
}

impl Wish {
    /// Addresses for `NAMESPACE/NAME`; `None` without any.
    pub fn addresses(service: &str, ips: impl IntoIterator<Item = IpAddr>) -> Option<Self> {
        let records: BTreeSet<RecordData> = ips.into_iter().map(RecordData::from).collect();
        (!records.is_empty()).then(|| Self { service: service.to_owned(), records })
    }

    /// An alias for `NAMESPACE/NAME`.
    #[must_use]
    pub fn alias(service: &str, to: Name) -> Self {
        Self { service: service.to_owned(), records: [RecordData::Cname(to.to_lower())].into() }
    }

    /// `NAMESPACE/NAME` of the Service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Never empty.
    #[must_use]
    pub fn records(&self) -> &BTreeSet<RecordData> {
        &self.records
    }

    pub(super) fn is_alias(&self) -> bool {
        self.records.iter().any(|data| matches!(data, RecordData::Cname(_)))
    }
}

/// One wish for each name: that of the Service which has the name already, else the first by name of the Service. So nobody
/// takes a name away by asking for it, too.
#[must_use]
pub fn choose(
    domain: &Domain,
    candidates: Vec<(HostName, Wish)>,
    found: &BTreeMap<HostName, Found>,
) -> (BTreeMap<HostName, Wish>, Vec<Contested>) {
    let mut by_name: BTreeMap<HostName, Vec<Wish>> = BTreeMap::new();
    for (host, wish) in candidates {
        by_name.entry(host).or_default().push(wish);
    }
    let (mut chosen, mut contested) = (BTreeMap::new(), Vec::new());
    for (host, wishes) in by_name {
        let holder = found.get(&host).and_then(|found| found.service(domain));
        let rank = |wish: &Wish| (Some(wish.service()) != holder, wish.service().to_owned());
        let Some(first) = wishes.iter().min_by_key(|wish| rank(wish)).cloned() else { continue };
        let others = wishes.iter().filter(|wish| wish.service() != first.service());
        contested.extend(others.map(|wish| Contested {
            host: host.clone(),
            refused: wish.service().to_owned(),
            holder: first.service().to_owned(),
        }));
        chosen.insert(host, first);
    }
    (chosen, contested)
}
