// SPDX-License-Identifier: Apache-2.0
//! What an upstream's answers taught about it. All of it is forgotten after a while: it may have been a box on the way, or
//! another one of several servers behind the address.

use std::time::Duration;

use tokio::time::Instant;

use super::question::{CLIENT_COOKIE, Manner};

/// How long something out of the ordinary is believed.
const KEPT: Duration = Duration::from_secs(600);

/// How one upstream likes to be asked.
#[derive(Debug)]
pub(super) struct Learnt {
    client_cookie: [u8; CLIENT_COOKIE],
    /// What it gave us last; empty before.
    server_cookie: Vec<u8>,
    /// One that had a cookie gave an answer without: so long no cookie is demanded.
    no_cookie_until: Option<Instant>,
    plain_until: Option<Instant>,
    folds_case_until: Option<Instant>,
}

impl Learnt {
    pub(super) fn new(client_cookie: [u8; CLIENT_COOKIE]) -> Self {
        Learnt {
            client_cookie,
            server_cookie: Vec::new(),
            no_cookie_until: None,
            plain_until: None,
            folds_case_until: None,
        }
    }

    pub(super) fn manner(&self, now: Instant) -> Manner {
        let holds = |until: Option<Instant>| until.is_some_and(|until| now < until);
        Manner {
            plain: holds(self.plain_until),
            folds_case: holds(self.folds_case_until),
            client_cookie: self.client_cookie,
            server_cookie: self.server_cookie.clone(),
        }
    }

    /// It answers without an OPT record what it does not answer with one.
    pub(super) fn is_plain(&mut self, now: Instant) {
        self.plain_until = Some(now + KEPT);
    }

    /// It changes the case of names; `true`: that is news.
    pub(super) fn folds_case(&mut self, now: Instant) -> bool {
        let is_news = self.folds_case_until.is_none();
        self.folds_case_until = Some(now + KEPT);
        is_news
    }

    /// The server's cookie in an answer to a question with ours. `authentic`: over a stream, where nobody forges.
    pub(super) fn cookie(&mut self, cookie: Option<Vec<u8>>, authentic: bool, now: Instant) {
        match cookie {
            Some(_) if self.no_cookie_until.is_some_and(|until| now < until) => {}
            Some(cookie) => self.server_cookie = cookie,
            None if authentic && !self.server_cookie.is_empty() => {
                self.server_cookie.clear();
                self.no_cookie_until = Some(now + KEPT);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_believed_until_an_authentic_answer_lacks_it_and_other_lessons_for_minutes() {
        let (mut learnt, start) = (Learnt::new(*b"client!!"), Instant::now());
        let cookie = || Some(b"serverserver".to_vec());
        learnt.cookie(cookie(), false, start);
        learnt.cookie(None, false, start);
        assert_eq!(learnt.manner(start).server_cookie, b"serverserver", "anybody could have left it out");
        learnt.cookie(None, true, start);
        learnt.cookie(cookie(), true, start);
        assert!(learnt.manner(start).server_cookie.is_empty(), "only some of its servers have cookies");
        learnt.cookie(cookie(), true, start + KEPT);
        assert_eq!(learnt.manner(start).server_cookie, b"serverserver");

        learnt.is_plain(start);
        assert!(learnt.folds_case(start) && !learnt.folds_case(start));
        let (now, later) = (learnt.manner(start), learnt.manner(start + KEPT));
        assert!(now.plain && now.folds_case && !later.plain && !later.folds_case);
    }
}
