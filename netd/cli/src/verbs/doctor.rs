// SPDX-License-Identifier: Apache-2.0
//! `weft doctor`: what the node finds when it looks at itself and at the ways to the others.

use std::fmt::Write as _;

use netd_api::{Client, DoctorReply, Verdict};

use super::explain;
use crate::output::Shown;

/// A longer name moves its own line only.
const ABOUT_WIDTH_MAX: usize = 24;

pub(super) async fn doctor(client: &Client) -> anyhow::Result<Shown> {
    let reply = client.doctor().await.map_err(explain)?;
    Ok(Shown { ok: reply.wrong() == 0, ..Shown::new(text(&reply), &reply)? })
}

// Writing to a String cannot fail.
fn text(reply: &DoctorReply) -> String {
    let widths = reply.checks.iter().map(|check| check.about.chars().count());
    let width = widths.filter(|width| *width <= ABOUT_WIDTH_MAX).max().unwrap_or_default();
    let mut text = String::new();
    for check in &reply.checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Wrong => "WRONG",
        };
        let _ = writeln!(text, "{verdict:<7}{:<width$}  {}", check.about, check.text);
    }
    let verdict = match reply.wrong() {
        0 => "Nothing is wrong.".to_owned(),
        1 => "One thing is wrong.".to_owned(),
        wrong => format!("{wrong} things are wrong."),
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_api::DoctorCheck;

    #[test]
    fn each_check_is_a_line_and_the_verdict_comes_last() {
        let check = |verdict, about: &str, text: &str| DoctorCheck {
            verdict,
            about: about.to_owned(),
            text: text.to_owned(),
        };
        let mut reply = DoctorReply {
            checks: vec![
                check(Verdict::Ok, "store", "in sync at revision 7"),
                check(Verdict::Note, "peer n2", "MTU 1336, found by probes"),
            ],
        };
        assert_eq!(
            text(&reply),
            "ok     store    in sync at revision 7\n\
             note   peer n2  MTU 1336, found by probes\n\
             \n\
             Nothing is wrong.\n"
        );
        reply.checks.push(check(Verdict::Ok, "pod shop/of-a-name-that-is-long", "as it should be"));
        assert!(text(&reply).starts_with("ok     store    in sync"), "{}", text(&reply));
        reply.checks.push(check(Verdict::Wrong, "peer n3", "no handshake yet"));
        assert!(text(&reply).ends_with("WRONG  peer n3  no handshake yet\n\nOne thing is wrong.\n"));
    }
}
