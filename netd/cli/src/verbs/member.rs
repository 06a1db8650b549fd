// SPDX-License-Identifier: Apache-2.0
//! `weft member`: machines outside the cluster that talk with pods through WireGuard.

use netd_api::{Client, MemberAddRequest, MemberInfo, MemberReply, MemberRequest};

use super::explain;
use crate::args::MemberVerb;
use crate::new_file::NewFile;
use crate::output::Shown;
use crate::table::{Table, list};

pub(super) async fn run(client: &Client, verb: &MemberVerb) -> anyhow::Result<Shown> {
    match verb {
        MemberVerb::Add { name, public_key, endpoints, output } => {
            let request = MemberAddRequest {
                name: name.clone(),
                public_key: public_key.clone(),
                endpoints: endpoints.iter().cloned().collect(),
            };
            // Before anything changes: whether the file can be written.
            let file = output.as_deref().map(NewFile::beside).transpose()?;
            let reply = client.member_add(&request).await.map_err(explain)?;
            let mut shown = configuration(&reply, file)?;
            if public_key.is_none() {
                let place = match output {
                    Some(file) => format!("it is only in {}", file.display()),
                    None => "this is the only time that it is shown".to_owned(),
                };
                shown.notes.push(format!("note: the private key is kept nowhere else; {place}"));
            }
            Ok(shown)
        }
        MemberVerb::Ls => {
            let members = client.members().await.map_err(explain)?;
            Shown::new(table(&members), &members)
        }
        MemberVerb::Rm { name } => {
            client.member_remove(&MemberRequest { name: name.clone() }).await.map_err(explain)?;
            let json = serde_json::json!({ "kind": "member", "name": name, "state": "removed" });
            Shown::new(format!("member {name} removed\n"), &json)
        }
        MemberVerb::Show { name, output } => {
            let file = output.as_deref().map(NewFile::beside).transpose()?;
            configuration(&client.member(name).await.map_err(explain)?, file)
        }
    }
}

/// The configuration in its file, or alone on stdout, so that it can go into one as it is.
fn configuration(reply: &MemberReply, file: Option<NewFile>) -> anyhow::Result<Shown> {
    let notes = reply.notes.iter().map(|note| format!("note: {note}")).collect();
    let shown = match file {
        Some(file) => {
            let path = file.fill(&reply.config)?;
            let text = format!("the configuration of member {} is in {}\n", reply.name, path.display());
            let MemberReply { name, ips, public_key, .. } = reply;
            let json = serde_json::json!({
                "name": name, "ips": ips, "public_key": public_key, "notes": reply.notes, "output": path,
            });
            Shown::new(text, &json)?
        }
        None => Shown::new(reply.config.clone(), reply)?,
    };
    Ok(Shown { notes, ..shown })
}

fn table(members: &[MemberInfo]) -> String {
    let mut table = Table::new(["NAME", "ADDRESSES", "PUBLIC-KEY", "ENDPOINT", "HANDSHAKE-HERE"]);
    for member in members {
        table.row([
            member.name.clone(),
            list(&member.ips),
            member.public_key.clone(),
            member.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
            member.handshake_secs.map(|secs| format!("{secs}s")).unwrap_or_default(),
        ]);
    }
    table.render("no members")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_stands_alone_and_is_not_in_debug_output() {
        let reply = MemberReply {
            name: "laptop".into(),
            ips: vec!["10.244.0.5".parse().unwrap()],
            public_key: "pub=".into(),
            config: "[Interface]\nPrivateKey = secret=\n".into(),
            notes: vec!["node n3 has no WireGuard key".into()],
        };
        let shown = configuration(&reply, None).unwrap();
        assert_eq!(shown.text, reply.config);
        assert_eq!(shown.notes, ["note: node n3 has no WireGuard key"]);
        assert!(!format!("{reply:?}").contains("secret="));
    }

    #[test]
    fn who_was_never_heard_has_no_handshake() {
        let member = MemberInfo {
            name: "laptop".into(),
            ips: vec!["10.244.0.5".parse().unwrap()],
            public_key: "pub=".into(),
            endpoint: None,
            handshake_secs: None,
        };
        let shown = table(&[member]);
        assert!(shown.ends_with("laptop   10.244.0.5   pub=         -          -\n"), "{shown}");
    }
}
