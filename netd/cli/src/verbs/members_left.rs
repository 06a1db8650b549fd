// SPDX-License-Identifier: Apache-2.0
//! What cuts off members, machines outside the cluster, is done only after a question.

use netd_api::{Client, MemberInfo, NodeInfo};
use serde_json::json;

use super::explain;
use crate::output::{self, Answer, Shown};

/// So many are told by name.
const NAMED: usize = 5;

/// The names of all members.
pub(super) async fn all(client: &Client) -> anyhow::Result<Vec<String>> {
    let members = client.members().await.map_err(explain)?;
    Ok(members.into_iter().map(|member| member.name).collect())
}

/// Those that have an address in a block of this node.
pub(super) fn in_blocks_of(node: &NodeInfo, members: &[MemberInfo]) -> Vec<String> {
    let lies_there =
        |member: &&MemberInfo| member.ips.iter().any(|ip| node.blocks.iter().any(|block| block.contains(ip)));
    members.iter().filter(lies_there).map(|member| member.name.clone()).collect()
}

/// `member laptop`, `members laptop, phone`, `7 members (a, b, c, d, e, …)`.
pub(super) fn named(members: &[String]) -> String {
    match members {
        [one] => format!("member {one}"),
        many if many.len() <= NAMED => format!("members {}", many.join(", ")),
        many => format!("{} members ({}, …)", many.len(), many[..NAMED].join(", ")),
    }
}

/// Asks; what to show instead of the deed where the answer is not yes.
pub(super) fn ask(plan: &str, question: &str, members: &[String]) -> anyhow::Result<Option<Shown>> {
    let note = match output::ask(plan, question) {
        Answer::Yes => return Ok(None),
        Answer::No => "Nothing was changed.",
        Answer::NobodyThere => "Nothing was changed: without a terminal add --yes.",
    };
    let json = json!({ "done": false, "members": members });
    Ok(Some(Shown { ok: false, notes: vec![note.to_owned()], ..Shown::new(format!("{plan}\n"), &json)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_belongs_to_the_node_of_its_block() {
        let node = serde_json::from_value(json!({
            "uuid": "6f1c1b4e-0000-4000-8000-000000000003", "name": "n3", "alive": true,
            "blocks": ["10.244.3.0/26", "fd00:10:244:3::/122"]}))
        .unwrap();
        let member = |name: &str, ip: &str| {
            serde_json::from_value(json!({"name": name, "ips": [ip], "public_key": "k"})).unwrap()
        };
        let members = [member("a", "10.244.3.5"), member("b", "10.244.4.5"), member("c", "fd00:10:244:3::5")];
        assert_eq!(in_blocks_of(&node, &members), ["a", "c"]);
    }

    #[test]
    fn many_are_counted() {
        let names: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(str::to_owned).into();
        assert_eq!(named(&names[..1]), "member a");
        assert_eq!(named(&names[..2]), "members a, b");
        assert_eq!(named(&names), "6 members (a, b, c, d, e, …)");
    }
}
