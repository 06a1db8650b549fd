// SPDX-License-Identifier: Apache-2.0
//! UDP outside the tunnel: many datagrams per system call, both ways, IPv4 and IPv6.
//!
//! `Socket` is one bound socket, [`Sender`] collects datagrams into groups of one size for one peer,
//! [`Receiver`] takes what waits.

mod address;
mod receive;
mod send;
mod socket;

pub(crate) use address::Endpoint;
pub(crate) use receive::{Datagrams, Message, Receiver, SLOT_BYTES};
pub(crate) use send::{Flushed, Sender};
pub(crate) use socket::Sockets;

/// Datagrams of one size that one send takes: kernels before 6.9 refuse more.
const GROUP_SEGMENTS_MAX: usize = 64;
/// Payload of one send: the largest UDP datagram over IPv4, which the kernel checks before it cuts.
const GROUP_BYTES_MAX: usize = 65_507;

#[cfg(test)]
mod tests;
