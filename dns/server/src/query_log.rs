// SPDX-License-Identifier: Apache-2.0
//! A line for each question, or for one of many.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use dns_zone::{Query, Written};
use tracing::info;

use crate::respond::Asker;
use crate::stats::Source;

/// The target of the lines (tracing's `EnvFilter`).
pub const QUERY_LOG_TARGET: &str = "dns_query";

/// Which questions are logged.
pub(crate) struct QueryLog {
    /// One of so many; 0: none.
    every: u32,
    count: AtomicU32,
}

impl QueryLog {
    pub(crate) fn new(every: u32) -> Self {
        QueryLog { every, count: AtomicU32::new(0) }
    }

    /// Logs an answer where it is its turn.
    pub(crate) fn note(&self, query: &Query<'_>, asker: Asker, source: Source, written: Written) {
        if !self.is_due() {
            return;
        }
        info!(
            target: QUERY_LOG_TARGET,
            client = %asker.client,
            transport = ?asker.transport,
            name = %query.name_as_asked(),
            record_type = %query.record_type(),
            rcode = %written.rcode,
            source = ?source,
            bytes = written.len,
            truncated = written.truncated,
            "DNS question"
        );
    }

    fn is_due(&self) -> bool {
        self.every > 0 && self.count.fetch_add(1, Relaxed).is_multiple_of(self.every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_so_many_is_logged() {
        let due = |every| {
            let log = QueryLog::new(every);
            (0..1_000).filter(|_| log.is_due()).count()
        };
        assert_eq!([0, 1, 10, 5_000].map(due), [0, 1_000, 100, 1]);
    }
}
