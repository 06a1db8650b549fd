// SPDX-License-Identifier: Apache-2.0
//! The zone: everything that DNS says at one revision.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::collect::Collect;
use crate::custom::Own;
use crate::entry::Entry;
use crate::ordered::Ordered;
use crate::resolve::Ask;
use crate::rules::Rules;
use crate::settings::Fixed;
use crate::tree::{Tree, hash};
use crate::{
    Client, Folded, Name, Outcome, RecordType, ZoneEdit, ZoneError, ZoneProblem, ZoneService, ZoneSettings,
};

/// Version of the specification, as `dns-version` answers it.
pub const DNS_SCHEMA_VERSION: &str = "1.1.0";

/// Everything that DNS says at one revision. Never changes; a copy costs nothing, and [`Zone::edit`] makes the next one, which
/// shares all that is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    pub(crate) fixed: Arc<Fixed>,
    pub(crate) revision: u64,
    pub(crate) services: Tree<Arc<Entry>>,
    pub(crate) aliases: Tree<Alias>,
    pub(crate) pointers: Tree<Pointer>,
    pub(crate) namespaces: Tree<Namespace>,
    pub(crate) clients: Tree<(IpAddr, Arc<Client>)>,
    /// Records of one's own, by name.
    pub(crate) own: Ordered<Arc<Vec<Own>>>,
    /// The keys in `own` of each source of such records.
    pub(crate) sources: Ordered<Arc<BTreeSet<Box<[u8]>>>>,
    pub(crate) rules: Arc<Rules>,
    /// Sorted, each once.
    pub(crate) servers: Arc<[IpAddr]>,
    /// By service, as `namespace/name`.
    pub(crate) problems: Ordered<Arc<[String]>>,
    /// Aliases that more than one service claims, in wire form.
    pub(crate) contested: Ordered<()>,
}

/// A further name of services: of the first one that the client may see ([`Alias::rank`]).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Alias {
    pub(crate) name: Name,
    /// By rank.
    pub(crate) owners: Arc<[Arc<Name>]>,
}

/// Whom an address belongs to, for PTR.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pointer {
    pub(crate) ip: IpAddr,
    pub(crate) owners: Owners,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Owners {
    /// Sorted.
    Many(Arc<[Arc<Name>]>),
    One(Arc<Name>),
}

/// What makes a namespace exist.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Namespace {
    /// A label in lower case.
    pub(crate) name: Arc<[u8]>,
    pub(crate) services: u32,
    pub(crate) pods: u32,
}

impl Alias {
    /// Who comes first: services of the alias' own namespace, then by namespace and name. So a name of one's own namespace is
    /// taken away by nobody from another one.
    pub(crate) fn rank(alias: &Name, owner: &Name) -> impl Ord + use<> {
        let label = |name: &Name, at: usize| name.labels().nth(at).map(<[u8]>::to_ascii_lowercase);
        let namespace = label(owner, 1);
        (label(alias, 1) != namespace, namespace, label(owner, 0))
    }
}

impl Owners {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Name>> {
        match self {
            Self::Many(names) => names.iter(),
            Self::One(name) => std::slice::from_ref(name).iter(),
        }
    }
}

impl Zone {
    /// A zone without services, at revision 0.
    ///
    /// # Errors
    /// The origin is not a domain name, or so long that no service name fits in front.
    pub fn new(settings: ZoneSettings) -> Result<Self, ZoneError> {
        Ok(Self {
            fixed: Arc::new(Fixed::new(settings)?),
            revision: 0,
            services: Tree::default(),
            aliases: Tree::default(),
            pointers: Tree::default(),
            namespaces: Tree::default(),
            clients: Tree::default(),
            own: Ordered::default(),
            sources: Ordered::default(),
            rules: Arc::default(),
            servers: Arc::default(),
            problems: Ordered::default(),
            contested: Ordered::default(),
        })
    }

    /// A zone with services in any order and nothing else. Of two with one name the first one counts.
    ///
    /// # Errors
    /// As [`Zone::new`].
    pub fn build(
        origin: &str,
        ttl_secs: u32,
        revision: u64,
        services: impl IntoIterator<Item = ZoneService>,
        reverse_cidrs: &[IpNet],
    ) -> Result<Self, ZoneError> {
        let settings =
            ZoneSettings { ttl_secs, reverse_cidrs: reverse_cidrs.to_vec(), ..ZoneSettings::new(origin) };
        let mut edit = Self::new(settings)?.edit();
        services.into_iter().for_each(|service| edit.add_service(&service));
        Ok(edit.finish(revision))
    }

    /// Begins the next zone.
    #[must_use]
    pub fn edit(&self) -> ZoneEdit {
        ZoneEdit::new(self.clone())
    }

    /// The name that all others lie below.
    #[must_use]
    pub fn origin(&self) -> &Name {
        &self.fixed.origin
    }

    /// What it was made with.
    #[must_use]
    pub fn settings(&self) -> &ZoneSettings {
        &self.fixed.settings
    }

    /// Of the table that this was built from.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Names that could not be made, and aliases that are others', sorted.
    #[must_use]
    pub fn problems(&self) -> Vec<ZoneProblem> {
        let made = self.problems.iter().flat_map(|(service, reasons)| {
            let service = String::from_utf8_lossy(service);
            let problem =
                move |reason: &String| ZoneProblem { service: service.to_string(), reason: reason.clone() };
            reasons.iter().map(problem)
        });
        let contested = self.contested.iter().flat_map(|(alias, ())| self.lost(alias));
        let mut problems: Vec<ZoneProblem> = made.chain(contested).collect();
        problems.sort();
        problems
    }

    /// The services that an alias leads to for nobody. One of several that the alias leads to for different clients is none.
    fn lost(&self, wire: &[u8]) -> Vec<ZoneProblem> {
        let service = self.service(wire);
        let alias = self.aliases.find(hash(wire), |alias| alias.name.as_wire() == wire);
        let Some(alias) = alias else { return Vec::new() };
        let owners: Vec<&Arc<Entry>> =
            alias.owners.iter().filter_map(|owner| self.service(owner.as_wire())).collect();
        let show = |name: &Name| match name.labels().collect::<Vec<_>>()[..] {
            [name, namespace, ..] => {
                format!("{}/{}", String::from_utf8_lossy(namespace), String::from_utf8_lossy(name))
            }
            _ => name.to_string(),
        };
        let lost = |(at, owner): (usize, &&Arc<Entry>)| {
            let is_before = |other: &&&Arc<Entry>| other.views.is_none() || other.views == owner.views;
            let winner = service.or_else(|| owners[..at].iter().find(is_before).copied())?;
            let reason = format!("alias {}: Service {} has that name", alias.name, show(&winner.name));
            Some(ZoneProblem { service: show(&owner.name), reason })
        };
        owners.iter().enumerate().filter_map(lost).collect()
    }

    /// How many services it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether it knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pod that has an address.
    #[must_use]
    pub fn client(&self, address: IpAddr) -> Option<&Client> {
        let address = address.to_canonical();
        self.clients.find(ip_hash(address), |(ip, _)| *ip == address).map(|(_, client)| &**client)
    }

    /// Answers a question of class IN that nobody known asks.
    #[must_use]
    pub fn answer(&self, question: &Name, record_type: RecordType, seed: u64) -> Outcome {
        self.ask(question, record_type, None, seed)
    }

    /// Answers a question of class IN, as [`Zone::respond`] does on the wire. `seed` decides the order of the records: take
    /// another one each time.
    ///
    /// [`RecordType::ANY`] gets the records of one type (RFC 8482). The owner of the records is `question` in the case it was
    /// asked in.
    #[must_use]
    pub fn ask(
        &self,
        question: &Name,
        record_type: RecordType,
        client: Option<IpAddr>,
        seed: u64,
    ) -> Outcome {
        let mut collect = Collect::new(question);
        let ask = Ask { record_type, client: client.and_then(|client| self.client(client)), seed };
        let folded = Folded::from(question);
        let verdict = self.resolve(&ask, &folded, &mut collect);
        collect.outcome(verdict, |prefix| self.forward(&ask, question, &folded, verdict, prefix))
    }

    pub(crate) fn service(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        self.services.find(hash(name), |entry| entry.name.as_wire() == name)
    }
}

/// The key of an address in a tree.
pub(crate) fn ip_hash(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(v4) => hash(&v4.octets()),
        IpAddr::V6(v6) => hash(&v6.octets()),
    }
}
