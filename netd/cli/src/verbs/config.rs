// SPDX-License-Identifier: Apache-2.0
//! `weft config`: the settings that all nodes share.

use std::fmt::Write as _;

use netd_api::{Client, ConfigReply, ConfigRequest};

use super::{explain, members_left};
use crate::args::{ConfigSetArgs, interval_text};
use crate::output::Shown;
use crate::table::list;

pub(super) async fn show(client: &Client) -> anyhow::Result<Shown> {
    shown(&client.config().await.map_err(explain)?)
}

pub(super) async fn set(client: &Client, args: &ConfigSetArgs) -> anyhow::Result<Shown> {
    if !args.yes
        && (args.overlay.is_some() || args.key_rotation.is_some())
        && let Some(refused) = confirm(client, args).await?
    {
        return Ok(refused);
    }
    let request = ConfigRequest {
        overlay: args.overlay.clone(),
        key_rotation_secs: args.key_rotation,
        trusted_cidrs: args.trusted_cidrs.as_ref().map(|cidrs| cidrs.0.clone()),
    };
    shown(&client.config_set(&request).await.map_err(explain)?)
}

/// Asks where members would be cut off; what to show instead of a change where the answer is not yes.
async fn confirm(client: &Client, args: &ConfigSetArgs) -> anyhow::Result<Option<Shown>> {
    let members = members_left::all(client).await?;
    if members.is_empty() {
        return Ok(None);
    }
    let now = client.config().await.map_err(explain)?;
    match plan(&now, args, &members_left::named(&members)) {
        Some(plan) => members_left::ask(&plan, "Change it?", &members),
        None => Ok(None),
    }
}

/// What the change does to members; nothing where they notice nothing of it.
fn plan(now: &ConfigReply, args: &ConfigSetArgs, who: &str) -> Option<String> {
    let serves = |overlay: &str| ["wireguard", "auto"].contains(&overlay);
    let mut plan = Vec::new();
    if let Some(overlay) = args.overlay.as_deref().filter(|next| serves(&now.overlay) && !serves(next)) {
        plan.push(format!("The overlay {overlay} cuts off {who}: members need wireguard or auto."));
    }
    let rotation = args.key_rotation.filter(|secs| *secs > 0 && now.key_rotation_secs != Some(*secs));
    if let Some(secs) = rotation {
        plan.push(format!(
            "New keys every {} cut off {who} each time, until each has a new configuration (`weft member show NAME`); keys that \
             are older are replaced at once.",
            interval_text(secs)
        ));
    }
    (!plan.is_empty()).then(|| plan.join("\n"))
}

fn shown(settings: &ConfigReply) -> anyhow::Result<Shown> {
    let notes = settings.notes.iter().map(|note| format!("note: {note}")).collect();
    Ok(Shown { notes, ..Shown::new(text(settings), settings)? })
}

fn text(settings: &ConfigReply) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<15}{value}");
    };
    line("overlay", settings.overlay.clone());
    let rotation = interval_text(settings.key_rotation_secs.unwrap_or_default());
    line("key-rotation", rotation);
    let trusted =
        if settings.trusted_cidrs.is_empty() { "none".to_owned() } else { list(&settings.trusted_cidrs) };
    line("trusted-cidrs", trusted);
    let services = match settings.service_cidrs.is_empty() {
        // Of a netd that knew one.
        true => settings.service_cidr.to_string(),
        false => list(&settings.service_cidrs),
    };
    line("service-cidr", format!("{services} (set once)"));
    if !settings.node_port_range.is_empty() {
        line("node-ports", format!("{} (set once)", settings.node_port_range));
    }
    line("dns-zone", format!("{} (fixed)", settings.dns_zone));
    line("vxlan-port", format!("{} (fixed)", settings.vxlan_port));
    let next = settings.wireguard_port.saturating_add(1);
    line("wireguard-port", format!("{}, {next} (set once)", settings.wireguard_port));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ConfigReply {
        ConfigReply {
            overlay: "wireguard".into(),
            key_rotation_secs: Some(86_400),
            trusted_cidrs: Vec::new(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
            node_port_range: "30000-32767".into(),
            dns_zone: "cluster.local".into(),
            vxlan_port: 4789,
            wireguard_port: 51820,
            notes: Vec::new(),
        }
    }

    #[test]
    fn only_what_members_notice_is_asked() {
        let args = |overlay: Option<&str>, key_rotation| ConfigSetArgs {
            overlay: overlay.map(str::to_owned),
            key_rotation,
            trusted_cidrs: None,
            yes: false,
        };
        let plan = |args| plan(&example(), &args, "member laptop");
        assert_eq!(plan(args(Some("auto"), None)), None);
        assert_eq!(plan(args(Some("wireguard"), Some(0))), None);
        assert_eq!(plan(args(None, Some(86_400))), None, "as it is");
        let both = plan(args(Some("vxlan"), Some(600))).unwrap();
        assert!(both.starts_with("The overlay vxlan cuts off member laptop: "), "{both}");
        assert!(both.contains("\nNew keys every 10m cut off member laptop each time"), "{both}");
    }

    #[test]
    fn what_can_be_changed_comes_first() {
        let settings = example();
        assert_eq!(
            text(&settings),
            "overlay        wireguard\n\
             key-rotation   1d\n\
             trusted-cidrs  none\n\
             service-cidr   10.96.0.0/16,fd00:10:96::/112 (set once)\n\
             node-ports     30000-32767 (set once)\n\
             dns-zone       cluster.local (fixed)\n\
             vxlan-port     4789 (fixed)\n\
             wireguard-port 51820, 51821 (set once)\n"
        );
    }
}
