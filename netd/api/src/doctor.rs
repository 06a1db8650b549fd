// SPDX-License-Identifier: Apache-2.0
//! What a node finds when it looks at itself and at the ways to the others.

use serde::{Deserialize, Serialize};

/// GET [`crate::paths::DOCTOR`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReply {
    /// What was looked at, in the order to read it in.
    pub checks: Vec<DoctorCheck>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorCheck {
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// What: `store`, `underlay`, `peer n2`.
    pub about: String,
    /// What was found, in one line.
    pub text: String,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Ok,
    /// It works, and is worth knowing.
    Note,
    /// It is not.
    Wrong,
}

impl DoctorReply {
    /// How many things are not as they should be.
    pub fn wrong(&self) -> usize {
        self.checks.iter().filter(|check| check.verdict == Verdict::Wrong).count()
    }
}
