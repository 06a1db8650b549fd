// SPDX-License-Identifier: Apache-2.0
//! Ports of the host that lead to pods: who has which, and what that means for the nft table.

use std::net::IpAddr;
use std::sync::Arc;

use netd_api::{ApiError, Code, PortMapping, PortProtocol};
use netd_plan::{HostPort, PortProtocol as Transport};

use crate::attachments::{Attachment, Attachments, Phase};

/// What the nft table holds for these attachments.
pub(crate) fn host_ports(attachments: &[Arc<Attachment>]) -> Vec<HostPort> {
    let live = attachments.iter().filter(|a| a.phase != Phase::Releasing);
    live.flat_map(|attachment| {
        let of_mapping = |mapping: &PortMapping| -> Vec<HostPort> {
            let fits = |ip: &&IpAddr| mapping.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
            let to = |ip: &IpAddr| HostPort {
                // 0.0.0.0 and :: mean every address of their family.
                host_ip: mapping.host_ip.filter(|host| !host.is_unspecified()),
                host_port: mapping.host_port,
                protocol: match mapping.protocol {
                    PortProtocol::Sctp => Transport::Sctp,
                    PortProtocol::Tcp => Transport::Tcp,
                    PortProtocol::Udp => Transport::Udp,
                },
                pod: *ip,
                pod_port: mapping.container_port,
            };
            attachment.ips.iter().filter(fits).map(to).collect()
        };
        attachment.port_mappings.iter().flat_map(of_mapping).collect::<Vec<_>>()
    })
    .collect()
}

/// Refuses a mapping that another pod of this node has, with its name; code 102.
pub(super) fn refuse_taken(attachments: &Attachments, wanted: &[PortMapping]) -> Result<(), ApiError> {
    for mapping in wanted {
        let clash = attachments
            .iter()
            .find(|attachment| attachment.port_mappings.iter().any(|other| clash(other, mapping)));
        if let Some(other) = clash {
            let host = mapping.host_ip.map_or_else(|| "any address".to_owned(), |ip| ip.to_string());
            return Err(ApiError::conflict(format!(
                "host port {}/{} on {host} leads to pod {}/{} already (container {}); choose another, or DEL that one",
                mapping.host_port,
                mapping.protocol,
                other.namespace,
                other.name,
                other.key.container_id
            ))
            .with_code(Code::PORT_IN_USE));
        }
    }
    Ok(())
}

/// One port of one address for one transport has one pod; no address means every address, an unspecified one every address
/// of its family.
fn clash(a: &PortMapping, b: &PortMapping) -> bool {
    let addresses = match (a.host_ip, b.host_ip) {
        (Some(a), Some(b)) if a.is_unspecified() || b.is_unspecified() => a.is_ipv4() == b.is_ipv4(),
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    addresses && a.host_port == b.host_port && a.protocol == b.protocol
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: Option<&str>, host_port: u16, protocol: PortProtocol) -> PortMapping {
        PortMapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 80,
            protocol,
        }
    }

    #[test]
    fn a_port_has_one_pod_for_each_address_and_transport() {
        let any = mapping(None, 80, PortProtocol::Tcp);
        let one = mapping(Some("192.0.2.1"), 80, PortProtocol::Tcp);
        let other = mapping(Some("192.0.2.2"), 80, PortProtocol::Tcp);
        assert!(clash(&any, &one) && clash(&one, &any) && clash(&any, &any) && clash(&one, &one));
        assert!(!clash(&one, &other));
        assert!(!clash(&any, &mapping(None, 80, PortProtocol::Udp)));
        assert!(!clash(&any, &mapping(None, 81, PortProtocol::Tcp)));
        assert!(clash(&one, &mapping(Some("0.0.0.0"), 80, PortProtocol::Tcp)));
        assert!(!clash(&one, &mapping(Some("::"), 80, PortProtocol::Tcp)));
    }
}
