// SPDX-License-Identifier: Apache-2.0
//! The DNS zone, kept in step with the view of the cluster by what changes in it, from the same table as the map image.

mod annotations;
mod own;
mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dns_zone::{
    LeftOut, Name, Views, Zone, ZoneEdit, ZoneEndpoint, ZoneError, ZoneKind, ZonePort, ZoneProtocol,
    ZoneService, ZoneSettings,
};
use ipnet::IpNet;
use lb::{ChunkMap, Protocol, Service, ServiceEntry, ServiceName, ServiceTable};
use netd_api::BadValue;
use netd_store::{Keys, Mirror};

use crate::config::ZoneOptions;
use crate::view::View;

pub(crate) use annotations::check as check_annotations;
use annotations::{ALIASES, VIEWS, words};
use own::OwnNames;
use pods::Pods;

/// The zone of several clusters (MCS-API): reserved.
const CLUSTERSET: &str = "clusterset.local";

/// The zone with what it was made from.
#[derive(Debug, Default)]
pub(crate) struct ZoneKeeper {
    zone: Option<Zone>,
    table: ServiceTable,
    objects: ChunkMap<String, Service>,
    /// Of those, such as say something about their names.
    annotated: BTreeMap<ServiceName, Arc<Service>>,
    pods: Pods,
    /// Last good ones, of services that have any.
    views: BTreeMap<ServiceName, Views>,
    /// Why some are not what their services say now.
    wrong_views: BTreeMap<ServiceName, String>,
    options: ZoneOptions,
    own: OwnNames,
    /// Why SkyDNS' records are not answered as they are.
    unread: Option<String>,
}

impl ZoneKeeper {
    pub(crate) fn new(options: &ZoneOptions) -> Self {
        Self { options: options.clone(), own: OwnNames::new(options), ..Self::default() }
    }

    /// Looks at the names that people wrote; `skydns` with its prefix. Returns whether the zone is to be updated for them.
    pub(crate) fn follow(&mut self, keys: &Keys, store: &Mirror, skydns: Option<(&str, &Mirror)>) -> bool {
        self.own.follow(keys, store, skydns)
    }

    /// Why SkyDNS' records are not answered as they are: a problem of names, that keeps this node from nothing else.
    pub(crate) fn tell_unread(&mut self, reason: Option<String>) {
        self.unread = reason;
    }

    /// What is not answered as it was written, by key or object.
    pub(crate) fn problems(&self) -> Vec<BadValue> {
        let of_views = |(name, reason): (&ServiceName, &String)| BadValue {
            key: format!("Service {name}"),
            reason: format!("{VIEWS}: {reason}; its last good value stays"),
        };
        let of_names = |problem: dns_zone::ZoneProblem| BadValue {
            key: format!("Service {}", problem.service),
            reason: problem.reason,
        };
        let unread = self.unread.iter().map(|reason| BadValue {
            key: self.options.skydns_prefix.clone().unwrap_or_default(),
            reason: reason.clone(),
        });
        let names = self.zone.iter().flat_map(Zone::problems).map(of_names);
        unread
            .chain(self.own.problems())
            .chain(self.pods.problems())
            .chain(self.wrong_views.iter().map(of_views))
            .chain(names)
            .collect()
    }

    /// The zone of this view; what did not change since the last one is shared with it.
    ///
    /// # Errors
    /// The cluster's zone name is not a domain name.
    pub(crate) fn update(&mut self, view: &View, nameservers: &[IpAddr]) -> Result<Arc<Zone>, ZoneError> {
        let settings = self.settings(view);
        let (last, is_new) = match self.zone.take() {
            Some(zone) if *zone.settings() == settings => (zone, false),
            _ => {
                (self.table, self.pods) = Default::default();
                (Zone::new(settings)?, true)
            }
        };
        let mut edit = last.edit();
        self.own.apply(&mut edit, is_new, last.origin());
        let touched = self.update_services(view, &mut edit);
        self.pods.update(&view.pods, &view.table, touched, &mut edit);
        let servers: Vec<IpAddr> = nameservers.iter().copied().chain(view.config.dns_vips()).collect();
        edit.set_nameservers(&servers);
        let zone = edit.finish(view.table.revision);
        self.zone = Some(zone.clone());
        Ok(Arc::new(zone))
    }

    fn settings(&self, view: &View) -> ZoneSettings {
        let reverse_cidrs: Vec<IpNet> =
            view.cidrs_of_pods().into_iter().chain(view.config.service_cidrs()).collect();
        ZoneSettings {
            ttl_secs: self.options.ttl_secs,
            reverse_cidrs,
            pod_names: self.options.pod_names,
            autopath: self.options.autopath,
            zones: self.options.zones.clone(),
            clusterset: Name::parse(CLUSTERSET).ok(),
            ..ZoneSettings::new(&view.config.dns_zone)
        }
    }

    /// Entries are shared between tables: one that is the same did not change. Returns which names that pods want, too, changed.
    fn update_services(&mut self, view: &View, edit: &mut ZoneEdit) -> BTreeSet<ServiceName> {
        let mut touched = BTreeSet::new();
        for difference in view.services.differences(&self.objects, "", |_| true) {
            difference.before.map(|before| self.annotated.remove(&ServiceName::of(before)));
            if let Some(now) = difference.now.filter(|now| is_annotated(now)) {
                self.annotated.insert(ServiceName::of(now), now.clone());
            }
        }
        self.objects = view.services.clone();
        let last = std::mem::replace(&mut self.table, view.table.clone());
        let first = ServiceName::new("", "");
        for difference in view.table.services.differences(&last.services, &first, |_| true) {
            let name = &**difference.key;
            if self.pods.want(name) {
                touched.insert(name.clone());
            }
            let Some(entry) = difference.now else {
                edit.remove_service(&name.namespace, &name.name);
                self.views.remove(name);
                self.wrong_views.remove(name);
                continue;
            };
            let service = self.annotated.get(name).cloned();
            let views = self.views_of(name, service.as_deref());
            edit.set_service(&zone_service(name, entry, service.as_deref(), views));
        }
        touched
    }

    fn views_of(&mut self, name: &ServiceName, service: Option<&Service>) -> Option<Views> {
        self.wrong_views.remove(name);
        let Some(text) = service.and_then(|service| service.metadata.annotations.get(VIEWS)) else {
            self.views.remove(name);
            return None;
        };
        match Views::parse(text) {
            Ok(views) => {
                self.views.insert(name.clone(), views.clone());
                Some(views)
            }
            Err(error) => {
                self.wrong_views.insert(name.clone(), error.to_string());
                // Never wider than it was; one that never was good is seen by nobody.
                Some(self.views.get(name).cloned().unwrap_or_else(Views::nobody))
            }
        }
    }
}

fn is_annotated(service: &Service) -> bool {
    [VIEWS, ALIASES].iter().any(|key| service.metadata.annotations.contains_key(*key))
}

fn zone_service(
    name: &ServiceName,
    entry: &ServiceEntry,
    service: Option<&Service>,
    views: Option<Views>,
) -> ZoneService {
    let kind = match &entry.external_name {
        Some(target) => ZoneKind::ExternalName(target.clone()),
        None if entry.headless => ZoneKind::Headless,
        None => ZoneKind::ClusterIp(entry.cluster_ips.clone()),
    };
    let port = |(name, protocol, port): (&Option<String>, Protocol, u16)| ZonePort {
        name: name.clone(),
        protocol: match protocol {
            Protocol::Sctp => ZoneProtocol::Sctp,
            Protocol::Tcp => ZoneProtocol::Tcp,
            Protocol::Udp => ZoneProtocol::Udp,
        },
        port,
    };
    let aliases = service.and_then(|service| service.metadata.annotations.get(ALIASES));
    let left_out = entry.backends.iter().filter(|backend| entry.headless && !backend.verdict.is_up());
    ZoneService {
        ports: entry.ports.iter().map(|p| port((&p.name, p.protocol, p.port))).collect(),
        // Only a headless service is answered with its endpoints.
        endpoints: entry
            .published()
            .filter(|_| entry.headless)
            .map(|backend| ZoneEndpoint {
                addresses: vec![backend.address],
                hostname: backend.hostname.clone(),
                ports: backend.ports.iter().map(|p| port((&p.name, p.protocol, p.port))).collect(),
            })
            .collect(),
        left_out: left_out
            .map(|backend| LeftOut { address: backend.address, reason: backend.verdict.source.to_owned() })
            .collect(),
        views,
        aliases: aliases.map(|text| words(text)).unwrap_or_default(),
        ..ZoneService::new(&name.namespace, &name.name, kind)
    }
}

#[cfg(test)]
mod tests {
    use dns_zone::{Outcome, RecordType};
    use lb::{EndpointSlice, Object, parse_object};
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value, annotations: Value) -> Arc<Service> {
        let metadata = json!({"namespace": "default", "name": name, "annotations": annotations});
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        match parse_object(object).unwrap().0 {
            Object::Service(service) => Arc::new(service),
            other => panic!("{other:?}"),
        }
    }

    fn slice(ready: [bool; 2]) -> EndpointSlice {
        let endpoints: Vec<Value> = ["10.244.0.2", "10.244.0.3"]
            .iter()
            .zip(ready)
            .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}}))
            .collect();
        let metadata =
            json!({"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}});
        let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
            "addressType": "IPv4", "endpoints": endpoints, "ports": []});
        match parse_object(object).unwrap().0 {
            Object::EndpointSlice(slice) => slice,
            other => panic!("{other:?}"),
        }
    }

    fn view(revision: u64, services: &[Arc<Service>], slices: &[EndpointSlice]) -> View {
        let (table, problems) =
            ServiceTable::build(revision, services.iter().map(|service| &**service), slices);
        assert_eq!(problems, []);
        View {
            table,
            services: services.iter().map(|one| (one.metadata.name.clone(), one.clone())).collect(),
            ..View::default()
        }
    }

    fn addresses(zone: &Zone, name: &str) -> Option<Vec<String>> {
        match zone.ask(&Name::parse(name).unwrap(), RecordType::A, None, 0) {
            Outcome::Answer { records, .. } => {
                let mut addresses: Vec<String> =
                    records.iter().map(|record| record.data.to_string()).collect();
                addresses.sort();
                Some(addresses)
            }
            _ => None,
        }
    }

    #[test]
    fn the_zone_follows_the_table_and_is_the_one_from_scratch() {
        let db = "db.default.svc.cluster.local";
        let headless =
            service("db", json!({"clusterIP": "None"}), json!({"weft.dev/dns-aliases": "sql, pg.other"}));
        let web = |ip: &str, views: &str| {
            service(
                "web",
                json!({"clusterIP": ip, "ports": [{"port": 80}]}),
                json!({"weft.dev/dns-views": views}),
            )
        };
        let views = [
            view(1, std::slice::from_ref(&headless), &[slice([true, true])]),
            view(2, &[headless.clone(), web("10.96.0.20", "app=x")], &[slice([true, false])]),
            view(3, &[headless.clone(), web("10.96.0.21", "a,,b")], &[slice([false, false])]),
            view(4, &[web("10.96.0.21", "app=x")], &[]),
        ];
        let mut keeper = ZoneKeeper::default();
        let mut zones: Vec<Arc<Zone>> = Vec::new();
        for view in &views {
            zones.push(keeper.update(view, &[]).unwrap());
            let told: Vec<String> = keeper.problems().into_iter().map(|bad| bad.key).collect();
            let expected = if view.table.revision == 3 { vec!["Service default/web"] } else { vec![] };
            assert_eq!(told, expected, "views that are not understood are told as long as they stand");
        }
        assert_eq!(addresses(&zones[0], db).unwrap(), ["10.244.0.2", "10.244.0.3"]);
        assert_eq!(
            addresses(&zones[1], db).unwrap(),
            ["10.244.0.2"],
            "one left in the revision in which it is not ready"
        );
        assert_eq!(addresses(&zones[2], db), None);
        assert_eq!(
            addresses(&zones[0], "pg.other.svc.cluster.local").unwrap().len(),
            3,
            "a CNAME and its addresses"
        );
        assert_eq!(addresses(&zones[3], "pg.other.svc.cluster.local"), None);
        for zone in &zones[1..] {
            assert_eq!(addresses(zone, "web.default.svc.cluster.local"), None, "nobody known sees it, ever");
        }
        for index in [0, 1, 3] {
            assert_eq!(*zones[index], *ZoneKeeper::default().update(&views[index], &[]).unwrap());
        }
        let told = zones[1].explain(&Name::parse(db).unwrap(), RecordType::A, None).to_string();
        assert!(told.contains("endpoint 10.244.0.3 is left out: not ready"), "{told}");
    }
}
