// SPDX-License-Identifier: Apache-2.0
//! Weft with many services: a lab of one node with a real etcd. Services are written into the store as netd itself writes them,
//! with the claims of their addresses, but many in one transaction: `weft apply` asks for each.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb::{EndpointSlice, Service};
use netd_api::Client;
use netd_store::claim::is_complete;
use netd_store::records::{SCHEMA, ServiceIpRecord, encode};
use netd_store::{Etcd, EtcdConfig, Keys, MAX_TRANSACTION_OPERATIONS, Store as _, Transaction};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::path::{Kind, PORT, Path};
use super::rules::Wish;
use super::{OURS, VIP};
use crate::lab::{Lab, SERVICES as LAB};
use crate::netns;
use crate::worker::Place;

const NODE: &str = "n1";
const CLIENT: &str = "client";
const BACKENDS: [&str; 2] = ["backend-a", "backend-b"];
const NAMESPACE: &str = "default";
/// A service, its endpoints, and the claim of its address.
const KEYS_EACH: usize = 3;
/// How long netd may take for all of them.
const PROGRAM_LIMIT: Duration = Duration::from_secs(180);
const STORE_LIMIT: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(20);

/// The lab, and a way into its store.
pub(crate) struct Cluster {
    runtime: Runtime,
    store: Etcd,
    keys: Keys,
    socket: PathBuf,
    /// Those that answer.
    backends: Vec<IpAddr>,
}

impl Cluster {
    /// Brings it up: a client, two backends with servers, one service. All on one node.
    pub(super) fn up() -> Result<Self> {
        let mut cluster = Self::bare(LAB, &[])?;
        for pod in BACKENDS {
            let ip = LAB.pod(NODE, pod, "backend")?;
            Place::Pod(LAB, pod).server(ip, PORT)?;
            cluster.backends.push(ip);
        }
        let ours = service("bench", VIP, &OURS)?;
        let slice = slice("bench", &OURS, &cluster.backends)?;
        cluster.install(vec![(ours, slice)])?;
        Ok(cluster)
    }

    /// Brings a lab up with a client and nothing else; `more` are arguments of `weft-lab up`.
    pub(crate) fn bare(lab: Lab, more: &[&str]) -> Result<Self> {
        lab.up_with(more)?;
        lab.pod(NODE, CLIENT, "client")?;
        let shown = lab.show()?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("weft-lab show: no text");
        let endpoint = text(&shown["etcd"][0])?;
        let keys = Keys::new(lab.name())?;
        // Beside nft at work with ten thousand services the store may take its time.
        let config =
            EtcdConfig { endpoints: vec![endpoint], request_timeout: STORE_LIMIT, ..EtcdConfig::default() };
        // Sockets stay where they are opened: in the node's namespace, from where the store is reached.
        let node = netns::path(&text(&shown["nodes"][0]["netns"])?);
        let (runtime, store) = netns::inside(&node, || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            let store = runtime.block_on(async {
                let store = Etcd::connect(config).await?;
                store.get(&keys.config()).await?.context("the lab's store has no configuration")?;
                anyhow::Ok(store)
            })?;
            Ok((runtime, store))
        })?;
        let socket = text(&shown["nodes"][0]["socket"])?.into();
        Ok(Self { runtime, store, keys, socket, backends: Vec::new() })
    }

    /// The client's ways to it.
    pub(super) fn paths(&self) -> [Path; 2] {
        let ports = OURS.map(|(port, _)| port);
        let outside = Place::Bare(LAB.pod_netns(CLIENT));
        [(Kind::Socket, Place::Pod(LAB, CLIENT)), (Kind::Packet, outside)].map(|(kind, from)| Path {
            kind,
            from,
            to: VIP.into(),
            ports,
        })
    }

    /// Where the client's packets begin.
    pub(super) fn client_netns(&self) -> PathBuf {
        netns::path(&LAB.pod_netns(CLIENT))
    }

    /// A backend that answers.
    pub(super) fn backend(&self) -> IpAddr {
        self.backends[0]
    }

    /// Others, that nobody calls.
    pub(super) fn install_others(&self, wishes: impl Iterator<Item = Wish>) -> Result<f64> {
        let objects = wishes.map(|wish| {
            let slice = slice(&wish.name, &wish.ports, &wish.backends.map(IpAddr::V4))?;
            Ok((service(&wish.name, wish.vip, &wish.ports)?, slice))
        });
        self.install(objects.collect::<Result<Vec<_>>>()?)
    }

    /// Writes them; seconds until the node's maps have them.
    pub(crate) fn install(&self, objects: Vec<(Service, EndpointSlice)>) -> Result<f64> {
        let start = Instant::now();
        let mut revision = 0;
        for part in objects.chunks(MAX_TRANSACTION_OPERATIONS / KEYS_EACH) {
            let mut write = Transaction::new();
            for (service, slice) in part {
                ensure!(is_complete(service), "{}: netd would add to it", service.display_name());
                write = self.with(write, service)?;
                write = self.with_slice(write, slice)?;
            }
            revision = self.transact(write)?;
        }
        self.wait(revision)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Writes one service's endpoints.
    pub(super) fn put(&self, slice: &EndpointSlice) -> Result<()> {
        let write = self.with_slice(Transaction::new(), slice)?;
        self.transact(write).map(drop)
    }

    fn with(&self, write: Transaction, service: &Service) -> Result<Transaction> {
        let (namespace, name) = (service.metadata.namespace.clone(), service.metadata.name.clone());
        let key = self.keys.service(&namespace, &name);
        let mut write = write.put(&key, encode(&key, service)?);
        for ip in service.cluster_ips() {
            let key = self.keys.service_ip(ip);
            let (namespace, name) = (namespace.clone(), name.clone());
            let record = ServiceIpRecord { schema: SCHEMA, namespace, name, extra: Default::default() };
            write = write.put(&key, encode(&key, &record)?);
        }
        Ok(write)
    }

    fn with_slice(&self, write: Transaction, slice: &EndpointSlice) -> Result<Transaction> {
        let service = slice.service_name().context("endpoints of no service")?;
        let key = self.keys.endpoint(&slice.metadata.namespace, service, &slice.metadata.name);
        Ok(write.put(&key, encode(&key, slice)?))
    }

    fn transact(&self, write: Transaction) -> Result<u64> {
        Ok(self.runtime.block_on(self.store.transact(write))?.revision)
    }

    /// Until the node's maps are at a revision.
    fn wait(&self, revision: u64) -> Result<()> {
        let client = Client::new(self.socket.clone(), netd_api::DEFAULT_TIMEOUT);
        let start = Instant::now();
        loop {
            // One that is busy with thousands of changes may take its time to answer.
            let at = self.runtime.block_on(client.status()).map(|status| status.programmed_revision);
            if at.as_ref().is_ok_and(|at| *at >= revision) {
                return Ok(());
            }
            if start.elapsed() > PROGRAM_LIMIT {
                bail!("revision {revision} is not in the maps after {PROGRAM_LIMIT:?}: {at:?}");
            }
            std::thread::sleep(ASK_EVERY);
        }
    }
}

/// With all that netd would add.
pub(crate) fn service(name: &str, vip: Ipv4Addr, ports: &[(u16, u16)]) -> Result<Service> {
    let port = |(port, target): &(u16, u16)| json!({ "name": format!("p{port}"), "port": port, "targetPort": target, "protocol": "TCP" });
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": ports.iter().map(port).collect::<Vec<_>>(),
        },
    });
    Ok(serde_json::from_value(object)?)
}

/// A service's endpoints, all of them ready.
pub(crate) fn slice(name: &str, ports: &[(u16, u16)], backends: &[IpAddr]) -> Result<EndpointSlice> {
    let port = |(port, target): &(u16, u16)| json!({ "name": format!("p{port}"), "port": target, "protocol": "TCP" });
    let endpoint = |ip: &IpAddr| json!({ "addresses": [ip], "nodeName": NODE });
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-bench"), "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": "IPv4",
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
        "endpoints": backends.iter().map(endpoint).collect::<Vec<_>>(),
    });
    Ok(serde_json::from_value(object)?)
}
