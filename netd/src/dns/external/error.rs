// SPDX-License-Identifier: Apache-2.0
//! Why a server did not do what we asked of it, and what helps.

use std::io;

use thiserror::Error;

/// The server did not answer, or not with a yes. Texts say what to do; `reason` is what metrics say.
#[derive(Debug, Error)]
pub(super) enum ServerError {
    #[error(
        "{server} is not found: {source}; dns.external `server` is looked up as this host looks up names"
    )]
    Lookup { server: String, source: io::Error },
    #[error(
        "{server} cannot be connected to over TCP: {source}; is a DNS server there, and does every firewall on the way let TCP through?"
    )]
    Connect { server: String, source: io::Error },
    #[error("{server} did not answer {what} in {seconds} s")]
    Silent { server: String, what: String, seconds: u64 },
    #[error("{server} broke the connection off at {what}: {source}")]
    Broken { server: String, what: String, source: io::Error },
    #[error(
        "{server} does not know key {key} with {algorithm} (BADKEY): dns.external `key` and `algorithm` must be what the server's \
         configuration has"
    )]
    BadKey { server: String, key: String, algorithm: String },
    #[error(
        "{server} says that the signature is wrong (BADSIG): the secret of key {key} in dns.external `secret-file` is another one \
         than the server's"
    )]
    BadSig { server: String, key: String },
    #[error(
        "the clock of {server} and this node's differ by {seconds} s, and {limit} are allowed (BADTIME): set the one that is wrong"
    )]
    BadTime { server: String, seconds: u64, limit: u16 },
    #[error("{server} refused the signature of key {key}: TSIG error {code}")]
    BadTsig { server: String, key: String, code: u16 },
    #[error(
        "the answer of {server} is not signed by key {key}: {why}; somebody between may have made it up, or the server has another \
         secret"
    )]
    Unsigned { server: String, key: String, why: String },
    #[error(
        "{server} refused {what} (REFUSED): let key {key} do so; BIND: in zone \"{zone}\", `update-policy {{ grant {key} zonesub A AAAA CNAME \
         TXT; }};`"
    )]
    Refused { server: String, what: String, key: String, zone: String },
    #[error(
        "{server} is not the primary of zone {zone} (NOTAUTH): dns.external `zone` must be the name that has the zone's SOA, `server` its \
         primary"
    )]
    NotAuth { server: String, zone: String },
    #[error(
        "{server} refused {what} (REFUSED): is it a server of zone {zone}, and may this node ask there (BIND: `allow-query`)?"
    )]
    NotTold { server: String, what: String, zone: String },
    #[error(
        "{server} does not answer {what} itself: the name is in a part of zone {zone} that is delegated to other servers, and cannot \
         be published here"
    )]
    Elsewhere { server: String, what: String, zone: String },
    #[error("{server} says that {what} is not one of zone {zone} (NOTZONE): is a part of it delegated?")]
    NotZone { server: String, what: String, zone: String },
    #[error(
        "{server} does not take updates (NOTIMP): RFC 2136 is needed, as BIND, Knot DNS, PowerDNS and Windows have it"
    )]
    NotImp { server: String },
    #[error(
        "{server} failed at {what} (SERVFAIL): its log says why; often it may not write the zone's journal, or the zone is not loaded"
    )]
    ServFail { server: String, what: String },
    #[error("{server} answered {what} with {rcode}")]
    Other { server: String, what: String, rcode: String },
    #[error("{server} answered {what} with what is no answer to it: {why}")]
    Garbled { server: String, what: String, why: String },
}

impl ServerError {
    /// Others may go through.
    pub(super) fn concerns_one_name(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NotZone { .. } | Self::Other { .. })
    }

    /// One name's where others go through, and the server's own where none does.
    pub(super) fn may_concern_all(&self) -> bool {
        matches!(self, Self::NotTold { .. } | Self::ServFail { .. })
    }

    /// The same of a name that must be the zone's own.
    pub(super) fn of_the_zone(self) -> Self {
        match self {
            Self::Elsewhere { server, zone, .. } => Self::NotAuth { server, zone },
            other => other,
        }
    }

    /// For metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "lookup",
            Self::Connect { .. } => "connect",
            Self::Silent { .. } => "timeout",
            Self::Broken { .. } => "broken",
            Self::BadKey { .. } => "badkey",
            Self::BadSig { .. } => "badsig",
            Self::BadTime { .. } => "badtime",
            Self::BadTsig { .. } => "badtsig",
            Self::Unsigned { .. } => "unsigned",
            Self::NotTold { .. } | Self::Refused { .. } => "refused",
            Self::NotAuth { .. } => "notauth",
            Self::Elsewhere { .. } => "elsewhere",
            Self::NotZone { .. } => "notzone",
            Self::NotImp { .. } => "notimp",
            Self::ServFail { .. } => "servfail",
            Self::Other { .. } => "other",
            Self::Garbled { .. } => "garbled",
        }
    }
}
