// SPDX-License-Identifier: Apache-2.0
//! WireGuard on this node: keys, devices, peers. A task of its own, because a device may answer late or not at all, and the
//! agent's pass must not wait for it.
//!
//! Each round: what the store says of peers and what the devices say of handshakes go into the pure plan of key generations;
//! keys are dropped and made as it says, the devices configured, and what came of it is shown to the agent (routes), the
//! publisher (this node's record) and status. Peers stand in the devices before routes lead to them.

mod devices;
mod hearing;
mod keys;
mod members;
mod outcome;
mod peers;
mod rotate;
mod speech;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use netd_plan::links::WIREGUARD_DEVICES;
use netd_plan::{GenerationInput, GenerationPlan, Generations, PeerGenerations, wireguard_port};
use netd_store::records::OverlayBackend;
use netd_wireguard::{Device as _, DeviceChange, DeviceConfig, DeviceKind, PresharedKey, UserDevice};

pub(crate) use rotate::{look, rotate};
pub(crate) use state::{ListeningKey, MemberLink, PeerLink, Tunnel, TunnelState};

use crate::args::WireguardKind;
use crate::config::Config;
use crate::node::{Node, monotonic_ms, now_ms};
use crate::view::View;
use devices::{Devices, Moment, handshakes};
use keys::{KeyFiles, OwnKey};
use members::{Member, members, reached_by};
use outcome::outcome;
use peers::{Peer, peers};
use rotate::no_new_key;
use speech::SPEAK_EVERY;

/// While nothing moves: how old the handshakes and rates in status may be.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// While peers move to a new key or backend, or a device is missing.
const LOOK_SOON: Duration = Duration::from_millis(250);

/// A key goes when no route leads over it any more, or after this: a route that cannot be changed keeps no key.
const ROUTES_MOVE_MAX_MS: u64 = 3_000;

/// Where this node's WireGuard devices run.
pub(crate) async fn device_kind(config: &Config) -> DeviceKind {
    match config.wireguard_device {
        WireguardKind::Kernel => DeviceKind::Kernel,
        WireguardKind::User => DeviceKind::User,
        WireguardKind::Auto => match netd_wireguard::kernel_has_wireguard().await {
            Ok(true) => DeviceKind::Kernel,
            Ok(false) => DeviceKind::User,
            Err(error) => {
                tracing::info!(%error, "whether the kernel has WireGuard is not known: weft-wireguard is used");
                DeviceKind::User
            }
        },
    }
}

/// `netd clean`: devices that nobody runs any more go. A weft-wireguard that runs keeps its own, without keys and peers:
/// these are added to `kept`.
pub(crate) async fn clean(config: &Config, kept: &mut Vec<String>) -> Result<()> {
    for name in WIREGUARD_DEVICES {
        let device = UserDevice::new(&config.wireguard_socket_dir, name);
        let silent = DeviceChange { private_key: Some(None), replace_peers: true, ..DeviceChange::default() };
        match device.apply(&silent).await {
            Ok(()) => kept.push(name.to_owned()),
            Err(error) if error.is_absent() => netd_host::Host::open()?.delete_device(name).await?,
            Err(error) => anyhow::bail!("{name} stays: {error}; stop weft-wireguard, then try again"),
        }
    }
    Ok(())
}

/// Keeps keys and devices; runs until aborted.
pub(crate) async fn keep(node: Arc<Node>) -> Result<()> {
    let files = KeyFiles::open(&node.config.state_dir)?;
    let psk = node.config.wireguard_psk.clone();
    let mut keeper = Keeper {
        keys: files.load()?,
        files,
        psk,
        devices: Devices::new(&node.config, node.tunnel.kind),
        generations: Generations::default(),
        to_be_seen: false,
        published: BTreeMap::new(),
        leaving: None,
    };
    let mut pause = LOOK_SOON;
    loop {
        tokio::select! {
            () = node.tunnel.wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let view = node.view.load_full();
        if view.revision == 0 {
            continue;
        }
        pause = keeper.round(&node, &view).await;
        if node.tunnel.is_to_speak() {
            pause = pause.min(SPEAK_EVERY);
        }
        node.tunnel.rounds.send_modify(|rounds| *rounds += 1);
    }
}

struct Keeper {
    files: KeyFiles,
    keys: Vec<OwnKey>,
    psk: Option<PresharedKey>,
    devices: Devices,
    generations: Generations,
    /// The devices may hold something of ours since the last round.
    to_be_seen: bool,
    /// Since when this node's record has had a generation while the store answered, in milliseconds of [`monotonic_ms`].
    published: BTreeMap<u64, u64>,
    leaving: Option<Leaving>,
}

/// A key that goes once routes lead elsewhere.
struct Leaving {
    generation: u64,
    /// The routes that the agent makes for this change lead elsewhere; `None` until it was told.
    change: Option<u64>,
    /// It goes then all the same, by [`monotonic_ms`].
    until_ms: u64,
}

impl Keeper {
    /// One round; returns when the next is due.
    async fn round(&mut self, node: &Arc<Node>, view: &View) -> Duration {
        let now = now_ms();
        let last = node.tunnel.state.load_full();
        let mut state = TunnelState { looked: true, ..TunnelState::default() };
        let used = is_used(node, view);
        if !used {
            node.tunnel.end_speech();
        }
        if !used && !self.to_be_seen && last.looked {
            return LOOK_EVERY;
        }
        // Both devices: a key that was dropped must leave its device, too.
        for (slot, error) in self.devices.read(Moment { wall_ms: now, uptime_ms: monotonic_ms() }).await {
            let has_key = self.keys.iter().any(|key| key.generation % 2 == slot);
            // There may be no device where none is needed; one that does not answer may hold a key all the same.
            if !error.is_absent() || (used && has_key) {
                state.errors.push(error.to_string());
            }
        }
        let known = peers(node, view);
        let links = self.links(&known);
        // What the store said last is enough to go on with, and not to let go or to begin anything: peers
        // would not hear of it.
        let in_touch = view.in_sync && node.mirror.borrow().connected;
        self.note_published(node, view, in_touch);
        if used {
            state.plan = self.decide(node, view, (&heard(&known, &links), in_touch), now, &mut state.errors);
            state.generations = self.keys.iter().map(|key| key.generation).collect();
        }
        let members = members(view);
        self.configure(node, view, (&known, &members), &mut state, used).await;
        if used {
            self.speak(node, &mut state.errors).await;
        }
        state.answers = self.keys.iter().any(|key| self.devices.answers(key.generation));
        state.dead = [0, 1].map(|slot| self.devices.dead(slot));
        self.keep_listening(node, view, &last, &mut state);
        if used {
            state.peers = self.links(&known);
            state.members = self.member_links(&members);
        }
        let awaited = node.overlay.load().plan.peers.values().any(|choice| choice.keepalive);
        let outcome = outcome(&last, &state, (used, awaited), now);
        self.to_be_seen = outcome.to_be_seen;
        for error in state.errors.iter().filter(|error| !last.errors.contains(error)) {
            tracing::warn!("WireGuard: {error}");
        }
        node.tunnel.state.store(Arc::new(state));
        let untold = self.leaving.as_mut().filter(|leaving| leaving.change.is_none());
        if outcome.changed || untold.is_some() {
            let change = node.changed();
            if let Some(leaving) = untold {
                leaving.change = Some(change);
            }
        }
        if outcome.soon { LOOK_SOON } else { LOOK_EVERY }
    }

    /// Keys dropped and made, as the plan of generations says.
    fn decide(
        &mut self,
        node: &Node,
        view: &View,
        (peers, in_touch): (&[PeerGenerations], bool),
        now: u64,
        errors: &mut Vec<String>,
    ) -> GenerationPlan {
        let mut plan = GenerationPlan::default();
        // A dropped key makes room for a new one, and a new one may at once be of use: twice, and a bound.
        for _ in 0..4 {
            let rotate = node.tunnel.take_rotate();
            plan = self.step(node, view, (peers.to_vec(), in_touch), now, rotate);
            // What takes the place of a key that goes waits with it.
            if !self.may_go(node, plan.drop) || (plan.drop.is_none() && plan.make.is_none()) {
                break;
            }
            // The first key comes before its device may; a further one that cannot come into use is not begun.
            let dead = plan.make.filter(|_| plan.drop.is_none() && !self.keys.is_empty());
            if let Some(why) = dead.and_then(|made| Some(no_new_key(made, &self.devices.dead(made)?))) {
                if rotate {
                    node.tunnel.refused.store(Some(Arc::new(why.clone())));
                }
                errors.push(why);
                plan.make = None;
                break;
            }
            let done = (|| {
                if let Some(generation) = plan.drop {
                    self.files.remove(generation)?;
                    tracing::info!(generation, "WireGuard key dropped");
                }
                if let Some(generation) = plan.make {
                    self.files.make(generation)?;
                    tracing::info!(generation, "WireGuard key made");
                }
                self.keys = self.files.load()?;
                anyhow::Ok(())
            })();
            if let Err(error) = done {
                errors.push(format!("{error:#}"));
                break;
            }
        }
        plan
    }

    /// Whether the key that is to go may do so now. The plan leads no path over it any more; routes follow in the agent's
    /// next pass, and until then its device keeps key and peers.
    fn may_go(&mut self, node: &Node, gone: Option<u64>) -> bool {
        let Some(gone) = gone else {
            self.leaving = None;
            return true;
        };
        let Some(leaving) = self.leaving.as_ref().filter(|leaving| leaving.generation == gone) else {
            let until_ms = monotonic_ms() + ROUTES_MOVE_MAX_MS;
            self.leaving = Some(Leaving { generation: gone, change: None, until_ms });
            return false;
        };
        let routed = leaving.change.is_some_and(|change| *node.programmed.borrow() >= change);
        let may = routed || monotonic_ms() >= leaving.until_ms;
        if may {
            self.leaving = None;
        }
        may
    }

    fn step(
        &mut self,
        node: &Node,
        view: &View,
        (peers, in_touch): (Vec<PeerGenerations>, bool),
        now: u64,
        rotate: bool,
    ) -> GenerationPlan {
        let newest = self.keys.last().map(|key| key.generation);
        let input = GenerationInput {
            own: self.keys.iter().map(|key| (key.generation, key.made_ms)).collect(),
            peers,
            rotate,
            rotation_ms: view.config.key_rotation_secs.map(|secs| secs.saturating_mul(1_000)),
            deadline_ms: netd_plan::generation::ROTATION_DEADLINE_MS,
            in_touch,
            told_ms: newest.and_then(|newest| self.published.get(&newest).copied()),
            uptime_ms: monotonic_ms(),
        };
        let plan = self.generations.step(&input, now);
        if let Some(refused) = &plan.refused {
            node.tunnel.refused.store(Some(Arc::new(refused.to_string())));
        }
        plan
    }

    /// Since when peers can read which of this node's keys, as far as this netd has seen. Their time begins anew when the
    /// store is back: they may have been without it, too.
    fn note_published(&mut self, node: &Node, view: &View, in_touch: bool) {
        let record = view.nodes.get(&node.uuid).and_then(|record| record.wireguard.as_ref());
        let in_record: Vec<u64> = match record.filter(|_| in_touch) {
            Some(record) => record.keys.iter().map(|key| key.generation).collect(),
            None => Vec::new(),
        };
        self.published.retain(|generation, _| in_record.contains(generation));
        for generation in in_record {
            self.published.entry(generation).or_insert_with(monotonic_ms);
        }
    }

    /// A device that does not answer has not gone: its TUN and the routes into it stay, and peers need not hear of it. Its
    /// key is left out once it is dropped, or where no peer was ever told of it.
    fn keep_listening(&self, node: &Node, view: &View, last: &TunnelState, state: &mut TunnelState) {
        let record = view.nodes.get(&node.uuid).and_then(|record| record.wireguard.as_ref());
        for key in self.keys.iter().filter(|key| state.generations.contains(&key.generation)) {
            let (generation, public) = (key.generation, key.private.public());
            if state.keys.iter().any(|known| known.generation == generation)
                || self.devices.answers(generation)
            {
                continue;
            }
            let before =
                last.keys.iter().find(|known| known.generation == generation && known.public == public);
            let told = record.and_then(|record| {
                let same = |known: &&netd_store::records::WireguardKeyRecord| {
                    known.generation == generation && known.public_key == public.to_string()
                };
                record.keys.iter().find(same).map(|known| ListeningKey {
                    generation,
                    public,
                    port: known.port,
                })
            });
            state.keys.extend(before.cloned().or(told));
        }
        state.keys.sort_by_key(|key| key.generation);
    }

    async fn configure(
        &mut self,
        node: &Node,
        view: &View,
        (known, members): (&[Peer], &[Member]),
        state: &mut TunnelState,
        used: bool,
    ) {
        let overlay = node.overlay.load_full();
        let keepalive_secs = node.config.wireguard_keepalive_secs;
        let leaving = self.leaving.as_ref().map(|leaving| leaving.generation);
        for slot in [0, 1] {
            let key = self.keys.iter().find(|key| used && key.generation % 2 == slot).cloned();
            let mut wish = DeviceConfig::default();
            if let Some(key) = &key {
                wish.private_key = Some(key.private.clone());
                wish.listen_port = Some(wireguard_port(view.config.wireguard_port, key.generation));
                let moving = |peer: &Peer| {
                    state
                        .plan
                        .peers
                        .get(&peer.uuid)
                        .is_some_and(|plan| plan.keepalive == Some(key.generation))
                        || overlay.plan.peers.get(&peer.uuid).is_some_and(|choice| choice.keepalive)
                };
                wish.peers = known
                    .iter()
                    .filter(|peer| {
                        let common = state.plan.peers.get(&peer.uuid).map(|plan| &plan.common);
                        leaving == Some(key.generation)
                            || common.is_some_and(|common| common.contains(&key.generation))
                    })
                    .filter_map(|peer| {
                        peer.wish(key.generation, self.psk.as_ref(), keepalive_secs, moving(peer))
                    })
                    .collect();
                for (public, config) in members.iter().map(Member::wish) {
                    // A node's key is the node's, whatever a member's record says.
                    wish.peers.entry(public).or_insert(config);
                }
            }
            // Until the store is read nothing is taken away: a device that has its key and peers stays as it is.
            if !view.in_sync
                && key.as_ref().is_some_and(|key| self.devices.serves(slot, &key.private.public()))
            {
                wish = self.devices.only_adding(slot, wish);
            }
            if let Err(error) = self.devices.apply(slot, &wish).await {
                state.errors.push(error.to_string());
                continue;
            }
            let listening = self.devices.listening(slot);
            if let (Some(key), Some((public, port))) = (key, listening)
                && public == key.private.public()
            {
                state.keys.push(ListeningKey { generation: key.generation, public, port });
            }
        }
        state.keys.sort_by_key(|key| key.generation);
    }

    /// A packet to every peer, where this node got another address of late.
    async fn speak(&mut self, node: &Node, errors: &mut Vec<String>) {
        if !node.tunnel.take_speech() {
            return;
        }
        let mut spoke = false;
        for generation in self.keys.iter().map(|key| key.generation) {
            match self.devices.speak(generation).await {
                Ok(took) => spoke |= took,
                Err(error) => errors.push(error.to_string()),
            }
        }
        if spoke {
            node.tunnel.spoke();
            // Nobody answers such a packet, and the peers' own keepalives wait all the longer for it: a question tells at once
            // who is still heard.
            node.probe_wake.notify_one();
        }
    }

    fn links(&mut self, known: &[Peer]) -> BTreeMap<uuid::Uuid, Vec<PeerLink>> {
        let generations: Vec<u64> = self.keys.iter().map(|key| key.generation).collect();
        let of = |devices: &mut Devices, peer: &Peer| -> Vec<PeerLink> {
            let link = |generation: &u64| devices.peer(*generation, &peer.keys.get(generation)?.public);
            generations.iter().filter_map(link).collect()
        };
        known.iter().map(|peer| (peer.uuid, of(&mut self.devices, peer))).collect()
    }

    /// Members that stand in a device.
    fn member_links(&mut self, members: &[Member]) -> BTreeMap<String, MemberLink> {
        let generations: Vec<u64> = self.keys.iter().map(|key| key.generation).collect();
        let link = |member: &Member| {
            let at = |generation: &u64| self.devices.peer(*generation, &member.public);
            let links: Vec<PeerLink> = generations.iter().filter_map(at).collect();
            Some((member.name.clone(), MemberLink { generation: reached_by(&links)?, links }))
        };
        members.iter().filter_map(link).collect()
    }
}

/// Whether WireGuard is the cluster's overlay, or still of use while it changes to another.
fn is_used(node: &Node, view: &View) -> bool {
    let wanted = matches!(view.config.overlay, OverlayBackend::Wireguard | OverlayBackend::Auto);
    wanted
        || node.overlay.load().keeps(netd_plan::BackendKind::Wireguard)
        || crate::overlay::offered_before(node, view, netd_plan::BackendKind::Wireguard)
}

/// What the plan of generations needs to know of the peers.
fn heard(known: &[Peer], links: &BTreeMap<uuid::Uuid, Vec<PeerLink>>) -> Vec<PeerGenerations> {
    let of = |peer: &Peer| links.get(&peer.uuid).map(|links| handshakes(links)).unwrap_or_default();
    known.iter().map(|peer| peer.generations(of(peer))).collect()
}
