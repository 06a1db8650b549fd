// SPDX-License-Identifier: Apache-2.0
//! The node's DNS server: what it is made of, and how its sockets outlive netd.

mod check;
mod external;
mod hold;
mod others;
mod outside;
mod query;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use dns_server::{
    DnsConfig, DnsServer, ForwardConfig, Further, StubZone, TlsListen, UpstreamConfig, UpstreamTls,
    server_tls,
};

use crate::config::{Config, DnsOptions, UpstreamOption};
use crate::desired;
use crate::node::Node;

pub(crate) use check::check;
pub(crate) use external::{External, check_annotations, keep as keep_external};
pub(crate) use hold::{hold_sockets, release as release_sockets};
pub(crate) use others::{addresses, keep, servers as other_servers};
pub(crate) use outside::check_outside;
pub(crate) use query::{query, questions};

/// The port of DNS over TLS (RFC 7858).
const TLS_PORT: u16 = 853;
/// Questions wait in the sockets while netd starts: an answer a moment later is worth more than SERVFAIL at once. Without the store's
/// answer for so long, who asks is to know, and may ask another server.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// Takes the sockets that were held while netd was away, or binds new ones; then has them held.
pub(crate) fn bind(node: &Node) -> Result<DnsServer> {
    let config = &node.config;
    let options = &config.dns;
    let addresses: Vec<SocketAddr> =
        config.dns_addresses.iter().map(|ip| SocketAddr::new(*ip, desired::DNS_PORT)).collect();
    // Until the store has said which networks are the pods'.
    let pods = node.initial.pools.iter().map(|pool| pool.cidr).collect();
    node.dns_clients.store(Arc::new(desired::dns_clients(node, pods)));
    let server = DnsServer::bind(
        DnsConfig {
            addresses,
            further: Some(Further { wanted: node.dns_wanted.subscribe(), bound: node.dns_bound.clone() }),
            tls: tls(options, &config.dns_addresses)?,
            workers: options.workers,
            clients: node.dns_clients.clone(),
            zone: node.zone.clone(),
            forward: forward(config)?,
            answers_per_second: options.answers_per_second,
            query_log_every: options.query_log_every,
            stats: node.dns_stats.clone(),
            ..DnsConfig::default()
        },
        hold::take(config),
    )?;
    hold::keep(config, &server);
    Ok(server)
}

/// Answers until `shutdown` resolves, from the first zone on.
pub(crate) async fn answer(
    node: Arc<Node>,
    server: DnsServer,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    tokio::pin!(shutdown);
    let mut zoned = node.zoned.subscribe();
    tokio::select! {
        _ = tokio::time::timeout(START_PATIENCE, zoned.wait_for(|zoned| *zoned)) => {}
        () = &mut shutdown => return Ok(()),
    }
    Ok(server.run(shutdown).await?)
}

/// What [`bind`] reads from files, without binding anything.
///
/// # Errors
/// Of our own certificate, then of other servers: a file that cannot be read, or does not hold what it should.
pub(crate) fn check_files(config: &Config) -> [Result<()>; 2] {
    [tls(&config.dns, &config.dns_addresses).map(drop), forward(config).map(drop)]
}

fn forward(config: &Config) -> Result<ForwardConfig> {
    let cluster = desired::initial_config(config);
    let own: Vec<IpAddr> = config.dns_addresses.iter().copied().chain(cluster.dns_vips()).collect();
    let options = &config.dns;
    let upstreams = match &options.upstreams {
        Some(upstreams) => servers(upstreams, options)?,
        None => {
            let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            dns_server::nameservers(&text, &own).into_iter().map(UpstreamConfig::from).collect()
        }
    };
    if upstreams.is_empty() {
        tracing::warn!(
            "no DNS upstream in /etc/resolv.conf: names outside the cluster are refused; see --dns-upstreams"
        );
    }
    let mut stubs = Vec::new();
    for (zone, upstreams) in &options.stubs {
        stubs.push(StubZone { zone: dns_zone::Name::parse(zone)?, upstreams: servers(upstreams, options)? });
    }
    Ok(ForwardConfig {
        upstreams,
        stubs,
        own_addresses: own,
        cache_bytes: options.cache_bytes,
        ..ForwardConfig::default()
    })
}

fn servers(upstreams: &[UpstreamOption], options: &DnsOptions) -> Result<Vec<UpstreamConfig>> {
    upstreams.iter().map(|upstream| server(upstream, options)).collect()
}

fn server(upstream: &UpstreamOption, options: &DnsOptions) -> Result<UpstreamConfig> {
    let Some(name) = &upstream.tls_name else { return Ok(upstream.address.into()) };
    let path = &options.upstream_ca;
    let roots = std::fs::read(path).with_context(|| {
        format!("dns-upstream-ca: cannot read {} (Debian: ca-certificates)", path.display())
    })?;
    let tls =
        UpstreamTls::new(name, &roots).with_context(|| format!("dns-upstream-ca: {}", path.display()))?;
    Ok(UpstreamConfig { address: upstream.address, tls: Some(tls) })
}

fn tls(options: &DnsOptions, addresses: &[IpAddr]) -> Result<Vec<TlsListen>> {
    let Some((cert, key)) = &options.tls else { return Ok(Vec::new()) };
    let chain =
        std::fs::read(cert).with_context(|| format!("dns-tls-cert: cannot read {}", cert.display()))?;
    let secret = std::fs::read(key).with_context(|| format!("dns-tls-key: cannot read {}", key.display()))?;
    let config = server_tls(&chain, &secret)
        .with_context(|| format!("dns-tls-cert: {} with {}", cert.display(), key.display()))?;
    let listen = |ip: &IpAddr| TlsListen { address: SocketAddr::new(*ip, TLS_PORT), config: config.clone() };
    Ok(addresses.iter().map(listen).collect())
}
