// SPDX-License-Identifier: Apache-2.0
//! What is printed: the checklist, and the same as JSON.

use crate::rows::Group;
use serde::Serialize;
use serde_json::json;
use std::fmt::Write as _;

/// How a row came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Verdict {
    #[serde(rename = "pass")]
    Pass,
    #[serde(rename = "FAIL")]
    Fail,
    #[serde(rename = "n/a")]
    NotApplicable,
}

/// A row that was run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) group: Group,
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) verdict: Verdict,
    /// Why it failed or does not apply.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
}

impl Line {
    /// As text; a failed row has a second line that says what was expected and what came.
    pub(crate) fn text(&self) -> String {
        let mark = match self.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::NotApplicable => "n/a ",
        };
        let mut text = format!("  {mark}  {:<26} {}", self.name, self.title);
        match self.verdict {
            Verdict::Pass => {}
            Verdict::Fail => {
                let _ = write!(text, "\n        {}", self.why);
            }
            Verdict::NotApplicable => {
                let _ = write!(text, " ({})", self.why);
            }
        }
        text
    }
}

/// All rows of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) lines: Vec<Line>,
}

impl Report {
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.lines.iter().filter(|line| line.verdict == verdict).count()
    }

    /// The last line.
    pub(crate) fn summary(&self) -> String {
        let [passed, failed, other] =
            [Verdict::Pass, Verdict::Fail, Verdict::NotApplicable].map(|verdict| self.count(verdict));
        format!("{passed} passed, {failed} failed, {other} not applicable")
    }

    /// As JSON.
    pub(crate) fn json(&self, plugin: &str, versions: &[String]) -> String {
        json!({
            "plugin": plugin,
            "supportedVersions": versions,
            "rows": self.lines,
            "passed": self.count(Verdict::Pass),
            "failed": self.count(Verdict::Fail),
            "notApplicable": self.count(Verdict::NotApplicable),
        })
        .to_string()
    }
}
