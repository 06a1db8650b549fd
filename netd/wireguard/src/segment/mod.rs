// SPDX-License-Identifier: Apache-2.0
//! Segmentation offload in user space: what a network card would do, between the TUN device and the cipher.
//!
//! The TUN device hands over and takes TCP and UDP packets of up to 64 KiB with a virtio-net header. WireGuard carries
//! packets of the tunnel's MTU. [`Split`] cuts the large into the small in place; [`Coalescer`] puts small ones of one
//! flow together again, without a copy. Both know only bytes: no I/O, no clock, no allocation per packet.

pub mod checksum;
mod coalesce;
mod flow;
mod packet;
mod split;
mod vnet;

#[cfg(test)]
mod tests;

pub use coalesce::{Coalescer, Coalescing, PushError, SEGMENTS_MAX, SuperPacket, UDP_SEGMENTS_MAX};
pub use packet::{destination, ip_len, source};
pub use split::{SegmentError, Split};
pub use vnet::{READ_MAX, VNET_HEADER_LEN, VnetHeader};
