// SPDX-License-Identifier: Apache-2.0
//! Services and their claims are written together, so they agree, unless somebody writes past netd: a service without what its
//! kind is given, one that holds what it never claimed, a claim that no service has. One node mends that, by transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lb::{Service, ServiceName};
use netd_store::claim::{ServiceClaimError, ServiceClaims, claim_service_among, is_complete, node_ports_of};
use netd_store::records::decode;
use netd_store::{MirrorState, Transaction};

use crate::node::Node;
use crate::view::View;

/// What somebody wrote by hand is mended within this.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Of thousands of services that something else wrote, so many at a time.
const MENDED_MAX: usize = 200;

/// Something that does not agree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Drift {
    /// A claim of an address that its service does not have.
    Address(IpAddr, ServiceName),
    /// A claim of a node port that its service does not have.
    Port(u16, ServiceName),
    /// A service that lacks something, or holds it without a claim.
    Unclaimed(ServiceName),
}

impl Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip, name) => {
                write!(f, "ClusterIP {ip} is claimed for Service {name}, which does not have it")
            }
            Self::Port(port, name) => {
                write!(f, "node port {port} is claimed for Service {name}, which does not have it")
            }
            Self::Unclaimed(name) => {
                write!(f, "Service {name} lacks an address or a port, or holds one without a claim")
            }
        }
    }
}

/// Mends; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let mut told = BTreeSet::new();
    let mut last = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let view = node.view.load_full();
        let connected = node.mirror.borrow().connected;
        if !view.in_sync || !view.configured || !connected || !is_first(&node, &view) {
            continue;
        }
        let found = tokio::task::block_in_place(|| drift(&Claims::of(&view)));
        told.retain(|known| found.contains(known));
        let mut claims = None;
        for drift in turn(&found, last.as_ref()) {
            let outcome = mend(&node, &view, &mut claims, &drift).await;
            last = Some(drift.clone());
            let is_news = told.insert(drift.clone());
            match outcome {
                Ok(true) => tracing::warn!("{drift}: mended"),
                // It has changed meanwhile.
                Ok(false) => {}
                Err(error) if is_news => tracing::warn!("{drift}; it cannot be mended: {error:#}"),
                Err(_) => {}
            }
        }
    }
}

/// What is tried in this round: it begins behind the last one of the round before, so that what cannot be mended keeps nothing
/// else from it.
fn turn(found: &BTreeSet<Drift>, last: Option<&Drift>) -> Vec<Drift> {
    let (earlier, later): (Vec<&Drift>, Vec<&Drift>) =
        found.iter().partition(|drift| last.is_some_and(|last| *drift <= last));
    later.into_iter().chain(earlier).take(MENDED_MAX).cloned().collect()
}

/// One node is enough: of those that are alive the one with the lowest identity.
fn is_first(node: &Node, view: &View) -> bool {
    let mut alive = view.alive.iter().filter(|uuid| !view.tombstones.contains_key(*uuid));
    alive.next().is_none_or(|first| *first == node.uuid)
}

/// `claims` are read when they are needed first, once for a round.
async fn mend(node: &Node, view: &View, claims: &mut Option<ServiceClaims>, drift: &Drift) -> Result<bool> {
    let (store, keys) = (node.store.as_ref(), &node.keys);
    let claim = match drift {
        Drift::Address(ip, _) => keys.service_ip(*ip),
        Drift::Port(port, _) => keys.node_port(*port),
        Drift::Unclaimed(name) => {
            let key = keys.service(&name.namespace, &name.name);
            let Some(item) = store.get(&key).await? else { return Ok(false) };
            let service: Service = decode(&item.key, &item.value)?;
            let before = Some((&service, item.mod_revision));
            let ranges = view.config.service_ranges();
            let claims = match claims {
                Some(claims) => claims,
                None => claims.insert(ServiceClaims::read(store, keys).await?),
            };
            return match claim_service_among(store, keys, &ranges, claims, service.clone(), before).await {
                Ok(_) => Ok(true),
                Err(ServiceClaimError::ServiceChanged { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
    };
    let (Drift::Address(_, name) | Drift::Port(_, name) | Drift::Unclaimed(name)) = drift;
    let service = keys.service(&name.namespace, &name.name);
    let seen = {
        let state = node.mirror.borrow();
        (seen(&state, view, &claim), seen(&state, view, &service))
    };
    // With the service as it was: it may be getting the address back right now.
    let (Some(claimed @ 1..), Some(of)) = seen else { return Ok(false) };
    let delete = Transaction::new().unchanged(&claim, claimed).unchanged(&service, of).delete(&claim);
    Ok(store.transact(delete).await?.succeeded)
}

/// The revision of a key as `view` saw it, 0 where it is not there; `None` where it has changed since.
fn seen(state: &MirrorState, view: &View, key: &str) -> Option<u64> {
    if state.listings != view.listings {
        // A store that was restored counts anew.
        return None;
    }
    let revision = state.items.get(key).map_or(0, |item| item.mod_revision);
    (revision <= view.revision).then_some(revision)
}

/// What services hold, and what is claimed for them.
#[derive(Debug, Default)]
struct Claims {
    addresses: BTreeMap<IpAddr, ServiceName>,
    ports: BTreeMap<u16, ServiceName>,
    services: BTreeMap<ServiceName, Held>,
    /// Services whose value does not read or is refused: what they hold is not known, so it may be all that is claimed for them.
    unread: BTreeSet<ServiceName>,
}

#[derive(Debug, Default)]
struct Held {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
    complete: bool,
}

impl Claims {
    /// All of one revision.
    fn of(view: &View) -> Self {
        let held = |service: &Arc<Service>| {
            let has_addresses = !service.is_headless() && !service.is_external_name();
            let held = Held {
                addresses: service.cluster_ips().into_iter().filter(|_| has_addresses).collect(),
                ports: node_ports_of(service),
                complete: is_complete(service),
            };
            (ServiceName::of(service), held)
        };
        Self {
            addresses: view
                .service_ips
                .iter()
                .map(|(ip, claim)| (*ip, ServiceName::new(&claim.namespace, &claim.name)))
                .collect(),
            ports: view
                .node_ports
                .iter()
                .map(|(port, claim)| (*port, ServiceName::new(&claim.namespace, &claim.name)))
                .collect(),
            services: view.services.values().map(held).collect(),
            unread: view.doubted.clone(),
        }
    }
}

fn drift(claims: &Claims) -> BTreeSet<Drift> {
    let lacks = |name: &ServiceName, has: &dyn Fn(&Held) -> bool| {
        !claims.unread.contains(name) && !claims.services.get(name).is_some_and(has)
    };
    let addresses =
        claims.addresses.iter().filter(|(ip, name)| lacks(name, &|held| held.addresses.contains(ip)));
    let ports = claims.ports.iter().filter(|(port, name)| lacks(name, &|held| held.ports.contains(port)));
    let unclaimed = claims.services.iter().filter(|(name, held)| {
        let address = |ip: &IpAddr| claims.addresses.get(ip) == Some(*name);
        let port = |port: &u16| claims.ports.get(port) == Some(*name);
        let agrees = held.complete && held.addresses.iter().all(address) && held.ports.iter().all(port);
        !agrees && !claims.unread.contains(*name)
    });
    addresses
        .map(|(ip, name)| Drift::Address(*ip, name.clone()))
        .chain(ports.map(|(port, name)| Drift::Port(*port, name.clone())))
        .chain(unclaimed.map(|(name, _)| Drift::Unclaimed(name.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use netd_store::KeyValue;
    use netd_store::records::ServiceIpRecord;

    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName::new("default", name)
    }

    #[test]
    fn what_cannot_be_mended_keeps_nothing_else_from_it() {
        let of = |at: usize| Drift::Unclaimed(name(&format!("s{at:04}")));
        let found: BTreeSet<Drift> = (0..2 * MENDED_MAX + 1).map(of).collect();
        let mut last = None;
        let mut tried = BTreeSet::new();
        for _ in 0..3 {
            let now = turn(&found, last.as_ref());
            assert_eq!(now.len(), MENDED_MAX);
            last = now.last().cloned();
            tried.extend(now);
        }
        assert_eq!(tried, found);
        assert_eq!(turn(&[of(1)].into(), Some(&of(1))), [of(1)]);
    }

    #[test]
    fn what_does_not_agree_is_found() {
        let ip = |last: u8| IpAddr::from([10, 96, 0, last]);
        let held = |ip: IpAddr, ports: &[u16]| Held {
            addresses: [ip].into(),
            ports: ports.iter().copied().collect(),
            complete: true,
        };
        let mut claims = Claims {
            addresses: [(ip(1), name("web"))].into(),
            ports: [(30_001, name("web"))].into(),
            services: [(name("web"), held(ip(1), &[30_001]))].into(),
            ..Claims::default()
        };
        assert_eq!(drift(&claims), [].into());
        claims.addresses.insert(ip(2), name("gone"));
        claims.ports.insert(30_002, name("web"));
        claims.services.insert(name("api"), held(ip(3), &[]));
        claims.services.insert(name("new"), Held::default());
        assert_eq!(
            drift(&claims),
            [
                Drift::Address(ip(2), name("gone")),
                Drift::Port(30_002, name("web")),
                Drift::Unclaimed(name("api")),
                Drift::Unclaimed(name("new")),
            ]
            .into()
        );
        // Another's claim is none of its own.
        claims.services.insert(name("api"), held(ip(1), &[]));
        assert!(drift(&claims).contains(&Drift::Unclaimed(name("api"))));
    }

    #[test]
    fn what_is_claimed_for_a_service_that_does_not_read_stays() {
        let ip = IpAddr::from([10, 96, 0, 1]);
        let record = ServiceIpRecord {
            schema: 1,
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            extra: Default::default(),
        };
        let mut view =
            View { service_ips: [(ip, Arc::new(record))].into_iter().collect(), ..View::default() };
        assert_eq!(drift(&Claims::of(&view)), [Drift::Address(ip, name("web"))].into());
        view.doubted.insert(name("api"));
        assert_eq!(drift(&Claims::of(&view)).len(), 1, "another's value says nothing of it");
        view.doubted.insert(name("web"));
        assert_eq!(drift(&Claims::of(&view)), [].into());
        // The last good value is in force, without what is claimed: nothing of it is mended before its new value is good.
        let mut service = Service::default();
        service.metadata.namespace = "default".to_owned();
        service.metadata.name = "web".to_owned();
        view.services = [("web".to_owned(), Arc::new(service))].into_iter().collect();
        assert_eq!(drift(&Claims::of(&view)), [].into());
        view.doubted.clear();
        assert_eq!(drift(&Claims::of(&view)).len(), 2);
    }

    #[test]
    fn what_has_changed_since_is_not_touched() {
        let view = View { revision: 7, listings: 1, ..View::default() };
        let mut state = MirrorState { listings: 1, ..MirrorState::default() };
        for (key, revision) in [("old", 7), ("new", 8)] {
            let (item, value) = (key.to_owned(), bytes::Bytes::new());
            let item = KeyValue { key: item, value, create_revision: 1, mod_revision: revision };
            state.mirror.items.insert(key.to_owned(), Arc::new(item));
        }
        let all = |state: &MirrorState| ["old", "new", "none"].map(|key| seen(state, &view, key));
        assert_eq!(all(&state), [Some(7), None, Some(0)]);
        state.listings = 2;
        assert_eq!(all(&state), [None; 3]);
    }
}
