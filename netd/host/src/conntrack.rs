// SPDX-License-Identifier: Apache-2.0

//! Forgetting UDP flows that conntrack knows (ctnetlink, include/uapi/linux/netfilter/nfnetlink_conntrack.h).
//!
//! A rule that translates a port is asked for the first packet of a flow only; the datagrams of a client that goes on
//! sending take the old way for as long as it does. TCP needs none of this: its connections end.
//!
//! The socket is of the netns of the calling thread. Cancel safe: what was not deleted yet stays.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlaBuffer, NlasIterator};
use netlink_sys::{AsyncSocket, TokioSocket};

use crate::{
    HostError,
    exchange::{HEADER_LEN, exchange},
    socket::current_runtime,
};

/// NETLINK_NETFILTER of include/uapi/linux/netlink.h.
const NETLINK_NETFILTER: isize = 12;
/// NFNL_SUBSYS_CTNETLINK << 8 with IPCTNL_MSG_CT_NEW, _GET and _DELETE.
const NEW: u16 = 0x100;
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
/// Length of `struct nfgenmsg`.
const FAMILY_HEADER_LEN: usize = 4;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// IPPROTO_UDP.
const UDP: u8 = 17;

/// CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE and CTA_FILTER.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// CTA_TUPLE_IP and CTA_TUPLE_PROTO.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// CTA_IP_V4_SRC, _DST, CTA_IP_V6_SRC, _DST.
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
/// CTA_PROTO_NUM and CTA_PROTO_DST_PORT.
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
/// CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS with the bits that stand for the fields above (Linux 5.8; an older
/// kernel lists everything, and all is compared here again).
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const BY_SOURCE: u32 = 1 << 0;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DST_PORT: u32 = 1 << 5;

/// Forgets the UDP flows that clients sent to this port of the host, translated or not, on one address or (`None`) on any.
/// Flows whose source alone is translated, those of this node's pods to the world, stay. Returns how many there were.
///
/// # Errors
/// [`HostError::Netlink`] with the kernel's refusal, also where it has no conntrack.
pub async fn forget_udp(host_ip: Option<IpAddr>, host_port: u16) -> Result<usize, HostError> {
    let host_ip = host_ip.filter(|ip| !ip.is_unspecified());
    let mut filter = nested(TUPLE_ORIG, &udp_tuple(Some(host_port), None));
    filter.extend(nested(FILTER, &flags(FILTER_ORIG_FLAGS, BY_PROTOCOL | BY_DST_PORT)));
    let families = match host_ip {
        Some(ip) => vec![family_of(ip)],
        None => vec![libc::AF_INET, libc::AF_INET6],
    };
    forget(&families, &filter, |flow| {
        let goes_there =
            flow.original.dst_port == host_port && host_ip.is_none_or(|ip| ip == flow.original.dst);
        let is_masqueraded = flow.reply.src == flow.original.dst && flow.reply.dst != flow.original.src;
        goes_there && !is_masqueraded
    })
    .await
}

/// Forgets the UDP flows that a pod answers, under whatever address clients sent to it. Returns how many there were.
///
/// # Errors
/// As for [`forget_udp`].
pub async fn forget_udp_to(pod: IpAddr) -> Result<usize, HostError> {
    // Linux 6.18 and others list all but those of an IPv6 address that they are asked for: the comparison in
    // ctnetlink_filter_match_tuple() is turned round there.
    let source = Some(pod).filter(IpAddr::is_ipv4);
    let by_source = if source.is_some() { BY_SOURCE } else { 0 };
    let mut filter = nested(TUPLE_REPLY, &udp_tuple(None, source));
    filter.extend(nested(FILTER, &flags(FILTER_REPLY_FLAGS, BY_PROTOCOL | by_source)));
    forget(&[family_of(pod)], &filter, |flow| flow.reply.src == pod).await
}

async fn forget(
    families: &[i32],
    filter: &[u8],
    is_wanted: impl Fn(&Flow) -> bool,
) -> Result<usize, HostError> {
    let socket = Conntrack::open()?;
    let mut forgotten = 0;
    for &family in families {
        let listed = socket.exchange("list conntrack entries", GET, NLM_F_DUMP, family, filter).await?;
        for flow in listed.iter().filter_map(|message| Flow::parse(message)).filter(|flow| is_wanted(flow)) {
            let what = "delete a conntrack entry";
            match socket.exchange(what, DELETE, NLM_F_ACK, family, &flow.identity).await {
                Ok(_) => forgotten += 1,
                // It ended meanwhile.
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(forgotten)
}

fn family_of(ip: IpAddr) -> i32 {
    if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

struct Conntrack(TokioSocket);

impl Conntrack {
    fn open() -> Result<Self, HostError> {
        let setup = |source| HostError::Setup { what: "open a conntrack socket", source };
        current_runtime()?;
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(setup)?;
        socket.socket_mut().bind_auto().map_err(setup)?;
        Ok(Self(socket))
    }

    /// One request; the payloads of what the kernel tells, up to its acknowledgement.
    async fn exchange(
        &self,
        what: &str,
        kind: u16,
        flags: u16,
        family: i32,
        attributes: &[u8],
    ) -> Result<Vec<Vec<u8>>, HostError> {
        exchange(&self.0, what, &request(kind, NLM_F_REQUEST | flags, family, attributes), NEW).await
    }
}

/// One entry: the same flow as it comes and as its answers go.
#[derive(Debug)]
struct Flow {
    original: Tuple,
    reply: Tuple,
    /// Attributes that name it in a deletion, as they came.
    identity: Vec<u8>,
}

#[derive(Debug)]
struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    dst_port: u16,
}

impl Flow {
    /// `None` for anything but UDP.
    fn parse(payload: &[u8]) -> Option<Self> {
        let (mut original, mut reply, mut identity) = (None, None, Vec::new());
        for nla in NlasIterator::new(payload.get(FAMILY_HEADER_LEN..)?).flatten() {
            match nla.kind() {
                TUPLE_ORIG => original = Tuple::parse(&nla),
                TUPLE_REPLY => reply = Tuple::parse(&nla),
                _ => {}
            }
            match nla.kind() {
                TUPLE_ORIG => identity.extend(nested(TUPLE_ORIG, nla.value())),
                ID | ZONE => identity.extend(attribute(nla.kind(), nla.value())),
                _ => {}
            }
        }
        Some(Self { original: original?, reply: reply?, identity })
    }
}

impl Tuple {
    fn parse(nla: &NlaBuffer<&[u8]>) -> Option<Self> {
        let (mut src, mut dst, mut protocol, mut dst_port) = (None, None, None, None);
        for part in NlasIterator::new(nla.value()).flatten() {
            for field in NlasIterator::new(part.value()).flatten() {
                match (part.kind(), field.kind()) {
                    (TUPLE_IP, V4_SRC | V6_SRC) => src = ip_from(field.value()),
                    (TUPLE_IP, V4_DST | V6_DST) => dst = ip_from(field.value()),
                    (TUPLE_PROTO, PROTO_NUM) => protocol = field.value().first().copied(),
                    (TUPLE_PROTO, PROTO_DST_PORT) => {
                        dst_port = field.value().try_into().ok().map(u16::from_be_bytes);
                    }
                    _ => {}
                }
            }
        }
        (protocol == Some(UDP)).then_some(Self { src: src?, dst: dst?, dst_port: dst_port? })
    }
}

fn ip_from(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn udp_tuple(dst_port: Option<u16>, src: Option<IpAddr>) -> Vec<u8> {
    let mut tuple = Vec::new();
    match src {
        Some(IpAddr::V4(ip)) => tuple.extend(nested(TUPLE_IP, &attribute(V4_SRC, &ip.octets()))),
        Some(IpAddr::V6(ip)) => tuple.extend(nested(TUPLE_IP, &attribute(V6_SRC, &ip.octets()))),
        None => {}
    }
    let mut protocol = attribute(PROTO_NUM, &[UDP]);
    if let Some(port) = dst_port {
        protocol.extend(attribute(PROTO_DST_PORT, &port.to_be_bytes()));
    }
    tuple.extend(nested(TUPLE_PROTO, &protocol));
    tuple
}

fn flags(kind: u16, bits: u32) -> Vec<u8> {
    // The other direction's flags must be there too.
    let mut flags = Vec::new();
    for known in [FILTER_ORIG_FLAGS, FILTER_REPLY_FLAGS] {
        flags.extend(attribute(known, &if known == kind { bits } else { 0 }.to_ne_bytes()));
    }
    flags
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, value)
}

/// An attribute, padded to four bytes. Nothing here is near the 64 KiB that its length can tell.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn request(kind: u16, flags: u16, family: i32, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_LEN + FAMILY_HEADER_LEN + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port: one question at a time on a socket of its own.
    bytes.extend_from_slice(&[0; 8]);
    // Family, version NFNETLINK_V0, resource.
    bytes.extend_from_slice(&[u8::try_from(family).unwrap_or(0), 0, 0, 0]);
    bytes.extend_from_slice(attributes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::messages;

    #[test]
    fn a_datagram_that_is_cut_off_ends_the_reading() {
        let whole = request(NEW, 0, libc::AF_INET, &attribute(ID, &[1, 2, 3, 4]));
        let two = [whole.clone(), whole.clone()].concat();
        assert_eq!(messages(&two).count(), 2);
        assert_eq!(messages(&two[..two.len() - 1]).count(), 1);
        assert_eq!(messages(&[0; 3]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of nothing");
    }

    #[test]
    fn only_udp_counts_and_half_entries_do_not() {
        let tuple = |protocol: u8| {
            let ip = [attribute(V4_SRC, &[10, 0, 0, 1]), attribute(V4_DST, &[10, 0, 0, 2])].concat();
            let ports = [attribute(PROTO_NUM, &[protocol]), attribute(PROTO_DST_PORT, &[0, 53])].concat();
            [nested(TUPLE_IP, &ip), nested(TUPLE_PROTO, &ports)].concat()
        };
        let entry = |original: &[u8], reply: &[u8]| {
            [&[2, 0, 0, 0][..], &nested(TUPLE_ORIG, original), &nested(TUPLE_REPLY, reply)].concat()
        };
        let flow = Flow::parse(&entry(&tuple(UDP), &tuple(UDP))).unwrap();
        assert_eq!((flow.original.dst.to_string().as_str(), flow.original.dst_port), ("10.0.0.2", 53));
        assert!(Flow::parse(&entry(&tuple(6), &tuple(6))).is_none());
        assert!(Flow::parse(&entry(&tuple(UDP), &[])).is_none());
        assert!(Flow::parse(&[]).is_none());
    }
}
