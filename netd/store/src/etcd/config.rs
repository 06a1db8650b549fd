// SPDX-License-Identifier: Apache-2.0
//! How to reach etcd.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::StoreError;

/// Long enough for a leader election to end, short enough for a CNI call to be answered.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// An idle connection that is cut shows after interval plus time-out. etcd refuses clients that ping more often than 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// How to reach an etcd cluster, and as whom.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `https://host:port`, `http://host:port` or `host:port` (https where a CA file is set).
    pub endpoints: Vec<String>,
    /// With `password`.
    pub user: Option<String>,
    /// With `user`.
    pub password: Option<String>,
    /// PEM: who may sign the servers' certificates. Needed for https.
    pub ca_file: Option<PathBuf>,
    /// PEM: our certificate (with its chain). With `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM: its private key. With `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The name in the servers' certificates, where it is not the endpoint's host.
    pub server_name: Option<String>,
    /// For each request, connecting included.
    pub request_timeout: Duration,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            user: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
        }
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("server_name", &self.server_name)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

impl EtcdConfig {
    /// Whether it can work: URLs are looked at and files read, nobody is contacted.
    ///
    /// # Errors
    /// [`StoreError::InvalidConfig`] and [`StoreError::UnreadableFile`], as [`Etcd::connect`](super::Etcd::connect) would.
    pub fn check(&self) -> Result<(), StoreError> {
        let config = self.clone().checked()?;
        for path in [&config.ca_file, &config.cert_file, &config.key_file].into_iter().flatten() {
            std::fs::read(path).map_err(|error| unreadable(path, &error))?;
        }
        Ok(())
    }

    /// Refuses what cannot work, and gives every endpoint its scheme.
    pub(super) fn checked(mut self) -> Result<Self, StoreError> {
        if self.endpoints.is_empty() {
            return Err(invalid("no endpoint is given"));
        }
        if self.request_timeout.is_zero() {
            return Err(invalid("the request time-out is zero"));
        }
        if self.user.is_some() != self.password.is_some() {
            return Err(invalid("user and password go together; one is missing"));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(invalid("certificate and key file go together; one is missing"));
        }
        let tls = self.ca_file.is_some();
        if !tls && (self.cert_file.is_some() || self.server_name.is_some()) {
            return Err(invalid("a client certificate or server name is given without a CA file"));
        }
        for endpoint in &mut self.endpoints {
            *endpoint = match endpoint.split_once("://") {
                Some(("https", _)) if tls => continue,
                Some(("http", _)) if !tls => continue,
                Some(("https", _)) => return Err(invalid(format!("endpoint {endpoint} needs a CA file"))),
                Some(("http", _)) => {
                    return Err(invalid(format!("endpoint {endpoint} is not https, but a CA file is given")));
                }
                Some((scheme, _)) => {
                    return Err(invalid(format!(
                        "endpoint {endpoint}: scheme {scheme} is not http or https"
                    )));
                }
                None if tls => format!("https://{endpoint}"),
                None => format!("http://{endpoint}"),
            };
        }
        Ok(self)
    }

    /// Reads the files. Without `user`, so that settings can be checked before anybody is contacted.
    pub(super) async fn options(&self) -> Result<ConnectOptions, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout())
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            // etcd closes connections that are pinged without an open request.
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(ca_file) = &self.ca_file {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca_file).await?));
            if let (Some(cert_file), Some(key_file)) = (&self.cert_file, &self.key_file) {
                tls = tls.identity(Identity::from_pem(read(cert_file).await?, read(key_file).await?));
            }
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }

    /// So that a request which meets one dead endpoint still has time for the next.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.request_timeout / 3
    }
}

fn invalid(reason: impl Into<String>) -> StoreError {
    StoreError::InvalidConfig { reason: reason.into() }
}

async fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    tokio::fs::read(path).await.map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::UnreadableFile { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str, tls: bool) -> EtcdConfig {
        let ca_file = tls.then(|| PathBuf::from("/ca.pem"));
        EtcdConfig { endpoints: vec![endpoint.into()], ca_file, ..EtcdConfig::default() }
    }

    #[test]
    fn an_endpoint_gets_the_scheme_that_fits() {
        let endpoint = |config: EtcdConfig| config.checked().unwrap().endpoints.remove(0);
        assert_eq!(endpoint(config("a:2379", false)), "http://a:2379");
        assert_eq!(endpoint(config("a:2379", true)), "https://a:2379");
        assert_eq!(endpoint(config("https://a:2379", true)), "https://a:2379");
    }

    #[test]
    fn what_cannot_work_is_named() {
        let reason = |config: EtcdConfig| config.checked().unwrap_err().to_string();
        assert!(reason(config("https://a:1", false)).contains("https://a:1 needs a CA file"));
        assert!(reason(config("http://a:1", true)).contains("is not https"));
        assert!(reason(config("ftp://a:1", false)).contains("scheme ftp"));
        assert!(reason(EtcdConfig { endpoints: vec![], ..config("", false) }).contains("no endpoint"));
        assert!(
            reason(EtcdConfig { user: Some("u".into()), ..config("a:1", false) }).contains("go together")
        );
        assert!(
            reason(EtcdConfig { key_file: Some("k".into()), ..config("a:1", true) }).contains("go together")
        );
    }

    #[test]
    fn a_password_is_never_printed() {
        let config = EtcdConfig { password: Some("hunter2".into()), ..config("a:1", false) };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
