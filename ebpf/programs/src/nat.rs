// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Flows that begin: which backend, and from which address and port the backend is asked.
//!
//! | who asks | backend | source address | source port |
//! | --- | --- | --- | --- |
//! | a pod | another | the pod's | another (below 1024: the same, if it is free) |
//! | a pod | the pod itself | this node's in the overlay | another |
//! | the world | of this node | the client's | the same, if it is free |
//! | the world | elsewhere | this node's | another |
//! | the world | elsewhere, direct server return | the client's: wrapped, not translated | the same |
//!
//! What is free is decided by the entry that the answers are found by: it is inserted where there is none. A pod's own
//! connections past the services do not have one unless their source port is one that we give out (or below 1024), and these
//! have a marker: so both kinds may go on beside each other, whatever their ports.

use ebpf_abi::{
    Address, Counter, CtState, CtValue, DropReason, EndpointKey, FlowKey, FrontendKey, PROTO_TCP, PROTO_UDP,
    address::{is_ipv4, is_unspecified},
    conntrack::{CT_ALONE, CT_DIRECT, CT_SOURCE, CT_UNWRAPPED, CT_WORLD, CT_WRAPPED},
    hash::hash_flow,
    node::{ADDRESS_OWN, CONFIG_MIGRATING},
    service::{
        SCOPE_DSR, SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_AGENT_SILENT, SERVICE_DSR, SERVICE_FAULT_DROP,
        SERVICE_FAULT_RESET,
    },
};

use crate::{
    ct::{self, Found},
    ct_maps::{self, Entry, Inserted},
    maps::{self, Backend},
    packet::{Packet, difference, now_secs},
    route::{self, random},
    scratch::{Scratch, Search, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    service::{self, Chance, Choice},
    uplink,
};

/// Source ports that are tried: first here and there, then one after the other. With half of the range taken the first eight fail
/// once in 256 times.
const ATTEMPTS: u32 = 32;
/// Of these here and there.
const ATTEMPTS_APART: u32 = 8;
/// Changes the seed of the hash that decides about faults: whom they befall has nothing to do with the backend.
const FAULT_SEED: u32 = 0x6661_756c;
/// Ports below this one say that a privileged process asks (NFS believes it); they are kept.
const PRIVILEGED: u16 = 1024;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Asker {
    /// A pod of this node.
    Pod,
    /// Somebody behind the uplink.
    World,
    /// The same, wrapped by another node.
    Node,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Begun {
    /// Not for a service.
    Nothing,
    /// A flow; [`Scratch::value`] is its entry.
    Flow,
    /// To be refused.
    Refuse,
    /// To be dropped.
    Empty,
    /// See [`Begun::Empty`]: from outside of the source ranges.
    SourceRange,
    /// See [`Begun::Empty`]: no source port.
    Ports,
    /// See [`Begun::Empty`]: no room.
    Full,
    /// See [`Begun::Empty`]: wrapped, but not for a backend here.
    Stray,
    /// See [`Begun::Empty`]: the end of a connection that nobody knows.
    Late,
    /// See [`Begun::Empty`]: of a connection that is not known yet.
    Migrating,
    /// See [`Begun::Empty`]: by an injected fault.
    Fault,
}

impl Begun {
    /// Why the packet is dropped, when it is.
    #[inline(always)]
    pub(crate) fn reason(self) -> DropReason {
        match self {
            Self::SourceRange => DropReason::SourceRange,
            Self::Ports => DropReason::SnatPorts,
            Self::Full => DropReason::ConntrackFull,
            Self::Stray => DropReason::DsrSender,
            Self::Late => DropReason::NoBackend,
            Self::Migrating => DropReason::Migrating,
            Self::Fault => DropReason::Fault,
            _ => DropReason::ServiceEmpty,
        }
    }
}

/// Begins a flow to the frontend in [`Scratch::key`], if it is one.
#[inline(always)]
pub(crate) fn begin(packet: &Packet, s: &mut Scratch, asker: Asker) -> Begun {
    let found = match asker {
        Asker::Pod => frontend(s, SCOPE_INTERNAL),
        // What only the inside asks (ClusterIPs) is not there for the world, whoever routes it here.
        Asker::World => frontend(s, SCOPE_EXTERNAL),
        Asker::Node => frontend(s, SCOPE_DSR),
    };
    match (found, asker) {
        // The host's own: an answer to a connection of its own, or of a pod's that was masqueraded; or of one to a server of netd
        // itself, from before netd was silent. The stack knows, or resets.
        (true, Asker::Pod | Asker::World)
            if !may_begin(s)
                && (maps::node_address(&s.key.dst) & ADDRESS_OWN != 0
                    || s.service.flags & SERVICE_AGENT_SILENT != 0) =>
        {
            if is_migrating() {
                Begun::Migrating
            } else {
                Begun::Nothing
            }
        }
        (true, Asker::World) if !uplink::leads_back(packet, s) => Begun::Nothing,
        (true, _) => choose(packet, s, asker),
        (false, Asker::Node) => Begun::Stray,
        (false, _) => Begun::Nothing,
    }
}

/// Whether the packet may be the first one of a flow.
#[inline(always)]
pub(crate) fn may_begin(s: &Scratch) -> bool {
    s.key.proto != PROTO_TCP || s.view.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
}

/// Chooses a backend for the frontend in [`Scratch::service`].
#[inline(never)]
fn choose(packet: &Packet, s: &mut Scratch, asker: Asker) -> Begun {
    s.value.service_id = s.service.service_id;
    let Some(config) = maps::config() else { return Begun::Nothing };
    let key = &s.key;
    let hash = hash_flow(&key.src, &key.dst, key.sport, key.dport, key.proto, config.hash_seed());
    match service::pick(&s.service, &s.key.src, Chance::Hash(hash)) {
        Choice::Refuse => Begun::Refuse,
        Choice::Drop(DropReason::SourceRange) => Begun::SourceRange,
        Choice::Drop(_) => Begun::Empty,
        // With direct server return every node chooses the same backend, which goes on where another node was asked before.
        Choice::Forward { .. }
            if !may_begin(s) && asker != Asker::Node && s.service.flags & SERVICE_DSR == 0 =>
        {
            match (is_migrating(), s.has_tcp(TCP_RST)) {
                (true, _) => Begun::Migrating,
                (false, true) => Begun::Late,
                (false, false) => Begun::Refuse,
            }
        }
        Choice::Forward { backend_id, backend } => {
            let fault = fault(packet, s, asker);
            if fault != Begun::Nothing {
                return fault;
            }
            if s.has_tcp(TCP_SYN) && ct::stays(s, backend_id) {
                maps::count_connection(s.value.service_id);
                return Begun::Flow;
            }
            let now = now_secs();
            propose(s, backend_id, backend, now);
            if is_ipv4(&s.value.dst) != is_ipv4(&s.key.dst) {
                return Begun::Refuse;
            }
            match source(s, asker, backend) {
                Source::Kept => enter(s, true, now),
                Source::Moved => enter(s, false, now),
                Source::Stray => Begun::Stray,
                Source::Unknown => {
                    maps::count(Counter::NoRoute);
                    Begun::Refuse
                }
            }
        }
    }
}

/// What an injected fault does to the packet; nothing where it is spared. The other node has decided about what it has wrapped.
#[inline(never)]
fn fault(packet: &Packet, s: &mut Scratch, asker: Asker) -> Begun {
    let faults = s.service.flags & (SERVICE_FAULT_RESET | SERVICE_FAULT_DROP);
    if faults == 0 || asker == Asker::Node || !may_begin(s) {
        return Begun::Nothing;
    }
    let key = &s.key;
    if faults & SERVICE_FAULT_DROP != 0 && asker == Asker::Pod {
        // Its socket's connect was decided about already, and left untranslated so that it ends here.
        let cookie = packet.socket();
        let doomed = FlowKey { cookie, addr: key.dst, port: key.dport, proto: key.proto, pad: [0; 5] };
        if cookie != 0 && maps::flow(&doomed).is_some() {
            return Begun::Fault;
        }
    }
    let seed = maps::config().map_or(0, |config| config.hash_seed()) ^ FAULT_SEED;
    let hash = hash_flow(&key.src, &key.dst, key.sport, key.dport, key.proto, seed);
    if !service::is_befallen(&s.service, &s.key.src, hash) {
        return Begun::Nothing;
    }
    if faults & SERVICE_FAULT_RESET != 0 {
        return Begun::Refuse;
    }
    maps::count_refusal(s.service.service_id);
    Begun::Fault
}

/// Whether flows are on their way from maps of another size.
#[inline(always)]
fn is_migrating() -> bool {
    maps::config().is_some_and(|config| config.flags() & CONFIG_MIGRATING != 0)
}

/// Whether the packet, of no flow that is known, may be an answer in one that is still in maps of another size: from a backend, to a
/// port that we give out. As it is it would end the connection at the one who asked.
#[inline(always)]
pub(crate) fn is_lost_answer(s: &Scratch) -> bool {
    s.key.proto == PROTO_TCP && is_migrating() && is_to_source_port(s)
}

#[inline(never)]
fn is_to_source_port(s: &Scratch) -> bool {
    let (first, last) = maps::config().map_or((0, 0), |config| config.source_ports());
    let port = u16::from_be_bytes(s.key.dport);
    let endpoint = EndpointKey { addr: s.key.src, port: s.key.sport, proto: s.key.proto, pad: 0 };
    first <= port && port <= last && maps::is_backend(&endpoint)
}

/// Whether anything at all answers at the address that the packet is for; asked about packets without ports.
#[inline(never)]
pub(crate) fn is_frontend(s: &mut Scratch) -> bool {
    frontend(s, SCOPE_INTERNAL) || frontend(s, SCOPE_EXTERNAL)
}

/// Whether the packet may begin a flow that needs a marker when it goes to a backend directly.
#[inline(always)]
pub(crate) fn may_need_marker(s: &Scratch, asker: Asker) -> bool {
    let begins = match s.key.proto {
        PROTO_TCP => s.view.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
        PROTO_UDP => true,
        _ => false,
    };
    begins
        && (asker != Asker::Pod
            || maps::config()
                .is_some_and(|config| u16::from_be_bytes(s.key.sport) <= config.source_ports().1))
}

/// A packet to a backend, past the services: its flow gets a marker, and where a translated flow has its ports it gets another one.
#[inline(never)]
pub(crate) fn mark_direct(packet: &Packet, s: &mut Scratch, asker: Asker) -> Found {
    let endpoint = EndpointKey { addr: s.key.dst, port: s.key.dport, proto: s.key.proto, pad: 0 };
    // Who does not speak from outside is the stack's to drop.
    if !maps::is_backend(&endpoint) || (asker != Asker::Pod && !uplink::leads_back(packet, s)) {
        return Found::Nothing;
    }
    let now = now_secs();
    s.value = CtValue {
        src: s.key.src,
        dst: s.key.dst,
        sport: s.key.sport,
        dport: s.key.dport,
        difference: 0,
        service_id: 0,
        backend_id: 0,
        node: 0,
        began_secs: now,
        seen_secs: now,
        state: CtState::New.number(),
        flags: CT_DIRECT | CT_ALONE,
        pad: [0; 2],
    };
    ct::mirror(s);
    // It has one already, which the other side's packets keep alive. That of a connection that is over becomes this one's.
    if let Some(marker) = ct_maps::fresh(&s.peer_key)
        && marker.flags() & (CT_DIRECT | CT_ALONE) == CT_DIRECT | CT_ALONE
        && !marker.is_over()
        && !marker.is_free(s.key.proto, now)
    {
        return Found::Plain;
    }
    match claim(s, now, true) {
        Inserted::Yes => {
            ct_maps::activate();
            Found::Plain
        }
        Inserted::Full => {
            maps::count(Counter::CtFull);
            Found::Plain
        }
        // As it is: moved, it would be answered by a port that its client does not know.
        Inserted::Taken if asker != Asker::Pod && !uplink::sees_answers(packet, s) => Found::Plain,
        Inserted::Taken => {
            s.value.flags = CT_DIRECT | if asker == Asker::Pod { 0 } else { CT_WORLD };
            match enter(s, false, now) {
                Begun::Flow => Found::Flow,
                _ => Found::Plain,
            }
        }
    }
}

#[inline(never)]
fn frontend(s: &mut Scratch, scope: u8) -> bool {
    s.frontend = FrontendKey { addr: s.key.dst, port: s.key.dport, proto: s.key.proto, scope };
    match service::find(&s.frontend, || false) {
        Some(service) => {
            s.service = service;
            true
        }
        None => false,
    }
}

/// The entry of a flow to a backend, still from the client's own address and port.
#[inline(always)]
fn propose(s: &mut Scratch, backend_id: u32, backend: Backend, now_secs: u32) {
    s.value = CtValue {
        src: s.key.src,
        dst: backend.addr(),
        sport: s.key.sport,
        dport: backend.port(),
        difference: 0,
        service_id: s.service.service_id,
        backend_id,
        node: 0,
        began_secs: now_secs,
        seen_secs: now_secs,
        state: CtState::New.number(),
        flags: 0,
        pad: [0; 2],
    };
}

/// From where a backend is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Source {
    /// From a port that is the client's, if it is free.
    Kept,
    /// From another port.
    Moved,
    /// Not at all: wrapped, but not for a backend here.
    Stray,
    /// Not at all: no address of this node is known that it would answer to.
    Unknown,
}

/// Decides on the source.
#[inline(never)]
fn source(s: &mut Scratch, asker: Asker, backend: Backend) -> Source {
    let Some(config) = maps::config() else { return Source::Unknown };
    let overlay = config.overlay(s.is_ipv6());
    if asker != Asker::Pod {
        s.value.flags |= CT_WORLD;
    }
    let is_here = backend.is_local() || maps::node_address(&s.value.dst) & ADDRESS_OWN != 0;
    match asker {
        Asker::Pod if s.value.dst == s.key.src => masquerade(s, overlay),
        Asker::Pod if u16::from_be_bytes(s.key.sport) < PRIVILEGED => Source::Kept,
        Asker::Pod => Source::Moved,
        Asker::World | Asker::Node if is_here => {
            if asker == Asker::Node {
                s.value.flags |= CT_UNWRAPPED;
            }
            Source::Kept
        }
        Asker::Node => Source::Stray,
        Asker::World => {
            let can_wrap = backend.node() != 0 && config.dsr_ifindex() != 0;
            if s.service.flags & SERVICE_DSR != 0 && can_wrap {
                s.value.flags |= CT_WRAPPED | CT_ALONE;
                s.value.node = backend.node();
                if !may_begin(s) {
                    s.value.state = CtState::Joined.number();
                }
                return Source::Kept;
            }
            let is_outside = backend.node() == 0 || maps::node_address(&s.value.dst) != 0;
            if !is_outside {
                return masquerade(s, overlay);
            }
            // What is no pod does not know the way to overlay addresses: it is asked from the address that the client asked, if
            // that is the host's, or else from the one that the host has outside.
            s.frontend.addr = s.key.dst;
            if maps::node_address(&s.key.dst) & ADDRESS_OWN == 0 {
                s.frontend.addr = config.underlay(s.is_ipv6());
            }
            if is_unspecified(&s.frontend.addr) {
                return Source::Unknown;
            }
            s.value.src = s.frontend.addr;
            s.value.flags |= CT_SOURCE;
            Source::Moved
        }
    }
}

#[inline(always)]
fn masquerade(s: &mut Scratch, addr: &Address) -> Source {
    if is_unspecified(addr) {
        return Source::Unknown;
    }
    s.value.src = *addr;
    s.value.flags |= CT_SOURCE;
    Source::Moved
}

/// Finds a source port for the flow in [`Scratch::value`] and inserts both directions.
#[inline(always)]
fn enter(s: &mut Scratch, keep_port: bool, now_secs: u32) -> Begun {
    s.value.difference = difference(&s.key, &s.value);
    if s.value.flags & CT_ALONE == 0 {
        match claim_port(s, keep_port, now_secs) {
            Inserted::Yes => {}
            Inserted::Taken => {
                maps::count(Counter::SnatPortExhausted);
                return Begun::Ports;
            }
            Inserted::Full => {
                maps::count(Counter::CtFull);
                return Begun::Full;
            }
        }
    }
    if !ct_maps::set_fresh(&s.key, &s.value) {
        ct_maps::remove_fresh(&s.peer_key);
        maps::count(Counter::CtFull);
        return Begun::Full;
    }
    ct_maps::activate();
    if s.value.flags & CT_DIRECT == 0 {
        maps::count_connection(s.value.service_id);
    }
    if s.value.sport != s.key.sport && (keep_port || s.value.flags & CT_DIRECT != 0) {
        maps::count(Counter::PortMoved);
    }
    maps::count(Counter::FlowBegun);
    Begun::Flow
}

/// Tries source ports until one is free.
#[inline(never)]
fn claim_port(s: &mut Scratch, keep_port: bool, now_secs: u32) -> Inserted {
    let (first, last) = maps::config().map_or((0, 0), |config| config.source_ports());
    let ports = if first == 0 || last < first { 0 } else { u32::from(last - first) + 1 };
    // Without a range of ours nothing but the client's own port is left to try.
    if keep_port || ports == 0 {
        let outcome = claim(s, now_secs, ports == 0);
        if outcome != Inserted::Taken || ports == 0 {
            return outcome;
        }
    }
    s.search =
        Search { first: u32::from(first), ports, number: random(), now_secs, outcome: Inserted::Taken };
    route::repeat(ATTEMPTS, try_port);
    s.search.outcome
}

/// One attempt; 1 ends the search. (A program of 32 attempts in a row would be too long for the verifier.)
extern "C" fn try_port(attempt: u32, _: *mut core::ffi::c_void) -> i64 {
    let Some(s) = ct_maps::scratch() else { return 1 };
    let Search { first, ports, number, now_secs, .. } = s.search;
    if ports == 0 {
        return 1;
    }
    let number = if attempt < ATTEMPTS_APART { random() } else { number.wrapping_add(1) };
    s.search.number = number;
    s.value.sport = ((first + number % ports) as u16).to_be_bytes();
    s.search.outcome = claim(s, now_secs, attempt >= ATTEMPTS_APART);
    i64::from(s.search.outcome != Inserted::Taken)
}

/// Inserts the entry for the answers where there is none (or only one of a flow that is over). `is_short`: where there is nothing
/// else, one whose flow has come to its end will do.
#[inline(never)]
pub(crate) fn claim(s: &mut Scratch, now_secs: u32, is_short: bool) -> Inserted {
    ct::mirror(s);
    match ct_maps::add_fresh(&s.peer_key, &s.peer) {
        Inserted::Full => return Inserted::Full,
        Inserted::Taken => {
            let Some(entry) = ct_maps::fresh(&s.peer_key) else { return Inserted::Taken };
            // That of the same client and frontend is what was left when the other direction was evicted.
            // Of several CPUs that see it unused the one that writes the time first has it.
            let age = entry.age();
            if !entry.is_like(&s.peer)
                && !(may_go(entry, s.key.proto, now_secs, is_short) && entry.take(age, now_secs))
            {
                return Inserted::Taken;
            }
            if !ct_maps::set_fresh(&s.peer_key, &s.peer) {
                return Inserted::Full;
            }
        }
        Inserted::Yes => {}
    }
    // Whoever moves a flow to CT_LIVE has it there before it is gone from CT_NEW.
    if let Some(entry) = ct_maps::live(&s.peer_key) {
        if !entry.is_like(&s.peer) && !may_go(entry, s.key.proto, now_secs, is_short) {
            ct_maps::remove_fresh(&s.peer_key);
            return Inserted::Taken;
        }
        ct_maps::remove_live(&s.peer_key);
    }
    Inserted::Yes
}

#[inline(always)]
fn may_go(entry: Entry, proto: u8, now_secs: u32, is_short: bool) -> bool {
    if is_short { entry.is_free(proto, now_secs) } else { entry.is_expired(proto, now_secs) }
}
