// SPDX-License-Identifier: Apache-2.0
//! `weft ipam check`, `weft ipam repair`.

use std::fmt::Write as _;

use netd_api::{Client, IpamCheckReply, IpamFinding};

use super::super::explain;
use crate::output::{self, Answer, Shown};

pub(super) async fn check(client: &Client) -> anyhow::Result<Shown> {
    let reply = client.ipam_check().await.map_err(explain)?;
    Ok(Shown { ok: reply.findings.is_empty(), ..Shown::new(checked(&reply), &reply)? })
}

/// Shows what a repair would do, asks, and repairs. Without a terminal only `yes` is an answer.
pub(super) async fn repair(client: &Client, yes: bool) -> anyhow::Result<Shown> {
    let before = client.ipam_check().await.map_err(explain)?;
    if !before.findings.iter().any(|finding| finding.repairable) {
        return Ok(Shown { ok: before.findings.is_empty(), ..Shown::new(nothing_to_do(&before), &before)? });
    }
    if !yes {
        match output::ask(&planned(&before), "Go on?") {
            Answer::Yes => {}
            Answer::No => return refused(&before, String::new(), "Nothing was changed."),
            Answer::NobodyThere => {
                return refused(
                    &before,
                    planned(&before),
                    "Nothing was changed: without a terminal add --yes.",
                );
            }
        }
    }
    let after = client.ipam_repair().await.map_err(explain)?;
    Ok(Shown { ok: after.findings.is_empty(), ..Shown::new(repaired(&after), &after)? })
}

fn refused(before: &IpamCheckReply, text: String, note: &str) -> anyhow::Result<Shown> {
    Ok(Shown { ok: false, notes: vec![note.to_owned()], ..Shown::new(text, before)? })
}

fn checked(reply: &IpamCheckReply) -> String {
    let mut text = String::from("Compared:\n");
    for line in &reply.compared {
        let _ = writeln!(text, "  - {line}");
    }
    text.push('\n');
    if reply.findings.is_empty() {
        text.push_str("All of it agrees.\n");
        return text;
    }
    let repairable = reply.findings.iter().filter(|finding| finding.repairable).count();
    let how = match repairable {
        0 => "none of them is proven enough for a repair",
        _ => "`weft ipam repair` mends what is marked so",
    };
    let _ = writeln!(text, "{}; {how}:", count(reply.findings.len()));
    text.push_str(&findings(reply.findings.iter()));
    text
}

fn planned(reply: &IpamCheckReply) -> String {
    let (work, rest): (Vec<_>, Vec<_>) = reply.findings.iter().partition(|finding| finding.repairable);
    let mut text = format!("{} to repair:\n{}", count(work.len()), findings(work.into_iter()));
    if !rest.is_empty() {
        let _ = writeln!(text, "\nNot proven, so left as it is:\n{}", findings(rest.into_iter()).trim_end());
    }
    text
}

fn nothing_to_do(reply: &IpamCheckReply) -> String {
    if reply.findings.is_empty() {
        return "Nothing to repair.\n".to_owned();
    }
    format!("Nothing is proven, so nothing is repaired:\n{}", findings(reply.findings.iter()))
}

fn repaired(reply: &IpamCheckReply) -> String {
    let mut text = String::from("Repaired:\n");
    for line in &reply.repaired {
        let _ = writeln!(text, "  - {line}");
    }
    if reply.repaired.is_empty() {
        // What the check saw has changed since.
        text = "Nothing was left to repair.\n".to_owned();
    }
    if !reply.findings.is_empty() {
        let _ = write!(text, "\n{} left:\n{}", count(reply.findings.len()), findings(reply.findings.iter()));
    }
    text
}

/// A paragraph each: kind and subject, what the witnesses say, what happens or can be done.
fn findings<'f>(findings: impl Iterator<Item = &'f IpamFinding>) -> String {
    let mut text = String::new();
    for finding in findings {
        let address = finding.address.map(|ip| ip.to_string()).filter(|ip| !finding.subject.contains(ip));
        let known = finding.pod.as_ref().map(|pod| format!("pod {pod}")).into_iter().chain(address);
        let known: Vec<String> = known.collect();
        let address = if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) };
        let _ = writeln!(text, "  {}  {}{address}", finding.kind, finding.subject);
        let _ = writeln!(text, "      {}", finding.explanation);
        let what = if finding.repairable { "repair" } else { "to do" };
        let _ = writeln!(text, "      {what}: {}", finding.remedy);
    }
    text
}

fn count(findings: usize) -> String {
    if findings == 1 { "1 finding".to_owned() } else { format!("{findings} findings") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> IpamCheckReply {
        serde_json::from_value(serde_json::json!({
            "compared": ["3 addresses of this node's journal with 3 of the store"],
            "findings": [
                {"kind": "leak", "subject": "weft/c1/eth0", "pod": "shop/web-1", "address": "10.244.0.7",
                 "explanation": "the journal has it; its namespace is gone and the runtime does not know it",
                 "repairable": true, "remedy": "the address becomes free"},
                {"kind": "double", "subject": "10.244.0.9", "address": "10.244.0.9",
                 "explanation": "n1 and n2 both say it is theirs", "repairable": false,
                 "remedy": "restart the pod on n2"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn findings_are_explained_and_what_can_be_repaired_is_marked() {
        assert_eq!(
            checked(&reply()),
            "Compared:\n  - 3 addresses of this node's journal with 3 of the store\n\
             \n\
             2 findings; `weft ipam repair` mends what is marked so:\n  \
             leak  weft/c1/eth0 (pod shop/web-1, 10.244.0.7)\n      \
             the journal has it; its namespace is gone and the runtime does not know it\n      \
             repair: the address becomes free\n  \
             double  10.244.0.9\n      \
             n1 and n2 both say it is theirs\n      \
             to do: restart the pod on n2\n"
        );
    }

    #[test]
    fn a_clean_check_is_short() {
        let reply = IpamCheckReply { findings: Vec::new(), ..reply() };
        assert!(checked(&reply).ends_with("\n\nAll of it agrees.\n"));
        assert_eq!(nothing_to_do(&reply), "Nothing to repair.\n");
    }

    #[test]
    fn the_plan_keeps_what_is_proven_apart_from_what_is_not() {
        let text = planned(&reply());
        let (work, rest) = text.split_once("\nNot proven, so left as it is:\n").unwrap();
        assert!(work.starts_with("1 finding to repair:\n  leak"), "{text}");
        assert!(!work.contains("double") && rest.contains("double"), "{text}");
    }

    #[test]
    fn a_repair_says_what_it_did_and_what_is_left() {
        let mut reply = reply();
        reply.repaired = vec!["10.244.0.7 is free".into()];
        reply.findings.remove(0);
        let text = repaired(&reply);
        assert!(text.starts_with("Repaired:\n  - 10.244.0.7 is free\n\n1 finding left:\n  double"), "{text}");
    }
}
