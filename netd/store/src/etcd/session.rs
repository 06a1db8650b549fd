// SPDX-License-Identifier: Apache-2.0
//! One session with one endpoint at a time.

use etcd_client::Client;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::{debug, info};

use super::EtcdConfig;
use super::failure;
use crate::StoreError;

/// How a connection ends that the other side closed without a word, by what was being done at that moment.
const CLOSED: [&str; 3] = ["connection closed", "broken pipe", "reset by peer"];

#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) config: EtcdConfig,
    /// Held while connecting: requests that come meanwhile wait for the same session, bounded by their own time-outs.
    link: Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    session: Option<Session>,
    /// The endpoint to try next.
    next: usize,
    generation: u64,
}

/// A client of one endpoint.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) endpoint: String,
    generation: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Sessions {
    pub(super) async fn new(config: EtcdConfig) -> Result<Self, StoreError> {
        let config = config.checked()?;
        // Without a user this contacts nobody; it refuses bad URLs and bad PEM.
        Client::connect(&config.endpoints, Some(config.options().await?))
            .await
            .map_err(|error| StoreError::InvalidConfig { reason: failure::with_sources(&error) })?;
        Ok(Self { config, link: Mutex::default() })
    }

    /// The session that stands, or a new one with the first endpoint that serves.
    pub(super) async fn current(&self) -> Result<Session, StoreError> {
        let mut link = self.link.lock().await;
        if let Some(session) = &link.session {
            return Ok(session.clone());
        }
        let count = self.config.endpoints.len();
        let mut failed = None;
        for _ in 0..count {
            let Some(endpoint) = self.config.endpoints.get(link.next % count) else { break };
            // Moved on before the attempt: the caller's time-out may cut it short.
            link.next = (link.next + 1) % count;
            let attempt =
                timeout(self.config.connect_timeout(), self.open(endpoint)).await.unwrap_or_else(|_| {
                    Err(StoreError::Timeout {
                        operation: "connect",
                        after: self.config.connect_timeout(),
                        endpoint: endpoint.clone(),
                    })
                });
            match attempt {
                Ok(client) => {
                    info!(%endpoint, "connected to the store");
                    link.generation += 1;
                    let session = Session { client, endpoint: endpoint.clone(), generation: link.generation };
                    return Ok(link.session.insert(session).clone());
                }
                Err(error) => {
                    debug!(%endpoint, %error, "the store's endpoint does not serve");
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| StoreError::InvalidConfig { reason: "no endpoint is given".into() }))
    }

    pub(super) async fn standing(&self) -> Option<String> {
        self.link.lock().await.session.as_ref().map(|session| session.endpoint.clone())
    }

    /// Lets go of a session that failed, unless it is already another one.
    pub(super) async fn leave(&self, failed: &Session) {
        let mut link = self.link.lock().await;
        if link.session.as_ref().is_some_and(|session| session.generation == failed.generation) {
            debug!(endpoint = %failed.endpoint, "left the store's endpoint");
            link.session = None;
        }
    }

    async fn open(&self, endpoint: &str) -> Result<Client, StoreError> {
        let mut options = self.config.options().await?;
        if let (Some(user), Some(password)) = (&self.config.user, &self.config.password) {
            options = options.with_user(user, password);
        }
        let connected = Client::connect([endpoint], Some(options)).await;
        let client = connected.map_err(|error| self.explain(failure::translate(&error, endpoint)))?;
        match client.maintenance_client().status().await {
            Ok(status) if status.leader() == 0 => Err(StoreError::Unavailable {
                endpoint: endpoint.to_owned(),
                reason: "this member has no leader (quorum lost, or an election is on)".into(),
            }),
            Ok(_) => Ok(client),
            Err(error) => match failure::translate(&error, endpoint) {
                // The member serves; whether we may do what we want shows at the request.
                StoreError::Denied { .. } => Ok(client),
                error => Err(self.explain(error)),
            },
        }
    }

    /// In TLS 1.3 a server refuses a client certificate after the handshake, often by closing without a word: we meet the
    /// alert, the end of the stream, or a stream that does not take what we write.
    fn explain(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Unavailable { endpoint, reason }
                if self.config.ca_file.is_some() && CLOSED.iter().any(|end| reason.contains(end)) =>
            {
                let reason = format!(
                    "{reason}; the store may have refused our client certificate, or want one: see its log"
                );
                StoreError::Unavailable { endpoint, reason }
            }
            error => error,
        }
    }
}
