// SPDX-License-Identifier: Apache-2.0
//! Whom to believe over TLS.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// What a name server over TLS calls itself (RFC 7858 section 3.2, RFC 8310's strict profile), and who vouches for it.
#[derive(Clone)]
pub struct UpstreamTls {
    pub(crate) name: ServerName<'static>,
    pub(crate) config: Arc<ClientConfig>,
}

/// Certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text has nothing of the kind.
    #[error("no {0} found in the PEM text")]
    Missing(&'static str),
    /// Not a host name nor an address.
    #[error("{0:?} is not a server's name")]
    Name(String),
    /// rustls refuses them, in its words.
    #[error("{0}")]
    Refused(#[from] rustls::Error),
}

impl UpstreamTls {
    /// `name`: what the server's certificate must be for; `roots_pem`: certificates of those who may vouch for it, such as
    /// /etc/ssl/certs/ca-certificates.crt.
    ///
    /// # Errors
    /// The name or all certificates are unusable; single ones that are broken are skipped.
    pub fn new(name: &str, roots_pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(roots_pem).flatten());
        if roots.is_empty() {
            return Err(TlsError::Missing("certificate"));
        }
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(UpstreamTls { name, config: Arc::new(config) })
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamTls({:?})", self.name)
    }
}

/// What our own server over TLS shows its clients: a chain of certificates, the server's first, and its key.
///
/// # Errors
/// Something is missing, or certificate and key do not belong together.
pub fn server_tls(chain_pem: &[u8], key_pem: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem).flatten().collect();
    if chain.is_empty() {
        return Err(TlsError::Missing("certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| TlsError::Missing("private key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // RFC 7858 has registered it; clients that send none are served as well.
    config.alpn_protocols = vec![b"dot".to_vec()];
    Ok(Arc::new(config))
}
