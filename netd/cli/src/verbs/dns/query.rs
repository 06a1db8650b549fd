// SPDX-License-Identifier: Apache-2.0
//! `weft dns query`: an answer of the node's DNS with its reasons.

use std::fmt::Write as _;

use netd_api::{Client, DnsAnswer, DnsQueryRequest};

use super::super::explain;
use crate::args::DnsQueryArgs;
use crate::output::Shown;

pub(super) async fn query(client: &Client, args: &DnsQueryArgs) -> anyhow::Result<Shown> {
    let request = DnsQueryRequest {
        name: args.name.clone(),
        record_type: args.record_type.clone(),
        client: args.client.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)),
    };
    let reply = client.dns_query(&request).await.map_err(explain)?;
    Shown::new(reply.questions.iter().map(text).collect::<Vec<_>>().join("\n"), &reply)
}

// Writing to a String cannot fail.
fn text(answer: &DnsAnswer) -> String {
    let client = answer.client.as_deref().map_or("nobody known".to_owned(), |pod| format!("pod {pod}"));
    let mut text = format!(
        "{} {}, asked by {client}, at revision {}: {}\n",
        answer.name, answer.record_type, answer.revision, answer.outcome
    );
    for reason in &answer.reasons {
        let _ = writeln!(text, "  {reason}");
    }
    let sections =
        [("answer", &answer.answer), ("authority", &answer.authority), ("additional", &answer.additional)];
    for (section, records) in sections {
        for record in records {
            let _ = writeln!(text, "  {section:<11}{record}");
        }
    }
    for name in &answer.forward {
        let _ = writeln!(text, "  {:<11}{name}", "upstream");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_stands_below_its_reasons() {
        let answer = DnsAnswer {
            name: "db.shop.svc.cluster.local.".into(),
            record_type: "A".into(),
            client: Some("shop/web".into()),
            revision: 7,
            outcome: "answer".into(),
            reasons: vec!["endpoint 10.0.0.3 is left out: not ready".into()],
            answer: vec!["db.shop.svc.cluster.local. 5 IN A 10.0.0.2".into()],
            ..DnsAnswer::default()
        };
        assert_eq!(
            text(&answer),
            "db.shop.svc.cluster.local. A, asked by pod shop/web, at revision 7: answer\n  \
             endpoint 10.0.0.3 is left out: not ready\n  \
             answer     db.shop.svc.cluster.local. 5 IN A 10.0.0.2\n"
        );
        let foreign = DnsAnswer { outcome: "forward".into(), forward: vec!["a.b.".into()], ..answer };
        assert!(text(&foreign).ends_with("  upstream   a.b.\n"));
    }
}
