// SPDX-License-Identifier: Apache-2.0
//! What is wrong with single objects, told once each.

use std::collections::BTreeSet;

use netd_api::BadValue;

/// So many lines at a time: where thousands of services do not fit into a map, status has them all.
const LINES_MAX: usize = 20;

/// Logs what was not there before; `what` says what it means for the object.
pub(super) fn tell(now: &[BadValue], before: &[BadValue], what: &str) {
    let news = news(now, before);
    for bad in news.iter().take(LINES_MAX) {
        tracing::warn!(object = bad.key, reason = bad.reason, "{what}");
    }
    if news.len() > LINES_MAX {
        let more = news.len() - LINES_MAX;
        tracing::warn!(more, "{what}; the others are in `weft status`");
    }
}

/// Adds what is not among them yet.
pub(super) fn add(problems: &mut Vec<BadValue>, more: Vec<BadValue>) {
    fn as_text(bad: &BadValue) -> (&str, &str) {
        (&bad.key, &bad.reason)
    }
    let new: BTreeSet<(&str, &str)> = more.iter().map(as_text).collect();
    problems.retain(|problem| !new.contains(&as_text(problem)));
    problems.extend(more);
}

/// Numbers in a reason (what is free, how many wait) go up and down without being news.
fn news<'a>(now: &'a [BadValue], before: &[BadValue]) -> Vec<&'a BadValue> {
    // Mostly nothing has changed, and then mostly there is nothing.
    if now == before {
        return Vec::new();
    }
    let said = |bad: &BadValue| -> (String, String) {
        (bad.key.clone(), bad.reason.chars().filter(|letter| !letter.is_ascii_digit()).collect())
    };
    let known: BTreeSet<(String, String)> = before.iter().map(said).collect();
    now.iter().filter(|bad| !known.contains(&said(bad))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_move_are_no_news() {
        let bad = |key: &str, reason: &str| BadValue { key: key.to_owned(), reason: reason.to_owned() };
        let before = [bad("a", "2 slots are free, 7 wait"), bad("b", "not JSON")];
        let now = [bad("a", "0 slots are free, 12 wait"), bad("b", "no such field"), bad("c", "not JSON")];
        let keys = |news: Vec<&BadValue>| news.iter().map(|bad| bad.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(news(&now, &before)), ["b", "c"]);
        assert!(news(&now, &now).is_empty());
        assert_eq!(news(&now[..1], &[]).len(), 1);
        let mut all = before.to_vec();
        add(&mut all, vec![bad("b", "not JSON"), bad("c", "not JSON")]);
        assert_eq!(all, [bad("a", "2 slots are free, 7 wait"), bad("b", "not JSON"), bad("c", "not JSON")]);
    }
}
