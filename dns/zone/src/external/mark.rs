// SPDX-License-Identifier: Apache-2.0
//! What stands beside a name that is published.

use std::fmt;

/// Whose a name is. Displays as its TXT record: `heritage=weft,owner=prod,service=default/shop`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The cluster's name, or what its configuration says instead.
    pub owner: String,
    /// `NAMESPACE/NAME` of the Service.
    pub service: String,
}

impl Mark {
    /// From the text of a TXT record; `None` for texts of others, and for what a newer version writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, service) = text.strip_prefix("heritage=weft,owner=")?.split_once(",service=")?;
        let is_clean = |text: &str| !text.is_empty() && !text.contains([',', '=']);
        (is_clean(owner) && is_clean(service))
            .then(|| Self { owner: owner.to_owned(), service: service.to_owned() })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "heritage=weft,owner={},service={}", self.owner, self.service)
    }
}
