// SPDX-License-Identifier: Apache-2.0
//! Starts every task and ends them in order. Nothing here touches the kernel's network: that is the agent's, after it has a
//! view of the cluster.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use ebpf_loader::{AttachMode, Datapath, OpenOptions};
use futures::FutureExt;
use futures::future::BoxFuture;
use netd_host::Host;
use netd_store::records::{ClusterConfig, decode};
use netd_store::{Etcd, EtcdConfig, FileStore, Keys, Store, Tail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::addressing::Addressing;
use crate::agent::Agent;
use crate::args::{AttachKind, ExpediteKind};
use crate::attachments::Attachments;
use crate::config::{Config, StoreConfig};
use crate::dropin::DropIn;
use crate::files::lock_state;
use crate::node::{Node, Parts};
use crate::relay::{Relay, stand_in};
use crate::settings::Settings;
use crate::task::Task;
use crate::tunnel::Tunnel;
use crate::{
    api, deferred, desired, dns, doctor, health, hold, identity, leader, lease, mtu, pins, publish, removal,
    services, snapshot, spare, status, sweep, tunnel,
};

/// The store of a host without etcd, in the state directory.
const FILE_STORE_DIR: &str = "store";
/// After this long without the store the last-known-good snapshot stands in.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(5);
/// Requests under way at SIGTERM get this long.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT. What the kernel was told stays: pods and services go on without netd.
pub(crate) async fn run(config: Config) -> Result<()> {
    tracing::info!(
        version = status::VERSION,
        cluster = config.cluster,
        node = config.node_name,
        "netd starts"
    );
    // Read once, before anything is served: a chain that cannot work is told at start, and not later.
    let drop_in = config.drop_in.as_ref().map(DropIn::new).transpose()?;
    for dir in [&config.state_dir, &config.run_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let _state = lock_state(&config.state_dir)?;
    let host = Host::open().context("cannot open a netlink socket")?;
    let (node, tail) = prepare(config, &host).await?;
    let settings = Settings::open(&node.config.state_dir)?;
    let listener = api::bind(&node).await?;
    let metrics = health::bind(&node).await?;
    let dns = dns::bind(&node)?;
    // With these ports no other netd lives in this network namespace.
    pins::take_over(&node.config.bpf_dir, &node.config.cluster, node.uuid, pins::own_netns()?)?;

    let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
    let spawn = |name, work: BoxFuture<'static, Result<()>>| Task::spawn(name, ended.clone(), work);
    let background = [
        spawn("store", tail.boxed()),
        spawn("metrics", health::serve(node.clone(), metrics).boxed()),
        spawn("agent", Agent::new(node.clone(), host.clone(), settings).run(host).boxed()),
        spawn("tunnel", tunnel::keep(node.clone()).boxed()),
        spawn("MTU probes", mtu::keep(node.clone()).boxed()),
        spawn("publish", publish::keep(node.clone()).boxed()),
        spawn("blocks", spare::keep(node.clone()).boxed()),
        spawn("sweep", sweep::keep(node.clone()).boxed()),
        spawn("lease", lease::keep(node.clone()).boxed()),
        spawn("deferred DELs", deferred::keep(node.clone()).boxed()),
        spawn("conntrack", services::keep_flows(node.clone()).boxed()),
        spawn("sockets", services::keep_sockets(node.clone()).boxed()),
        spawn("claims of services", services::keep_claims(node.clone()).boxed()),
        spawn("DNS for other nodes", dns::keep(node.clone(), stop.clone()).boxed()),
        spawn("health checks", services::keep_health_checks(node.clone()).boxed()),
        spawn("records of others", removal::keep(node.clone()).boxed()),
        spawn("names outside", dns::keep_external(node.clone()).boxed()),
        spawn("network config", keep_drop_in(node.clone(), drop_in).boxed()),
    ];
    let answer = dns::answer(node.clone(), dns, stop.clone().cancelled_owned());
    let draining = [
        spawn("api", api::serve(node.clone(), listener, stop.clone().cancelled_owned()).boxed()),
        spawn("dns", answer.boxed()),
        spawn("snapshot", snapshot::keep(node.clone(), stop.clone()).boxed()),
    ];
    let outcome = tokio::select! {
        outcome = wait_for_end() => outcome,
        () = ended.cancelled() => Err(anyhow::anyhow!("a part of netd ended (see above): stopping, to be started anew")),
    };
    tracing::info!("stopping; pods and services go on");
    stop.cancel();
    let drained = async {
        for task in draining {
            task.join().await;
        }
        leader::withdraw(&node).await;
        lease::withdraw(&node).await;
    };
    if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
        tracing::warn!(limit = ?DRAIN_LIMIT, "requests under way were cut off");
    }
    drop(background);
    let _ = std::fs::remove_file(node.config.socket());
    outcome
}

/// Identity, maps, journal, store: everything that must work before anything is served.
async fn prepare(
    config: Config,
    host: &Host,
) -> Result<(Arc<Node>, impl Future<Output = Result<()>> + use<>)> {
    ebpf_loader::probe().context("this kernel cannot carry Weft's datapath")?;
    let uuid = identity::load_or_create(&config.state_dir)?;
    let keys = Keys::new(&config.cluster)?;
    let datapath = open_datapath(&config, uuid)?;
    let netns_cookie = ebpf_loader::netns_cookie().context("cannot ask for this netns's cookie")?;
    let store_address = store_address(&config.store).await;
    let underlay = host.underlay(config.underlay_address, store_address).await?;
    tracing::info!(address = %underlay.address, device = underlay.device, mtu = underlay.mtu, reason = underlay.reason, "underlay");
    if let Some(text) = doctor::local_ports() {
        tracing::warn!("{text}");
    }
    let tunnel = Tunnel::new(tunnel::device_kind(&config).await);
    let attachments = Attachments::load(&config.state_dir).context("cannot read the attachment records")?;
    let store = connect(&config).await?;
    let clock = Arc::new(|| ipam::Timestamp(crate::node::now_ms()));
    let addressing =
        Addressing::open(&config.state_dir, uuid, config.cool_down, keys.clone(), store.clone(), clock)?;
    let (tail, from_store) = Tail::new(store.clone(), keys.root());
    let zone = &config.dns.zone;
    let (skydns_tail, skydns) = zone
        .skydns_prefix
        .as_ref()
        .map(|prefix| {
            let prefix = format!("{prefix}/");
            let (tail, states) = Tail::new(store.clone(), &prefix);
            // Where nobody asked for them, a store user who may not read them is nothing to speak of.
            (if zone.skydns_wanted { tail } else { tail.optional() }, (prefix, states))
        })
        .unzip();
    let (to_node, mirror) = watch::channel(Arc::default());
    let known = match snapshot::load(&config.state_dir, &config.cluster, zone.skydns_prefix.as_deref()) {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!("no last-known-good snapshot: {error:#}");
            None
        }
    };
    let initial = last_config(known.as_ref(), &keys).unwrap_or_else(|| desired::initial_config(&config));
    let (held, skydns_held) = (Arc::new(ArcSwapOption::default()), Arc::new(ArcSwapOption::default()));
    let (known, skydns_known) = match known {
        Some(snapshot::Known { revision, items, skydns }) => {
            (Some(stand_in(revision, items)), skydns.map(|items| stand_in(revision, items)))
        }
        None => (None, None),
    };
    let relay = Relay {
        what: "the cluster",
        from: from_store,
        to: to_node,
        known,
        after: SNAPSHOT_AFTER,
        held: held.clone(),
        kind: Box::new(hold::of_weft(keys.root())),
    };
    let (skydns, skydns_relay) = skydns
        .map(|(prefix, from)| {
            let (to, skydns) = watch::channel(Arc::default());
            let (held, kind) = (skydns_held.clone(), Box::new(hold::of_skydns(&prefix)));
            // Who looks at it knows whether the store answers.
            let (what, known, after) = ("SkyDNS records", skydns_known, Duration::ZERO);
            (skydns, Relay { what, from, to, known, after, held, kind })
        })
        .unzip();
    let skydns_follow = async move {
        match (skydns_tail, skydns_relay) {
            (Some(tail), Some(relay)) => tokio::select! {
                () = tail.run() => Ok(()),
                outcome = relay.run() => outcome,
            },
            _ => std::future::pending().await,
        }
    };
    let follow = async move {
        tokio::select! {
            () = tail.run() => Ok(()),
            outcome = skydns_follow => outcome,
            outcome = relay.run() => outcome,
        }
    };
    let node = Node::new(Parts {
        config,
        uuid,
        keys,
        store,
        mirror,
        skydns,
        skydns_held,
        held,
        initial,
        underlay,
        store_address,
        addressing,
        attachments,
        datapath,
        netns_cookie,
        tunnel,
    });
    Ok((Arc::new(node), follow))
}

/// The cluster's configuration as the snapshot has it.
fn last_config(known: Option<&snapshot::Known>, keys: &Keys) -> Option<ClusterConfig> {
    let item = known?.items.get(&keys.config())?;
    decode(&item.key, &item.value).ok()
}

fn open_datapath(config: &Config, uuid: uuid::Uuid) -> Result<Datapath> {
    let pin_dir = Node::pin_dir(config, uuid);
    ebpf_loader::ensure_bpffs(&config.bpf_dir)?;
    let cgroup_root = match &config.cgroup_root {
        Some(root) => root.clone(),
        None => ebpf_loader::cgroup2_mount()?,
    };
    let attach = match config.datapath_attach {
        AttachKind::Auto => AttachMode::Auto,
        AttachKind::Clsact => AttachMode::Clsact,
        AttachKind::Tcx => AttachMode::Tcx,
    };
    if let Err(error) = ebpf_loader::settle_expedited() {
        tracing::warn!(%error, "/sys/kernel/rcu_expedited: what a killed netd left there stays until the next ADD");
    }
    let sizes = services::map_sizes(&config.services, memory_bytes());
    let mut datapath = Datapath::open(OpenOptions { pin_dir, cgroup_root, attach, sizes })
        .context("cannot open the BPF datapath")?;
    datapath.expedite(config.datapath_expedite == ExpediteKind::Auto);
    Ok(datapath)
}

/// Of this machine; where it cannot be read, maps are made for a small one.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}

async fn connect(config: &Config) -> Result<Arc<dyn Store>> {
    let state_dir = &config.state_dir;
    let Some(etcd) = etcd_config(&config.store) else {
        let dir = state_dir.join(FILE_STORE_DIR);
        tracing::info!(dir = %dir.display(), "no store-endpoints: the store is a file of this host");
        return Ok(Arc::new(FileStore::open(&dir).context("cannot open the store on disk")?));
    };
    Ok(Arc::new(Etcd::connect(etcd).await.context("the store's configuration cannot work")?))
}

/// How etcd is reached; `None`: the store is a file.
pub(crate) fn etcd_config(config: &StoreConfig) -> Option<EtcdConfig> {
    (!config.endpoints.is_empty()).then(|| EtcdConfig {
        endpoints: config.endpoints.clone(),
        user: config.user.clone(),
        password: config.password.clone(),
        ca_file: config.ca.clone(),
        cert_file: config.cert.clone(),
        key_file: config.key.clone(),
        ..EtcdConfig::default()
    })
}

/// The network config for the container runtime, there while this node can serve an ADD.
async fn keep_drop_in(node: Arc<Node>, drop_in: Option<DropIn>) -> Result<()> {
    let Some(drop_in) = drop_in else { return std::future::pending().await };
    let live = move || status::not_ready_reasons(&node).is_empty();
    drop_in.keep(live).await;
    Ok(())
}

/// Address of the first store endpoint, for the choice of the underlay; names are looked up once.
async fn store_address(config: &StoreConfig) -> Option<IpAddr> {
    let url = config.endpoints.first()?;
    let authority = url.split_once("://")?.1.split('/').next()?;
    let mut found = tokio::net::lookup_host(authority).await.ok()?;
    found.next().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

async fn wait_for_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => tracing::warn!("SIGHUP: this version reads its configuration at start only; restart netd (pods keep their network)"),
        }
    }
}
