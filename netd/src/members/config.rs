// SPDX-License-Identifier: Apache-2.0
//! A configuration for the ordinary client: the format of wg-quick(8).

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;
use netd_store::records::MemberRecord;
use netd_wireguard::{PrivateKey, PublicKey};

/// Routers forget a silent flow of UDP after 30 s and more; WireGuard's own advice is 25 s.
const KEEPALIVE_SECS: u16 = 25;

/// In place of the private key, which the cluster does not have. `wg syncconf` takes the key of a device for which its file
/// has none; the whole file can be replaced where the key has one of its own.
const NO_KEY: &str = "# The private key is only on the member: in /etc/wireguard/NAME-OF-THE-INTERFACE.key for this line, or write\n\
                      # `PrivateKey = …` in its place. From an older file: sed -n 's/^PrivateKey = //p' OLD.conf > NAME.key (umask 077).\n\
                      # Not for `wg syncconf`, which would take the key away: `wg-quick down`, then `wg-quick up`.\n\
                      PostUp = wg set %i private-key /etc/wireguard/%i.key";

/// The member's side.
pub(super) struct Tunnel<'a> {
    pub member: &'a MemberRecord,
    /// `None` where only its owner has it.
    pub private: Option<&'a PrivateKey>,
    /// In bytes.
    pub mtu: Option<u32>,
    pub peers: &'a [Peer],
}

/// A node.
pub(super) struct Peer {
    pub node: String,
    pub public: PublicKey,
    /// `HOST:PORT`.
    pub endpoint: Option<String>,
    pub allowed_ips: BTreeSet<IpNet>,
}

/// The file. A node that reaches nothing is left out: WireGuard would take it, and show a peer that does nothing.
pub(super) fn wg_quick(tunnel: &Tunnel<'_>) -> String {
    let Tunnel { member, private, mtu, peers } = tunnel;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# Weft member {}, public key {}\n[Interface]", member.name, member.public_key);
    let _ = match private {
        Some(key) => writeln!(text, "PrivateKey = {}", key.to_base64().as_str()),
        None => writeln!(text, "{NO_KEY}"),
    };
    for ip in &member.ips {
        let _ = writeln!(text, "Address = {}", IpNet::from(*ip));
    }
    if let Some(mtu) = mtu {
        let _ = writeln!(text, "MTU = {mtu}");
    }
    for peer in peers.iter().filter(|peer| !peer.allowed_ips.is_empty()) {
        let _ = writeln!(text, "\n# {}\n[Peer]\nPublicKey = {}", peer.node, peer.public);
        if let Some(endpoint) = &peer.endpoint {
            let _ = writeln!(text, "Endpoint = {endpoint}");
        }
        let allowed: Vec<String> = peer.allowed_ips.iter().map(IpNet::to_string).collect();
        let _ = writeln!(text, "AllowedIPs = {}", allowed.join(", "));
        let _ = writeln!(text, "PersistentKeepalive = {KEEPALIVE_SECS}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_wg_quick_reads() {
        let (private, public) = (PrivateKey::from([7; 32]), PublicKey::from([1; 32]));
        let peer = |node: &str, allowed: &[&str]| Peer {
            node: node.into(),
            public,
            endpoint: Some("[2001:db8::1]:51821".into()),
            allowed_ips: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        };
        let member = MemberRecord {
            schema: 1,
            name: "laptop".into(),
            public_key: "pub=".into(),
            ips: vec!["10.244.0.5".parse().unwrap(), "fd00:10:244::5".parse().unwrap()],
            endpoints: Default::default(),
            extra: Default::default(),
        };
        let peers = [peer("n1", &["10.244.0.0/26", "fd00:10:244::/122"]), peer("empty", &[])];
        let mut tunnel = Tunnel { member: &member, private: Some(&private), mtu: Some(1440), peers: &peers };
        let (secret, key) = (private.to_base64(), public.to_base64());
        let wanted = format!(
            "# Weft member laptop, public key pub=\n[Interface]\nPrivateKey = {}\nAddress = 10.244.0.5/32\n\
             Address = fd00:10:244::5/128\nMTU = 1440\n\n# n1\n[Peer]\nPublicKey = {key}\n\
             Endpoint = [2001:db8::1]:51821\nAllowedIPs = 10.244.0.0/26, fd00:10:244::/122\nPersistentKeepalive = 25\n",
            secret.as_str()
        );
        assert_eq!(wg_quick(&tunnel), wanted);
        tunnel.private = None;
        let shown = wg_quick(&tunnel);
        assert!(!shown.contains(secret.as_str()), "{shown}");
        assert!(
            shown.contains("\nPostUp = wg set %i private-key /etc/wireguard/%i.key\nAddress = "),
            "{shown}"
        );
    }
}
