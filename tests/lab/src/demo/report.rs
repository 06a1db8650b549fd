// SPDX-License-Identifier: Apache-2.0
//! What was proved: a line for each promise, and the count at the end.

use crate::interrupt;
use crate::say::say;
use anyhow::Result;
use std::process::ExitCode;

/// Counts and prints.
#[derive(Debug, Default)]
pub(super) struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    /// Proves one promise; what was measured, or why it is not kept, stands in its line. Nothing after a Ctrl-C.
    pub(super) fn prove(&mut self, promise: &str, proof: impl FnOnce() -> Result<String>) {
        if !interrupt::pending() {
            self.line(promise, proof, false);
        }
    }

    /// Like [`Report::prove`], also after a Ctrl-C.
    pub(super) fn prove_always(&mut self, promise: &str, proof: impl FnOnce() -> Result<String>) {
        self.line(promise, proof, true);
    }

    /// How many promises were not kept.
    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    /// The last line, and the exit code. An interrupted demo proved too little to succeed.
    pub(super) fn finish(&self) -> ExitCode {
        say(format!("{} passed, {} failed", self.passed, self.failed));
        if self.failed == 0 && !interrupt::pending() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn line(&mut self, promise: &str, proof: impl FnOnce() -> Result<String>, always: bool) {
        let number = self.passed + self.failed + 1;
        match proof() {
            Ok(measured) => {
                self.passed += 1;
                say(format!("ok    {number:02}  {promise} ({measured})"));
            }
            // Broken off by Ctrl-C: neither kept nor broken.
            Err(_) if interrupt::pending() && !always => {}
            Err(error) => {
                self.failed += 1;
                say(format!("FAIL  {number:02}  {promise}: {error:#}"));
            }
        }
    }
}
