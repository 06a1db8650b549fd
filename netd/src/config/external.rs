// SPDX-License-Identifier: Apache-2.0
//! `[dns.external]`: a zone of others that names of services are published in.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dns_zone::Name;
use dns_zone::external::{Domain, DomainError};
use serde::Deserialize;
use uuid::Uuid;

use super::{ConfigError, bad};

/// The port of DNS.
const PORT: u16 = 53;
/// A minute: what resolvers keep of a node that is gone.
const TTL_SECS: u32 = 60;
/// A day.
const TTL_SECS_MAX: u32 = 86_400;
/// RFC 8945, 8: no shorter than the hash; half of SHA-256's is what people still use.
const SECRET_BYTES_MIN: usize = 16;

/// `[dns]` of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DnsTable {
    external: Option<ExternalTable>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ExternalTable {
    server: String,
    zone: String,
    domain: Option<String>,
    key: String,
    #[serde(default)]
    algorithm: Algorithm,
    secret_file: PathBuf,
    ttl_secs: Option<u32>,
    owner: Option<String>,
}

/// What a key signs with: those that are not broken and that servers have.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Algorithm {
    #[default]
    HmacSha256,
    HmacSha384,
    HmacSha512,
}

/// Where names of services are published, and by what right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ExternalOptions {
    /// Name or address of the zone's primary server, and its port.
    pub server: (String, u16),
    /// Owned by the cluster's name alone unless [`Self::owner_given`].
    pub domain: Domain,
    pub owner_given: bool,
    pub key: TsigKey,
}

/// A key of TSIG (RFC 8945).
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct TsigKey {
    pub name: Name,
    pub algorithm: Algorithm,
    pub secret: Vec<u8>,
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secret.
        write!(f, "TsigKey({} {})", self.name, self.algorithm)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        })
    }
}

/// Checks what the file says; the cluster of this name owns what is published unless it says otherwise.
pub(super) fn check(table: Option<DnsTable>, cluster: &str) -> Result<Option<ExternalOptions>, ConfigError> {
    let Some(table) = table.and_then(|table| table.external) else { return Ok(None) };
    let name = |option, text: &str| match Name::parse(text) {
        Ok(name) if name != Name::root() => Ok(name),
        Ok(_) => Err(bad(option, "the root is nobody's to publish in".to_owned())),
        Err(error) => Err(bad(option, error.to_string())),
    };
    let zone = name("dns.external.zone", &table.zone)?;
    let within = match &table.domain {
        Some(domain) => name("dns.external.domain", domain)?,
        None => zone.clone(),
    };
    let ttl_secs = table.ttl_secs.unwrap_or(TTL_SECS);
    if ttl_secs == 0 || ttl_secs > TTL_SECS_MAX {
        return Err(bad("dns.external.ttl-secs", format!("{ttl_secs}: 1 to {TTL_SECS_MAX} is needed")));
    }
    let owner = table.owner.as_deref().unwrap_or(cluster);
    let refused = |error: DomainError| match &error {
        DomainError::Owner(_) => bad("dns.external.owner", error.to_string()),
        _ => bad("dns.external.domain", error.to_string()),
    };
    let domain = Domain::new(zone, within, owner, ttl_secs).map_err(refused)?;
    if table.owner.is_none() {
        domain.owned_by(&owner_of(cluster, Uuid::nil())).map_err(refused)?;
    }
    let key = TsigKey {
        name: name("dns.external.key", &table.key)?.to_lower(),
        algorithm: table.algorithm,
        secret: secret(&table.secret_file)?,
    };
    let owner_given = table.owner.is_some();
    Ok(Some(ExternalOptions { server: server(&table.server)?, domain, owner_given, key }))
}

/// Who owns what this cluster publishes, where nobody says otherwise: two clusters of one name, as of the default's, must not take
/// each other's names for stale ones of their own.
pub(crate) fn owner_of(cluster: &str, id: Uuid) -> String {
    format!("{cluster}.{:08x}", id.as_fields().0)
}

/// `HOST`, `HOST:PORT`, an address, `[IPv6]:PORT`.
fn server(text: &str) -> Result<(String, u16), ConfigError> {
    let refused = || {
        bad("dns.external.server", format!("{text:?}: a name or an address is needed, with or without :PORT"))
    };
    let is_v6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !is_v6 => (host, port.parse().map_err(|_| refused())?),
        _ => (text, PORT),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name = |host: &str| Name::parse(host).is_ok_and(|name| name != Name::root());
    let is_host =
        host.parse::<std::net::IpAddr>().is_ok() || (is_name(host) && !host.contains([':', '[', '/', ' ']));
    if is_host && port != 0 { Ok((host.to_owned(), port)) } else { Err(refused()) }
}

/// The secret in a file that nobody but its owner and group may read or write; base64, as key generators print it.
fn secret(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let refused = |reason: String| bad("dns.external.secret-file", format!("{}: {reason}", path.display()));
    let mode = fs::metadata(path).map_err(|error| refused(error.to_string()))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(refused(format!(
            "every user of this host may use it (mode {:o}): `chmod 600` it, and make another key if somebody may have",
            mode & 0o777
        )));
    }
    let text = fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    if text.contains('{') {
        let reason = "this is a key clause of BIND: of it, only what stands between the quotes behind `secret` belongs here";
        return Err(refused(reason.to_owned()));
    }
    // The text itself is in no message: it is the secret.
    let secret = BASE64_STANDARD
        .decode(text.trim())
        .map_err(|_| refused("not base64; `tsig-keygen` makes a secret".into()))?;
    if secret.len() < SECRET_BYTES_MIN {
        return Err(refused(format!("{} bytes are guessed: {SECRET_BYTES_MIN} at least", secret.len())));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 bytes.
    const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn with(
        change: impl Fn(&mut toml::Table),
        secret_text: &str,
        mode: u32,
    ) -> Result<Option<ExternalOptions>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, secret_text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mut external: toml::Table =
            toml::from_str("server = \"192.0.2.53\"\nzone = \"Example.org\"\nkey = \"weft\"").unwrap();
        external.insert("secret-file".into(), path.display().to_string().into());
        change(&mut external);
        let mut table = toml::Table::new();
        table.insert("external".into(), external.into());
        let table: DnsTable = table.try_into().map_err(|error: toml::de::Error| error.to_string())?;
        check(Some(table), "prod").map_err(|error| error.to_string())
    }

    fn said(option: &str, value: impl Into<toml::Value> + Clone) -> Result<ExternalOptions, String> {
        with(|table| drop(table.insert(option.into(), value.clone().into())), SECRET, 0o600)
            .map(Option::unwrap)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let options = with(|_| {}, SECRET, 0o600).unwrap().unwrap();
        assert_eq!(options.server, ("192.0.2.53".to_owned(), 53));
        assert_eq!((options.domain.to_string().as_str(), options.domain.owner()), ("example.org", "prod"));
        assert_eq!((options.domain.ttl_secs(), options.key.algorithm), (60, Algorithm::HmacSha256));
        assert_eq!((options.key.secret.len(), options.key.name.to_string().as_str()), (32, "weft."));
        assert!(!format!("{options:?}").contains("31, "), "the secret is shown: {options:?}");
        assert_eq!(check(None, "prod").unwrap(), None);
        assert!(!options.owner_given && said("owner", "prod-eu").unwrap().owner_given);
        assert_eq!(owner_of("prod", Uuid::from_u128(0x1a2b_3c4d << 96)), "prod.1a2b3c4d");
    }

    #[test]
    fn servers_have_a_name_or_an_address() {
        for (text, host, port) in [
            ("ns1.example.org", "ns1.example.org", 53),
            ("ns1.example.org:5353", "ns1.example.org", 5_353),
            ("192.0.2.53:5353", "192.0.2.53", 5_353),
            ("2001:db8::53", "2001:db8::53", 53),
            ("[2001:db8::53]:5353", "2001:db8::53", 5_353),
        ] {
            assert_eq!(said("server", text).unwrap().server, (host.to_owned(), port), "{text}");
        }
        for text in ["", ":53", "192.0.2.53:", "192.0.2.53:0", "a b", "http://ns1", "ns1:70000"] {
            assert!(said("server", text).unwrap_err().contains("dns.external.server"), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (option, value, words) in [
            ("zone", "a..b", "dns.external.zone"),
            ("zone", ".", "dns.external.zone"),
            ("domain", "example.net", "dns.external.domain: example.net is not at or below example.org"),
            ("owner", "Prod", "dns.external.owner"),
            ("key", "a..b", "dns.external.key"),
            ("algorithm", "hmac-md5", "hmac-sha256"),
            ("secret-file", "/nonexistent/secret", "dns.external.secret-file: /nonexistent/secret"),
            ("sever", "192.0.2.53", "unknown field"),
        ] {
            let error = said(option, value).unwrap_err();
            assert!(error.contains(words), "{option} = {value}: {error}");
        }
        assert!(said("ttl-secs", 0).unwrap_err().contains("dns.external.ttl-secs"));
        assert!(said("ttl-secs", 86_401).unwrap_err().contains("dns.external.ttl-secs"));
        assert!(
            with(|table| drop(table.remove("key")), SECRET, 0o600)
                .unwrap_err()
                .contains("missing field `key`")
        );
    }

    #[test]
    fn a_secret_is_a_secret() {
        let told = |text: &str, mode| with(|_| {}, text, mode).map(drop);
        assert_eq!(told(&format!("{SECRET}\n"), 0o640), Ok(()), "a group that an operator chose");
        assert!(told(SECRET, 0o644).is_err_and(|error| error.contains("chmod 600")));
        let garbage = told("correct horse", 0o600).unwrap_err();
        assert!(garbage.contains("tsig-keygen") && !garbage.contains("horse"), "{garbage}");
        assert!(told("AAEC", 0o600).is_err_and(|error| error.contains("16 at least")));
        assert!(
            told("key \"weft\" { secret \"x\"; };", 0o600).is_err_and(|error| error.contains("key clause"))
        );
    }
}
