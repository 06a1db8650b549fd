// SPDX-License-Identifier: Apache-2.0
//! Whether names are answered, and by whom while this netd is away; for `weft doctor`.

use std::net::{IpAddr, SocketAddr};

use lb::Backend;
use netd_api::Verdict;

use super::addresses;
use crate::desired::{DNS_PORT, OTHER_SERVER, OWN_SERVER};
use crate::node::Node;

/// What there is to say about names.
pub(crate) fn check(node: &Node) -> (Verdict, String) {
    if node.zone.load().is_none() {
        let text = "the cluster's names are not known yet: every question gets SERVFAIL";
        return (Verdict::Wrong, text.to_owned());
    }
    let (wanted, bound) = (addresses(&node.facts().overlays), node.dns_bound.borrow().clone());
    let missing: Vec<SocketAddr> = wanted.into_iter().filter(|address| !bound.contains(address)).collect();
    if let Some(first) = missing.first() {
        let text = format!(
            "other nodes' pods cannot ask this node's server at {first}, should their own be away: see the log; who has the \
             port, `ss -lnp sport = :{}` says",
            first.port()
        );
        return (Verdict::Note, text);
    }
    let view = node.view.load();
    let service = view.table.find("kube-system", "kube-dns");
    let backends = service.map(|service| service.backends.as_slice());
    while_away(backends, &node.config.dns_addresses, view.alive.len() > 1)
}

/// Who answers while netd is away, as the cluster's DNS has it: what the maps are made from.
fn while_away(backends: Option<&[Backend]>, own: &[IpAddr], has_others: bool) -> (Verdict, String) {
    let (is_there, backends) = (backends.is_some(), backends.unwrap_or_default());
    let of = |source: &'static str| backends.iter().filter(move |backend| backend.verdict.source == source);
    if is_there && of(OWN_SERVER).next().is_none() {
        let text = "this node's server answers at its own address; who asks it there gets no answer while netd is away, for Service \
                    kube-system/kube-dns in the store stands in the place of Weft's own: remove it once pods are to ask Weft";
        return (Verdict::Note, text.to_owned());
    }
    let covered = |own: &IpAddr| {
        of(OWN_SERVER).any(|backend| backend.of_agent && backend.address.is_ipv4() == own.is_ipv4())
    };
    let without: Vec<&str> = own
        .iter()
        .filter(|own| !covered(own))
        .map(|own| if own.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    let others = of(OTHER_SERVER).count();
    match of(OTHER_SERVER).next() {
        Some(first) if without.is_empty() => {
            let (first, more) = (SocketAddr::new(first.address, DNS_PORT), others - 1);
            let text = format!(
                "this node's server answers; while netd is away {first} and {more} more addresses do"
            );
            (Verdict::Ok, text)
        }
        Some(_) => {
            let family = without.join(" and ");
            let text =
                format!("this node's server answers; over {family} no other node would while netd is away");
            (Verdict::Note, text)
        }
        None if has_others => {
            let text = "this node's server answers; no other node would while netd is away";
            (Verdict::Note, text.to_owned())
        }
        None => (Verdict::Ok, "this node's server answers; it is the only one".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::dns_service;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_take_over_is_promised_where_the_maps_have_it() {
        let own = ips(&["169.254.53.53", "fd00:53::53"]);
        let said = |others: &[&str], has_others| {
            let (_, backends) = dns_service(&ips(&["10.96.0.10"]), &own, &ips(others));
            while_away(Some(&backends), &own, has_others)
        };
        let both = said(&["10.244.2.1", "fd00:10:244::1"], true);
        assert_eq!(both.0, Verdict::Ok);
        assert!(both.1.contains("10.244.2.1:53 and 1 more"), "{both:?}");
        let (verdict, text) = said(&["10.244.2.1"], true);
        assert!(verdict == Verdict::Note && text.contains("over IPv6 no other node"), "{text}");
        assert_eq!(said(&[], true).0, Verdict::Note);
        assert_eq!(said(&[], false).0, Verdict::Ok);
        let verdict = lb::Verdict { state: lb::VerdictState::Up, source: "endpoint slice" };
        let theirs = [Backend::new("10.244.3.7".parse().unwrap(), [].into(), verdict)];
        let (verdict, text) = while_away(Some(&theirs), &own, true);
        assert!(verdict == Verdict::Note && text.contains("kube-system/kube-dns"), "{text}");
    }
}
