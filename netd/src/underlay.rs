// SPDX-License-Identifier: Apache-2.0
//! The underlay while netd runs: its address may go (DHCP, a move to another network), and then another one is chosen by the
//! rules of the start. What the node says of itself, its tunnels and its peers follow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netd_host::{HostError, Underlay, UnderlayNow};

use crate::hostsync::HostSync;
use crate::node::Node;

/// Another device is taken only after the old one has been without the address for so long: one that is renumbered is
/// without any for a moment.
const OTHER_DEVICE_AFTER: Duration = Duration::from_secs(10);

/// Remembers since when the address is gone.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    gone: Option<Instant>,
}

impl Follower {
    /// Looks at the underlay, chooses another where its address is gone, and says how it stands now.
    pub(crate) async fn follow(
        &mut self,
        node: &Node,
        host: &HostSync,
    ) -> Result<Option<UnderlayNow>, HostError> {
        let former = node.underlay.load_full();
        let now = match host.underlay_now(&former).await {
            Ok(now) => Some(now),
            // The device went, and its address with it.
            Err(HostError::NoDevice { .. }) => None,
            Err(error) => return Err(error),
        };
        if now.as_ref().is_some_and(|now| now.has_address) {
            if self.gone.take().is_some() {
                tracing::info!(address = %former.address, device = former.device, "the underlay is back");
                node.tunnel.ask_to_speak();
            }
            node.underlay_error.store(None);
            return Ok(now);
        }
        let since = *self.gone.get_or_insert_with(Instant::now);
        let chosen = host.underlay_again(&former, node.config.underlay_address, node.store_address).await;
        let why = match chosen {
            Ok(chosen) if may_take(&former, &chosen, since.elapsed()) => {
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
            Ok(chosen) => format!("{} on {} may take its place", chosen.address, chosen.device),
            Err(error) => error.to_string(),
        };
        let text = gone_text(&former, &why);
        if node.underlay_error.load().as_deref() != Some(&text) {
            tracing::warn!("{text}");
            node.underlay_error.store(Some(Arc::new(text)));
        }
        Ok(now)
    }
}

/// For status and doctor.
pub(crate) fn gone_text(former: &Underlay, why: &str) -> String {
    format!(
        "the underlay address {} is not on {} any more, and peers do not reach this node there: {why}",
        former.address, former.device
    )
}

/// Whether what was chosen takes the place of an underlay whose address has been gone for so long.
fn may_take(former: &Underlay, chosen: &Underlay, gone: Duration) -> bool {
    chosen.device == former.device || chosen.address == former.address || gone >= OTHER_DEVICE_AFTER
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
        let at_once = |chosen: &Underlay| may_take(&former, chosen, Duration::ZERO);
        assert!(at_once(&underlay("192.0.2.9", "eth0")), "renumbered");
        assert!(at_once(&underlay("192.0.2.1", "br0")), "its device became a port of a bridge");
        let other = underlay("198.51.100.1", "eth1");
        assert!(!at_once(&other));
        assert!(may_take(&former, &other, OTHER_DEVICE_AFTER));
    }
}
