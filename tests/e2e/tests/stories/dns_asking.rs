// SPDX-License-Identifier: Apache-2.0
//! Somebody who asks without a pause, to see whether a question is lost.

use crate::dns_client::{Client, NODE_DNS, PATIENCE, question, read};
use crate::dns_records::svc;
use crate::service_stage::Stage;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::wait_until;

/// Questions go out so often, also while netd is away: as many as a socket's queue takes for the time of a restart.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// A question that is older and has no answer waits.
const OLD: Duration = Duration::from_millis(100);

/// The questions of one who asks.
pub(crate) struct Asking<'a> {
    askers: Vec<Asker>,
    vip: &'a str,
    is_paused: AtomicBool,
    has_ended: AtomicBool,
}

struct Asker {
    client: Client,
    /// Without an answer, by number, and since when.
    open: Mutex<BTreeMap<u16, Instant>>,
}

/// Asks all the time, over both families, while something is done to netd: every question must be answered, and rightly.
pub(crate) fn asking(stage: &Stage, vip: &str, event: impl FnOnce(&Asking<'_>) -> Result<()>) -> Result<()> {
    let asker = |server| Ok(Asker { client: Client::pod(&stage.lab, "c1", server)?, open: Mutex::default() });
    let asking = Asking {
        askers: NODE_DNS.iter().map(|server| asker(server)).collect::<Result<_>>()?,
        vip,
        is_paused: AtomicBool::new(false),
        has_ended: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let askers: Vec<_> = asking.askers.iter().map(|asker| scope.spawn(|| asking.ask(asker))).collect();
        thread::sleep(10 * ASK_EVERY);
        let outcome = event(&asking);
        asking.has_ended.store(true, Relaxed);
        let counts: Result<Vec<usize>> =
            askers.into_iter().map(|asker| asker.join().map_err(|_| anyhow::anyhow!("an asker"))?).collect();
        outcome?;
        let counts = counts?;
        ensure!(counts.iter().all(|count| *count > 20), "too few questions for a test: {counts:?}");
        println!("{counts:?} questions, all answered");
        Ok(())
    })
}

impl Asking<'_> {
    /// Whether all questions of before a beat ago have been answered.
    pub(crate) fn all_answered(&self) -> bool {
        self.are_answered(OLD)
    }

    /// Does something while no question is under way: one that netd has read from its socket dies with a netd that is killed, and
    /// its client asks again after a second.
    pub(crate) fn pause_for(&self, what: impl FnOnce() -> Result<()>) -> Result<()> {
        self.is_paused.store(true, Relaxed);
        // One that saw it too late has asked by then.
        thread::sleep(2 * ASK_EVERY);
        ensure!(wait_until(PATIENCE, || Ok(self.are_answered(Duration::ZERO)))?, "questions are left open");
        what()?;
        self.is_paused.store(false, Relaxed);
        Ok(())
    }

    fn are_answered(&self, of_before: Duration) -> bool {
        let old = |since: &Instant| since.elapsed() > of_before;
        self.askers.iter().all(|asker| asker.open.lock().is_ok_and(|open| !open.values().any(old)))
    }

    /// Until the end, and until all is answered; the number of questions.
    fn ask(&self, asker: &Asker) -> Result<usize> {
        let Asker { client, .. } = asker;
        let socket = client.socket(ASK_EVERY)?;
        let (mut buffer, mut count, mut last) = ([0; 512], 0, Instant::now());
        loop {
            let open = asker.open()?.len();
            if self.has_ended.load(Relaxed) {
                if open == 0 {
                    return Ok(count);
                }
            } else if !self.is_paused.load(Relaxed) {
                let question = question(&svc("web"), "A", None)?;
                // Noted first: the answer may be quick.
                asker.open()?.insert(question.metadata.id, Instant::now());
                socket.send(&question.to_vec()?)?;
                (count, last) = (count + 1, Instant::now());
            }
            // With none open nobody waits, however long the pause is.
            let in_time = open == 0 || last.elapsed() < PATIENCE;
            ensure!(in_time, "{open} of {count} questions to {} are lost", client.server);
            let beat = Instant::now();
            while let Ok(length) = socket.recv(&mut buffer) {
                let id = u16::from_be_bytes([buffer[0], buffer[1]]);
                let since = asker.open()?.remove(&id).context("an answer that nobody waits for")?;
                let answer = read(&buffer[..length], id, since.elapsed())?;
                // One that is starting and not in sync says so; what it must not do is to say something wrong.
                let right = answer.rcode == "SERVFAIL" || answer.data == [format!("A {}", self.vip)];
                ensure!(right, "{} {:?}", answer.rcode, answer.data);
                if beat.elapsed() >= ASK_EVERY {
                    break;
                }
            }
        }
    }
}

impl Asker {
    fn open(&self) -> Result<MutexGuard<'_, BTreeMap<u16, Instant>>> {
        self.open.lock().map_err(|_| anyhow::anyhow!("poisoned"))
    }
}
