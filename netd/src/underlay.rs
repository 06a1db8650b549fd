// SPDX-License-Identifier: Apache-2.0
//! The underlay while netd runs: its address may go (DHCP, a move to another network), and then another one is chosen by the
//! rules of the start. What the node says of itself, its tunnels and its peers follow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netd_host::{HostError, Underlay, UnderlayNow};

use crate::hostsync::HostSync;
use crate::node::Node;

/// Another device is taken, and a node without any says so, only after the address has been gone for so long: a device that
/// is renumbered is without one for a moment.
const GONE_AFTER: Duration = Duration::from_secs(10);

/// Remembers since when the address is gone.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    gone: Option<Instant>,
}

impl Follower {
    /// Looks at the underlay, chooses another where its address is gone, and says how it stands now; `None` while it has no
    /// address.
    pub(crate) async fn follow(
        &mut self,
        node: &Node,
        host: &HostSync,
    ) -> Result<Option<UnderlayNow>, HostError> {
        let former = node.underlay.load_full();
        let now = match host.underlay_now(&former).await {
            Ok(now) => Some(now).filter(|now| now.has_address),
            // The device went, and its address with it.
            Err(HostError::NoDevice { .. }) => None,
            Err(error) => return Err(error),
        };
        if now.is_some() {
            if self.gone.take().is_some() {
                tracing::info!(address = %former.address, device = former.device, "the underlay is back");
                node.tunnel.ask_to_speak();
            }
            node.underlay_error.store(None);
            return Ok(now);
        }
        if self.gone.is_none() {
            tracing::info!(address = %former.address, device = former.device, "the underlay has lost its address");
        }
        let gone = self.gone.get_or_insert_with(Instant::now).elapsed();
        let chosen = host.underlay_again(&former, node.config.underlay_address, node.store_address).await;
        let outcome = outcome(&former, chosen.as_ref().ok(), gone);
        match (outcome, chosen) {
            (Outcome::Take, Ok(chosen)) => {
                tracing::info!(
                    before = %former.address, address = %chosen.address, device = chosen.device, reason = chosen.reason,
                    "the underlay has changed"
                );
                let now = host.underlay_now(&chosen).await?;
                node.underlay.store(Arc::new(chosen));
                node.underlay_error.store(None);
                self.gone = None;
                node.tunnel.ask_to_speak();
                node.changed();
                return Ok(Some(now));
            }
            (Outcome::Wait, _) => {}
            (_, chosen) => {
                let why = chosen.err().map(|error| error.to_string()).unwrap_or_default();
                let text = gone_text(&former, &why);
                if node.underlay_error.load().as_deref() != Some(&text) {
                    tracing::warn!("{text}");
                    node.underlay_error.store(Some(Arc::new(text)));
                }
            }
        }
        // Until then it is as it was: links without an address say nothing about who is on them.
        Ok(None)
    }

    /// When to look again though nothing happens.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.gone.map(|since| since + GONE_AFTER).filter(|due| *due > Instant::now())
    }
}

/// For status and doctor.
pub(crate) fn gone_text(former: &Underlay, why: &str) -> String {
    format!(
        "the underlay address {} is not on {} any more, and peers do not reach this node there: {why}",
        former.address, former.device
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// What was chosen takes its place.
    Take,
    /// It may come back.
    Wait,
    /// Peers do not reach this node, and nothing can be done about it.
    Lost,
}

/// What becomes of an underlay whose address has been gone for so long.
fn outcome(former: &Underlay, chosen: Option<&Underlay>, gone: Duration) -> Outcome {
    let same = |chosen: &Underlay| chosen.device == former.device || chosen.address == former.address;
    match chosen {
        Some(chosen) if same(chosen) || gone >= GONE_AFTER => Outcome::Take,
        None if gone >= GONE_AFTER => Outcome::Lost,
        _ => Outcome::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay(address: &str, device: &str) -> Underlay {
        Underlay {
            address: address.parse().unwrap(),
            device: device.into(),
            mtu: 1500,
            reason: String::new(),
        }
    }

    #[test]
    fn a_gap_between_two_addresses_moves_nothing_to_another_device() {
        let former = underlay("192.0.2.1", "eth0");
        let at_once = |chosen: &Underlay| outcome(&former, Some(chosen), Duration::ZERO);
        assert_eq!(at_once(&underlay("192.0.2.9", "eth0")), Outcome::Take, "renumbered");
        assert_eq!(
            at_once(&underlay("192.0.2.1", "br0")),
            Outcome::Take,
            "its device became a port of a bridge"
        );
        let other = underlay("198.51.100.1", "eth1");
        assert_eq!(at_once(&other), Outcome::Wait);
        assert_eq!(outcome(&former, Some(&other), GONE_AFTER), Outcome::Take);
    }

    #[test]
    fn a_moment_without_any_address_is_nothing_to_be_told_of() {
        let former = underlay("192.0.2.1", "eth0");
        assert_eq!(outcome(&former, None, GONE_AFTER - Duration::from_millis(1)), Outcome::Wait);
        assert_eq!(outcome(&former, None, GONE_AFTER), Outcome::Lost);
    }
}
