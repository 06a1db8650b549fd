// SPDX-License-Identifier: Apache-2.0
//! The checklist: each row is a sentence of the CNI specification, or of its conventions, and a small function that
//! finds out whether a plugin keeps it.

mod add;
mod capabilities;
mod chain;
mod check;
mod config;
mod conventions;
mod del;
mod environment;
mod errors;
mod gc;
mod shaping;
mod status;
mod version;

use crate::runtime::Runtime;
use crate::verdict::Checked;
use crate::version::Version;
use serde::Serialize;
use std::fmt;

/// The parts of the checklist, in the order in which they are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Group {
    Environment,
    Config,
    #[serde(rename = "ADD")]
    Add,
    #[serde(rename = "DEL")]
    Del,
    #[serde(rename = "CHECK")]
    Check,
    #[serde(rename = "STATUS")]
    Status,
    #[serde(rename = "GC")]
    Gc,
    #[serde(rename = "VERSION")]
    Version,
    Errors,
    Conventions,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "Environment",
            Self::Config => "Config",
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
            Self::Errors => "Errors",
            Self::Conventions => "Conventions",
        })
    }
}

/// How a row is run.
#[derive(Clone, Copy)]
pub(crate) enum Check {
    /// Once, in the newest version.
    Once(fn(&Runtime) -> Checked),
    /// Once for each version that the plugin speaks.
    EachVersion(fn(&Runtime, Version) -> Checked),
}

/// A row.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) group: Group,
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// The version that brought the sentence.
    pub(crate) since: Version,
    /// The capability that it is about.
    capability: Option<&'static str>,
    pub(crate) check: Check,
}

impl Row {
    const fn new(
        group: Group,
        name: &'static str,
        title: &'static str,
        check: fn(&Runtime) -> Checked,
    ) -> Self {
        Self { group, name, title, since: Version::V0_3_0, capability: None, check: Check::Once(check) }
    }

    const fn each(
        group: Group,
        name: &'static str,
        title: &'static str,
        check: fn(&Runtime, Version) -> Checked,
    ) -> Self {
        Self {
            group,
            name,
            title,
            since: Version::V0_3_0,
            capability: None,
            check: Check::EachVersion(check),
        }
    }

    const fn since(mut self, version: Version) -> Self {
        self.since = version;
        self
    }

    const fn with(mut self, capability: &'static str) -> Self {
        self.capability = Some(capability);
        self
    }

    /// Why it does not apply to this plugin; none where it does.
    pub(crate) fn lacks(&self, runtime: &Runtime) -> Option<String> {
        if runtime.newest() < self.since {
            return runtime.lacks(self.since).or(Some(format!("it came with {}", self.since)));
        }
        let capability = self.capability.filter(|name| !runtime.capabilities.contains(*name))?;
        Some(format!("the config does not declare the capability {capability}"))
    }
}

/// All rows in their order.
pub(crate) fn all() -> Vec<Row> {
    [
        environment::ROWS,
        config::ROWS,
        add::ROWS,
        chain::ROWS,
        del::ROWS,
        check::ROWS,
        status::ROWS,
        gc::ROWS,
        version::ROWS,
        errors::ROWS,
        conventions::ROWS,
        capabilities::ROWS,
        shaping::ROWS,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_have_names_of_their_own_and_groups_hang_together() {
        let rows = all();
        let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), rows.len());
        let groups: Vec<_> = rows.iter().map(|row| row.group).collect();
        let changes = groups.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 9, "ten groups, each in one piece");
    }
}
