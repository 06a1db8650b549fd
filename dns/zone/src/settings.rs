// SPDX-License-Identifier: Apache-2.0
//! What is fixed for the life of a zone.

use ipnet::IpNet;
use thiserror::Error;

use crate::folded::Apex;
use crate::{Name, NameError};

/// TTL where nobody says another, in seconds: what CoreDNS takes, and short beside the life of a backend.
pub const TTL_SECS_DEFAULT: u32 = 5;
/// The longest that makes sense for names that change.
pub const TTL_SECS_MAX: u32 = 3_600;

/// How a zone answers, apart from what it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSettings {
    /// The name that services lie below: `cluster.local`.
    pub origin: String,
    /// For all records that have none of their own; at most [`TTL_SECS_MAX`] is used. Negative answers are never kept (0).
    pub ttl_secs: u32,
    /// Networks whose reverse names are answered here and nowhere else.
    pub reverse_cidrs: Vec<IpNet>,
    /// Names of pods, made of their addresses.
    pub pod_names: PodNames,
    /// Answer the first question of a search path with what one of the later ones would find: our own domains, then the name as it
    /// is, as pods have it.
    pub autopath: bool,
    /// Further zones that are ours alone, for records of one's own (SkyDNS').
    pub zones: Vec<Name>,
    /// The zone of several clusters (MCS-API): reserved, so it is answered here and never asked outside.
    pub clusterset: Option<Name>,
}

/// `10-244-0-7.NAMESPACE.pod.ORIGIN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// No such names.
    #[default]
    Disabled,
    /// Any address in any namespace that exists: what is said about the namespace is not checked.
    Insecure,
    /// Pods of that namespace that have the address.
    Verified,
}

/// The zone cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("zone {origin:?} is not a usable domain: {reason}; use a name such as cluster.local")]
pub struct ZoneError {
    origin: String,
    reason: String,
}

impl ZoneSettings {
    /// A zone with services and nothing else.
    pub fn new(origin: impl Into<String>) -> Self {
        Self {
            origin: origin.into(),
            ttl_secs: TTL_SECS_DEFAULT,
            reverse_cidrs: Vec::new(),
            pod_names: PodNames::default(),
            autopath: false,
            zones: Vec::new(),
            clusterset: None,
        }
    }
}

/// The settings with all names made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) settings: ZoneSettings,
    pub(crate) origin: Name,
    pub(crate) apex: Apex,
    /// `svc.ORIGIN`
    pub(crate) services: Name,
    pub(crate) services_apex: Apex,
    /// `ns.dns.ORIGIN`
    pub(crate) server: Name,
    pub(crate) hostmaster: Name,
    /// Of further zones.
    pub(crate) zones: Vec<Apex>,
    pub(crate) ttl_secs: u32,
}

impl Fixed {
    pub(crate) fn new(settings: ZoneSettings) -> Result<Self, ZoneError> {
        let error = |reason: String| ZoneError { origin: settings.origin.clone(), reason };
        let origin = Name::parse(&settings.origin).map_err(|e| error(e.to_string()))?;
        if origin == Name::root() {
            return Err(error("it is the root".to_owned()));
        }
        let origin = origin.to_lower();
        let child = |label: &str| -> Result<Name, NameError> { origin.child(label) };
        let names = child("dns-version")
            .and_then(|_| Ok((child("svc")?, child("dns")?.child("ns")?, child("hostmaster")?)));
        let (services, server, hostmaster) = names.map_err(|e| error(e.to_string()))?;
        let further = settings.zones.iter().chain(&settings.clusterset);
        Ok(Self {
            apex: Apex::new(&origin),
            services_apex: Apex::new(&services),
            services,
            server,
            hostmaster,
            zones: further.map(Apex::new).filter(|zone| zone.labels > 0).collect(),
            ttl_secs: settings.ttl_secs.min(TTL_SECS_MAX),
            origin,
            settings,
        })
    }
}
