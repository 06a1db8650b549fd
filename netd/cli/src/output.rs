// SPDX-License-Identifier: Apache-2.0
//! The only place that prints: results to stdout, complaints and questions to stderr, and the exit code that goes with
//! each.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use serde_json::Value;

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// A verb's result in both forms.
#[derive(Debug)]
pub(crate) struct Shown {
    /// For people; ends with a newline, may be empty.
    pub(crate) text: String,
    /// For `--json`.
    pub(crate) json: Value,
    /// Things worth knowing that are not the result (ignored fields): to stderr, so that stdout stays clean.
    pub(crate) notes: Vec<String>,
    /// Whether it is what was wished for; the exit code says so.
    pub(crate) ok: bool,
}

/// What a person said to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Anything but yes.
    No,
    /// There is no terminal to ask on.
    NobodyThere,
    /// Yes.
    Yes,
}

impl Shown {
    /// A good result without notes.
    pub(crate) fn new(text: String, json: &impl serde::Serialize) -> anyhow::Result<Self> {
        Ok(Shown { text, json: serde_json::to_value(json)?, notes: Vec::new(), ok: true })
    }
}

/// Prints a result. A reader that went away (`weft pod ls | head`) is no failure.
pub(crate) fn show(shown: &Shown, json: bool) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let written = if json {
        serde_json::to_writer_pretty(&mut stdout, &shown.json)
            .map_err(io::Error::from)
            .and_then(|()| stdout.write_all(b"\n"))
    } else {
        stdout.write_all(shown.text.as_bytes())
    };
    let written = written.and_then(|()| stdout.flush());
    for note in &shown.notes {
        complain(note);
    }
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("error: cannot write to stdout: {error}"));
            ExitCode::from(FAILED)
        }
        _ if shown.ok => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    }
}

/// One line about work that goes on, for whoever waits.
pub(crate) fn progress(line: &str) {
    complain(&format!("waiting: {line}"));
}

/// Shows what would happen and asks whether it shall, on the terminal.
pub(crate) fn ask(plan: &str, question: &str) -> Answer {
    let stdin = io::stdin();
    if !stdin.is_terminal() || !io::stderr().is_terminal() {
        return Answer::NobodyThere;
    }
    // A closed stderr leaves nobody to ask: then no answer comes, which means no.
    let _ = write!(io::stderr(), "{plan}\n{question} [y/N] ");
    let mut answer = String::new();
    match stdin.lock().read_line(&mut answer) {
        Ok(_) if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") => Answer::Yes,
        _ => Answer::No,
    }
}

/// Says why the verb failed, with the causes, on stderr.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    complain(&format!("error: {error:#}"));
    ExitCode::from(FAILED)
}

/// Prints clap's answer: help and version go to stdout and are no failure, wrong usage goes to stderr.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let wrong = error.use_stderr();
    // A closed stdout or stderr leaves nobody to tell.
    let _ = error.print();
    if wrong { ExitCode::from(WRONG_USAGE) } else { ExitCode::SUCCESS }
}

fn complain(message: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(io::stderr(), "{message}");
}
