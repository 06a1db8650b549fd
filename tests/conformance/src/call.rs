// SPDX-License-Identifier: Apache-2.0
//! One call of the plugin: environment and standard input as the specification says, each of it open to be wrong.

use crate::process::{self, OnInterrupt, Output};
use crate::runtime::{Container, Runtime};
use crate::verdict::{Checked, expect, fail};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// No plugin may take longer: runtimes give up after some minutes at most.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// How much of a plugin's output a message repeats, in characters.
const QUOTE_MAX: usize = 300;

/// A call that is about to be made.
#[derive(Clone)]
pub(crate) struct Call<'r> {
    runtime: &'r Runtime,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) config: Map<String, Value>,
    raw: Option<Vec<u8>>,
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The verb and what it was about, for messages.
    pub(crate) what: String,
    /// `cniVersion` of the call.
    pub(crate) version: Option<String>,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) timed_out: bool,
    pub(crate) took: Duration,
}

/// The specification's error object.
#[derive(Clone, Debug)]
pub(crate) struct ErrorObject {
    pub(crate) version: Option<String>,
    pub(crate) code: i64,
    pub(crate) msg: String,
    pub(crate) details: String,
}

impl<'r> Call<'r> {
    pub(crate) fn new(runtime: &'r Runtime, verb: &str, config: Map<String, Value>) -> Self {
        let env = [("CNI_COMMAND", verb), ("CNI_PATH", runtime.cni_path())];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { runtime, env, config, raw: None }
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, variable: &str, value: &str) -> Self {
        self.env.insert(variable.into(), value.into());
        self
    }

    /// Leaves a variable out.
    pub(crate) fn unset(mut self, variable: &str) -> Self {
        self.env.remove(variable);
        self
    }

    /// Names a container and an interface in it.
    pub(crate) fn target(self, container: &Container, ifname: &str) -> Self {
        self.env("CNI_CONTAINERID", &container.id)
            .env("CNI_NETNS", &container.path())
            .env("CNI_IFNAME", ifname)
    }

    /// Sets a key of the config.
    pub(crate) fn key(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Leaves a key of the config out.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.config.remove(key);
        self
    }

    /// Asks for a capability: an entry of `runtimeConfig`.
    pub(crate) fn capability(mut self, name: &str, value: impl Into<Value>) -> Self {
        let entry = self.config.entry("runtimeConfig").or_insert_with(|| Value::Object(Map::new()));
        if let Some(entries) = entry.as_object_mut() {
            entries.insert(name.into(), value.into());
        }
        self
    }

    /// Sends these bytes instead of the config.
    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Self {
        self.raw = Some(bytes.to_vec());
        self
    }

    /// The same attachment, another verb.
    pub(crate) fn verb(self, verb: &str) -> Self {
        self.env("CNI_COMMAND", verb)
    }

    /// Makes the call. Errors: the plugin gave no answer in time (a failed row), or the runner was interrupted.
    pub(crate) fn run(self) -> Checked<Answer> {
        let verb = self.env.get("CNI_COMMAND").cloned().unwrap_or_default();
        if verb == "ADD" {
            self.runtime.note_add(&self);
        }
        let answer = self.start(OnInterrupt::End)?;
        if answer.timed_out {
            return fail(format!("{}: no answer within {CALL_LIMIT:?}", answer.what));
        }
        Ok(answer)
    }

    /// Makes the call whatever happens, for cleaning up.
    pub(crate) fn run_always(self) -> anyhow::Result<Answer> {
        self.start(OnInterrupt::GoOn)
    }

    fn start(self, on_interrupt: OnInterrupt) -> anyhow::Result<Answer> {
        let stdin = match &self.raw {
            Some(bytes) => bytes.clone(),
            None => serde_json::to_vec(&self.config)?,
        };
        let mut command = self.runtime.command();
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"CNI_"))
        {
            command.env_remove(name);
        }
        command.envs(&self.env);
        let begin = Instant::now();
        let Output { code, stdout, stderr, timed_out } =
            process::run(&mut command, &stdin, CALL_LIMIT, on_interrupt)?;
        let answer = Answer {
            what: self.env.get("CNI_COMMAND").cloned().unwrap_or_else(|| "a call".into()),
            version: self
                .raw
                .is_none()
                .then(|| self.config.get("cniVersion").and_then(Value::as_str).map(str::to_owned))
                .flatten(),
            code,
            stdout,
            stderr,
            timed_out,
            took: begin.elapsed(),
        };
        self.runtime.note_answer(&answer);
        Ok(answer)
    }
}

impl Answer {
    /// Whether it exited with 0.
    pub(crate) fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Fails the row where the call did not succeed.
    pub(crate) fn success(self, about: &str) -> Checked<Self> {
        expect(self.ok(), || format!("{} {about}: expected success, got {}", self.what, self.told()))?;
        Ok(self)
    }

    /// Fails the row where there is something on standard output.
    pub(crate) fn silent(self, about: &str) -> Checked<Self> {
        let said = self.stdout.trim();
        expect(said.is_empty(), || {
            format!("{} {about}: expected nothing on stdout, got {}", self.what, quote(said))
        })?;
        Ok(self)
    }

    /// The error object; fails the row where the call succeeded, or stdout holds no such object.
    pub(crate) fn error(&self, about: &str) -> Checked<ErrorObject> {
        let what = &self.what;
        expect(!self.ok(), || format!("{what} {about}: expected an error, got success"))?;
        match ErrorObject::parse(&self.stdout) {
            Some(error) => Ok(error),
            None => fail(format!("{what} {about}: expected an error object on stdout, got {}", self.told())),
        }
    }

    /// How it ended, for messages.
    pub(crate) fn told(&self) -> String {
        let end = match self.code {
            Some(code) => format!("exit code {code}"),
            None => "no exit code".to_owned(),
        };
        let said = if self.stdout.trim().is_empty() { self.stderr.trim() } else { self.stdout.trim() };
        if said.is_empty() { end } else { format!("{end}: {}", quote(said)) }
    }
}

impl ErrorObject {
    /// From what a plugin printed: an object with a numeric code and a message, as the specification asks.
    pub(crate) fn parse(stdout: &str) -> Option<Self> {
        let object: Value = serde_json::from_str(stdout).ok()?;
        Some(Self {
            version: object["cniVersion"].as_str().map(str::to_owned),
            code: object["code"].as_i64()?,
            msg: object["msg"].as_str().filter(|msg| !msg.is_empty())?.to_owned(),
            details: object["details"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// Whether message or details hold this text, upper or lower case.
    pub(crate) fn says(&self, text: &str) -> bool {
        let said = format!("{} {}", self.msg, self.details).to_lowercase();
        said.contains(&text.to_lowercase())
    }

    /// For messages.
    pub(crate) fn told(&self) -> String {
        quote(&format!("code {}: {} {}", self.code, self.msg, self.details))
    }
}

/// Text in one line, not too long.
pub(crate) fn quote(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTE_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_object_needs_a_code_and_a_message() {
        let error =
            ErrorObject::parse(r#"{"cniVersion":"1.0.0","code":4,"msg":"CNI_IFNAME is bad"}"#).unwrap();
        assert_eq!((error.code, error.version.as_deref()), (4, Some("1.0.0")));
        assert!(error.says("ifname") && !error.says("netns"));
        for bad in
            ["", "[]", "{}", r#"{"code":"4","msg":"x"}"#, r#"{"code":4}"#, r#"{"code":4,"msg":""}"#, "{}{}"]
        {
            assert!(ErrorObject::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn quotes_are_short_and_one_line() {
        assert_eq!(quote("a\n  b"), "a b");
        assert_eq!(quote(&"ä".repeat(QUOTE_MAX + 1)).chars().count(), QUOTE_MAX + 1);
    }
}
