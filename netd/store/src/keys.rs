// SPDX-License-Identifier: Apache-2.0
//! How keys look. No other place in the project writes or takes apart a key.

use std::fmt;
use std::net::IpAddr;

use ipam::AttachmentKey;
use ipam::owner::{escape_part, unescape_part};
use ipnet::IpNet;
use uuid::Uuid;

/// Everything of Weft's, in this version of the layout.
const ROOT: &str = "/weft/v1/";

/// A cluster name's length; it is part of paths under /sys/fs/bpf too.
const MAX_CLUSTER_NAME_BYTES: usize = 63;

/// The keys of one cluster. Methods in the plural give prefixes (they end with `/`), the others full keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    root: String,
}

/// A cluster name that cannot be part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cluster name {0:?}: use 1 to 63 of a-z, 0-9, '-' and '.', beginning with a letter or digit")]
pub struct KeysError(pub String);

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `ipam/addresses/<ip>`: [`crate::records::AddressRecord`].
    Address(IpAddr),
    /// `alive/<uuid>`: there while the node's lease lives.
    Alive(Uuid),
    /// `ipam/blocks/<cidr>`: [`ipam::BlockRecord`].
    Block(IpNet),
    /// `config`: [`crate::records::ClusterConfig`].
    Config,
    /// `dns/links/<name>`: a name that stands for another one, by who asks. Any name will do.
    DnsLink(String),
    /// `dns/records/<name>`: a DNS record of one's own. Any name will do.
    DnsRecord(String),
    /// `dns/rewrites/<name>`: a DNS name that stands for another one. Any name will do.
    DnsRewrite(String),
    /// `endpoints/<ns>/<name>/<source>`: [`lb::EndpointSlice`].
    Endpoint {
        /// The service's namespace.
        namespace: String,
        /// The service's name.
        name: String,
        /// Who wrote it: a node's UUID, or a name.
        source: String,
    },
    /// `members/<name>`: [`crate::records::MemberRecord`].
    Member(String),
    /// `nodes/<uuid>`: [`crate::records::NodeRecord`].
    Node(Uuid),
    /// `ipam/nodeports/<n>`: [`crate::records::NodePortRecord`].
    NodePort(u16),
    /// `pods/<node uuid>/<attachment>`: [`crate::records::PodRecord`].
    Pod {
        /// The node it runs on.
        node: Uuid,
        /// Which interface of which container.
        attachment: AttachmentKey,
    },
    /// `ipam/pools/<name>`: [`ipam::Pool`]; wins over a pool of that name in the configuration.
    Pool(String),
    /// `services/<ns>/<name>`: [`lb::Service`].
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// `ipam/services/<ip>`: [`crate::records::ServiceIpRecord`].
    ServiceIp(IpAddr),
    /// `ipam/sticky/<name>`: [`crate::records::StickyRecord`].
    Sticky(String),
    /// `tombstones/<uuid>`: [`crate::records::Tombstone`].
    Tombstone(Uuid),
}

impl Keys {
    /// The keys of the cluster with this name.
    pub fn new(cluster: &str) -> Result<Self, KeysError> {
        let begins = cluster.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !begins || cluster.len() > MAX_CLUSTER_NAME_BYTES || !cluster.chars().all(allowed) {
            return Err(KeysError(cluster.to_owned()));
        }
        Ok(Self { root: format!("{ROOT}{cluster}/") })
    }

    /// The prefix of all keys of the cluster.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Cluster-wide settings.
    pub fn config(&self) -> String {
        self.key("config")
    }

    /// Prefix of the node records.
    pub fn nodes(&self) -> String {
        self.key("nodes/")
    }

    /// A node's record.
    pub fn node(&self, node: Uuid) -> String {
        self.key(format_args!("nodes/{node}"))
    }

    /// Prefix of the members.
    pub fn members(&self) -> String {
        self.key("members/")
    }

    /// A machine outside the cluster that talks with pods through WireGuard.
    pub fn member(&self, name: &str) -> String {
        self.key(format_args!("members/{}", escape_part(name)))
    }

    /// Prefix of DNS records, links and rewrites of one's own.
    pub fn dns(&self) -> String {
        self.key("dns/")
    }

    /// A link.
    pub fn dns_link(&self, name: &str) -> String {
        self.key(format_args!("dns/links/{name}"))
    }

    /// A DNS record of one's own.
    pub fn dns_record(&self, name: &str) -> String {
        self.key(format_args!("dns/records/{name}"))
    }

    /// A rewrite.
    pub fn dns_rewrite(&self, name: &str) -> String {
        self.key(format_args!("dns/rewrites/{name}"))
    }

    /// Prefix of the signs of life.
    pub fn alives(&self) -> String {
        self.key("alive/")
    }

    /// A node's sign of life (leased).
    pub fn alive(&self, node: Uuid) -> String {
        self.key(format_args!("alive/{node}"))
    }

    /// What tells this cluster from others of its name.
    pub fn cluster_id(&self) -> String {
        self.key("id")
    }

    /// Who does what one node does for all (leased); what for is a word of ours.
    pub fn leader(&self, task: &str) -> String {
        self.key(format_args!("leader/{task}"))
    }

    /// Prefix of all nodes' pods.
    pub fn pods(&self) -> String {
        self.key("pods/")
    }

    /// Prefix of one node's pods.
    pub fn node_pods(&self, node: Uuid) -> String {
        self.key(format_args!("pods/{node}/"))
    }

    /// One attachment of a pod.
    pub fn pod(&self, node: Uuid, attachment: &AttachmentKey) -> String {
        self.key(format_args!("pods/{node}/{attachment}"))
    }

    /// Prefix of the address pools.
    pub fn pools(&self) -> String {
        self.key("ipam/pools/")
    }

    /// An address pool.
    pub fn pool(&self, name: &str) -> String {
        self.key(format_args!("ipam/pools/{name}"))
    }

    /// Prefix of the claimed blocks.
    pub fn blocks(&self) -> String {
        self.key("ipam/blocks/")
    }

    /// A claimed block: `10.244.0.64-26`.
    pub fn block(&self, cidr: IpNet) -> String {
        self.key(format_args!("ipam/blocks/{}-{}", cidr.network(), cidr.prefix_len()))
    }

    /// Prefix of the addresses that are used outside the node that owns their block.
    pub fn addresses(&self) -> String {
        self.key("ipam/addresses/")
    }

    /// An address that is used outside the node that owns its block.
    pub fn address(&self, ip: IpAddr) -> String {
        self.key(format_args!("ipam/addresses/{ip}"))
    }

    /// Prefix of the sticky names.
    pub fn stickies(&self) -> String {
        self.key("ipam/sticky/")
    }

    /// A sticky name; written as the parts of an attachment are.
    pub fn sticky(&self, name: &str) -> String {
        self.key(format_args!("ipam/sticky/{}", escape_part(name)))
    }

    /// Prefix of the tombstones.
    pub fn tombstones(&self) -> String {
        self.key("tombstones/")
    }

    /// A removed node.
    pub fn tombstone(&self, node: Uuid) -> String {
        self.key(format_args!("tombstones/{node}"))
    }

    /// Prefix of the claimed ClusterIPs.
    pub fn service_ips(&self) -> String {
        self.key("ipam/services/")
    }

    /// A claimed ClusterIP.
    pub fn service_ip(&self, ip: IpAddr) -> String {
        self.key(format_args!("ipam/services/{ip}"))
    }

    /// Prefix of the claimed node ports.
    pub fn node_ports(&self) -> String {
        self.key("ipam/nodeports/")
    }

    /// A claimed node port.
    pub fn node_port(&self, port: u16) -> String {
        self.key(format_args!("ipam/nodeports/{port}"))
    }

    /// Prefix of all services.
    pub fn services(&self) -> String {
        self.key("services/")
    }

    /// A service.
    pub fn service(&self, namespace: &str, name: &str) -> String {
        self.key(format_args!("services/{namespace}/{name}"))
    }

    /// Prefix of all endpoint slices.
    pub fn endpoints(&self) -> String {
        self.key("endpoints/")
    }

    /// Prefix of one service's endpoint slices.
    pub fn service_endpoints(&self, namespace: &str, name: &str) -> String {
        self.key(format_args!("endpoints/{namespace}/{name}/"))
    }

    /// One source's endpoint slice of a service.
    pub fn endpoint(&self, namespace: &str, name: &str, source: &str) -> String {
        self.key(format_args!("endpoints/{namespace}/{name}/{source}"))
    }

    /// The source of a slice of a node's own pods: its UUID, with `-v6` for IPv6, and for the slice of this `number` above 1, of
    /// those that a node needs where its pods differ in their ports, with the number: `…-v6-2`.
    pub fn node_source(node: Uuid, ipv6: bool, number: usize) -> String {
        let family = if ipv6 { "-v6" } else { "" };
        if number > 1 { format!("{node}{family}-{number}") } else { format!("{node}{family}") }
    }

    /// Whose own slice this is; `None`: no node's.
    pub fn node_of_source(source: &str) -> Option<Uuid> {
        let node = source.get(..uuid::fmt::Hyphenated::LENGTH)?;
        let rest = source.get(node.len()..)?;
        let rest = rest.strip_prefix("-v6").unwrap_or(rest);
        let is_number = |number: &str| number.parse::<u32>().is_ok_and(|n| n > 1 && n.to_string() == number);
        let is_own = rest.is_empty() || rest.strip_prefix('-').is_some_and(is_number);
        is_own.then(|| parse_uuid(node)).flatten()
    }

    /// What a key stands for; `None` for keys of other clusters, of newer versions, and for misspelled ones.
    pub fn parse(&self, key: &str) -> Option<Key> {
        let parts: Vec<&str> = key.strip_prefix(&self.root)?.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return None;
        }
        Some(match *parts.as_slice() {
            ["config"] => Key::Config,
            ["nodes", node] => Key::Node(parse_uuid(node)?),
            ["members", name] => Key::Member(unescape_part(name)?),
            ["dns", "links", name] => Key::DnsLink(name.to_owned()),
            ["dns", "records", name] => Key::DnsRecord(name.to_owned()),
            ["dns", "rewrites", name] => Key::DnsRewrite(name.to_owned()),
            ["alive", node] => Key::Alive(parse_uuid(node)?),
            ["pods", node, attachment] => {
                Key::Pod { node: parse_uuid(node)?, attachment: attachment.parse().ok()? }
            }
            ["ipam", "pools", name] => Key::Pool(name.to_owned()),
            ["ipam", "blocks", cidr] => Key::Block(parse_block(cidr)?),
            ["ipam", "addresses", ip] => Key::Address(parse_ip(ip)?),
            ["ipam", "sticky", name] => Key::Sticky(unescape_part(name)?),
            ["tombstones", node] => Key::Tombstone(parse_uuid(node)?),
            ["ipam", "services", ip] => Key::ServiceIp(parse_ip(ip)?),
            ["ipam", "nodeports", port] => Key::NodePort(parse_port(port)?),
            ["services", namespace, name] => Key::Service { namespace: namespace.into(), name: name.into() },
            ["endpoints", namespace, name, source] => {
                Key::Endpoint { namespace: namespace.into(), name: name.into(), source: source.into() }
            }
            _ => return None,
        })
    }

    fn key(&self, rest: impl fmt::Display) -> String {
        format!("{}{rest}", self.root)
    }
}

/// Only the spelling that we write: one node must not stand under two keys.
fn parse_uuid(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    (uuid.hyphenated().to_string() == text).then_some(uuid)
}

/// Only the shortest spelling (RFC 5952): one address must not stand under two keys.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    (ip.to_string() == text).then_some(ip)
}

/// Only the shortest spelling of 1 to 65535.
fn parse_port(text: &str) -> Option<u16> {
    let port: u16 = text.parse().ok()?;
    (port != 0 && port.to_string() == text).then_some(port)
}

/// Only a network address with its length: one block must not stand under two keys.
fn parse_block(text: &str) -> Option<IpNet> {
    let (address, length) = text.rsplit_once('-')?;
    let cidr = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    (format!("{}-{}", cidr.network(), cidr.prefix_len()) == text).then_some(cidr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("weft").unwrap()
    }

    #[test]
    fn keys_look_as_documented() {
        let keys = keys();
        let node = Uuid::from_u128(7);
        assert_eq!(keys.config(), "/weft/v1/weft/config");
        assert_eq!(keys.node(node), "/weft/v1/weft/nodes/00000000-0000-0000-0000-000000000007");
        assert_eq!(keys.cluster_id(), "/weft/v1/weft/id");
        assert_eq!(keys.leader("dns-external"), "/weft/v1/weft/leader/dns-external");
        assert_eq!(keys.block("10.244.0.64/26".parse().unwrap()), "/weft/v1/weft/ipam/blocks/10.244.0.64-26");
        assert_eq!(keys.block("fd00::/122".parse().unwrap()), "/weft/v1/weft/ipam/blocks/fd00::-122");
        assert_eq!(keys.sticky("default/db-0"), "/weft/v1/weft/ipam/sticky/default%2fdb-0");
        assert_eq!(keys.endpoint("default", "web", "n1"), "/weft/v1/weft/endpoints/default/web/n1");
    }

    #[test]
    fn every_key_parses_back() {
        let keys = keys();
        let node = Uuid::from_u128(7);
        let attachment =
            AttachmentKey { network: "weft".into(), container_id: "c0ffee".into(), ifname: "eth0".into() };
        let block = "10.244.0.64/26".parse().unwrap();
        let ip = "fd00:10:96::a".parse().unwrap();
        let name = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let (namespace, service) = name("default", "web");
        for (text, key) in [
            (keys.config(), Key::Config),
            (keys.node(node), Key::Node(node)),
            (keys.member("laptop.example"), Key::Member("laptop.example".into())),
            (keys.alive(node), Key::Alive(node)),
            (keys.dns_link("db"), Key::DnsLink("db".into())),
            (keys.dns_record("printer.example"), Key::DnsRecord("printer.example".into())),
            (keys.dns_rewrite("old"), Key::DnsRewrite("old".into())),
            (keys.pod(node, &attachment), Key::Pod { node, attachment: attachment.clone() }),
            (keys.pool("default"), Key::Pool("default".into())),
            (keys.block(block), Key::Block(block)),
            (keys.service_ip(ip), Key::ServiceIp(ip)),
            (keys.node_port(30_080), Key::NodePort(30_080)),
            (keys.address(ip), Key::Address(ip)),
            (keys.sticky("default/db-0.x"), Key::Sticky("default/db-0.x".into())),
            (keys.tombstone(node), Key::Tombstone(node)),
            (
                keys.service("default", "web"),
                Key::Service { namespace: namespace.clone(), name: service.clone() },
            ),
            (
                keys.endpoint("default", "web", "n1"),
                Key::Endpoint { namespace, name: service, source: "n1".into() },
            ),
        ] {
            assert_eq!(keys.parse(&text), Some(key), "{text}");
        }
    }

    #[test]
    fn what_is_not_ours_or_misspelled_is_none() {
        let keys = keys();
        for text in [
            "",
            "/weft/v1/other/config",
            "/weft/v1/weft/",
            "/weft/v1/weft/config/",
            "/weft/v1/weft/health/a/b/c",
            "/weft/v1/weft/nodes/n1",
            "/weft/v1/weft/nodes/00000000000000000000000000000007",
            "/weft/v1/weft/nodes/00000000-0000-0000-0000-00000000000A",
            "/weft/v1/weft/ipam/blocks/10.244.0.65-26",
            "/weft/v1/weft/ipam/blocks/10.244.0.64-+26",
            "/weft/v1/weft/ipam/blocks/10.244.0.64-33",
            "/weft/v1/weft/ipam/services/fd00:0::1",
            "/weft/v1/weft/ipam/addresses/10.0.0.01",
            "/weft/v1/weft/ipam/nodeports/030080",
            "/weft/v1/weft/ipam/nodeports/0",
            "/weft/v1/weft/ipam/nodeports/65536",
            "/weft/v1/weft/ipam/sticky/db.0",
            "/weft/v1/weft/tombstones/n1",
            "/weft/v1/weft/services//web",
            "/weft/v1/weft/dns/records/a/b",
            "/weft/v1/weft/dns/other/a",
            "/weft/v1/weft/services/a/b/c",
        ] {
            assert_eq!(keys.parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_cluster_name_that_would_break_keys_is_refused() {
        for name in ["", "a/b", "-a", ".", "A", "ä", &"a".repeat(64)] {
            assert_eq!(Keys::new(name), Err(KeysError(name.into())), "{name}");
        }
        assert!(Keys::new("prod-1.example").is_ok());
    }
}
