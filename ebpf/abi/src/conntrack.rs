// SPDX-License-Identifier: Apache-2.0
//! Flows of the packet path.

use crate::address::Address;

/// [`CtKey::direction`]: from the client, as it came in.
pub const CT_ORIGINAL: u8 = 0;
/// [`CtKey::direction`]: from the backend, as it sends.
pub const CT_REPLY: u8 = 1;

/// One direction of a flow. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CtKey {
    /// Source.
    pub src: Address,
    /// Destination.
    pub dst: Address,
    /// Source port, network order.
    pub sport: [u8; 2],
    /// Destination port, network order.
    pub dport: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// [`CT_ORIGINAL`] or [`CT_REPLY`].
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// A packet whose fragments are on their way. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// Source.
    pub src: Address,
    /// Destination.
    pub dst: Address,
    /// Identification, as it lies in the packet (IPv4: in the first two bytes).
    pub id: [u8; 4],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// The ports that its first fragment had. 4 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentValue {
    /// Source port, network order.
    pub sport: [u8; 2],
    /// Destination port, network order.
    pub dport: [u8; 2],
}

// The layouts are the ABI: a change here must fail to compile before it confuses a running program.
const _: () = {
    assert!(size_of::<CtKey>() == 40);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentValue>() == 4);
};
