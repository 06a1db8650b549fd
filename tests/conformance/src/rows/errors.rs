// SPDX-License-Identifier: Apache-2.0
//! Errors: every answer of the run so far is looked at again.

use super::{Group, Row};
use crate::call::{Answer, ErrorObject};
use crate::runtime::Runtime;
use crate::verdict::{Checked, expect, not_applicable};

/// The codes that the specification reserves, and those of the Go library below 100.
const KNOWN: [i64; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51];
/// STATUS only.
const STATUS_CODES: [i64; 2] = [50, 51];
/// From here on a plugin is free.
const OWN_CODES: i64 = 100;
/// How many offenders a message names.
const NAMED_MAX: usize = 3;

const fn row(name: &'static str, title: &'static str, check: fn(&Runtime) -> Checked) -> Row {
    Row::new(Group::Errors, name, title, check)
}

pub(super) const ROWS: &[Row] = &[
    row(
        "errors.object",
        "Every failed call prints one error object with code and msg, and nothing else",
        object,
    ),
    row("errors.version", "Error objects carry cniVersion, the caller's where it was understood", version),
    row("errors.codes", "Codes below 100 are those of the specification; 50 and 51 are STATUS's", codes),
    row("errors.exit", "The exit code is 0 on success and something else with an error object", exit),
];

/// Failed calls with what they printed.
fn failed(runtime: &Runtime) -> Checked<Vec<(Answer, Option<ErrorObject>)>> {
    let failed: Vec<_> = runtime.journal().into_iter().filter(|answer| !answer.ok()).collect();
    if failed.is_empty() {
        return not_applicable("no call failed in this run");
    }
    Ok(failed.into_iter().map(|answer| (answer.clone(), ErrorObject::parse(&answer.stdout))).collect())
}

fn object(runtime: &Runtime) -> Checked {
    none(
        failed(runtime)?
            .iter()
            .filter(|(_, error)| error.is_none())
            .map(|(answer, _)| format!("{}: {}", answer.what, answer.told())),
    )
}

fn version(runtime: &Runtime) -> Checked {
    let understood = |text: &str| text.parse().is_ok_and(|version| runtime.supported.contains(&version));
    none(failed(runtime)?.iter().filter_map(|(answer, error)| {
        let (error, sent) = (error.as_ref()?, answer.version.as_deref().filter(|sent| understood(sent)));
        let right = match (error.version.as_deref(), sent) {
            (None, _) => false,
            (Some(got), Some(sent)) => got == sent,
            (Some(_), None) => true,
        };
        (!right).then(|| format!("{} in {sent:?}: cniVersion is {:?}", answer.what, error.version))
    }))
}

fn codes(runtime: &Runtime) -> Checked {
    none(failed(runtime)?.iter().filter_map(|(answer, error)| {
        let error = error.as_ref()?;
        let known = error.code >= OWN_CODES || KNOWN.contains(&error.code);
        let place = !STATUS_CODES.contains(&error.code) || answer.what == "STATUS";
        (!known || !place).then(|| format!("{}: {}", answer.what, error.told()))
    }))
}

fn exit(runtime: &Runtime) -> Checked {
    let journal = runtime.journal();
    none(
        journal.iter().filter(|answer| answer.ok() && ErrorObject::parse(&answer.stdout).is_some()).map(
            |answer| format!("{}: exit code 0 with {}", answer.what, crate::call::quote(&answer.stdout)),
        ),
    )
}

/// Fails with the first of the offenders.
fn none(offenders: impl Iterator<Item = String>) -> Checked {
    let all: Vec<String> = offenders.collect();
    let named = all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
    expect(all.is_empty(), || format!("{} of the run's calls: {named}", all.len()))
}
