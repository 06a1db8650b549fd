// SPDX-License-Identifier: Apache-2.0
//! How long each part of a pass took, for who has to find out why changes take long: told at debug level.

use std::fmt::Write;
use std::time::{Duration, Instant};

/// Parts that took less are not named.
const NAMED_MIN: Duration = Duration::from_micros(200);

/// A pass, part by part.
pub(super) struct Laps {
    begin: Instant,
    last: Instant,
    /// `None` where nobody wants to know.
    parts: Option<String>,
}

impl Laps {
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        let parts = tracing::enabled!(tracing::Level::DEBUG).then(String::new);
        Self { begin: now, last: now, parts }
    }

    /// What was done since the last one.
    pub(super) fn end_of(&mut self, part: &str) {
        let Some(parts) = &mut self.parts else { return };
        let now = Instant::now();
        let took = now - self.last;
        self.last = now;
        if took >= NAMED_MIN {
            // Into a string: it cannot fail.
            let _ = write!(parts, " {part}={:.1}ms", took.as_secs_f64() * 1e3);
        }
    }

    pub(super) fn say(self) {
        if let Some(parts) = self.parts {
            tracing::debug!(took = ?self.begin.elapsed(), parts = parts.trim_start(), "pass");
        }
    }
}
