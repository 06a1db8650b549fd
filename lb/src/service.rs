// SPDX-License-Identifier: Apache-2.0
//! `v1` `Service`, reduced to the fields that Weft acts upon.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Family;
use crate::kubernetes::{CLUSTER_IP_NONE, Extra, Metadata, Protocol};

/// `v1` `Service`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// `v1`.
    pub api_version: String,
    /// `Service`.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: Metadata,
    /// The wish.
    pub spec: ServiceSpec,
    /// What a load balancer's controller reports.
    #[serde(skip_serializing_if = "ServiceStatus::is_unset")]
    pub status: ServiceStatus,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `spec` of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` (also when empty), `NodePort`, `LoadBalancer`, `ExternalName`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// An address, `None` for headless, or empty: to be allocated.
    #[serde(rename = "clusterIP", skip_serializing_if = "String::is_empty")]
    pub cluster_ip: String,
    /// One for each family; the first equals `clusterIP`.
    #[serde(rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<String>,
    /// Pods of the namespace with all of these labels are the backends; empty: the slices come from elsewhere.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// The frontends' ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// DNS name that an `ExternalName` Service stands for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub external_name: String,
    /// All backends count as ready.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub publish_not_ready_addresses: bool,
    /// `IPv4`, `IPv6`, in the order of the ClusterIPs; empty: by policy and cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// `SingleStack` (also when empty), `PreferDualStack`, `RequireDualStack`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip_family_policy: String,
    /// For clients outside: `Cluster` (also when empty), or `Local`: backends of the node that they ask only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub external_traffic_policy: String,
    /// For clients in the cluster: `Cluster` (also when empty), or `Local`: backends of their own node only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub internal_traffic_policy: String,
    /// `None` (also when empty), or `ClientIP`: a client stays with its backend.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session_affinity: String,
    /// For how long it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `PreferSameZone` (or `PreferClose`), `PreferSameNode`; empty: any backend alike.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traffic_distribution: String,
    /// More addresses that the Service answers at, where the cluster's configuration allows it.
    #[serde(rename = "externalIPs", skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<String>,
    /// Who may ask at the load balancer's addresses: CIDRs; empty: everybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Whose load balancer is meant; informative.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub load_balancer_class: String,
    /// Whether type `LoadBalancer` gets node ports; unset: yes.
    #[serde(rename = "allocateLoadBalancerNodePorts", skip_serializing_if = "Option::is_none")]
    pub allocate_load_balancer_node_ports: Option<bool>,
    /// Where each node says whether it has ready backends of its own (type `LoadBalancer`, external policy `Local`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Needed where there are several ports; named in SRV records.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// TCP where the manifest has none.
    pub protocol: Protocol,
    /// Port of the ClusterIP, 1..=65535.
    pub port: u16,
    /// Port of the backend: a number, a name that each pod resolves, or the same as `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// Port of every node that leads here (types `NodePort` and `LoadBalancer`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// What is spoken there; informative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A number or the name of a pod's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// 1..=65535.
    Number(u16),
    /// At most 15 of `a-z 0-9 -` with a letter (RFC 6335).
    Name(String),
}

/// `spec.sessionAffinityConfig` of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP", skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<ClientIpConfig>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How long a client stays with its backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// After its last connection, 1..=86400; unset: [`AFFINITY_SECS_DEFAULT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `status` of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// What its load balancer has.
    #[serde(skip_serializing_if = "LoadBalancerStatus::is_unset")]
    pub load_balancer: LoadBalancerStatus,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ServiceStatus {
    /// Nothing is said.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        self.load_balancer.is_unset() && self.extra.is_empty()
    }
}

/// `status.loadBalancer` of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Its ways in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<LoadBalancerIngress>,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

impl LoadBalancerStatus {
    fn is_unset(&self) -> bool {
        self.ingress.is_empty() && self.extra.is_empty()
    }
}

/// One way in by a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// Its address; empty where it has a name only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// Its name; not used.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// `VIP` (also when empty): packets come with this address, and pods may be answered without the load balancer.
    /// `Proxy`: they do not, and the address is left alone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip_mode: String,
    /// Fields that nothing here acts upon.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `timeoutSeconds` where a Service with affinity names none, as in Kubernetes: three hours.
pub const AFFINITY_SECS_DEFAULT: u32 = 10_800;

impl Service {
    /// `Service default/web`, as errors name it.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("Service {}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// No ClusterIP by wish: DNS answers with the backends.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == CLUSTER_IP_NONE
            || self.spec.cluster_ips.first().is_some_and(|ip| ip == CLUSTER_IP_NONE)
    }

    /// A name for a name outside.
    #[must_use]
    pub fn is_external_name(&self) -> bool {
        self.spec.kind == "ExternalName"
    }

    /// Wants a ClusterIP and has none yet.
    #[must_use]
    pub fn needs_cluster_ip(&self) -> bool {
        !self.is_headless() && !self.is_external_name() && self.cluster_ips().is_empty()
    }

    /// The parsed ClusterIPs in their order: `clusterIPs`, else `clusterIP`. Unparsable ones are left out.
    #[must_use]
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        let all = self.spec.cluster_ips.iter();
        let ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
        if ips.is_empty() { self.spec.cluster_ip.parse().into_iter().collect() } else { ips }
    }

    /// Records an allocated ClusterIP in both fields.
    pub fn set_cluster_ip(&mut self, ip: IpAddr) {
        self.set_cluster_ips(&[ip]);
    }

    /// Records allocated ClusterIPs, the first in both fields.
    pub fn set_cluster_ips(&mut self, ips: &[IpAddr]) {
        self.spec.cluster_ips = ips.iter().map(IpAddr::to_string).collect();
        self.spec.cluster_ip = self.spec.cluster_ips.first().cloned().unwrap_or_default();
    }

    /// Its type: `ClusterIP` where the object names none.
    #[must_use]
    pub fn kind(&self) -> &str {
        if self.spec.kind.is_empty() { "ClusterIP" } else { &self.spec.kind }
    }

    /// Families that it is served in: as written, else those of its ClusterIPs, else IPv4.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let written = self.spec.ip_families.iter().filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        });
        let mut families: Vec<Family> = written.collect();
        if families.is_empty() {
            families.extend(self.cluster_ips().into_iter().map(Family::of));
        }
        if families.is_empty() {
            families.push(Family::V4);
        }
        families
    }

    /// Whether nodes answer for it at ports of theirs: type `NodePort`, or `LoadBalancer` unless it says no.
    #[must_use]
    pub fn has_node_ports(&self) -> bool {
        match self.kind() {
            "NodePort" => true,
            "LoadBalancer" => self.spec.allocate_load_balancer_node_ports != Some(false),
            _ => false,
        }
    }
}
