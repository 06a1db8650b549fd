// SPDX-License-Identifier: Apache-2.0

//! Policy rules of our protocol number (FRA_PROTOCOL, Linux 4.17), which `ip rule` shows as `proto`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netd_plan::RuleSpec;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteHeader, RouteProtocol},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use nix::errno::Errno;

use crate::{Host, HostError, ROUTE_PROTOCOL, address::family_of, error::absent_is_fine};

impl Host {
    pub(crate) async fn own_rules(&self) -> Result<BTreeSet<RuleSpec>, HostError> {
        let mut rules = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let replies = match self.socket.dump("list rules", RouteNetlinkMessage::GetRule(message)).await {
                Ok(replies) => replies,
                // A kernel without the family, or without policy routing, has none.
                Err(error) if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            rules.extend(replies.iter().filter_map(|reply| parse(reply, family)));
        }
        Ok(rules)
    }

    pub(crate) async fn set_rule(&self, spec: &RuleSpec) -> Result<(), HostError> {
        let what = format!("add {} (needs a kernel with policy routing)", name(spec));
        let request = RouteNetlinkMessage::NewRule(message(spec));
        match self.socket.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await {
            // Where the kernel takes another protocol's for the same, it is not ours.
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                if self.own_rules().await?.contains(spec) {
                    return Ok(());
                }
                Err(HostError::Foreign { object: name(spec), found: "it has no mark of ours".to_owned() })
            }
            other => other,
        }
    }

    /// A rule of another protocol is left alone, and counts as absent.
    pub(crate) async fn remove_rule(&self, spec: &RuleSpec) -> Result<(), HostError> {
        let what = format!("remove {}", name(spec));
        absent_is_fine(self.socket.request(&what, RouteNetlinkMessage::DelRule(message(spec)), 0).await)
    }
}

/// Whether the rule has our mark.
pub(crate) fn is_own_rule(message: &RuleMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(attribute, RuleAttribute::Protocol(protocol) if u8::from(*protocol) == ROUTE_PROTOCOL)
    })
}

fn name(spec: &RuleSpec) -> String {
    format!("the rule from {} (priority {}, table {})", spec.source, spec.priority, spec.table)
}

fn message(spec: &RuleSpec) -> RuleMessage {
    let source = spec.source.trunc();
    let mut message = RuleMessage::default();
    message.header.family = family_of(source.addr());
    message.header.src_len = source.prefix_len();
    message.header.action = RuleAction::ToTable;
    // Larger numbers do not fit the header; the attribute rules.
    message.header.table = u8::try_from(spec.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes = vec![
        RuleAttribute::Table(spec.table),
        RuleAttribute::Priority(spec.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    if source.prefix_len() > 0 {
        message.attributes.push(RuleAttribute::Source(source.addr()));
    }
    message
}

/// `None` for what is not ours, and for rules of a shape that we never make.
fn parse(reply: &RouteNetlinkMessage, family: AddressFamily) -> Option<RuleSpec> {
    let RouteNetlinkMessage::NewRule(message) = reply else { return None };
    let header = &message.header;
    let plain = header.action == RuleAction::ToTable && !header.flags.contains(RuleFlags::Invert);
    if header.family != family || !plain || !is_own_rule(message) {
        return None;
    }
    let mut source: IpAddr = match family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let (mut table, mut priority) = (u32::from(header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => source = *ip,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Destination(_)
            | RuleAttribute::FwMark(_)
            | RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_) => return None,
            _ => {}
        }
    }
    let source = IpNet::new(source, header.src_len).ok()?;
    Some(RuleSpec { source, table, priority })
}
