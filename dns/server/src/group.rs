// SPDX-License-Identifier: Apache-2.0
//! Name servers that know the same names: the upstreams, or those of a stub zone.
//!
//! The first healthy one in the configured order is asked; when it is silent for twice its usual round trip (at most 300 ms),
//! or answers with an error, the next is asked as well, and the first usable answer wins. One that was overtaken goes to the
//! end of the order for a while.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use hickory_proto::op::Message;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::upstream::{Upstream, UpstreamConfig, is_usable};
use crate::wire::Key;

/// The port of DNS (RFC 1035 section 4.2).
pub(crate) const DNS_PORT: u16 = 53;

/// Upstreams used; as many as resolv.conf(5) allows (MAXNS), and more only lengthen a failure.
pub const UPSTREAMS_MAX: usize = 3;

/// The whole time for one question; a client has asked again by then.
const DEADLINE: Duration = Duration::from_secs(4);

/// Where an upstream would lead back to us.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// Sockets of ours.
    pub(crate) listening: Vec<SocketAddr>,
    /// Addresses that lead to us on the DNS port (the cluster DNS VIP).
    pub(crate) addresses: Vec<IpAddr>,
}

/// Some name servers.
pub(crate) struct Group {
    pub(crate) upstreams: Vec<Arc<Upstream>>,
}

impl Group {
    /// Drops what leads back to us, what is there twice, and what is too much, with a warning each.
    pub(crate) fn new(configured: &[UpstreamConfig], own: &Own, started: Instant) -> Self {
        let mut upstreams: Vec<Arc<Upstream>> = Vec::new();
        for config in configured {
            let address = config.address;
            if own.leads_back(address) {
                warn!(%address, "DNS upstream is this server itself; ignored, because questions would loop");
            } else if upstreams.iter().any(|known| known.address == address) {
                continue;
            } else if upstreams.len() == UPSTREAMS_MAX {
                warn!(%address, max = UPSTREAMS_MAX, "too many DNS upstreams; ignored");
            } else {
                upstreams.push(Arc::new(Upstream::new(config.clone(), started)));
            }
        }
        Group { upstreams }
    }

    /// Whether there is anybody to ask.
    pub(crate) fn is_available(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// The first usable answer; `None` when there is none in time. Dropping the future ends the waiting.
    pub(crate) async fn ask(&self, key: &Key) -> Option<Box<Message>> {
        match timeout(DEADLINE, self.race(key)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.upstreams.iter().for_each(|upstream| upstream.hold_off());
                None
            }
        }
    }

    async fn race(&self, key: &Key) -> Option<Box<Message>> {
        let mut waiting = self.order().into_iter();
        let mut asked = FuturesUnordered::new();
        let mut silent: Vec<&Arc<Upstream>> = Vec::new();
        loop {
            // Each turn asks one more upstream, then listens to all that were asked.
            let mut patience = DEADLINE;
            match waiting.next() {
                Some(upstream) => {
                    if waiting.len() > 0 {
                        patience = upstream.hedge_after();
                    }
                    asked.push(async move { (upstream, upstream.ask(key).await) });
                    silent.push(upstream);
                }
                None if asked.is_empty() => return None,
                None => {}
            }
            let Ok(Some((upstream, result))) = timeout(patience, asked.next()).await else { continue };
            silent.retain(|other| !Arc::ptr_eq(other, upstream));
            match result {
                Ok(message) if is_usable(&message) => {
                    silent.iter().for_each(|upstream| upstream.hold_off());
                    return Some(message);
                }
                Ok(message) => {
                    debug!(address = %upstream.address, rcode = %message.metadata.response_code, "DNS upstream has no answer");
                }
                Err(error) => debug!(address = %upstream.address, %error, "DNS upstream failed"),
            }
        }
    }

    /// Upstreams in the order to ask them: the configured order, those on hold last, those in a circle never.
    fn order(&self) -> Vec<&Arc<Upstream>> {
        let mut order: Vec<_> = self.upstreams.iter().filter(|upstream| !upstream.is_looping()).collect();
        order.sort_by_key(|upstream| upstream.is_held());
        order
    }
}

impl Own {
    fn leads_back(&self, upstream: SocketAddr) -> bool {
        let same = |own: &SocketAddr| {
            let everywhere = own.ip().is_unspecified() && upstream.ip().is_loopback();
            own.port() == upstream.port() && (own.ip() == upstream.ip() || everywhere)
        };
        upstream.ip().is_unspecified()
            || (upstream.port() == DNS_PORT && self.addresses.contains(&upstream.ip()))
            || self.listening.iter().any(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(upstreams: &[&str], listening: &str, own: &[&str]) -> Group {
        let configured: Vec<UpstreamConfig> =
            upstreams.iter().map(|text| text.parse::<SocketAddr>().unwrap().into()).collect();
        let own = Own {
            listening: vec![listening.parse().unwrap()],
            addresses: own.iter().map(|text| text.parse().unwrap()).collect(),
        };
        Group::new(&configured, &own, Instant::now())
    }

    fn addresses(group: &Group) -> Vec<String> {
        group.order().iter().map(|upstream| upstream.address.to_string()).collect()
    }

    #[tokio::test]
    async fn upstreams_that_lead_back_are_dropped() {
        let upstreams = ["169.254.53.53:53", "10.96.0.10:53", "0.0.0.0:53", "192.0.2.1:53", "192.0.2.1:53"];
        let left = group(&upstreams, "169.254.53.53:53", &["10.96.0.10"]);
        assert_eq!(addresses(&left), ["192.0.2.1:53"]);
    }

    #[tokio::test]
    async fn another_port_of_an_own_address_is_another_server() {
        assert!(group(&["127.0.0.1:5300"], "127.0.0.1:53", &["127.0.0.1"]).is_available());
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_on_hold_is_asked_last_and_comes_back() {
        let group = group(&["192.0.2.1:53", "192.0.2.2:53"], "127.0.0.1:53", &[]);
        group.upstreams[0].hold_off();
        assert_eq!(addresses(&group), ["192.0.2.2:53", "192.0.2.1:53"]);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(addresses(&group), ["192.0.2.1:53", "192.0.2.2:53"]);
    }

    #[tokio::test]
    async fn an_upstream_in_a_circle_is_not_asked() {
        let group = group(&["192.0.2.1:53", "192.0.2.2:53"], "127.0.0.1:53", &[]);
        assert!(!group.upstreams[0].saw_probe(b"weft-loop-0000000000000000"));
        assert_eq!(addresses(&group).len(), 2);
    }
}
