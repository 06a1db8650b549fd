// SPDX-License-Identifier: Apache-2.0
//! A netd that gives prepared answers over a real Unix socket and remembers what it was asked.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// What it was asked: `METHOD path`, and the body.
type Requests = Arc<Mutex<Vec<(String, Value)>>>;

/// Answers requests in order, each with a status and a body; the last answer again and again.
pub(crate) struct FakeNetd {
    folder: tempfile::TempDir,
    requests: Requests,
}

impl FakeNetd {
    pub(crate) fn start(answers: &[(u16, Value)]) -> FakeNetd {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(folder.path().join("netd.sock")).expect("a socket");
        let requests = Requests::default();
        let (seen, mut answers) = (Arc::clone(&requests), VecDeque::from(answers.to_vec()));
        // Ends with the test's process: nobody connects after the test.
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                // Written down before it is answered: whoever has the answer finds the request here.
                seen.lock().expect("no test panicked here").push(request);
                let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
                let (status, body) = next.expect("an answer was prepared");
                answer(&mut stream, status, &body.to_string());
            }
        });
        FakeNetd { folder, requests }
    }

    /// Runs weft against it, without a terminal.
    pub(crate) fn weft(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg("--socket")
            .arg(self.folder.path().join("netd.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts")
    }

    pub(crate) fn requests(&self) -> Vec<(String, Value)> {
        self.requests.lock().expect("no test panicked here").clone()
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("stdout is JSON and nothing else")
}

fn read(stream: &UnixStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = first.trim().strip_suffix(" HTTP/1.1")?.to_owned();
    Some((request, serde_json::from_slice(&body).unwrap_or_default()))
}

fn answer(stream: &mut UnixStream, status: u16, body: &str) {
    // A client that went away is the test's business, which sees its output.
    let _ = write!(
        stream,
        "HTTP/1.1 {status} Prepared\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
}
