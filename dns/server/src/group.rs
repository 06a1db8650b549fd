// SPDX-License-Identifier: Apache-2.0
//! Name servers that know the same names: the upstreams, or those of a stub zone.
//!
//! The first healthy one in the configured order is asked; when it is silent for twice its usual round trip (at most 180 ms),
//! or answers with an error, the next is asked as well, and the first usable answer wins. But "there is no such name" of a later
//! one waits for those before it a little longer: they may know names that nobody else knows. One that stays silent while
//! another one answers goes to the end of the order for a while; one that was only slower does not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use hickory_proto::op::Message;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use crate::upstream::{Upstream, UpstreamConfig, UpstreamError, is_negative, is_usable};
use crate::wire::Key;

/// The port of DNS (RFC 1035 section 4.2).
pub(crate) const DNS_PORT: u16 = 53;

/// Upstreams used; as many as resolv.conf(5) allows (MAXNS), and more only lengthen a failure.
pub const UPSTREAMS_MAX: usize = 3;

/// The whole time for one question; a client has asked again by then.
const DEADLINE: Duration = Duration::from_secs(4);

/// Who is silent for this long while another one answers is taken for dead; a cold name may take a recursor some 100 ms.
const SILENCE: Duration = Duration::from_millis(300);

/// One upstream's answer, with its place in the order.
type Asking = BoxFuture<'static, (usize, Result<Box<Message>, UpstreamError>)>;

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
    /// `zone`: the names that these are for, in wire form.
    pub(crate) fn new(configured: &[UpstreamConfig], own: &Own, zone: &[u8], started: Instant) -> Self {
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
                upstreams.push(Arc::new(Upstream::new(config.clone(), zone, started)));
            }
        }
        Group { upstreams }
    }

    /// Whether there is anybody to ask.
    pub(crate) fn is_available(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// The first usable answer; `None` when there is none in time. Dropping the future ends the waiting. Must run in a runtime.
    pub(crate) async fn ask(&self, key: &Key) -> Option<Box<Message>> {
        let started = Instant::now();
        match timeout(DEADLINE, self.race(key, started)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.upstreams.iter().for_each(|upstream| upstream.was_silent(started));
                None
            }
        }
    }

    async fn race(&self, key: &Key, started: Instant) -> Option<Box<Message>> {
        let order = self.order();
        let mut waiting = order.iter().enumerate();
        let mut asked: FuturesUnordered<Asking> = FuturesUnordered::new();
        // By place in the order, and since when.
        let mut silent: Vec<(usize, Instant)> = Vec::new();
        let mut negative: Option<(usize, Box<Message>)> = None;
        loop {
            // Each turn asks one more upstream, then listens to all that were asked.
            // Past the end of all waiting, where there is nobody else to ask.
            let mut until = started + 2 * DEADLINE;
            if negative.is_some() {
                until = started + SILENCE;
            } else if let Some((place, upstream)) = waiting.next() {
                if waiting.len() > 0 {
                    until = Instant::now() + upstream.hedge_after();
                }
                let (upstream, key) = (Arc::clone(upstream), *key);
                asked.push(async move { (place, upstream.ask(&key).await) }.boxed());
                silent.push((place, Instant::now()));
            } else if asked.is_empty() {
                return None;
            }
            let heard = timeout_at(until, asked.next()).await;
            if let Ok(Some((place, result))) = heard {
                silent.retain(|(other, _)| *other != place);
                let address = order[place].address;
                match result {
                    Ok(message) if is_usable(&message) && !is_negative(&message) => {
                        overtaken(&order, &silent, place, asked);
                        return Some(message);
                    }
                    // The first "no" stands until one before it speaks.
                    Ok(message) if is_usable(&message) => {
                        if negative.as_ref().is_none_or(|(first, _)| place < *first) {
                            negative = Some((place, message));
                        }
                    }
                    Ok(message) => {
                        debug!(%address, rcode = %message.metadata.response_code, "DNS upstream has no answer");
                    }
                    Err(error) => debug!(%address, %error, "DNS upstream failed"),
                }
            }
            if let Some((place, message)) = negative.take() {
                let is_awaited = silent.iter().any(|(other, _)| *other < place);
                if !is_awaited || Instant::now() >= started + SILENCE {
                    overtaken(&order, &silent, place, asked);
                    return Some(message);
                }
                negative = Some((place, message));
            }
        }
    }

    /// Upstreams in the order to ask them: the configured order, those on hold last, those in a circle never.
    fn order(&self) -> Vec<Arc<Upstream>> {
        let mut order: Vec<_> =
            self.upstreams.iter().filter(|upstream| !upstream.is_looping()).cloned().collect();
        order.sort_by_key(|upstream| upstream.is_held());
        order
    }
}

/// The one at `place` answered. Of those before it, who was silent for long is asked last from now on; who was not is listened to
/// a little longer, once for all questions that are overtaken meanwhile.
fn overtaken(
    order: &[Arc<Upstream>],
    silent: &[(usize, Instant)],
    place: usize,
    mut asked: FuturesUnordered<Asking>,
) {
    let mut watched: Vec<(usize, Watching)> = Vec::new();
    for (other, since) in silent.iter().filter(|(other, _)| *other < place) {
        let upstream = &order[*other];
        if since.elapsed() >= SILENCE {
            upstream.hold_off();
        } else if upstream.watch() {
            watched.push((*other, Watching { upstream: upstream.clone(), is_silent: false }));
        }
    }
    if watched.is_empty() {
        return;
    }
    tokio::spawn(async move {
        let until = Instant::now() + SILENCE;
        while let Ok(Some((heard, result))) = timeout_at(until, asked.next()).await {
            // A failure has been counted where it came.
            if let Some(at) = watched.iter().position(|(other, _)| *other == heard) {
                drop((watched.swap_remove(at), result));
            }
            if watched.is_empty() {
                return;
            }
        }
        watched.iter_mut().for_each(|(_, watching)| watching.is_silent = true);
    });
}

/// One that is listened to a little longer. Whatever ends that, it may be listened to again.
struct Watching {
    upstream: Arc<Upstream>,
    is_silent: bool,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.upstream.watched(!self.is_silent);
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
        Group::new(&configured, &own, &[0], Instant::now())
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
    async fn an_upstream_whose_answer_panics_may_be_listened_to_again() {
        let group = group(&["192.0.2.1:53", "192.0.2.2:53"], "127.0.0.1:53", &[]);
        let asked = FuturesUnordered::new();
        asked.push(async { panic!("as a decoder might") }.boxed());
        overtaken(&group.order(), &[(0, Instant::now())], 1, asked);
        assert!(!group.upstreams[0].watch(), "somebody does");
        let again = async {
            while !group.upstreams[0].watch() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SILENCE / 2, again).await.expect("at once");
        assert!(!group.upstreams[0].is_held());
    }

    #[tokio::test]
    async fn an_upstream_in_a_circle_is_not_asked() {
        let group = group(&["192.0.2.1:53", "192.0.2.2:53"], "127.0.0.1:53", &[]);
        assert!(!group.upstreams[0].saw_probe(b"weft-loop-0000000000000000"));
        assert_eq!(addresses(&group).len(), 2);
    }
}
