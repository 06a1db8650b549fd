// SPDX-License-Identifier: Apache-2.0
//! Sockets and handler put together.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dns_zone::Zone;
use hickory_server::Server;
use ipnet::IpNet;
use tracing::{info, warn};

use crate::bind::{BindError, Listener, bind};
use crate::forward::{ForwardConfig, Forwarder};
use crate::handler::Handler;
use crate::stats::DnsStats;

/// A TCP client that says nothing for this long is hung up on (RFC 7766 section 6.2.3: a few seconds).
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Answers waiting for a slow TCP client; past it the connection's further answers are dropped.
const TCP_ANSWERS_QUEUED_MAX: usize = 32;

/// Time for requests in flight when the server is told to stop.
const DRAIN: Duration = Duration::from_millis(500);

/// The bound, not yet running DNS server of a node.
///
/// It owns its sockets from [`DnsServer::bind`] on (questions queue in them), answers from [`DnsServer::run`] on.
#[derive(Debug)]
pub struct DnsServer {
    listeners: Vec<Listener>,
    setup: Setup,
}

#[derive(Debug)]
struct Setup {
    clients: Arc<ArcSwap<Vec<IpNet>>>,
    zone: Arc<ArcSwapOption<Zone>>,
    forward: ForwardConfig,
    stats: Arc<DnsStats>,
}

impl DnsServer {
    /// Binds UDP and TCP on every address (which need not be on the node yet); port 0 picks one that is free on both.
    ///
    /// `clients` are the networks that may ask (pods, nodes, loopback); all others get REFUSED, and an empty list
    /// refuses everybody. `zone` is what we answer from; while it holds `None` the node is not in sync and every
    /// question gets SERVFAIL. Must be called in a tokio runtime with I/O.
    ///
    /// # Errors
    /// [`BindError`] names the address and what to do; nothing stays bound.
    pub fn bind(
        addresses: &[SocketAddr],
        clients: Arc<ArcSwap<Vec<IpNet>>>,
        zone: Arc<ArcSwapOption<Zone>>,
        forward: ForwardConfig,
        stats: Arc<DnsStats>,
    ) -> Result<Self, BindError> {
        if addresses.is_empty() {
            return Err(BindError::NoAddress);
        }
        let listeners = addresses.iter().map(|address| bind(*address)).collect::<Result<_, _>>()?;
        Ok(DnsServer { listeners, setup: Setup { clients, zone, forward, stats } })
    }

    /// The addresses bound, in the order given, with the real ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// Answers until `shutdown` resolves, then drains for at most half a second. Returns early, with a warning in the
    /// log, only if the sockets fail. One task per socket, one per request; dropping the future ends them all.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let addresses = self.addresses();
        let Setup { clients, zone, forward, stats } = self.setup;
        let forwarder = Forwarder::new(forward, &addresses);
        let mut server = Server::new(Handler { clients, zone, forwarder, stats });
        for Listener { udp, tcp, .. } in self.listeners {
            server.register_socket(udp);
            server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS_QUEUED_MAX);
        }
        info!(?addresses, "DNS server is answering");
        tokio::select! {
            ended = server.block_until_done() => warn!(?ended, ?addresses, "DNS server lost its sockets"),
            () = shutdown => {
                let drained = tokio::time::timeout(DRAIN, server.shutdown_gracefully()).await;
                info!(?addresses, in_time = drained.is_ok(), "DNS server stopped");
            }
        }
    }
}
