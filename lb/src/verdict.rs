// SPDX-License-Identifier: Apache-2.0
//! Whether a backend may take new connections, and who says so.

use std::fmt;

use serde::Serialize;

use crate::Conditions;

/// Order is from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VerdictState {
    /// Takes new connections; in DNS.
    Up,
    /// Terminating but still serving: takes new connections only where no backend is up; not in DNS.
    Draining,
    /// Takes none.
    Down,
}

impl fmt::Display for VerdictState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Down => "down",
        })
    }
}

/// The one opinion about a backend that the map image, the DNS zone and the API share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Verdict {
    /// The opinion.
    pub state: VerdictState,
    /// What it rests on, for people: `ready`, `terminating`, …
    pub source: &'static str,
}

impl Verdict {
    /// From the conditions of an endpoint (unset: ready, serving as ready, not terminating), after
    /// <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions>.
    #[must_use]
    pub fn from_conditions(conditions: &Conditions, publish_not_ready: bool) -> Self {
        let ready = conditions.ready.unwrap_or(true);
        let serving = conditions.serving.unwrap_or(ready);
        let terminating = conditions.terminating.unwrap_or(false);
        let (state, source) = match (ready, serving, terminating) {
            (_, _, _) if publish_not_ready => (VerdictState::Up, "publishNotReadyAddresses"),
            (true, _, false) => (VerdictState::Up, "ready"),
            (_, true, true) => (VerdictState::Draining, "terminating, serving"),
            (_, false, true) => (VerdictState::Down, "terminating, not serving"),
            (false, _, false) => (VerdictState::Down, "not ready"),
        };
        Self { state, source }
    }

    /// Whether DNS names it and new connections prefer it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == VerdictState::Up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_conditions_are_up_and_a_terminating_backend_is_never_up() {
        let unset = Conditions::default();
        assert!(Verdict::from_conditions(&unset, false).is_up());

        let not_ready = Conditions { ready: Some(false), ..Conditions::default() };
        assert_eq!(Verdict::from_conditions(&not_ready, false).state, VerdictState::Down);
        assert!(Verdict::from_conditions(&not_ready, true).is_up());

        let draining = Conditions { ready: Some(false), serving: Some(true), terminating: Some(true) };
        assert_eq!(Verdict::from_conditions(&draining, false).state, VerdictState::Draining);

        let gone = Conditions { ready: Some(false), serving: None, terminating: Some(true) };
        assert_eq!(Verdict::from_conditions(&gone, false).state, VerdictState::Down);
    }
}
