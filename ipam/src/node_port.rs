// SPDX-License-Identifier: Apache-2.0
//! Choosing the node port of a service.
//!
//! The low ports of the range are the static band, kept for services that ask for a port by number; others get one above it,
//! and from the band only when nothing else is left. Size and rule are those of Kubernetes (KEP-3668). A number belongs to
//! one service, which may use it for several protocols; no two services share one.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hash::hash;

/// Fewest ports in the static band (KEP-3668).
const STATIC_BAND_MIN: u16 = 16;

/// Most ports in the static band (KEP-3668).
const STATIC_BAND_MAX: u16 = 128;

/// The static band is this part of the range, between minimum and maximum (KEP-3668).
const STATIC_BAND_DIVISOR: u16 = 32;

/// Ports that services are reached at on every node, both ends included. Displays as `30000-32767`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortRange {
    /// The first, at least 1.
    pub first: u16,
    /// The last, not below the first.
    pub last: u16,
}

impl Default for NodePortRange {
    /// Kubernetes' own.
    fn default() -> Self {
        Self { first: 30_000, last: 32_767 }
    }
}

impl fmt::Display for NodePortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl NodePortRange {
    /// Whether the port is in it.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports at its low end are kept for explicit requests; none where it has not more than 16.
    pub fn static_band(&self) -> u16 {
        let size = self.size();
        if size <= u32::from(STATIC_BAND_MIN) {
            return 0;
        }
        let part = u16::try_from(size / u32::from(STATIC_BAND_DIVISOR)).unwrap_or(STATIC_BAND_MAX);
        part.clamp(STATIC_BAND_MIN, STATIC_BAND_MAX)
    }

    fn size(&self) -> u32 {
        (u32::from(self.last) + 1).saturating_sub(u32::from(self.first))
    }

    fn at(&self, offset: u32) -> Option<u16> {
        u16::try_from(u32::from(self.first) + offset).ok().filter(|port| self.contains(*port))
    }
}

/// Why a service got no node port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodePortError {
    /// Every port is taken.
    #[error("no free node port in {0}: delete services or use a larger node-port-range")]
    Exhausted(NodePortRange),
    /// The port asked for is not in the range.
    #[error("node port {port} is not in the range {range}")]
    Outside {
        /// The port.
        port: u16,
        /// The range.
        range: NodePortRange,
    },
    /// Another service has it.
    #[error("node port {0} belongs to another service")]
    Taken(u16),
}

/// Picks a free port. `taken` are those with an owner, `also` others never to be picked (what the same service asks for by
/// number, and what it was given already). The search starts at a place that depends on the service's name, so that
/// services created at the same time by different nodes rarely try the same port.
///
/// # Errors
/// [`NodePortError::Exhausted`].
pub fn pick(
    range: &NodePortRange,
    taken: &BTreeSet<u16>,
    also: &BTreeSet<u16>,
    namespace: &str,
    name: &str,
) -> Result<u16, NodePortError> {
    let (size, band) = (range.size(), u32::from(range.static_band()));
    // Reduced below to the length of what is searched, which is at most 65,536.
    let start = (hash(&[namespace.as_bytes(), name.as_bytes()]) % 65_536) as u32;
    let probe = |first: u32, length: u32| {
        (0..length)
            .filter_map(|step| range.at(first + (start % length + step) % length))
            .find(|port| !taken.contains(port) && !also.contains(port))
    };
    probe(band, size - band).or_else(|| probe(0, band)).ok_or(NodePortError::Exhausted(*range))
}

/// Checks a port that a service asks for. The static band is open to it.
///
/// # Errors
/// It is outside the range, or another service's.
pub fn check_requested(range: &NodePortRange, taken: &BTreeSet<u16>, port: u16) -> Result<(), NodePortError> {
    if !range.contains(port) {
        return Err(NodePortError::Outside { port, range: *range });
    }
    if taken.contains(&port) { Err(NodePortError::Taken(port)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, last: u16) -> NodePortRange {
        NodePortRange { first, last }
    }

    #[test]
    fn static_band_as_in_kubernetes() {
        for (first, last, band) in [
            (30_000, 32_767, 86),
            (30_000, 30_015, 0),
            (30_000, 30_016, 16),
            (30_000, 30_127, 16),
            (30_000, 34_095, 128),
            (1, 65_535, 128),
            (30_000, 30_000, 0),
        ] {
            assert_eq!(range(first, last).static_band(), band, "{first}-{last}");
        }
    }

    #[test]
    fn every_port_is_picked_once_band_last() {
        let range = range(30_000, 30_040);
        let (mut taken, mut order) = (BTreeSet::new(), Vec::new());
        while let Ok(port) = pick(&range, &taken, &BTreeSet::new(), "default", &format!("s{}", order.len())) {
            assert!(range.contains(port) && taken.insert(port));
            order.push(port);
        }
        assert_eq!(order.len(), 41);
        assert_eq!(order[25..].iter().copied().collect::<BTreeSet<_>>(), (30_000..30_016).collect());
    }

    #[test]
    fn requested_port_is_checked() {
        let (range, taken) = (NodePortRange::default(), BTreeSet::from([30_080]));
        assert_eq!(check_requested(&range, &taken, 30_000), Ok(()), "the band is for this");
        assert_eq!(check_requested(&range, &taken, 30_080), Err(NodePortError::Taken(30_080)));
        assert_eq!(
            check_requested(&range, &taken, 80).unwrap_err().to_string(),
            "node port 80 is not in the range 30000-32767"
        );
    }

    proptest! {
        #[test]
        fn picked_port_may_be_requested(
            name in "[a-z]{1,8}",
            taken in prop::collection::btree_set(30_000_u16..30_064, 0..64),
            also in prop::collection::btree_set(30_000_u16..30_064, 0..8),
        ) {
            let range = range(30_000, 30_063);
            match pick(&range, &taken, &also, "default", &name) {
                Ok(port) => {
                    prop_assert_eq!(check_requested(&range, &taken, port), Ok(()));
                    prop_assert!(!also.contains(&port));
                }
                Err(_) => prop_assert!((30_000..30_064).all(|port| taken.contains(&port) || also.contains(&port))),
            }
        }
    }
}
