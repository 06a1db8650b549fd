// SPDX-License-Identifier: Apache-2.0
//! Datagrams from the underlay into weft-wireguard's engine: from anybody, and from a peer that is hostile. Whatever comes costs a
//! drop at most; what reaches the TUN is what the peer sealed and may send; the next good packet of the peer gets through.
//!
//! An input is a byte (0: datagrams come one by one, else merged as the kernel does) and records of one byte for the kind, two for
//! the length (big endian), and so many bytes; the last may be short. Kinds, modulo 5: 0 the datagram itself; 1 a packet inside the
//! tunnel, sealed by the peer; 2 the same, one byte of the datagram damaged, the first two bytes say where and how; 3 the counter and
//! the rest of a data message for the peer's session; 4 a handshake's first message, from the peer (no bytes) or from a stranger, the
//! first two bytes say where it is damaged and how.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use ipnet::IpNet;
use netd_wireguard::engine::probe::Probe;
use netd_wireguard::segment::{READ_MAX, Split, VNET_HEADER_LEN, ip_len, source};
use netd_wireguard::{DeviceChange, PeerChange, PrivateKey};

/// A session is made anew before it ends by itself.
const SESSION_MAX: Duration = Duration::from_secs(60);
/// Sessions that the peer begins beside its own. The engine keeps eight of a peer, and more are the peer's own loss.
const BEGUN_MAX: usize = 6;
/// For the handshake over loopback.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a packet grows by.
const OVERHEAD: usize = 32;
/// Datagrams that the kernel merges at most, in bytes.
const MERGED_MAX: usize = 65_507;
/// The device's key, the peer's, and that of nobody it knows.
const DEVICE_KEY: [u8; 32] = [7; 32];
const PEER_KEY: [u8; 32] = [9; 32];
const STRANGER_KEY: [u8; 32] = [11; 32];
/// What the peer may send from.
const PREFIXES: [&str; 2] = ["10.244.1.0/26", "fd00:10:244:1::/64"];
/// Of the peer.
const INDEX: u32 = 5;

thread_local! {
    /// Kept from one input to the next, for a handshake costs more than a hundred inputs. Not put back after a failure.
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

pub(super) fn check(input: &[u8]) -> String {
    let kept = PAIR.take().filter(|pair| pair.made.elapsed() < SESSION_MAX && pair.begun < BEGUN_MAX / 2);
    let mut pair = kept.unwrap_or_else(Pair::new);
    let before = pair.lost();
    let delivered = pair.run(input);
    let after = pair.lost();
    let what = after.iter().filter(|(what, count)| before.get(*what) != Some(count));
    let what: Vec<&str> = what.map(|(what, _)| what.as_str()).collect();
    PAIR.set(Some(pair));
    let (packets, supers) = delivered;
    format!("{} in {}, {}", packets.min(9), supers.min(5), what.join(" "))
}

/// The engine, and a peer with a session.
struct Pair {
    engine: Probe,
    peer: Tunn,
    /// The peer once more, started anew, and the stranger.
    beginners: [Tunn; 2],
    /// How often the first of them did.
    begun: usize,
    /// Where the engine sends the peer's datagrams.
    socket: UdpSocket,
    at: SocketAddr,
    /// Of the engine for this session, as the peer's messages carry it.
    session: [u8; 4],
    made: Instant,
}

impl Pair {
    fn new() -> Self {
        let mut engine = Probe::new().unwrap();
        let (device, peer) = (PrivateKey::from(DEVICE_KEY), PrivateKey::from(PEER_KEY));
        let prefixes = PREFIXES.map(|prefix| prefix.parse().unwrap());
        let of_peer = PeerChange { add_allowed_ips: prefixes.into(), ..PeerChange::new(peer.public()) };
        let change = DeviceChange {
            private_key: Some(Some(device.clone())),
            listen_port: Some(0),
            peers: vec![of_peer],
            ..DeviceChange::default()
        };
        engine.device().set(change).unwrap();
        let tunn = |key: [u8; 32], index| {
            let device = (*device.public().as_bytes()).into();
            Tunn::new(x25519::StaticSecret::from(key), device, None, None, index, None)
        };
        let mut peer = tunn(PEER_KEY, INDEX);
        let beginners = [tunn(PEER_KEY, INDEX + 1), tunn(STRANGER_KEY, INDEX + 2)];
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let at = socket.local_addr().unwrap();

        let mut buffer = [0; 2_048];
        let initiation = to_network(peer.format_handshake_initiation(&mut buffer, false));
        engine.receive(&initiation, initiation.len(), at);
        engine.turn();
        let mut response = [0; 2_048];
        let length = socket.recv(&mut response).expect("the engine answers a handshake");
        let keepalive = to_network(peer.decapsulate(None, &response[..length], &mut buffer));
        let session = keepalive[4..8].try_into().unwrap();
        engine.receive(&keepalive, keepalive.len(), at);
        engine.turn();
        Self { engine, peer, beginners, begun: 0, socket, at, session, made: Instant::now() }
    }

    /// How many packets reached the TUN, and in how many super-packets.
    fn run(&mut self, input: &[u8]) -> (usize, usize) {
        let (merged, records) = input.split_first().map_or((false, input), |(byte, rest)| (*byte != 0, rest));
        let mut expected = Vec::new();
        let mut datagrams = Vec::new();
        for (kind, bytes) in Records(records) {
            let datagram = match kind % 5 {
                0 => bytes.to_vec(),
                1 => {
                    expected.extend(accepted(bytes));
                    self.seal(bytes)
                }
                2 if bytes.len() > 2 => {
                    let datagram = self.seal(&bytes[2..]);
                    damaged(datagram, bytes[0], bytes[1].max(1))
                }
                4 if bytes.is_empty() && self.begun >= BEGUN_MAX => continue,
                4 => {
                    self.begun += usize::from(bytes.is_empty());
                    let (at, how) = (bytes.first().copied(), bytes.get(1).copied().unwrap_or(0));
                    let beginner = &mut self.beginners[usize::from(at.is_some())];
                    let mut buffer = [0; 2_048];
                    let initiation = to_network(beginner.format_handshake_initiation(&mut buffer, true));
                    damaged(initiation, at.unwrap_or(0), how)
                }
                _ => [&4_u32.to_le_bytes()[..], &self.session, bytes].concat(),
            };
            datagrams.push(datagram);
        }
        self.give(&datagrams, merged);
        // Sealed for a receiver that the kernel cut elsewhere, a packet may be lost, but nothing is made up.
        let (delivered, supers) = self.delivered();
        check_delivered(&expected, &delivered, merged);
        // All of it again: nobody gets a packet twice.
        self.give(&datagrams, merged);
        assert_eq!(self.delivered(), (vec![], 0), "replayed");

        let good = good_packet();
        let sealed = self.seal(&good);
        self.give(&[sealed], false);
        assert_eq!(self.delivered(), (vec![good], 1), "the next good packet");
        (delivered.len(), supers)
    }

    fn give(&mut self, datagrams: &[Vec<u8>], merged: bool) {
        if merged {
            let mut bytes = datagrams.concat();
            bytes.truncate(MERGED_MAX);
            let segment = datagrams.first().map_or(1, Vec::len);
            self.engine.receive(&bytes, segment, self.at);
        } else {
            datagrams.iter().for_each(|datagram| self.engine.receive(datagram, datagram.len(), self.at));
        }
        self.engine.turn();
        // Cookies and answers: nobody reads them, and they must not stay.
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 2_048]).is_ok() {}
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; packet.len() + OVERHEAD + 148];
        to_network(self.peer.encapsulate(packet, &mut buffer))
    }

    /// What is in the TUN, super-packets cut as the kernel would; and how many those were.
    fn delivered(&mut self) -> (Vec<Vec<u8>>, usize) {
        let mut packets = Vec::new();
        let supers = self.engine.delivered();
        let count = supers.len();
        for mut packet in supers {
            assert!(packet.len() <= READ_MAX, "{} bytes", packet.len());
            let ip = source(&packet[VNET_HEADER_LEN..]).expect("an IP packet");
            assert!(
                PREFIXES.iter().any(|prefix| prefix.parse::<IpNet>().unwrap().contains(&ip)),
                "from {ip}"
            );
            // One whose headers beyond the source mean nothing goes as it is.
            let plain = packet[VNET_HEADER_LEN..].to_vec();
            match Split::new(&mut packet) {
                Ok(mut split) if split.count() > 1 => {
                    while let Some(segment) = split.next_segment() {
                        packets.push(segment.to_vec());
                    }
                }
                _ => packets.push(plain),
            }
        }
        (packets, count)
    }

    fn lost(&self) -> BTreeMap<String, u64> {
        let lost = self.engine.lost();
        let counters = lost.split(' ').filter_map(|counter| counter.split_once('='));
        counters.map(|(what, count)| (what.to_owned(), count.parse().unwrap())).collect()
    }
}

fn damaged(mut datagram: Vec<u8>, at: u8, how: u8) -> Vec<u8> {
    let at = usize::from(at) % datagram.len();
    datagram[at] ^= how;
    datagram
}

/// What is delivered is what was sealed, once each, and all of it where datagrams come as they were sent.
fn check_delivered(expected: &[Vec<u8>], delivered: &[Vec<u8>], merged: bool) {
    let mut left: Vec<Vec<u8>> = expected.iter().map(|packet| without_identity(packet)).collect();
    for packet in delivered {
        let packet = without_identity(packet);
        let at = left.iter().position(|expected| *expected == packet);
        assert!(at.is_some(), "delivered and never sealed: {packet:02x?} of {expected:02x?}");
        left.swap_remove(at.unwrap());
    }
    assert!(merged || left.is_empty(), "sealed and not delivered: {left:02x?}");
}

/// A packet that may not be cut has an identification that means nothing (RFC 6864): segments of one super-packet count on from the
/// first's, whatever theirs were. It and the header's checksum over it are no part of the comparison.
fn without_identity(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The packet as the device has to pass it on, padding cut; `None` where it has to drop it.
fn accepted(packet: &[u8]) -> Option<Vec<u8>> {
    let packet = &packet[..ip_len(packet)?];
    let ip: IpAddr = source(packet)?;
    let is_allowed = PREFIXES.iter().any(|prefix| prefix.parse::<IpNet>().unwrap().contains(&ip));
    is_allowed.then(|| packet.to_vec())
}

/// UDP from the peer's address, without a payload.
fn good_packet() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 244, 1, 9, 10, 244, 2, 9];
    packet.extend([0x30, 0x39, 0, 80, 0, 8, 0, 0]);
    packet
}

fn to_network(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("the peer has no session: {other:?}"),
    }
}

struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [kind, high, low, rest @ ..] = self.0 else { return None };
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        self.0 = rest;
        Some((*kind, bytes))
    }
}
