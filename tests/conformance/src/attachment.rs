// SPDX-License-Identifier: Apache-2.0
//! A container that was added to the network: the call that did it, and its result, kept as a runtime keeps it.

use crate::call::{Answer, Call, quote};
use crate::result::AddResult;
use crate::runtime::{Container, Runtime};
use crate::verdict::{Checked, fail};
use crate::version::Version;
use serde_json::Value;

/// The pair of the ADD and what came of it.
#[derive(Clone)]
pub(crate) struct Attachment<'r> {
    add: Call<'r>,
    /// The result as it was printed.
    pub(crate) raw: Value,
    /// The result.
    pub(crate) result: AddResult,
}

impl<'r> Attachment<'r> {
    /// Makes the ADD; fails the row where it does not succeed with a result.
    pub(crate) fn make(add: Call<'r>, about: &str) -> Checked<Self> {
        let answer = add.clone().run()?;
        Self::from_answer(add, answer, about)
    }

    pub(crate) fn from_answer(add: Call<'r>, answer: Answer, about: &str) -> Checked<Self> {
        let answer = answer.success(about)?;
        let raw: Value = match serde_json::from_str(&answer.stdout) {
            Ok(value) => value,
            Err(error) => {
                let got = quote(&answer.stdout);
                return fail(format!("ADD {about}: expected one JSON result on stdout ({error}), got {got}"));
            }
        };
        match AddResult::parse(&raw) {
            Ok(result) => Ok(Self { add, raw, result }),
            Err(why) => fail(format!("ADD {about}: the result is wrong: {why}")),
        }
    }

    /// An attachment of this container under this name in the network, in this version.
    pub(crate) fn in_version(runtime: &'r Runtime, container: &Container, version: Version) -> Checked<Self> {
        let add = runtime.call_in(version, "ADD").target(container, crate::runtime::IFNAME);
        Self::make(add, &format!("in {version}"))
    }

    /// A call for this attachment, with its result as `prevResult`.
    pub(crate) fn call(&self, verb: &str) -> Call<'r> {
        self.add.clone().verb(verb).key("prevResult", self.raw.clone())
    }

    /// CHECK that has to succeed without a word.
    pub(crate) fn check(&self, about: &str) -> Checked {
        self.call("CHECK").run()?.success(about)?.silent(about).map(drop)
    }

    /// DEL that has to succeed.
    pub(crate) fn del(&self, about: &str) -> Checked {
        self.call("DEL").run()?.success(about).map(drop)
    }
}
