// SPDX-License-Identifier: Apache-2.0
//! What pods are to the zone: who asks from an address, and further names (CNI's capability `aliases`). Both are kept by what
//! differs from the last view: a change of an endpoint looks at no pod, one of a pod at that pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dns_zone::{Client, ZoneEdit, ZoneEndpoint, ZoneKind, ZoneService};
use lb::{ServiceName, ServiceTable};
use netd_api::BadValue;
use netd_store::records::PodRecord;
use uuid::Uuid;

/// RFC 1035, 2.3.4: octets of one label.
const LABEL_MAX: usize = 63;

type Listed = (Uuid, Arc<PodRecord>);

#[derive(Debug, Default)]
pub(super) struct Pods {
    /// As the last view had them.
    seen: Vec<Listed>,
    /// More than one where a record is left of a pod that is gone.
    by_address: BTreeMap<IpAddr, Vec<Arc<PodRecord>>>,
    /// Pods that have a further name and may be reached by it.
    by_alias: BTreeMap<ServiceName, Vec<Arc<PodRecord>>>,
    /// Names of those that are in the zone: where there is a Service of the name, it wins.
    named: BTreeSet<ServiceName>,
    /// Aliases that are no names.
    wrong: Vec<(Arc<PodRecord>, String)>,
}

impl Pods {
    /// Whether a pod has this for a further name.
    pub(super) fn want(&self, name: &ServiceName) -> bool {
        self.by_alias.contains_key(name)
    }

    /// Brings what differs into the zone. `touched`: names that pods want, whose Services came or went.
    pub(super) fn update(
        &mut self,
        pods: &[Listed],
        table: &ServiceTable,
        mut touched: BTreeSet<ServiceName>,
        edit: &mut ZoneEdit,
    ) {
        let mut addresses = BTreeSet::new();
        let (gone, new) = self.differences(pods);
        for pod in gone.iter().chain(&new) {
            addresses.extend(pod.ips.iter().copied());
            touched.extend(names(pod).filter_map(Result::ok));
        }
        gone.iter().for_each(|pod| self.leave(pod));
        new.into_iter().for_each(|pod| self.enter(pod));
        for address in addresses {
            edit.set_client(address, self.by_address.get(&address).and_then(|pods| client(pods)));
        }
        for name in touched {
            self.name(name, table, edit);
        }
    }

    /// Aliases that are not answered.
    pub(super) fn problems(&self) -> impl Iterator<Item = BadValue> {
        self.wrong.iter().map(|(pod, alias)| BadValue {
            key: format!("Pod {}/{}", pod.namespace, pod.name),
            reason: format!(
                "alias {alias:?} is no name: use 1 to {LABEL_MAX} letters, digits, '-' and '_'; its other names are answered"
            ),
        })
    }

    /// Pods that are no longer there, and such as are new; one whose record changed is both. Lists mostly differ in one place.
    fn differences(&mut self, pods: &[Listed]) -> (Vec<Arc<PodRecord>>, Vec<Arc<PodRecord>>) {
        let is_same = |(old, new): &(&Listed, &Listed)| Arc::ptr_eq(&old.1, &new.1);
        let front = self.seen.iter().zip(pods).take_while(is_same).count();
        let (old, new) = (&self.seen[front..], &pods[front..]);
        let back = old.iter().rev().zip(new.iter().rev()).take_while(is_same).count();
        let new = &new[..new.len() - back];
        let old: Vec<Listed> = self.seen.splice(front..self.seen.len() - back, new.iter().cloned()).collect();
        let address = |(_, pod): &Listed| Arc::as_ptr(pod);
        let (before, now): (BTreeSet<_>, BTreeSet<_>) =
            (old.iter().map(address).collect(), new.iter().map(address).collect());
        let gone = old.iter().filter(|pod| !now.contains(&address(pod))).map(|(_, pod)| pod.clone());
        let come = new.iter().filter(|pod| !before.contains(&address(pod))).map(|(_, pod)| pod.clone());
        (gone.collect(), come.collect())
    }

    fn enter(&mut self, pod: Arc<PodRecord>) {
        for address in &pod.ips {
            self.by_address.entry(*address).or_default().push(pod.clone());
        }
        for name in names(&pod) {
            match name {
                Ok(name) if is_reached(&pod) => self.by_alias.entry(name).or_default().push(pod.clone()),
                Ok(_) => {}
                Err(alias) => self.wrong.push((pod.clone(), alias)),
            }
        }
    }

    fn leave(&mut self, pod: &Arc<PodRecord>) {
        let is_other = |other: &Arc<PodRecord>| !Arc::ptr_eq(other, pod);
        for address in &pod.ips {
            take(&mut self.by_address, address, is_other);
        }
        for name in names(pod).filter_map(Result::ok) {
            take(&mut self.by_alias, &name, is_other);
        }
        self.wrong.retain(|(other, _)| is_other(other));
    }

    /// Each name answers like a headless Service with every pod that has it.
    fn name(&mut self, name: ServiceName, table: &ServiceTable, edit: &mut ZoneEdit) {
        let is_service = table.find(&name.namespace, &name.name).is_some();
        let Some(pods) = self.by_alias.get(&name).filter(|_| !is_service) else {
            if self.named.remove(&name) && !is_service {
                edit.remove_service(&name.namespace, &name.name);
            }
            return;
        };
        let endpoint = |pod: &Arc<PodRecord>| ZoneEndpoint {
            addresses: pod.ips.clone(),
            hostname: None,
            ports: Vec::new(),
        };
        edit.set_service(&ZoneService {
            endpoints: pods.iter().map(endpoint).collect(),
            ..ZoneService::new(&name.namespace, &name.name, ZoneKind::Headless)
        });
        self.named.insert(name);
    }
}

fn take<K: Ord>(
    from: &mut BTreeMap<K, Vec<Arc<PodRecord>>>,
    key: &K,
    is_other: impl Fn(&Arc<PodRecord>) -> bool,
) {
    if let Some(pods) = from.get_mut(key) {
        pods.retain(is_other);
        if pods.is_empty() {
            from.remove(key);
        }
    }
}

/// Every pod that has an address may ask, also one that is not ready.
fn client(pods: &[Arc<PodRecord>]) -> Option<Arc<Client>> {
    // Any one, but the same whatever came first.
    let pod = pods.iter().max_by(|a, b| (a.node, &a.attachment).cmp(&(b.node, &b.attachment)))?;
    Some(Arc::new(Client {
        namespace: pod.namespace.as_str().into(),
        pod: pod.name.as_str().into(),
        labels: Arc::new(pod.labels.clone()),
    }))
}

fn is_reached(pod: &PodRecord) -> bool {
    pod.ready && !pod.terminating
}

/// The further names of a pod, in its namespace, in lower case, each once; an alias that is none is an error.
fn names(pod: &PodRecord) -> impl Iterator<Item = Result<ServiceName, String>> {
    let namespace = pod.namespace.to_ascii_lowercase();
    let aliases: BTreeSet<String> = pod.aliases.iter().map(|alias| alias.to_ascii_lowercase()).collect();
    aliases.into_iter().map(move |alias| match is_label(&alias) {
        true => Ok(ServiceName::new(namespace.clone(), alias)),
        false => Err(alias),
    })
}

/// People name containers with underscores, too.
fn is_label(text: &str) -> bool {
    let is_letter =
        |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"-_".contains(&octet);
    (1..=LABEL_MAX).contains(&text.len()) && text.bytes().all(is_letter)
}

#[cfg(test)]
mod tests {
    use dns_zone::{Name, Outcome, RecordType, Zone, ZoneSettings};
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ip: &str, aliases: Value) -> Listed {
        let node = Uuid::from_u128(1);
        let record = json!({"schema": 1, "node": node, "namespace": "shop", "name": name, "ips": [ip], "aliases": aliases,
            "attachment": {"network": "weft", "container_id": name, "ifname": "eth0"}, "ready": true});
        (node, Arc::new(serde_json::from_value(record).unwrap()))
    }

    fn table(service: Option<&str>) -> ServiceTable {
        let services = service.map(|name| {
            let metadata = json!({"namespace": "shop", "name": name});
            let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"clusterIP": "10.96.0.20", "ports": [{"port": 80}]}});
            match lb::parse_object(object).unwrap().0 {
                lb::Object::Service(service) => service,
                other => panic!("{other:?}"),
            }
        });
        ServiceTable::build(1, &services, &[]).0
    }

    fn differ(pods: &mut Pods, now: &[Listed]) -> [Vec<String>; 2] {
        let (gone, new) = pods.differences(now);
        [gone, new].map(|pods| pods.iter().map(|pod| pod.name.clone()).collect())
    }

    #[test]
    fn only_what_differs_is_looked_at() {
        let ip = "10.244.0.2";
        let all: Vec<Listed> = ["a", "b", "c", "d", "e"].map(|name| pod(name, ip, json!([]))).into();
        let mut pods = Pods::default();
        assert_eq!(differ(&mut pods, &all), [vec![], vec!["a", "b", "c", "d", "e"]]);
        assert_eq!(differ(&mut pods, &all.clone()), [Vec::<String>::new(), vec![]]);
        let mut now = all.clone();
        now[2] = pod("c", ip, json!([]));
        assert_eq!(differ(&mut pods, &now), [vec!["c"], vec!["c"]], "a record that changed");
        now.insert(4, pod("d2", ip, json!([])));
        now.remove(1);
        assert_eq!(differ(&mut pods, &now), [vec!["b"], vec!["d2"]], "and what lies between stays");
        assert_eq!(differ(&mut pods, &now[..1]), [vec!["c", "d", "d2", "e"], vec![]]);
        assert!(differ(&mut pods, &[])[0] == ["a"] && pods.seen.is_empty());
    }

    #[test]
    fn a_service_has_its_name_whatever_pods_are_called_in_whatever_case() {
        let one = pod("one", "10.244.0.2", json!(["WEB", "Db", "a.b", "", "my_cache"]));
        let two = pod("two", "10.244.0.3", json!(["db"]));
        let (with, without) = (table(Some("web")), table(None));
        let origin = Zone::new(ZoneSettings::new("cluster.local")).unwrap();
        let step =
            |zone: &Zone, pods: &mut Pods, now: &[Listed], table: &ServiceTable, service: Option<bool>| {
                let mut edit = zone.edit();
                let ip = ZoneKind::ClusterIp(vec!["10.96.0.20".parse().unwrap()]);
                match service {
                    Some(true) => edit.set_service(&ZoneService::new("shop", "web", ip)),
                    Some(false) => edit.remove_service("shop", "web"),
                    None => {}
                }
                let web = ServiceName::new("shop", "web");
                let touched = [web].into_iter().filter(|name| service.is_some() && pods.want(name)).collect();
                pods.update(now, table, touched, &mut edit);
                edit.finish(1)
            };
        let asked = |zone: &Zone, name: &str| -> Vec<String> {
            let name = Name::parse(&format!("{name}.shop.svc.cluster.local")).unwrap();
            match zone.ask(&name, RecordType::A, None, 0) {
                Outcome::Answer { records, .. } => records.iter().map(|r| r.data.to_string()).collect(),
                _ => Vec::new(),
            }
        };
        let both = [one.clone(), two.clone()];
        let mut pods = Pods::default();
        let zone = step(&origin, &mut pods, &both, &with, Some(true));
        assert_eq!(asked(&zone, "web"), ["10.96.0.20"]);
        assert_eq!((asked(&zone, "db").len(), asked(&zone, "my_cache").len()), (2, 1));
        let told: Vec<String> = pods.problems().map(|bad| format!("{}: {}", bad.key, bad.reason)).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].starts_with("Pod shop/one: alias \"a.b\" is no name"), "{told:?}");
        assert_eq!(zone.problems(), []);

        let zone = step(&zone, &mut pods, &both, &without, Some(false));
        assert_eq!(asked(&zone, "web"), ["10.244.0.2"], "the Service is gone");
        let zone = step(&zone, &mut pods, &both, &with, Some(true));
        let zone = step(&zone, &mut pods, std::slice::from_ref(&two), &with, None);
        assert_eq!(
            (asked(&zone, "web"), asked(&zone, "db")),
            (vec!["10.96.0.20".into()], vec!["10.244.0.3".into()])
        );
        assert_eq!(pods.problems().count(), 0);
        let mut scratch = Pods::default();
        assert_eq!(zone, step(&origin, &mut scratch, std::slice::from_ref(&two), &with, Some(true)));
        let zone = step(&zone, &mut pods, &[], &without, Some(false));
        assert_eq!(
            (zone, pods.by_alias.len(), pods.by_address.len()),
            (step(&origin, &mut Pods::default(), &[], &without, None), 0, 0)
        );
    }

    #[test]
    fn an_address_belongs_to_one_pod_whichever_record_came_first() {
        let (old, new) = (pod("a-old", "10.244.0.2", json!([])), pod("b-new", "10.244.0.2", json!([])));
        let ip: IpAddr = "10.244.0.2".parse().unwrap();
        let origin = Zone::new(ZoneSettings::new("cluster.local")).unwrap();
        let after = |lists: &[&[&Listed]]| {
            let (mut pods, mut edit) = (Pods::default(), origin.edit());
            for list in lists {
                let list: Vec<Listed> = list.iter().map(|pod| (*pod).clone()).collect();
                pods.update(&list, &table(None), BTreeSet::new(), &mut edit);
            }
            edit.finish(1).client(ip).map(|client| client.pod.to_string())
        };
        assert_eq!(after(&[&[&old, &new]]).as_deref(), Some("b-new"));
        assert_eq!(after(&[&[&new], &[&old, &new]]).as_deref(), Some("b-new"));
        assert_eq!(after(&[&[&old, &new], &[&old]]).as_deref(), Some("a-old"));
        assert_eq!(after(&[&[&old, &new], &[]]), None);
    }
}
