// SPDX-License-Identifier: Apache-2.0
//! `weft config`: the settings that all nodes share.

use std::fmt::Write as _;

use netd_api::{Client, ConfigReply, ConfigRequest};

use super::explain;
use crate::args::ConfigSetArgs;
use crate::output::Shown;
use crate::table::list;

pub(super) async fn show(client: &Client) -> anyhow::Result<Shown> {
    shown(&client.config().await.map_err(explain)?)
}

pub(super) async fn set(client: &Client, args: &ConfigSetArgs) -> anyhow::Result<Shown> {
    let request = ConfigRequest {
        overlay: args.overlay.clone(),
        key_rotation_secs: args.key_rotation,
        trusted_cidrs: args.trusted_cidrs.as_ref().map(|cidrs| cidrs.0.clone()),
    };
    shown(&client.config_set(&request).await.map_err(explain)?)
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
    let rotation = settings.key_rotation_secs.map_or_else(|| "off".to_owned(), |secs| format!("{secs}s"));
    line("key-rotation", rotation);
    let trusted =
        if settings.trusted_cidrs.is_empty() { "none".to_owned() } else { list(&settings.trusted_cidrs) };
    line("trusted-cidrs", trusted);
    line("service-cidr", format!("{} (set once)", settings.service_cidr));
    line("dns-zone", format!("{} (set once)", settings.dns_zone));
    line("vxlan-port", format!("{} (set once)", settings.vxlan_port));
    let next = settings.wireguard_port.saturating_add(1);
    line("wireguard-port", format!("{}, {next} (set once)", settings.wireguard_port));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_changed_comes_first() {
        let settings = ConfigReply {
            overlay: "wireguard".into(),
            key_rotation_secs: Some(86_400),
            trusted_cidrs: Vec::new(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            dns_zone: "cluster.local".into(),
            vxlan_port: 4789,
            wireguard_port: 51820,
            notes: Vec::new(),
        };
        assert_eq!(
            text(&settings),
            "overlay        wireguard\n\
             key-rotation   86400s\n\
             trusted-cidrs  none\n\
             service-cidr   10.96.0.0/16 (set once)\n\
             dns-zone       cluster.local (set once)\n\
             vxlan-port     4789 (set once)\n\
             wireguard-port 51820, 51821 (set once)\n"
        );
    }
}
