// SPDX-License-Identifier: Apache-2.0
//! Names of addresses: `7.0.244.10.in-addr.arpa` (RFC 1035, 3.5) and its IPv6 form (RFC 3596, 2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Folded, Name};

/// The reverse name of an address.
pub(crate) fn name(ip: IpAddr) -> Name {
    let text = match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let digits =
                v6.octets().into_iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4));
            format!("{}ip6.arpa", digits.collect::<String>())
        }
    };
    // At most 74 octets of digits and dots: always a name.
    Name::parse(&text).unwrap_or_else(|_| Name::root())
}

/// What a reverse name is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Digits {
    /// One address.
    Address(IpAddr),
    /// Several: other names lie below it.
    Network,
    /// Nothing.
    Nothing,
}

/// Where `name` lies in a reverse zone of ours: how many labels stand in front of the zone's top, which is the shortest ending
/// that covers only addresses of `cidrs`. `None` where the name is not about addresses of ours.
pub(crate) fn place(name: &Folded, cidrs: &[IpNet]) -> Option<(usize, Digits)> {
    let digits = name.labels().checked_sub(2)?;
    if name.label(digits + 1) != b"arpa" {
        return None;
    }
    let (bits, steps): (u8, usize) = match name.label(digits) {
        b"in-addr" => (8, 4),
        b"ip6" => (4, 32),
        _ => return None,
    };
    let (mut number, mut top) = (0u128, None);
    for step in 1..=digits.min(steps) {
        let length = bits * step as u8;
        let Some(value) = digit(name.label(digits - step), bits) else {
            return Some((top?, Digits::Nothing));
        };
        number = number << bits | u128::from(value);
        let net = if bits == 8 {
            let address = Ipv4Addr::from((number as u32).checked_shl(32 - u32::from(length)).unwrap_or(0));
            IpNet::V4(Ipv4Net::new(address, length).ok()?)
        } else {
            let address = Ipv6Addr::from(number.checked_shl(128 - u32::from(length)).unwrap_or(0));
            IpNet::V6(Ipv6Net::new(address, length).ok()?)
        };
        if top.is_none() && cidrs.iter().any(|cidr| cidr.contains(&net)) {
            top = Some(digits - step);
        }
        if step == steps {
            let found = if digits == steps { Digits::Address(net.addr()) } else { Digits::Nothing };
            return Some((top?, found));
        }
    }
    Some((top?, Digits::Network))
}

/// A decimal octet without leading zeroes, or one hexadecimal digit.
fn digit(label: &[u8], bits: u8) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let all_digits = text.bytes().all(|octet| octet.is_ascii_hexdigit());
    match bits {
        4 if text.len() == 1 && all_digits => u8::from_str_radix(text, 16).ok(),
        8 if all_digits && (text == "0" || !text.starts_with('0')) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RecordType, Zone, ZoneKind, ZoneService};
    use proptest::prelude::*;

    fn apex_of(text: &str, cidrs: &[&str]) -> Option<String> {
        let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let name = Name::parse(text).unwrap();
        let (front, _) = place(&Folded::from(&name), &cidrs)?;
        Some(Name::from_labels(name.labels().skip(front)).unwrap().to_string())
    }

    #[test]
    fn a_cidr_between_octets_has_several_tops() {
        let ours = ["10.96.0.0/12", "192.168.7.0/26"];
        assert_eq!(apex_of("1.0.96.10.in-addr.arpa", &ours).unwrap(), "96.10.in-addr.arpa.");
        assert_eq!(apex_of("111.10.IN-ADDR.arpa", &ours).unwrap(), "111.10.IN-ADDR.arpa.");
        assert_eq!(apex_of("1.0.112.10.in-addr.arpa", &ours), None);
        assert_eq!(apex_of("10.in-addr.arpa", &ours), None);
        assert_eq!(apex_of("63.7.168.192.in-addr.arpa", &ours).unwrap(), "63.7.168.192.in-addr.arpa.");
        assert_eq!(apex_of("64.7.168.192.in-addr.arpa", &ours), None);
    }

    #[test]
    fn what_is_not_a_number_is_ours_only_below_a_top() {
        let ours = ["10.96.0.0/16"];
        assert_eq!(apex_of("nonsense.96.10.in-addr.arpa", &ours).unwrap(), "96.10.in-addr.arpa.");
        assert_eq!(apex_of("096.10.in-addr.arpa", &ours), None);
        assert_eq!(apex_of("nonsense.10.in-addr.arpa", &ours), None);
        assert_eq!(apex_of("in-addr.arpa", &ours), None);
    }

    proptest! {
        #[test]
        fn an_address_has_a_reverse_zone_exactly_where_a_cidr_contains_it(ip: IpAddr, other: IpAddr, length in 0u8..=32) {
            for cidr in [IpNet::new(ip, length).unwrap(), IpNet::new(other, length).unwrap()] {
                let found = place(&Folded::from(&name(ip)), &[cidr]);
                // A CIDR of length 0 has no top below arpa's children, and nobody has one.
                if length > 0 {
                    prop_assert_eq!(found.map(|(_, digits)| digits), cidr.contains(&ip).then_some(Digits::Address(ip)));
                }
            }
        }

        /// Wherever the network ends.
        #[test]
        fn a_service_in_a_reverse_network_has_its_name_backwards(ip: IpAddr, length in 1u8..=128) {
            let length = if ip.is_ipv4() { 1 + length % 32 } else { length };
            let service = ZoneService::new("shop", "web", ZoneKind::ClusterIp(vec![ip]));
            let zone = Zone::build("cluster.local", 5, 1, [service], &[IpNet::new(ip, length).unwrap()]).unwrap();
            let told = zone.answer(&name(ip), RecordType::PTR, 0).to_string();
            prop_assert!(told.contains("IN PTR web.shop.svc.cluster.local."), "{} in /{}: {}", ip, length, told);
        }
    }
}
