// SPDX-License-Identifier: Apache-2.0
//! Clients over TCP (RFC 7766) and TLS (RFC 7858).
//!
//! Each connection has a task that reads and one that writes. Questions are answered as soon as they can be, in any order;
//! a client that does not take its answers stops its own reading first, and is hung up on then. The number of connections
//! has a cap, of all and of one client.

mod connection;
mod places;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::life::Phase;
use crate::respond::Core;
use crate::stats::{Counters, DnsStats, Event};
use connection::Connection;
pub(crate) use places::Places;

/// Connections at once, of all clients.
pub const STREAMS_MAX: usize = 1_024;
/// Connections at once of one client: stub resolvers need one or two.
pub const STREAMS_PER_CLIENT_MAX: usize = 32;
/// Time for a client's TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// After accept(2) failed (no file descriptors left): time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections of one server share.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) core: Arc<Core>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stats: Arc<DnsStats>,
    pub(crate) places: Arc<Places>,
    /// When the server was made.
    pub(crate) started: std::time::Instant,
}

impl Streams {
    /// Takes connections until the server closes, then returns when the last of them has ended. Dropping it ends them all.
    pub(crate) async fn accept(
        self,
        listener: StdListener,
        tls: Option<Arc<ServerConfig>>,
    ) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let acceptor = tls.map(TlsAcceptor::from);
        let mut connections = JoinSet::new();
        let closing = self.core.life.reached(Phase::Closing);
        tokio::pin!(closing);
        loop {
            let accepted = tokio::select! {
                biased;
                // Those who wait in the listener's queue are the next server's, where somebody holds it.
                () = &mut closing => break,
                accepted = listener.accept() => accepted,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "cannot take a DNS connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            // Strangers get their REFUSED over UDP, where it costs nothing; here they would hold a place.
            let place = match self.core.is_client(client.ip()) {
                true => self.places.enter(client.ip()),
                false => None,
            };
            let Some(place) = place else {
                self.counters.event(Event::StreamRefused);
                continue;
            };
            self.counters.event(Event::StreamAccepted);
            let (streams, acceptor) = (self.clone(), acceptor.clone());
            connections.spawn(async move {
                let _open = (place, streams.stats.stream());
                streams.serve(stream, client, acceptor).await;
            });
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
        Ok(())
    }

    async fn serve(&self, stream: TcpStream, client: SocketAddr, acceptor: Option<TlsAcceptor>) {
        // Answers go out at once; without it the second of two small ones waits for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let connection = Connection { streams: self.clone(), client };
        match acceptor {
            None => connection.serve(stream).await,
            Some(acceptor) => match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => connection.serve(stream).await,
                Ok(Err(error)) => debug!(%client, %error, "DNS over TLS: handshake failed"),
                Err(_) => debug!(%client, "DNS over TLS: no handshake in time"),
            },
        }
    }
}
