// SPDX-License-Identifier: Apache-2.0
//! Members as WireGuard peers: machines outside the cluster that talk with every node directly. They know one
//! key of each node, of whatever generation was the newest when their configuration was made, so they stand
//! in every device, and routes lead to the one where they were heard.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netd_wireguard::{PeerConfig, PublicKey};

use super::state::PeerLink;
use crate::view::View;

/// A member as every device has it.
pub(super) struct Member {
    pub name: String,
    pub public: PublicKey,
    allowed_ips: BTreeSet<IpNet>,
}

/// All members. Of two records with one key or one address the first counts; what lies in no pool is passed over.
pub(super) fn members(view: &View) -> Vec<Member> {
    let pools = view.pod_cidrs();
    let (mut keys, mut claimed) = (BTreeSet::new(), BTreeSet::new());
    let is_free = |ip: &IpAddr| pools.iter().any(|pool| pool.contains(ip));
    view.members
        .values()
        .filter_map(|record| {
            let public: PublicKey = record.public_key.parse().ok()?;
            if !keys.insert(public) {
                return None;
            }
            let ips = record.ips.iter().filter(|ip| is_free(ip) && claimed.insert(**ip));
            let allowed_ips: BTreeSet<IpNet> = ips.copied().map(IpNet::from).collect();
            (!allowed_ips.is_empty()).then(|| Member { name: record.name.clone(), public, allowed_ips })
        })
        .collect()
}

impl Member {
    /// Where it is, its packets tell; it keeps the way through its own routers open itself. The cluster's preshared key, if
    /// there is one, is the nodes' alone.
    pub(super) fn wish(&self) -> (PublicKey, PeerConfig) {
        let config = PeerConfig { allowed_ips: self.allowed_ips.clone(), ..PeerConfig::default() };
        (self.public, config)
    }
}

/// The generation over which a member is reached: where its last handshake was, else the newest.
pub(super) fn reached_by(links: &[PeerLink]) -> Option<u64> {
    let newest = links.iter().max_by_key(|link| (link.handshake_ms, link.generation));
    newest.map(|link| link.generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_store::records::{ClusterConfig, MemberRecord};

    fn link(generation: u64, handshake_ms: Option<u64>) -> PeerLink {
        PeerLink {
            generation,
            endpoint: None,
            handshake_ms,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_bits_per_sec: 0,
            tx_bits_per_sec: 0,
        }
    }

    #[test]
    fn a_member_is_reached_where_it_was_heard_last() {
        assert_eq!(reached_by(&[]), None);
        assert_eq!(reached_by(&[link(3, None), link(4, None)]), Some(4), "the newest until it speaks");
        assert_eq!(reached_by(&[link(3, Some(7)), link(4, None)]), Some(3), "it has the older key");
        assert_eq!(reached_by(&[link(3, Some(7)), link(4, Some(9))]), Some(4), "its new configuration");
    }

    #[test]
    fn of_two_with_one_key_or_address_the_first_counts() {
        let key = |byte: u8| PublicKey::from([byte; 32]).to_base64();
        let record = |name: &str, key: String, ip: &str| {
            let ips = vec![ip.parse().unwrap()];
            (
                name.to_owned(),
                MemberRecord {
                    schema: 1,
                    name: name.into(),
                    public_key: key,
                    ips,
                    endpoints: Default::default(),
                    extra: Default::default(),
                },
            )
        };
        let pools =
            ClusterConfig::default().pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect();
        let all = [
            record("a", key(1), "10.244.0.5"),
            record("b", key(1), "10.244.0.6"),
            record("c", key(2), "10.244.0.5"),
            record("d", key(3), "192.0.2.1"),
            record("e", key(4), "10.244.0.7"),
        ];
        let view = View { pools, members: all.into(), ..View::default() };
        let names: Vec<String> = members(&view).into_iter().map(|member| member.name).collect();
        assert_eq!(names, ["a", "e"]);
    }
}
