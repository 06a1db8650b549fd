// SPDX-License-Identifier: Apache-2.0
//! What operators are told of members beside their list: who is cut off by what, and who was not heard.

use netd_api::{MemberInfo, Verdict};
use netd_store::records::{ClusterConfig, OverlayBackend};

/// So many are told by name.
const NAMED: usize = 5;
/// Sessions of WireGuard end after so long without a new handshake, in seconds (REJECT_AFTER_TIME, WireGuard paper 6.1).
const SESSION_SECS: u64 = 180;

/// Whether nodes speak with members: not where traffic goes in the clear.
pub(super) fn are_served(overlay: OverlayBackend) -> bool {
    matches!(overlay, OverlayBackend::Wireguard | OverlayBackend::Auto)
}

/// What these settings do to members, a line each; nothing where there is none.
pub(crate) fn notes(config: &ClusterConfig, members: &[&str]) -> Vec<String> {
    if members.is_empty() {
        return Vec::new();
    }
    let who = named(members);
    let mut notes = Vec::new();
    if !are_served(config.overlay) {
        let overlay = config.overlay.as_str();
        notes.push(format!("the overlay {overlay} cuts off {who}: members need wireguard or auto"));
    } else if config.key_rotation_secs.is_some() {
        notes.push(format!(
            "each rotation of keys cuts off {who} until there is a new configuration in place (`weft member show NAME`)"
        ));
    }
    notes
}

/// What `weft doctor` says.
pub(super) fn check(overlay: OverlayBackend, members: &[MemberInfo]) -> Option<(Verdict, String)> {
    if members.is_empty() {
        return None;
    }
    let count = members.len();
    if !are_served(overlay) {
        let overlay = overlay.as_str();
        let text =
            format!("{count} outside, cut off: the overlay is {overlay}, and they need wireguard or auto");
        return Some((Verdict::Note, text));
    }
    let is_heard = |member: &&MemberInfo| member.handshake_secs.is_some_and(|secs| secs <= SESSION_SECS);
    let silent: Vec<&str> =
        members.iter().filter(|member| !is_heard(member)).map(|member| member.name.as_str()).collect();
    if silent.is_empty() {
        return Some((
            Verdict::Ok,
            format!("{count} outside, each with a handshake in the last {SESSION_SECS} s"),
        ));
    }
    let text = format!(
        "{count} outside; no handshake with this node in the last {SESSION_SECS} s: {}. Switched off, or in need of a new \
         configuration since keys were rotated (`weft member show NAME`)",
        named(&silent)
    );
    Some((Verdict::Note, text))
}

fn named(members: &[&str]) -> String {
    match members {
        [one] => format!("member {one}"),
        many if many.len() <= NAMED => format!("members {}", many.join(", ")),
        many => format!("{} members ({}, …)", many.len(), many[..NAMED].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_cut_off_is_named() {
        let config = |overlay, key_rotation_secs| ClusterConfig {
            overlay,
            key_rotation_secs,
            ..ClusterConfig::default()
        };
        assert!(notes(&config(OverlayBackend::Vxlan, Some(600)), &[]).is_empty());
        assert!(notes(&config(OverlayBackend::Wireguard, None), &["laptop"]).is_empty());
        let said = notes(&config(OverlayBackend::Native, Some(600)), &["laptop"]);
        assert!(
            said.len() == 1 && said[0].starts_with("the overlay native cuts off member laptop:"),
            "{said:?}"
        );
        let said = notes(&config(OverlayBackend::Auto, Some(600)), &["a", "b"]);
        assert!(said[0].starts_with("each rotation of keys cuts off members a, b until"), "{said:?}");
        assert_eq!(named(&["a", "b", "c", "d", "e", "f"]), "6 members (a, b, c, d, e, …)");
    }

    #[test]
    fn doctor_names_who_is_silent() {
        let member = |name: &str, handshake_secs| MemberInfo {
            name: name.into(),
            ips: Vec::new(),
            public_key: String::new(),
            endpoint: None,
            handshake_secs,
        };
        let wireguard = OverlayBackend::Wireguard;
        assert_eq!(check(wireguard, &[]), None);
        let heard = [member("a", Some(12))];
        assert!(check(wireguard, &heard).is_some_and(|(verdict, _)| verdict == Verdict::Ok));
        let some = [member("a", Some(12)), member("b", Some(181)), member("c", None)];
        let (verdict, text) = check(wireguard, &some).unwrap();
        assert!(
            verdict == Verdict::Note && text.contains("in the last 180 s: members b, c. Switched off"),
            "{text}"
        );
        let (verdict, text) = check(OverlayBackend::Vxlan, &heard).unwrap();
        assert!(
            verdict == Verdict::Note && text.contains("1 outside, cut off: the overlay is vxlan"),
            "{text}"
        );
    }
}
